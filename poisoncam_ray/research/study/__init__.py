"""The study: a grid of search settings, measured against the truth on finished runs.

grid.py         what is varied
runs.py         which runs are measured
images.py       the images of a run, their true boxes, and their clusters for every K
plan.py         the passes through the encoder, and the rows they give
flops.py        floating-point operations of a forward pass and of Grad-CAM
measure.py      one pass, evaluated for all settings that share it
job.py          all passes on the cluster; a killed job resumes
summary.py      means over runs, with intervals
lines.py        the lines of the plots
rules.py        runs, or stored candidates, decided again with other rules
strata.py       trigger detection in clusters of poison and in clusters of natural images
poison_rate.py  the figures of a results table by poison rate
plots.py, text.py, results.py   the plots, study.md, and all files
"""

"""The study: a grid of settings measured against truth on finished runs, one table, plots.

grid.py       what is varied
runs.py       which runs, found and named
images.py     of a run: the images looked at, their true boxes, their clusters for every K
measure.py    one pass of masks through the encoder, read in every way
job.py        all passes over the cluster, and what is left of them when the job is killed
summary.py    means over runs, with intervals
poison_rate.py, plots.py, text.py   what is told of them
"""

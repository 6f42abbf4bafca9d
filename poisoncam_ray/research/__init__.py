"""Research: what tests the defence. The defence imports nothing from here.

commands.py   the commands attack and evaluate
corpora.py    labels of a corpus, and copies of a corpus with other images
attacks/      poisons a corpus and writes the truth
evaluate/     measures a run against the truth; the results table
study/        measures search settings on finished runs
benchmark/    speed and memory
demo/         a drawn corpus, for a run without photographs
"""

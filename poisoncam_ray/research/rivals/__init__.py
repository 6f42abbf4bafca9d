"""Rivals: other ways of finding poisoned images, beside the defence on the same corpora and encoders.

Each gives every image a score. Only measure.py reads the truth.

windows.py           descriptors of all windows of a picture
joined_windows.py    windows of other images that look the same
recurring.py         a rival without any model: patches that recur in many images
on_corpus.py         that rival on a corpus, and its files
attacked.py          corpora of several attacks, for its table
on_features.py       outliers, spectral signatures and activation clustering, on an encoder's features
on_run.py            all rivals on a finished run, beside the defence
measure.py           scores against the truth
page.py              rows as Markdown and JSON
"""

"""The report of a run: one static, self-contained HTML page, and the table of the removed images.

`gather.py` reads the run folder into a `PageContent` (model.py), `page.py` renders it.
"""

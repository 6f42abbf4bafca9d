"""The tables of jobs/results/rivals.md are those of the rows committed beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poisoncam_ray.research.rivals.page import ON_CORPUS, ON_RUN, table

RESULTS = Path(__file__).parents[3] / "jobs" / "results"


@pytest.mark.parametrize(
    ("file", "columns", "key"),
    [("rivals-recurring.jsonl", ON_CORPUS, "setting"), ("rivals-runs.jsonl", ON_RUN, "run")],
)
def test_every_row_is_shown_as_it_was_measured(file: str, columns: dict[str, str], key: str) -> None:
    rows = [json.loads(line) for line in (RESULTS / file).read_text().splitlines()]
    text = (RESULTS / "rivals.md").read_text()
    assert rows
    for group in dict.fromkeys(row[key] for row in rows):
        lines = table([row for row in rows if row[key] == group], columns)
        assert "\n".join(lines) in text, group

"""The page is written from benchmark.json alone; the committed page is that of the committed figures."""

from __future__ import annotations

import json

import pytest

from poisoncam_ray.research.benchmark.page import markdown, short
from poisoncam_ray.research.benchmark.parts import NAMES
from tests.small import ROOT

COMMITTED = sorted((ROOT / "jobs" / "results").glob("benchmark.json"))


@pytest.mark.parametrize("figures", COMMITTED, ids=lambda path: path.name)
def test_the_committed_page_is_that_of_the_committed_figures(figures):
    tree = json.loads(figures.read_text())
    assert markdown(tree) == figures.with_suffix(".md").read_text()
    assert tree["parts"].keys() <= set(NAMES)
    assert not any(part["quick"] or "failed" in part for part in tree["parts"].values())


@pytest.mark.parametrize(
    ("value", "told"), [(0.012345, "0.0123"), (12.345, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value, told):
    assert short(value) == told

"""jobs/study.py: mistakes are told before Ray is there."""

import runpy

import pytest

from poisoncam_ray.errors import UserError
from tests.small import ROOT

JOB = ROOT / "jobs" / "study.py"


@pytest.fixture(scope="module")
def study():
    return runpy.run_path(str(JOB))["study"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"grid": "huge", "table": "t"}, "no grid 'huge'"),
        ({"images": 0, "table": "t"}, "images=0"),
        ({}, "either --table, or --run"),
        ({"table": "t", "run": ["r"], "truth": ["x"]}, "either --table, or --run"),
        ({"run": ["r"], "truth": ["x"], "only": "patch"}, "--only picks runs of a --table"),
        ({"run": ["r"]}, "one --truth for each --run"),
        ({"table": "nowhere"}, "no finished run"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(study, tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        study(**{"output": str(tmp_path / "out"), "grid": "small", "images": None, "seed": None} | given)
    assert not list(tmp_path.iterdir())

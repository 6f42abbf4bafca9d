"""Thousands of damaged tars beside a whole one: every sample that is announced lives or is dead."""

from tests.fuzz.harness import fuzz


def test_every_sample_of_a_damaged_tar_is_accounted_for(tmp_path):
    outcomes = fuzz("tar", 1500, tmp_path)
    assert outcomes["refused"] < 220
    assert min(outcomes[way] for way in ("all rows live", "some rows live", "all rows dead")) > 50

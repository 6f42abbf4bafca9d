"""Hundreds of damaged Arrow streams beside a whole one: every row that is announced lives or is dead."""

from tests.fuzz.harness import fuzz


def test_every_row_of_a_damaged_stream_is_accounted_for(tmp_path):
    outcomes = fuzz("arrow", 800, tmp_path)
    assert not outcomes["refused"]
    assert min(outcomes[way] for way in ("all rows live", "some rows live", "all rows dead")) > 30

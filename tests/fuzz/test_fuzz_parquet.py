"""Thousands of damaged Parquet shards beside a whole one: every row that is announced lives or is dead."""

from tests.fuzz.harness import fuzz


def test_every_row_of_a_damaged_shard_is_accounted_for(tmp_path):
    outcomes = fuzz("parquet", 1500, tmp_path)
    assert outcomes["refused"] < 220
    assert min(outcomes[way] for way in ("all rows live", "some rows live", "all rows dead")) > 100

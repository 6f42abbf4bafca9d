"""Thousands of damaged images of every format: each decodes or says why not, in bounded time and memory."""

from tests.fuzz.harness import fuzz


def test_every_damaged_image_is_accounted_for(tmp_path):
    outcomes = fuzz("image", 12_000, tmp_path)
    # The damage must neither be harmless nor stop at the first byte.
    assert min(outcomes["decoded"], outcomes["undecodable"], outcomes["truncated"]) > 600
    assert outcomes["bomb"] > 60

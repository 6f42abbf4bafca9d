"""Damaged checkpoints, zipped, legacy and safetensors: each is read or refused in words."""

from tests.fuzz.harness import fuzz


def test_every_damaged_checkpoint_is_read_or_refused(tmp_path):
    outcomes = fuzz("checkpoint", 1500, tmp_path)
    assert min(outcomes["read"], outcomes["refused"]) > 100

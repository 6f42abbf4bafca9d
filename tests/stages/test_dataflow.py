"""How many reading tasks run at once."""

from __future__ import annotations

import pytest

from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.dataflow import readers


@pytest.mark.parametrize(("setting", "slices", "size"), [("2", 1, 1), ("2", 40, 2), ("null", 1, None)])
def test_there_are_no_more_readers_than_slices(setting, slices, size):
    """Ray Data prints a warning where there are."""
    assert readers(load_config(overrides=[f"resources.readers={setting}"]), slices).size == size

"""How many reading tasks run at once, and how many actors a stage may have."""

from __future__ import annotations

import pytest
import ray
import torch

from poisoncam_ray.config import Resources
from poisoncam_ray.settings import load_config, presets
from poisoncam_ray.stages.compute import set_threads
from poisoncam_ray.stages.dataflow import readers
from poisoncam_ray.stages.ray_cluster import actors_at_most


@pytest.mark.parametrize(("setting", "slices", "size"), [("2", 1, 1), ("2", 40, 2), ("null", 1, None)])
def test_there_are_no_more_readers_than_slices(setting, slices, size):
    """Ray Data prints a warning where there are."""
    assert readers(load_config(overrides=[f"resources.readers={setting}"]), slices).size == size


EIGHT = {"CPU": 80.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("resources", "has", "workers", "actors"),
    [
        ({"actors": 3}, EIGHT, 8, 3),
        ({"cpus_per_actor": 4, "gpus_per_actor": 1}, EIGHT, 1, 8),
        ({"cpus_per_actor": 4, "gpus_per_actor": 0.5}, EIGHT, 8, 16),
        ({"cpus_per_actor": 20, "gpus_per_actor": 1}, EIGHT, 1, 4),
        ({"cpus_per_actor": 4}, EIGHT, 8, 20),
        ({"cpus_per_actor": 4, "gpus_per_actor": 1}, {"CPU": 640.0, "GPU": 64.0}, 8, 64),
        # An autoscaler has taken its nodes away, or a spot node is gone: they come back for the actors.
        ({"cpus_per_actor": 4, "gpus_per_actor": 1}, {"CPU": 0.0}, 8, 8),
        ({"cpus_per_actor": 4, "gpus_per_actor": 1}, {"CPU": 10.0, "GPU": 1.0}, 8, 8),
        # It waits, and that is said.
        ({"cpus_per_actor": 4, "gpus_per_actor": 1}, {"CPU": 8.0}, 1, 1),
    ],
)
def test_actors_are_as_many_as_the_cluster_holds(monkeypatch, resources, has, workers, actors):
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    assert actors_at_most(Resources(**{"actors": None, **resources}), workers) == actors


def test_the_presets_for_gpus_fix_neither_actors_nor_readers():
    for config in map(load_config, sorted(presets())):
        if config.resources.gpus_per_actor:
            assert config.resources.actors is None and config.resources.readers is None


def test_without_a_number_of_actors_each_has_as_many_threads_as_cpus():
    before = torch.get_num_threads()
    try:
        set_threads(Resources(actors=None, cpus_per_actor=3.5), None)
        assert torch.get_num_threads() == 3
        set_threads(Resources(actors=None, cpus_per_actor=0.5), None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)

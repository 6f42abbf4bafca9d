"""Shared fixtures: one Ray cluster a session, the real photographs, small corpora."""

from __future__ import annotations

from pathlib import Path

import pytest

# First: it sets what Ray reads when a test module imports it.
import poisoncam_ray  # noqa: F401

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Tiny ImageNet's 100 classes, which are never copied into the repository."""
    folder = DATA / "tiny-imagenet-100"
    if not folder.is_dir():
        pytest.skip(
            "the photographs (shared/data/tiny-imagenet-100 beside the project) are not on this machine"
        )
    return folder


@pytest.fixture(scope="session")
def triggers() -> Path:
    folder = DATA / "htba-triggers"
    if not folder.is_dir():
        pytest.skip("the triggers (shared/data/htba-triggers beside the project) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A real Ray on this machine, as the stages start it."""
    import ray

    from poisoncam_ray.stages.dataflow import connect

    connect()
    yield
    ray.shutdown()

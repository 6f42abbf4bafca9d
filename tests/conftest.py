"""Shared fixtures: one Ray cluster a session, the real photographs, small corpora."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Read when torch is imported, here, in drivers and in their workers. With more busy processes than cores,
# threads that wait by spinning cost a small training five times its CPU time. The bits stay the same.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# No test asks a hub for anything; read when huggingface_hub and datasets are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# First: it sets what Ray reads when a test module imports it.
import poisoncam_ray  # noqa: F401
from tests.chaos import Chaos
from tests.cluster import shut_down_ray
from tests.s3 import S3Server
from tests.wheel import Installed, install

# The same examples on every machine: a test run must not fail by chance. To look for more counterexamples:
# pytest --hypothesis-profile thorough (the option is read after this file). No deadline in either: a busy
# machine is not a mistake in the code.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=2000)
settings.load_profile("steady")

DATA = Path(__file__).parents[2] / "shared" / "data"
KINDS = ("cluster", "s3", "e2e", "fuzz")
"""Markers of tests that are not unit tests."""
FOLDERS = {"end_to_end": "e2e", "integration": "cluster", "fuzz": "fuzz"}
FIXTURES = {"ray_cluster": "cluster", "nodes": "cluster", "s3": "s3"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="unit tests only: under two minutes on two cores")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test its kind, by its folder and fixtures; unit where none applies."""
    folders = item.path.relative_to(Path(__file__).parent).parts
    used = {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES}
    used |= {FOLDERS[name] for name in folders if name in FOLDERS}
    # A fixture that a test asks for by name while it runs is none of its arguments.
    used |= {"s3"} if "[s3" in item.name else set()
    for kind in used:
        item.add_marker(kind)
    if not any(item.get_closest_marker(kind) for kind in KINDS):
        item.add_marker("unit")


STARTS_RAY = re.compile(r"mark\.cluster|def \w+\([^)]*\bray_cluster\b")
LONGEST_FIRST = ("end to end", "nodes", "ray")


@cache
def scope_of(file: str) -> str:
    """Tests of one scope run in one process of pytest-xdist, one after the other.

    Tests that start Ray wait more than they compute, so two of these scopes run beside each other. Clusters
    of several nodes have their addresses for themselves; in each scope clusters and finished runs are shared.
    Unit tests, whose files are scopes of their own, fill the gaps.
    """
    text = (Path(__file__).parents[1] / file).read_text()
    if "end_to_end/" in file:
        return "end to end"
    if "RayNodes" in text:
        return "nodes"
    return "ray" if STARTS_RAY.search(text) else file


class RayApart(LoadScopeScheduling):
    """Deals the scopes out to the processes, in the order of the collected tests."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayApart:
    return RayApart(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        slow = [item for item in items if not item.get_closest_marker("unit")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item.get_closest_marker("unit")]
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        rank = {scope: i for i, scope in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: rank.get(scope_of(item.nodeid.partition("::")[0]), len(rank)))


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
def installed(tmp_path_factory) -> Installed:
    return install(tmp_path_factory.mktemp("install"))


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray cluster for all tests that use Ray in this process."""
    from poisoncam_ray.stages.ray_cluster import start_ray

    with pytest.MonkeyPatch.context() as patch:
        # By default a process reports what it counted every ten seconds.
        patch.setenv("RAY_metrics_report_interval_ms", "2000")
        start_ray()
    yield
    shut_down_ray()


# Not for the session: after some minutes of use an idle server takes a fifth of a core.
@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[S3Server]:
    """A real S3 server; a test that kills it starts it again."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def chaos(s3) -> Iterator[Chaos]:
    """A fault proxy before the server: clients come this way with `s3.environment(chaos.endpoint)`."""
    with Chaos(s3.port) as proxy:
        yield proxy


@pytest.fixture
def use_s3(monkeypatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Leads this process's own S3 clients by the variables given, until the test ends."""
    from poisoncam_ray.s3 import PatientS3

    def use(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        PatientS3.clear_instance_cache()

    yield use
    PatientS3.clear_instance_cache()

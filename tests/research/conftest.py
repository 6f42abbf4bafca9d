"""A made-up finished run, shared by the tests of a file."""

import pytest

from tests.fake_run import FakeRun, make_fake_run


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return make_fake_run(tmp_path_factory.mktemp("fake"))

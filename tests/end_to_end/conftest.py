"""The embedded demo, run once on local disk for all tests that read its result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.small import defend


@pytest.fixture(scope="session")
def local_demo(tmp_path_factory) -> tuple[Path, subprocess.Popen]:
    """The demo's folder, and the process that has ended."""
    folder = tmp_path_factory.mktemp("local") / "demo"
    return folder, defend("--output", str(folder), timeout=1700)

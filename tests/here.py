"""The command line within this process, for what ends before Ray is started."""

from __future__ import annotations

import contextlib
import io
import signal
import sys

import pytest

from poisoncam_ray.commands.defend import defend
from poisoncam_ray.program import run_program


def defend_here(*arguments: str) -> tuple[int, str]:
    """Run a defence that has nothing to do, or is refused. A process of its own would take seconds to start.

    Args:
        arguments: of the command.

    Returns:
        The exit code, and what was written on standard output and standard error.
    """

    def started() -> None:
        raise AssertionError("Ray was started")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr("poisoncam_ray.stages.ray_cluster.start_ray", started)
        patch.setattr(sys, "argv", ["defend.py", *arguments])
        try:
            run_program(defend)
        except SystemExit as ended:
            code = ended.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    assert isinstance(code, int)
    return code, said.getvalue()

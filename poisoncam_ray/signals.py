"""SIGTERM (`ray job stop`, an evicted pod) and SIGINT (Ctrl-C) end a program by way of its `finally`s."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT)
_received: list[signal.Signals] = []


def end_on_signals() -> None:
    """From now on either signal raises SystemExit in the main thread; a second one ends the process at once.

    To be called again after `ray.init`, which puts a handler of its own in the place of ours.
    """
    if threading.current_thread() is threading.main_thread():
        _received.clear()
        for number in _ENDING:
            signal.signal(number, _end)


def ended_by() -> signal.Signals | None:
    """The signal that came. Ray's calls lose the exit code of what a handler raises: 128 + this is it."""
    return _received[0] if _received else None


def _end(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    for each in _ENDING:
        signal.signal(each, signal.SIG_DFL)
    raise SystemExit(128 + number)

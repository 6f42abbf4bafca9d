"""SIGTERM (`ray job stop`, an evicted pod) and SIGINT (Ctrl-C) end a program through its `finally` blocks."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGINT)
_received: list[signal.Signals] = []


def end_on_signals() -> None:
    """Make either signal raise SystemExit in the main thread. A second signal ends the process at once.

    Call it again after `ray.init`, which installs a handler of its own. Does nothing off the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        _received.clear()
        for number in _ENDING:
            signal.signal(number, _end)


def ended_by() -> signal.Signals | None:
    """The signal that was received. Ray's calls lose the exit code that a handler raises: it is 128 +
    this."""
    return _received[0] if _received else None


def _end(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    for each in _ENDING:
        signal.signal(each, signal.SIG_DFL)
    raise SystemExit(128 + number)

"""A lease lets one driver at a time work on a run folder. Two drivers would overwrite each other's shards.

The driver with the highest numbered file in `work/lease/` holds the lease. A driver takes it by creating the
next number, which succeeds for one of several. The holder rewrites its file every ten seconds. Another driver
watches that file by its own clock, and takes over when the file has not changed for a minute, or at once when
the holder was a process of the same machine that has ended.

The file also says how far the holder's work is. `holder` reads it, for `poisoncam status`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from poisoncam_ray.artifact import LEASE
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.store import create_once, delete

BEAT_S = 10.0
# A live driver cannot be silent for so long: one interval, one hanging attempt, the wait before the next one.
WATCH_S = 60.0
LOOK_S = 2.0
RELEASE_S = 10.0


class LeaseLostError(RuntimeError):
    """Another driver has taken over the run folder while this one was silent."""


class Lease:
    """Holds a run folder for as long as the `with` block lasts. Entering raises UserError when another driver
    works there.

    Args:
        run: the run folder.
        tell: is called with a sentence when another driver's lease has to be watched.
        beat_s: seconds between two renewals.
        watch_s: seconds without a renewal after which another driver's lease is taken over.
        work: how far the holder's work is, as JSON values; None while there is nothing to say.
    """

    def __init__(
        self,
        run: Folder,
        tell: Callable[[str], None] = lambda _: None,
        beat_s: float = BEAT_S,
        watch_s: float = WATCH_S,
        work: Callable[[], Mapping[str, Any] | None] = lambda: None,
    ) -> None:
        self._run, self._folder, self._tell = run, run / LEASE, tell
        self._beat_s, self._watch_s, self._work = beat_s, watch_s, work
        self._number, self._beat = 0, 0
        self._state = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _now(),
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        while not self._number:
            highest = self._highest()
            free = not highest or self._is_free(highest) or self._is_silent(highest)
            if free and create_once(self._folder.uri, _name(highest + 1), self._content()):
                self._number = self._settle(highest + 1)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # The driver ends even when the store does not answer. Others then see a lease that is not renewed.
        self._thread.join(RELEASE_S)

    def held(self) -> bool:
        """Whether no other driver has taken over. Asks the store."""
        return self._highest() <= self._number

    def check(self) -> None:
        """Refuse to go on after another driver has taken over.

        Raises:
            LeaseLostError: nothing may be committed any more.
        """
        if not self.held():
            raise LeaseLostError(f"another driver has taken over {self._run.uri}: this one stops")

    def _settle(self, number: int) -> int:
        """`number` when the lease is ours; 0 when a higher number exists, so that our file came too late."""
        numbers = self._numbers()
        if max(numbers, default=number) > number:
            delete(self._folder.uri, _name(number))
            return 0
        for lower in numbers:
            if lower < number:
                delete(self._folder.uri, _name(lower))
        return number

    def _is_free(self, number: int) -> bool:
        state = _parsed(self._read(number))
        if state.get("released"):
            return True
        return state.get("machine") == self._state["machine"] and not _is_alive(state.get("pid"))

    def _is_silent(self, number: int) -> bool:
        """Watch another driver's lease. True when it was not renewed, False when it was released or followed.

        Raises:
            UserError: it was renewed, so the other driver is at work.
        """
        first = self._read(number)
        state = _parsed(first)
        who = f"process {state.get('pid', '?')} on {state.get('host', '?')}"
        self._tell(
            f"{who} holds {self._run.uri}: looking for up to {self._watch_s:.0f} s whether it still runs"
        )
        silent, look = 0.0, min(LOOK_S, self._watch_s / 10)
        while silent < self._watch_s:
            time.sleep(look)
            # Only successful reads count: while the store does not answer, the holder cannot renew either.
            silent += look
            now = self._read(number)
            if self._highest() != number or _parsed(now).get("released"):
                return False
            if now != first:
                raise UserError(
                    f"{self._run.uri} is in use by another driver ({who}, since "
                    f"{state.get('started', '?')}): wait for it, stop it, or use another output folder."
                )
        return True

    def _keep(self) -> None:
        """The thread that renews the lease. It is the only writer of our file."""
        while not self._stop.wait(self._beat_s):
            # The store may not answer; the next interval tries again.
            with contextlib.suppress(Exception):
                if not self.held():
                    return
                self._beat += 1
                self._folder.write_bytes(_name(self._number), self._content())
        with contextlib.suppress(Exception):
            if self.held():
                self._folder.write_bytes(_name(self._number), self._content(released=True))

    def _content(self, released: bool = False) -> bytes:
        now = {"beat": self._beat, "released": released, "at": _now(), "work": self._work()}
        return json.dumps(self._state | now, indent=1).encode()

    def _numbers(self) -> list[int]:
        return _numbers(self._folder)

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _read(self, number: int) -> bytes:
        return _read(self._folder, number)


@dataclass(frozen=True)
class Holder:
    """The driver whose lease is the latest of a run folder, as its file says.

    Attributes:
        host: its machine's name.
        pid: its process number there.
        started: when it took the lease (ISO 8601, UTC).
        at: when it wrote last, by its own clock (ISO 8601, UTC).
        work: how far its work is; None between stages.
        ended: it has given the lease back, or was a process of this machine that is gone.
    """

    host: str
    pid: int | None
    started: str
    at: str
    work: dict[str, Any] | None
    ended: bool

    def silent_s(self) -> float | None:
        """Seconds since it wrote last, if its clock and ours agree; None where it does not say."""
        try:
            return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds())
        except (TypeError, ValueError):
            return None


def holder(run: Folder) -> Holder | None:
    """Read who holds, or held last, the lease of a run folder. Nothing is written.

    Returns:
        None where no driver has left a lease.
    """
    folder = run / LEASE
    numbers = _numbers(folder)
    if not numbers:
        return None
    state = _parsed(_read(folder, numbers[-1]))
    gone = state.get("machine") == _machine() and not _is_alive(state.get("pid"))
    pid, work = state.get("pid"), state.get("work")
    return Holder(
        host=str(state.get("host", "?")),
        pid=pid if isinstance(pid, int) else None,
        started=str(state.get("started", "?")),
        at=str(state.get("at", "")),
        work=work if isinstance(work, dict) else None,
        ended=bool(state.get("released")) or gone,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _numbers(folder: Folder) -> list[int]:
    stems = (name.removesuffix(".json") for name in folder.names())
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _read(folder: Folder, number: int) -> bytes:
    try:
        return folder.read_bytes(_name(number))
    except FileNotFoundError:
        return b""


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _parsed(content: bytes) -> dict[str, Any]:
    """The content as a dictionary; empty for a file that is gone, or half written on a disk without hard
    links."""
    try:
        state = json.loads(content)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _machine() -> str:
    """Identifies the running system and the container, within which a process number has one meaning. Unique
    to this process where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return uuid.uuid4().hex

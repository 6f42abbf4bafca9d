"""Progress on the console: a bar on a terminal, lines in a log that become rarer the longer a stage runs.

It also holds how far the work is, for the lease, which carries it to `poisoncam status`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from poisoncam_ray.folder import Manifest

FIRST_S = 15.0
"""Seconds until a log has a line about a stage under work. Each further wait is twice as long, up to
LONGEST_S."""
LONGEST_S = 300.0
BAR_WIDTH = 20


@dataclass
class Work:
    """How far a stage is.

    Attributes:
        title: the stage.
        clock: seconds, from any point.
        done: how much is done, what earlier attempts did included.
        total: of how much; None where nobody knows.
        unit: of what: 'slices'.
        note: what else there is to say.
        waiting: what the work waits for; empty while it does not.
    """

    title: str
    clock: Callable[[], float]
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    waiting: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self._started = self.moved = self._counted_from = self.clock()
        """`moved`: when something was done last."""
        self._before = 0

    def go_on(self, done: int, total: int | None, unit: str, note: str) -> None:
        """Take over how far it is now. What the first call of a unit says was done before this attempt."""
        now = self.clock()
        if unit != self.unit or done < self.done:
            self._before, self._counted_from = done, now
        if (done, unit) != (self.done, self.unit):
            self.moved, self.waiting = now, ""
        self.done, self.total, self.unit, self.note = done, total, unit, note

    @property
    def here(self) -> int:
        """How much this attempt has done."""
        return self.done - self._before

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self.clock() - self._started

    @property
    def rate(self) -> float | None:
        """How much this attempt does in a second; None before it has done anything."""
        seconds = self.clock() - self._counted_from
        return self.here / seconds if self.here > 0 and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is done, at the rate until now; None where it cannot be told."""
        rate = self.rate
        return None if rate is None or self.total is None else max(0, self.total - self.done) / rate

    def as_json(self) -> dict[str, Any]:
        """All of it, for other processes."""
        rate, left = self.rate, self.seconds_left
        return {
            "stage": self.title,
            "began": self.began.isoformat(timespec="seconds"),
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "note": self.note,
            "waiting": self.waiting,
            "rate": None if rate is None else round(rate, 4),
            "seconds_left": None if left is None else round(left),
        }


class Progress:
    """Prints which stage runs, how far it is, and how it ended.

    Attributes:
        console: where it prints.
        title: the title of the stage that began last; empty before the first.
        work: how far the stage under work is; None between stages.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.title = ""
        self.work: Work | None = None
        self._clock = clock
        self._bar: Bar | None = None
        self._wait_s, self._due = FIRST_S, 0.0
        self._lines = 0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage; inside this context `update` prints its progress."""
        self.title, self.work = title, Work(title, self._clock)
        self._wait_s, self._due, self._lines = FIRST_S, self._clock() + FIRST_S, 0
        try:
            if not self.console.is_terminal:
                self.console.print(f"{title:<9} …")
                yield
                return
            told = TextColumn(
                "{task.fields[told]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            columns = (TextColumn("{task.description}"), BarColumn(BAR_WIDTH), told, TimeElapsedColumn())
            with Bar(*columns, console=self.console, transient=True, refresh_per_second=4) as self._bar:
                self._bar.add_task(f"{title:<9}", total=None, told="")
                yield
        finally:
            self._bar = self.work = None

    def update(self, done: int, total: int | None = None, unit: str = "", note: str = "") -> None:
        """Say how far the stage is. The first call says what earlier attempts did, which no rate counts.

        Args:
            done: how much is done, from 0.
            total: of how much; None where nobody knows.
            unit: of what, in the plural: 'slices'. Another unit begins another count.
            note: what else there is to say: 'loss 3.21'.
        """
        if self.work is None:
            return
        resumed = unit != self.work.unit and done > 0
        self.work.go_on(done, total, unit, note)
        # The last line of a count belongs to a log that has lines between.
        last = done == total and self._lines > 0
        self._show(at_once=resumed or last)

    def wait_for(self, what: str) -> None:
        """Say what the stage waits for, until something is done or nothing is waited for any more.

        Args:
            what: 'waiting for 8 GPUs, the cluster has 4'; empty: it waits no longer.
        """
        if self.work is None:
            return
        begins = bool(what) and not self.work.waiting
        self.work.waiting = what
        if what or self._bar:
            self._show(at_once=begins)

    @property
    def idle_s(self) -> float:
        """Seconds since the stage under work has done something, or has begun; 0 between stages."""
        work = self.work
        return self._clock() - work.moved if work else 0.0

    def as_json(self) -> dict[str, Any] | None:
        """How far the stage under work is, for other processes; None between stages."""
        work = self.work
        return work.as_json() if work else None

    def skip(self, title: str) -> None:
        """Print that an earlier run has committed the stage."""
        self.console.print(f"{title:<9} done before, nothing to do")

    def finish(self, title: str, manifest: Manifest) -> None:
        """Print the summary of a committed stage and its time."""
        summary = manifest.facts.get("summary", "")
        self.console.print(f"{title:<9} {escape(str(summary))} ({manifest.seconds:.0f} s)")

    def _show(self, at_once: bool) -> None:
        work, now = self.work, self._clock()
        if work is None:
            return
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=work.done, total=work.total, told=describe(work.as_json()))
        elif at_once or now >= self._due:
            if now >= self._due:
                self._wait_s = min(2 * self._wait_s, LONGEST_S)
            self._due, self._lines = now + self._wait_s, self._lines + 1
            so_far = "" if work.unit else f", {duration(work.elapsed)} so far"
            told = escape(describe(work.as_json()) + so_far)
            self.console.print(f"{work.title:<9} {time.strftime('%H:%M:%S')} {told}")


def describe(work: Mapping[str, Any]) -> str:
    """How far a stage is, on one line.

    Args:
        work: of `Work.as_json`.
    """
    parts = []
    if work["unit"]:
        of = "" if work["total"] is None else f" of {work['total']:,}"
        parts.append(f"{work['done']:,}{of} {work['unit']}")
    parts += [work["note"]] if work["note"] else []
    if work["waiting"]:
        return ", ".join([*parts, work["waiting"]])
    parts += [per_time(work["rate"])] if work["rate"] else []
    parts += [f"{duration(work['seconds_left'])} left"] if work["seconds_left"] else []
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people: '42 s', '5 min', '1 h 05 min', '3 d 2 h'."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def per_time(rate: float) -> str:
    """A rate for people, from a rate a second: '120/s', '3.2/s', '40/min', '2.5/h'."""
    units = {"s": 1, "min": 60, "h": 3600}
    name = next((unit for unit, seconds in units.items() if rate * seconds >= 1), "h")
    n = rate * units[name]
    return f"{n:,.0f}/{name}" if n >= 10 else f"{n:.1f}/{name}"

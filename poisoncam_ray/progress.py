"""One progress line per stage: alive on a terminal, plain lines in logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from poisoncam_ray.folder import Manifest

LOG_EVERY_S = 15.0


class Progress:
    """Says which stage runs, how far it is, and how it ended. `title` is the stage last begun."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self.title = ""
        self._said = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self.title, self._said = title, time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{title:<9} …")
            yield
            return
        with self.console.status(f"{title} …") as self._status:
            yield
        self._status = None

    def update(self, text: str) -> None:
        """`text` says how far: '12 of 40 slices'."""
        if self._status is not None:
            self._status.update(f"{self.title:<9} {escape(text)}")
        elif time.monotonic() - self._said > LOG_EVERY_S:
            self._said = time.monotonic()
            self.console.print(f"{self.title:<9} {escape(text)}")

    def skip(self, title: str) -> None:
        self.console.print(f"{title:<9} done before, nothing to do")

    def finish(self, title: str, manifest: Manifest) -> None:
        said = manifest.facts.get("summary", "")
        self.console.print(f"{title:<9} {escape(str(said))} ({manifest.seconds:.0f} s)")

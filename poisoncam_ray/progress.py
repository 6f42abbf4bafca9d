"""Progress on the console: a line that is updated in place on a terminal, plain lines in a log."""

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
    """Prints which stage runs, how far it is, and how it ended.

    Attributes:
        console: where it prints.
        title: the title of the stage that began last; empty before the first.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self.title = ""
        self._printed_at = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage; inside this context `update` prints its progress."""
        self.title, self._printed_at = title, time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{title:<9} …")
            yield
            return
        with self.console.status(f"{title} …") as self._status:
            yield
        self._status = None

    def update(self, text: str) -> None:
        """Print the progress of the stage, in a log at most every LOG_EVERY_S seconds.

        Args:
            text: how far the stage is: '12 of 40 slices'.
        """
        if self._status is not None:
            self._status.update(f"{self.title:<9} {escape(text)}")
        elif time.monotonic() - self._printed_at > LOG_EVERY_S:
            self._printed_at = time.monotonic()
            self.console.print(f"{self.title:<9} {escape(text)}")

    def skip(self, title: str) -> None:
        """Print that an earlier run has committed the stage."""
        self.console.print(f"{title:<9} done before, nothing to do")

    def finish(self, title: str, manifest: Manifest) -> None:
        """Print the summary of a committed stage and its time."""
        summary = manifest.facts.get("summary", "")
        self.console.print(f"{title:<9} {escape(str(summary))} ({manifest.seconds:.0f} s)")

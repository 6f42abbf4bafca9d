"""One thing that is wrong in a run folder."""

from __future__ import annotations

from dataclasses import dataclass

# What is wrong. The rows are named by their image ids.
UNFINISHED = "stage not committed"
LEDGER = "ledger does not balance"
INPUT = "made from another input"
COUNT = "wrong count"
SCORES = "scores of other rows"
MARKER = "marker missing or wrong"
LISTED = "list of rows wrong"
LOST = "row lost"
TWICE = "row twice"
REMOVED = "removed wrongly"
KEPT = "kept wrongly"
HASH = "wrong hash"
FOREIGN = "not of the corpus"
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Defect:
    """A defect: what, where, and the difference.

    Attributes:
        what: one of the kinds above.
        where: the image id, or the file in the run folder.
        expected: what should be.
        found: what is.
    """

    what: str
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: {self.where}: expected {self.expected}, found {self.found}"

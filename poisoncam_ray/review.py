"""What people decided about a finished run: an append-only log in the run folder, and the rows it keeps.

Each entry is a file that is created once and never written again. Ids lie beside it as Parquet, because there
may be millions. A decision about a family is logged with the ids of its images, because a redo of the verdict
numbers the families anew. The state is what the entries say in their order: of several that name an image,
the last one counts.
"""

from __future__ import annotations

import getpass
import json
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import fingerprint
from poisoncam_ray.folder import Folder, part_index
from poisoncam_ray.store import create_once, in_parallel

RESTORE, REJECT, ACCEPT, UNDO = "restore", "reject", "accept", "undo"
"""Restore and reject keep the rows they name although they were flagged. Undo takes that back. Accept
changes no row."""
IDS_SHOWN = 5
_PREFIX = "entry-"


@dataclass(frozen=True)
class Entry:
    """One decision.

    Attributes:
        number: its place in the log, from 1.
        action: RESTORE, REJECT, ACCEPT or UNDO.
        who: who decided.
        when: in UTC, ISO 8601.
        note: why; may be empty.
        images: how many flagged images it concerned.
        family: the trigger family whose images it names, as it was numbered then; None where it names ids.
        ids: the file beside it that holds the ids; None where a family is accepted, which changes no row.
    """

    number: int
    action: str
    who: str
    when: str
    note: str
    images: int
    family: int | None = None
    ids: str | None = None


@dataclass(frozen=True)
class Named:
    """The flagged images that a decision names.

    Attributes:
        family: all images of this family; None where ids are named.
        ids: these images.
    """

    family: int | None = None
    ids: frozenset[str] = frozenset()

    def holds(self, image_id: str, family: int) -> bool:
        return image_id in self.ids if self.family is None else family == self.family

    def __str__(self) -> str:
        return f"family {self.family}" if self.family is not None else f"{len(self.ids):,} ids"


def whoever() -> str:
    """The user and the machine of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def entries(run: Folder) -> list[Entry]:
    """The log of a run, in order."""
    log, known = run / artifact.REVIEW, {field.name for field in fields(Entry)}
    trees = in_parallel(log.read_json, _names(log))
    return [
        Entry(number=number, **{name: value for name, value in tree.items() if name in known})
        for number, tree in zip(map(_number, _names(log)), trees, strict=True)
    ]


def digest(log: Folder) -> str | None:
    """A hash of the whole log; None while it is empty."""
    names = _names(log)
    if not names:
        return None
    contents = in_parallel(log.read_bytes, names)
    return fingerprint(dict(zip(names, (content.decode() for content in contents), strict=True)))


def append(run: Folder, action: str, named: Named, images: int, who: str, note: str) -> Entry:
    """Add an entry to the log.

    Args:
        run: the run folder.
        action: RESTORE, REJECT, ACCEPT or UNDO.
        named: the images.
        images: how many flagged images these are.
        who: who decided.
        note: why.
    """
    log, token = run / artifact.REVIEW, uuid.uuid4().hex
    ids, image_ids = None, named.ids
    if named.family is not None and action != ACCEPT:
        rows = (row for of_slice in flagged(run).values() for row in of_slice.items())
        image_ids = frozenset(image_id for image_id, family in rows if family == named.family)
    if image_ids:
        ids = f"ids-{token}.parquet"
        log.write_table(ids, pa.table({"image_id": pa.array(sorted(image_ids), pa.string())}))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    number = max(map(_number, _names(log)), default=0)
    while True:
        number += 1
        entry = Entry(number, action, who, when, note, images, named.family, ids)
        tree = {name: value for name, value in asdict(entry).items() if name != "number"} | {"token": token}
        if create_once(log.uri, f"{_PREFIX}{number:06d}.json", json.dumps(tree, indent=1).encode()):
            return entry


class Decisions:
    """The state of the log of a run.

    Args:
        run: the run folder.

    Attributes:
        run: the run folder.
        entries: the log.
    """

    def __init__(self, run: Folder) -> None:
        self.run, self.entries = run, entries(run)
        self._keeping: dict[str, Entry | None] = {}
        for entry in self.entries:
            if entry.action != ACCEPT and entry.ids is not None:
                ids = (run / artifact.REVIEW).read_table(entry.ids)["image_id"].to_pylist()
                self._keeping |= dict.fromkeys(ids, None if entry.action == UNDO else entry)

    def keeps(self, image_id: str) -> Entry | None:
        """The entry that keeps a flagged image; None where it stays removed."""
        return self._keeping.get(image_id)

    @cached_property
    def flagged(self) -> dict[int, dict[str, int]]:
        """The flagged images by slice, each with its family. Reads all scores, once."""
        return flagged(self.run)

    def restored(self) -> dict[int, dict[str, Entry]]:
        """The flagged images that are kept, by slice, each with the entry that keeps it. Reads all scores, if
        there is any entry that acts."""
        if not self._keeping:
            return {}
        found = {}
        for index, rows in self.flagged.items():
            kept = {image_id: self.keeps(image_id) for image_id in rows}
            if here := {image_id: entry for image_id, entry in kept.items() if entry is not None}:
                found[index] = here
        return found


def flagged(run: Folder) -> dict[int, dict[str, int]]:
    """The images that Judge flagged, by slice, each with its family. Slices without any are left out."""
    scores = run / artifact.SCORES

    def read(name: str) -> dict[str, int]:
        table = scores.read_table(name, ["image_id", "fate", "family"])
        table = table.filter(pc.equal(table["fate"], artifact.REMOVE))
        return dict(zip(table["image_id"].to_pylist(), table["family"].to_pylist(), strict=True))

    parts = scores.parts()
    found = zip(map(part_index, parts), in_parallel(read, parts), strict=True)
    return {index: rows for index, rows in found if rows}


def concerned(run: Folder, action: str, named: Named) -> dict[int, int]:
    """How many images a decision concerns, by slice.

    Args:
        run: the run folder.
        action: what is to be done.
        named: the images.

    Raises:
        UserError: an id is not among the flagged, no image of the family is, or what is to be undone was not
            restored.
    """
    state = Decisions(run) if action == UNDO else None
    found: dict[int, int] = {}
    left = set(named.ids)
    for index, rows in flagged(run).items():
        for image_id, family in rows.items():
            if named.holds(image_id, family) and (state is None or state.keeps(image_id)):
                found[index] = found.get(index, 0) + 1
                left.discard(image_id)
    among = "restored" if action == UNDO else "flagged"
    if left:
        shown = ", ".join(sorted(left)[:IDS_SHOWN])
        more = f" and {len(left) - IDS_SHOWN:,} more" if len(left) > IDS_SHOWN else ""
        raise UserError(
            f"Not among the {among} images of {run.uri}: {shown}{more}. Take ids from "
            f"{artifact.PAGE}/{artifact.REMOVED_CSV} or {artifact.PAGE}/{artifact.RESTORED_CSV}."
        )
    if not found:
        raise UserError(f"No {among} image of {run.uri} is of {named}: give another family, or ids.")
    return found


def counts(kept: Iterable[Entry]) -> dict[str, int]:
    """How many images each person restored, from the entry of each image."""
    return dict(sorted(Counter(entry.who for entry in kept).items()))


def told(restored: Mapping[str, int]) -> str:
    """How many images were restored, and by whom: 'restored: 3 by ann, 1 by ben'; empty where none were."""
    return "restored: " + ", ".join(f"{n:,} by {who}" for who, n in restored.items()) if restored else ""


def _names(log: Folder) -> list[str]:
    return [name for name in log.names() if name.startswith(_PREFIX) and name.endswith(".json")]


def _number(name: str) -> int:
    return int(name.removeprefix(_PREFIX).removesuffix(".json"))

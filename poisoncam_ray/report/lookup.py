"""Finds single images in the artifacts of a run, without reading the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from poisoncam_ray import artifact
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, part_name

KEPT, REMOVED, DEAD = "kept", "removed", "dead"
PARTS_HELD = 64
PARTS_COMPARED = 16
"""Parts in which ids like an unknown one are looked for."""
MOST_FOUND = 100
SUGGESTED = 3


@dataclass(frozen=True)
class ImageRecord:
    """What a run knows of an image. None where it does not apply, or where the stage is not committed.

    Attributes:
        fate: KEPT, REMOVED or DEAD, as Judge decided: a review may have restored a removed image.
        part: the name of the part that holds the image, in every artifact.
        width: of the stored image, in pixels.
        height: the same.
        sha256: of the stored bytes, in hex.
        p_poison: the probability of poison, 0 … 1; from 0.5 on the image is removed.
        family: the trigger family that it was removed for; 0 for none.
        box: where the trigger is, [x0, y0, x1, y1) in pixels of the stored image.
        cluster: its cluster.
        reason: why it is dead, in words.
    """

    image_id: str
    source: str
    row: int
    fate: str
    part: str
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    p_poison: float | None = None
    family: int = 0
    box: tuple[int, int, int, int] | None = None
    cluster: int | None = None
    reason: str | None = None


class Lookup:
    """Finds images by their ids.

    Args:
        run: a run folder whose Index stage is committed. A few parts are held in memory.
    """

    def __init__(self, run: Folder) -> None:
        self.run = run
        wanted = ["index", "source", "start", "stop", "files"]
        self._slices = (run / artifact.INDEX).read_table(artifact.SLICES, wanted)
        self._read = lru_cache(PARTS_HELD)(self._read_part)

    def find(self, image_id: str) -> ImageRecord | None:
        """The record of an image; None when the run has no such image."""
        part = self._part_of(image_id)
        if part is None:
            return None
        row = self._row(artifact.INDEX, part, image_id)
        if row is None:
            return self._dead(part, image_id) or self._without_image(part, image_id)
        score = self._row(artifact.SCORES, part, image_id) or {}
        cluster = self._row(artifact.CLUSTERS, part, image_id) or {}
        box = tuple(score[side] for side in SIDES) if score.get("x0") is not None else None
        return ImageRecord(
            image_id,
            row["source"],
            row["row"],
            REMOVED if score.get("fate") == artifact.REMOVE else KEPT,
            part,
            row["width"],
            row["height"],
            row["sha256"],
            score.get("p_poison"),
            score.get("family") or 0,
            box,  # type: ignore[arg-type]
            cluster.get("cluster"),
        )

    def named(self, text: str) -> ImageRecord:
        """The record of the image that someone means.

        Args:
            text: an image id, the end of one, or the number of a row.

        Raises:
            UserError: no image is called so, or several are.
        """
        if record := self.find(text):
            return record
        found = self._ending(f"#{text}" if text.isascii() and text.isdecimal() else text)
        # The last words of a path come before the end of a word.
        whole = [name for name in found if name.removesuffix(text).endswith(("/", "#"))]
        chosen = whole if len(whole) == 1 else found
        if len(chosen) == 1 and (record := self.find(chosen[0])):
            return record
        if len(chosen) > 1:
            some = ", ".join(map(repr, chosen[:SUGGESTED]))
            raise UserError(f"{text!r} is the end of several image ids ({some} …): give the whole id.")
        near = ", ".join(map(repr, self._similar(text)))
        raise UserError(f"The run {self.run.uri} has no image {text!r}; the nearest ids are {near}.")

    def _ending(self, end: str) -> list[str]:
        """A few ids that end so, dead rows among them."""
        found: list[str] = []
        for ids in self._ids():
            found += ids.filter(pc.ends_with(ids, end)).to_pylist()
            if len(found) > MOST_FOUND:
                break
        return found

    def _similar(self, text: str) -> list[str]:
        """The ids most like the text, among those of the first parts."""
        best: list[str] = []
        for ids in islice(self._ids(), PARTS_COMPARED):
            best = difflib.get_close_matches(text, [*best, *ids.to_pylist()], SUGGESTED, cutoff=0.0)
        return best

    def _ids(self) -> Iterator[pa.ChunkedArray]:
        """The ids of the indexed and of the dead rows, part by part."""
        for name in (artifact.INDEX, artifact.DEAD_ROWS, f"{artifact.INDEX}/{artifact.NO_IMAGE}"):
            folder = self.run / name
            for part in folder.parts():
                yield folder.read_table(part, ["image_id"])["image_id"]

    def _dead(self, part: str, image_id: str) -> ImageRecord | None:
        row = self._row(artifact.DEAD_ROWS, part, image_id)
        if row is None:
            return None
        reason = f"{row['error']}: {row['message']}"
        return ImageRecord(image_id, row["source"], row["row"], DEAD, part, reason=reason)

    def _without_image(self, part: str, image_id: str) -> ImageRecord | None:
        row = self._row(f"{artifact.INDEX}/{artifact.NO_IMAGE}", part, image_id)
        return ImageRecord(image_id, row["source"], row["row"], KEPT, part) if row else None

    def _part_of(self, image_id: str) -> str | None:
        """The name of the part whose slice has the image."""
        table = self._slices
        files = table["files"].combine_chunks()
        at = pc.index(files.flatten(), image_id).as_py() if files.null_count < len(files) else -1
        if at >= 0:
            place = pc.list_parent_indices(files)[at].as_py()
            return part_name(table["index"][place].as_py())
        source, hash_, row = image_id.rpartition("#")
        if not hash_ or not (row.isascii() and row.isdecimal()) or len(row) > 18:
            return None
        number = int(row)
        held = pc.and_(pc.less_equal(table["start"], number), pc.greater(table["stop"], number))
        held = pc.and_(held, pc.and_(pc.equal(table["source"], source), pc.is_null(table["files"])))
        found = table.filter(held)["index"].to_pylist()
        return part_name(found[0]) if found else None

    def _row(self, name: str, part: str, image_id: str) -> dict[str, Any] | None:
        table = self._read(name, part)
        if table is None:
            return None
        at = pc.index(table["image_id"], image_id).as_py()
        return table.slice(at, 1).to_pylist()[0] if at >= 0 else None

    def _read_part(self, name: str, part: str) -> pa.Table | None:
        folder = self.run / name
        return folder.read_table(part) if folder.exists(part) else None

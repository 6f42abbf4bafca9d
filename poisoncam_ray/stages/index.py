"""Index: list every row of the corpus, with an id and a digest if its image decodes, as dead otherwise. A row
whose image is null is neither: it has nothing to judge, and is kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Row, Slice, Source
from poisoncam_ray.corpus.slices import same_cut, slice_table, source_table
from poisoncam_ray.decode import DecodeError, header
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import STARTED, Folder, Ledger, part_name
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.check import find_problems, refuse_problems
from poisoncam_ray.stages.dataflow import missing, stream_slices
from poisoncam_ray.stages.pixels import decode_indexed
from poisoncam_ray.stages.shrunk import Copy, Encoded, copy_of, write_copies
from poisoncam_ray.store import in_parallel

ENOUGH = 1000
"""So many rows must be read before the share of dead ones stops the run."""
KINDS_SHOWN = 3
"""Kinds of errors that the message names."""


class Index(Stage):
    name = artifact.INDEX
    title = "Index"
    version = 5
    inputs = ()
    sections = ("corpus", "encoder")
    writes = (artifact.DEAD_ROWS,)

    def run(self, run: Run) -> Outcome:
        sources = run.corpus.sources()
        self._refuse_unreadable(run, sources)
        run.out.write_table(artifact.SOURCES, source_table(sources))
        cut = run.corpus.slices()
        slices = sample(cut, run.config)
        refuse_other_cut(run.out, slices)
        run.out.write_table(artifact.SLICES, slice_table(slices))
        dead_folder = run.folder / artifact.DEAD_ROWS
        todo = missing(slices, run.out)
        work = partial(index_slice, corpus=run.corpus, config=run.config, out=run.out, dead=dead_folder)
        alive_S, died, without = committed_rows(slices, todo, run.out, dead_folder)
        alive, limit = int(alive_S.sum()), run.config.corpus.max_dead_fraction
        refuse_mostly_dead(alive, died, limit, dead_folder)
        reused = len(slices) - len(todo)
        run.progress.update(reused, len(slices), "slices")
        for done, row in enumerate(stream_slices(run, todo, work), start=reused + 1):
            alive_S[row["index"]] = row["alive"]
            alive, died, without = alive + row["alive"], died + row["dead"], without + row["no_image"]
            run.progress.update(done, len(slices), "slices", f"{died:,} broken" if died else "")
            refuse_mostly_dead(alive, died, limit, dead_folder)
        rows = _rows(slices)
        if without == rows:
            raise UserError(
                f"None of the {rows} rows of {run.corpus.uri} holds an image, all are null: give a corpus "
                "that has images."
            )
        if alive == 0:
            raise UserError(
                f"None of the {rows} rows of {run.corpus.uri} holds an image that decodes: "
                f"see {dead_folder.uri} for the reasons."
            )
        refuse_mostly_dead(alive, died, limit, dead_folder, enough=1)
        run.out.write_table(artifact.SLICES, slice_table(slices, alive_S.tolist()))
        skipped = len({slice_.source for slice_ in slices if slice_.error is not None})
        whole = None if slices is cut else _rows(cut)
        copies = None if run.config.corpus.shrink_to is None else (run.out / artifact.SHRUNK).total_bytes()
        said = facts.Indexed(alive, died, len(slices), reused, skipped, whole, without, copies)
        return Outcome(said, Ledger(rows, alive, dead=died, no_image=without))

    def _refuse_unreadable(self, run: Run, sources: list[Source]) -> None:
        """Raise UserError when shards cannot be read, unless the run goes on without them."""
        if run.config.corpus.skip_unreadable:
            return
        problems = find_problems(run, sources)
        if problems and not run.out.exists(artifact.SLICES):
            # Nothing was made yet: the same folder may be used when the shards or the settings have changed.
            run.out.delete(STARTED)
        refuse_problems(run.corpus.uri, problems, len(sources))


def sample(slices: list[Slice], config: Config) -> list[Slice]:
    """Draw slices until they have `corpus.limit` rows: by a hash, because neighbouring shards may be alike.

    Args:
        slices: all slices of the corpus.
        config: the configuration, with the limit and the seed.

    Returns:
        The slices drawn, in the order of the corpus, numbered anew from 0; `slices` itself where there is no
        limit.
    """
    limit = config.corpus.limit
    if limit is None:
        return slices
    drawn: list[Slice] = []
    rows = 0
    for slice_ in sorted(slices, key=lambda slice_: _draw(slice_, config.seed)):
        if rows >= limit:
            break
        drawn.append(slice_)
        rows += slice_.stop - slice_.start
    drawn.sort(key=lambda slice_: slice_.index)
    return [replace(slice_, index=i) for i, slice_ in enumerate(drawn)]


def _draw(slice_: Slice, seed: int) -> bytes:
    place = f"{seed} {slice_.source} {slice_.start}"
    return hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _rows(slices: list[Slice]) -> int:
    return sum(slice_.stop - slice_.start for slice_ in slices)


def refuse_other_cut(index: Folder, slices: list[Slice]) -> None:
    """Raise UserError if the artifact was begun with other slices: its parts belong to other rows.

    Args:
        index: the artifact.
        slices: the slices as they are cut now.
    """
    if index.exists(artifact.SLICES) and not same_cut(index.read_table(artifact.SLICES), slice_table(slices)):
        raise UserError(
            f"A file of the corpus became readable or unreadable since {index.uri} was begun, and its rows "
            "would be counted anew: use a new output folder."
        )


def committed_rows(
    slices: list[Slice], todo: list[Slice], out: Folder, dead: Folder
) -> tuple[NDArray[np.int64], int, int]:
    """Count the rows of the slices whose parts are committed.

    Args:
        slices: all slices; S of them.
        todo: the slices without a part.
        out: the artifact.
        dead: the folder of the dead rows.

    Returns:
        alive_S, the indexed rows of each slice (0 for those in `todo`), and the numbers of dead rows and of
        rows without an image.
    """
    alive_S = np.zeros(len(slices), np.int64)
    done = sorted({slice_.index for slice_ in slices} - {slice_.index for slice_ in todo})
    names = [part_name(i) for i in done]
    alive_S[done] = in_parallel(out.rows, names)
    # The other rows of a slice are written first; its own part, written after them, commits all.
    died, without = (
        sum(in_parallel(others.rows, sorted(set(others.parts()) & set(names))))
        for others in (dead, out / artifact.NO_IMAGE)
    )
    return alive_S, died, without


def refuse_mostly_dead(alive: int, died: int, limit: float, dead: Folder, enough: int = ENOUGH) -> None:
    """Raise UserError if too many rows are dead.

    Args:
        alive: rows indexed so far.
        died: dead rows so far.
        limit: the share of dead rows that is allowed, 0 … 1.
        dead: the folder of the dead rows.
        enough: with fewer rows than this nothing is refused.
    """
    seen = alive + died
    if seen < enough or died <= limit * seen:
        return
    errors = in_parallel(lambda name: dead.read_table(name, ["error"])["error"].to_pylist(), dead.parts())
    kinds = Counter(kind for kinds in errors for kind in kinds).most_common(KINDS_SHOWN)
    said = ", ".join(f"{n:,} {kind}" for kind, n in kinds)
    raise UserError(
        f"{died:,} of the {seen:,} rows read are broken ({said}; all are listed in {dead.uri}), more than "
        f"--max-dead-fraction={limit:g} allows: the same command with a higher one goes on."
    )


def index_slice(slice_: Slice, corpus: Corpus, config: Config, out: Folder, dead: Folder) -> dict[str, Any]:
    """Index one slice. Its part holds the rows that decode and commits the slice; their copies, if the run
    keeps some, have a part in `artifact.SHRUNK`. Of the other rows, those whose image is null have a part in
    `artifact.NO_IMAGE`, and the rest is dead.

    Args:
        slice_: the slice.
        corpus: the corpus.
        config: the configuration, with the limits of an image.
        out: the folder for the part.
        dead: the folder for the dead rows of the slice.

    Returns:
        The slice's `index`, and how many of its rows are `alive`, `dead` and `no_image`.
    """
    found = _Found()
    examined = _examined(slice_, corpus, config, found)
    if config.corpus.shrink_to is None:
        for _ in examined:
            pass
    else:
        write_copies(out, part_name(slice_.index), (copy for copy in examined if copy is not None))
    for folder, rows, schema in (
        (dead, found.dead, artifact.DEAD_SCHEMA),
        (out / artifact.NO_IMAGE, found.without, artifact.NO_IMAGE_SCHEMA),
    ):
        if rows:
            folder.write_table(part_name(slice_.index), pa.Table.from_pylist(rows, schema=schema))
        else:
            # An earlier try that did not end may have left one.
            folder.delete(part_name(slice_.index))
    out.write_table(part_name(slice_.index), pa.Table.from_pylist(found.alive, schema=artifact.INDEX_SCHEMA))
    metrics.count("rows", len(found.alive), stage=Index.title)
    for kind, n in Counter(row["error"] for row in found.dead).items():
        metrics.count("dead", n, stage=Index.title, kind=kind)
    return {
        "index": slice_.index,
        "alive": len(found.alive),
        "dead": len(found.dead),
        "no_image": len(found.without),
    }


@dataclass(frozen=True)
class _Found:
    """The rows of a slice by what they are, as their tables hold them."""

    alive: list[dict[str, Any]] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    without: list[dict[str, Any]] = field(default_factory=list)


def _examined(slice_: Slice, corpus: Corpus, config: Config, found: _Found) -> Iterator[Copy | None]:
    """Sort the rows of a slice into `found`, and yield once for each that decodes: its copy, None if the run
    keeps none."""
    for row in corpus.read(slice_, whole=True):
        place: dict[str, Any] = {"image_id": row.image_id, "source": slice_.source, "row": row.row}
        if row.data is None and row.error is None:
            found.without.append(place)
            continue
        try:
            facts_of_row, copy = examine(row, config)
        except DecodeError as error:
            found.dead.append(place | {"stage": Index.title, "error": error.kind, "message": str(error)})
        else:
            found.alive.append(place | facts_of_row)
            yield copy


def examine(row: Row, config: Config) -> tuple[dict[str, Any], Copy | None]:
    """The digest, size and length that the index holds of a row; and its copy, None if the run keeps none.

    Raises:
        DecodeError: the row has no image that decodes.
    """
    if row.error:
        raise DecodeError(*row.error)
    data = row.data or b""
    width, height, _ = header(data, config.corpus.max_pixels, config.corpus.max_bytes)
    keeps = config.corpus.shrink_to is not None
    copy = copy_of(row.image_id, data, width, height, config) if keeps else None
    if copy is None:
        decode_indexed(Encoded(data), config)
        copy = Copy(row.image_id, width, height, data, None) if keeps else None
    digest = hashlib.sha256(data).hexdigest()
    return {"sha256": digest, "width": width, "height": height, "bytes": len(data)}, copy

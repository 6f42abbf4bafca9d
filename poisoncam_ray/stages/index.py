"""Index: give every row an id, prove that it decodes, count what does not. The ledger starts here."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa

from poisoncam_ray.artifact import Folder, Ledger, part_name
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.decode import DecodeError, header
from poisoncam_ray.errors import UserError
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.dataflow import decode_indexed, missing, stream_slices

INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
    ]
)
DEAD = pa.schema(
    [
        (name, pa.int64() if name == "row" else pa.string())
        for name in ("image_id", "source", "row", "stage", "error", "message")
    ]
)


class Index(Stage):
    name = "00_index"
    title = "Index"
    version = 1
    inputs = ()
    sections = ("index", "encoder")

    def run(self, run: Run) -> Outcome:
        run.out.write_json("sources.json", {s.path: [s.size, s.tag] for s in run.corpus.sources()})
        slices = run.corpus.slices()
        run.out.write_json("slices.json", [asdict(piece) for piece in slices])
        dead_folder = run.folder / "dead" / self.name
        todo = missing(slices, run.out)
        work = partial(index_slice, corpus=run.corpus, config=run.config, out=run.out, dead=dead_folder)
        fresh = {row["index"]: (row["alive"], row["dead"]) for row in stream_slices(run, todo, work)}
        # A dead part is written only where rows died, before the slice's own part commits it.
        dead_parts = set(dead_folder.parts())

        def committed(index: int) -> tuple[int, int]:
            name = part_name(index)
            return run.out.rows(name), dead_folder.rows(name) if name in dead_parts else 0

        counts = {piece.index: fresh.get(piece.index) or committed(piece.index) for piece in slices}
        alive, died = sum(a for a, _ in counts.values()), sum(d for _, d in counts.values())
        rows = sum(piece.stop - piece.start for piece in slices)
        if alive == 0:
            raise UserError(
                f"None of the {rows} rows of {run.corpus.uri} holds an image that decodes: "
                f"see {dead_folder.uri} for the reasons."
            )
        run.out.write_json("rows.json", [counts[piece.index][0] for piece in slices])
        facts = {
            "summary": f"{alive:,} images in {len(slices):,} slices" + (f", {died:,} broken" if died else ""),
            "slices": len(slices),
            "slices_reused": len(slices) - len(todo),
        }
        return Outcome(Ledger(rows, alive, dead=died), facts)


def index_slice(piece: Slice, corpus: Corpus, config: Config, out: Folder, dead: Folder) -> dict[str, Any]:
    """Index one slice: rows that decode into its part, the others into the dead letter."""
    alive_rows, dead_rows = [], []
    for row in corpus.read(piece):
        place = {"image_id": row.image_id, "source": piece.source, "row": row.row}
        data = row.data or b""
        try:
            width, height, _ = header(data, config.index.max_pixels, config.index.max_bytes)
            decode_indexed(data, config)
        except DecodeError as error:
            dead_rows.append(place | {"stage": Index.name, "error": error.kind, "message": str(error)})
            continue
        digest = hashlib.sha256(data).hexdigest()
        alive_rows.append(place | {"sha256": digest, "width": width, "height": height, "bytes": len(data)})
    if dead_rows:
        dead.write_table(part_name(piece.index), pa.Table.from_pylist(dead_rows, schema=DEAD))
    out.write_table(part_name(piece.index), pa.Table.from_pylist(alive_rows, schema=INDEX))
    return {"index": piece.index, "alive": len(alive_rows), "dead": len(dead_rows)}

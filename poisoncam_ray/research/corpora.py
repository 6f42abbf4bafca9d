"""What only attacks and evaluation do with a corpus: read its labels, and write a copy with other images.

The defence does neither. Both functions dispatch on the corpus's format.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence

import pyarrow as pa

from poisoncam_ray.corpus import Corpus, Slice
from poisoncam_ray.corpus.arrow import ArrowCorpus
from poisoncam_ray.corpus.folder import FILES_AT_ONCE, FolderCorpus, files_of
from poisoncam_ray.corpus.listing import refuse_same_place
from poisoncam_ray.corpus.parquet import ParquetCorpus
from poisoncam_ray.corpus.parquet_shard import open_shard, open_writer
from poisoncam_ray.corpus.samples import Sample, shown
from poisoncam_ray.corpus.shardfile import copy_range, copy_whole, open_file, open_sink
from poisoncam_ray.corpus.side import stats_of, table_of
from poisoncam_ray.corpus.tar import BLOCK, Member, Reader, parse_header, read_at
from poisoncam_ray.corpus.webdataset import READAHEAD, WebDatasetCorpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import in_parallel, write_bytes

# A longer text of a sample is no label.
_LABEL_MAX = 2**20


def labels(corpus: Corpus, slice_: Slice, column: str) -> list[str]:
    """Read the labels of a slice.

    Args:
        corpus: the corpus.
        slice_: one of its slices.
        column: in Parquet shards the column that holds the labels. In WebDataset shards the extension of the
            member whose text is the label (0001.cls: cls), or else a field of the JSON member; "label" also
            finds the member cls. In an image folder it is not used: the label is the name of the folder that
            holds the image, "" at the top.

    Returns:
        One label for each row of the slice, in order; "" for a row that has none or is dead.

    Raises:
        UserError: there is no such column, or no sample of the slice has such a label.
    """
    if slice_.error is not None:
        return [""] * (slice_.stop - slice_.start)
    if isinstance(corpus, ParquetCorpus):
        return _column(corpus, slice_, column)
    if isinstance(corpus, WebDatasetCorpus):
        return _texts(corpus, slice_, column)
    return ["/".join(f.split("/")[:-1]).rsplit("/", 1)[-1] for f in slice_.files or ()]


def rewrite(corpus: Corpus, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str) -> None:
    """Copy a unit of a corpus, with the bytes of some images replaced.

    Args:
        corpus: the corpus.
        unit: the slices of one of its units.
        replacements: the new bytes by image id, all of this unit.
        out_uri: the folder for the copy. Paths, layout and all else stay; a shard of WebDataset keeps its
            damage.

    Raises:
        UserError: the output is the corpus itself, a file changed or cannot be read, or the corpus was saved
            by `datasets`.
        ValueError: a replacement is for no image of the unit.
    """
    refuse_same_place(corpus.uri, out_uri)
    if isinstance(corpus, ArrowCorpus):
        raise UserError(f"{corpus.uri} was saved by datasets: export it to Parquet, which can be rewritten.")
    if isinstance(corpus, ParquetCorpus):
        _rewrite_parquet(corpus, unit, replacements, out_uri)
    elif isinstance(corpus, WebDatasetCorpus):
        _rewrite_tar(corpus, unit, replacements, out_uri)
    elif isinstance(corpus, FolderCorpus):
        _rewrite_folder(corpus, unit, replacements, out_uri)
    else:
        raise TypeError(f"no corpus of a known format: {corpus!r}")


# ---------------------------------------------------------------- Parquet


def _column(corpus: ParquetCorpus, slice_: Slice, column: str) -> list[str]:
    start, stop = slice_.start, slice_.stop
    found = [""] * (stop - start)
    with corpus.open_shard(slice_.source, slice_.version) as shard:
        names = shard.schema.names
        if column not in names:
            raise UserError(f"There is no column {column} in {slice_.source}: use one of {', '.join(names)}.")
        for batch in shard.batches(start, stop, [column]):
            values = [] if batch.error else batch.values().column(column).to_pylist()
            for row, value in enumerate(values, batch.first):
                if start <= row < stop and value is not None:
                    found[row - start] = str(value)
    return found


def _rewrite_parquet(
    corpus: ParquetCorpus, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str
) -> None:
    source = unit[0].source
    new = {int(i.rpartition("#")[2]): d for i, d in replacements.items() if i.rpartition("#")[0] == source}
    if unit[0].error is not None:
        copy_whole(corpus.uri, unit[0], out_uri)
        return
    with open_shard(corpus.uri, source, unit[0].version) as shard:
        if len(new) != len(replacements) or any(r >= shard.n_rows for r in new):
            raise ValueError(f"some of {len(replacements)} replacements are no rows of {source}")
        with open_writer(shard, out_uri) as write:
            row = 0
            for group, n in enumerate(shard.group_rows):
                write(_replace(shard.table(group, n), corpus.image_column, row, new))
                row += n


def _replace(table: pa.Table, column: str, first_row: int, new: Mapping[int, bytes]) -> pa.Table:
    """The table, whose first row is number `first_row` of its shard, with the `new` images by row number."""
    here = {r - first_row: d for r, d in new.items() if first_row <= r < first_row + len(table)}
    if not here:
        return table
    index = table.column_names.index(column)
    field = table.schema.field(index)
    chunks, start = [], 0
    for chunk in table.column(index).chunks:
        values = chunk.to_pylist()
        for row, data in here.items():
            if start <= row < start + len(values):
                old = values[row - start]
                nested = pa.types.is_struct(field.type)
                values[row - start] = {**(old or {}), "bytes": data} if nested else data
        chunks.append(pa.array(values, type=field.type))
        start += len(values)
    return table.set_column(index, field, pa.chunked_array(chunks, type=field.type))


# ---------------------------------------------------------------- WebDataset


def _texts(corpus: WebDatasetCorpus, slice_: Slice, column: str) -> list[str]:
    with open_file(corpus.uri, slice_.source, slice_.version, **READAHEAD) as file:
        found, seen = [], set[str]()
        for sample in corpus.samples(file, slice_):
            seen.update(m.extension for m in sample.members)
            found.append(None if sample.fault else _text(file, sample, column))
    if seen and all(value is None for value in found):
        raise UserError(
            f"No sample of {slice_.source} has a member {column} or a JSON field of that name: "
            f"its members are {shown(', '.join(sorted(seen)))}."
        )
    return ["" if value is None else value for value in found]


def _text(file: Reader, sample: Sample, name: str) -> str | None:
    """The text of the member `name`, or that field of the JSON member; None if there is neither."""
    by_extension = {m.extension: m for m in sample.members}
    for extension in (name, "cls") if name == "label" else (name,):
        if (member := by_extension.get(extension)) and member.size <= _LABEL_MAX:
            return read_at(file, member.data, member.size).decode("utf-8", "replace").strip()
    member = by_extension.get("json")
    if member is None or member.size > _LABEL_MAX:
        return None
    try:
        fields = json.loads(read_at(file, member.data, member.size))
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or name not in fields:
        return None
    return "" if fields[name] is None else str(fields[name])


def _rewrite_tar(
    corpus: WebDatasetCorpus, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str
) -> None:
    source = unit[0].source
    rows = {i.rpartition("#")[2]: i for i in replacements if i.rpartition("#")[0] == source}
    if len(rows) != len(replacements) or any(int(r) >= unit[-1].stop for r in rows):
        raise ValueError(f"some of {len(replacements)} replacements are no rows of {source}")
    corpus.copy_beside((table_of(source), stats_of(source)), out_uri)
    if not replacements:
        copy_whole(corpus.uri, unit[0], out_uri)
        return
    with (
        open_file(corpus.uri, source, unit[0].version, **READAHEAD) as file,
        open_sink(out_uri, source) as sink,
    ):
        at = 0
        for slice_ in unit:
            for row, sample in enumerate(corpus.samples(file, slice_), slice_.start):
                if (image_id := rows.get(str(row))) is None:
                    continue
                if sample.fault:
                    raise ValueError(f"{image_id} has no image to replace")
                image = sample.image(corpus.extension)
                copy_range(file, at, image.start, sink)
                sink.write(_renewed(file, image, replacements[image_id]))
                at = image.stop
        copy_range(file, at, file.source.size, sink)


def _renewed(file: Reader, member: Member, data: bytes) -> bytes:
    """The member with other content: headers (mode, owner and time as before), content, padding."""
    info = parse_header(read_at(file, member.data - BLOCK, BLOCK), member.start)
    info.name, info.size, info.type = member.name, len(data), tarfile.REGTYPE
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % BLOCK)


# ---------------------------------------------------------------- image folder


def _rewrite_folder(
    corpus: FolderCorpus, unit: Sequence[Slice], replacements: Mapping[str, bytes], out_uri: str
) -> None:
    files = files_of(unit)
    if unknown := set(replacements) - set(files):
        raise ValueError(f"no such images in this unit: {sorted(unknown)[:3]}")
    for first in range(0, len(files), FILES_AT_ONCE):
        chunk = files[first : first + FILES_AT_ONCE]
        stored = dict(zip(chunk, corpus.fetch(chunk), strict=True))
        in_parallel(
            lambda pair: write_bytes(out_uri, *pair), [(f, replacements.get(f, stored[f])) for f in chunk]
        )

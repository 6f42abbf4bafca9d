"""Corpora of images on any fsspec URL: tables (Parquet, Delta, Arrow), WebDataset shards, image folders.

`open_corpus` opens one. `protocol.Corpus` says what every format can do.
"""

from __future__ import annotations

import contextlib

from poisoncam_ray.config import CorpusSettings
from poisoncam_ray.container import KINDS
from poisoncam_ray.corpus.arrow import ARROW_SUFFIXES, open_saved
from poisoncam_ray.corpus.columns import find_image_column
from poisoncam_ray.corpus.delta import can_read_delta, open_delta
from poisoncam_ray.corpus.folder import FolderCorpus
from poisoncam_ray.corpus.listing import (
    IMAGE_SUFFIXES,
    PARQUET_SUFFIXES,
    is_file,
    list_sources,
    refuse_escaping_links,
)
from poisoncam_ray.corpus.metadata import is_metadata
from poisoncam_ray.corpus.parquet import ParquetCorpus
from poisoncam_ray.corpus.protocol import DEAD, KEPT, REMOVED, Corpus, Problem, Row, Slice, Source
from poisoncam_ray.corpus.shardfile import UnreadableError
from poisoncam_ray.corpus.side import key_column, table_of
from poisoncam_ray.corpus.tables import is_delta, refuse_partition
from poisoncam_ray.corpus.webdataset import TAR_SUFFIXES, WebDatasetCorpus
from poisoncam_ray.errors import UserError

__all__ = ["DEAD", "KEPT", "REMOVED", "Corpus", "Problem", "Row", "Slice", "Source", "open_by", "open_corpus"]

FORMATS = ("auto", "parquet", "folder", "webdataset", "delta", "arrow")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_corpus(
    uri: str,
    format: str = "auto",
    image_column: str | None = None,
    rows_per_slice: int = 1024,
    version: int | None = None,
    follow_links: bool = False,
) -> Corpus:
    """Open a corpus.

    Args:
        uri: a folder, whose files may lie at any depth, or one Parquet or tar file.
        format: auto, parquet, folder, webdataset, delta or arrow (what datasets.save_to_disk wrote).
        image_column: of Parquet and Arrow shards the column that holds the images, by default the only one
            that is binary or struct{bytes, path}; of WebDataset shards the extension of the member that holds
            a sample's image, by default the only member whose extension is that of an image. Not used for
            image folders.
        rows_per_slice: rows of a slice, at most.
        version: of a Delta table, the number of the version to read; None for the current one.
        follow_links: whether symbolic links on a local disk are followed out of the folder.

    Returns:
        The corpus. It holds no open handle.

    Raises:
        UserError: there is nothing at `uri`, the format or the image column cannot be told, no Parquet shard
            can be read, tars are compressed, a link leads out of the folder and is not to be followed, or
            the folder is a table of another format.
    """
    if format not in FORMATS:
        raise UserError(f"The corpus format {format} is not known: use one of {', '.join(FORMATS)}.")
    if rows_per_slice < 1:
        raise UserError(f"rows_per_slice is {rows_per_slice}: use 1 or more.")
    refuse_partition(uri)
    table = is_delta(uri)
    if format == "delta" and not table:
        raise UserError(f"There is no Delta table in {uri} (no folder _delta_log): give a table's folder.")
    if table and (format == "delta" or (format == "auto" and can_read_delta())):
        return open_delta(uri, image_column, rows_per_slice, version, follow_links)
    if version is not None and not table:
        raise UserError(f"{uri} is no Delta table: leave out corpus.version.")
    paths = [s.path for s in list_sources(uri, follow_links=follow_links)]
    shards, tars, arrows, images = (
        [p for p in paths if p.lower().endswith(suffixes)]
        for suffixes in (PARQUET_SUFFIXES, TAR_SUFFIXES, ARROW_SUFFIXES, IMAGE_SUFFIXES)
    )
    listed = set(shards)
    tables = [table for table in map(table_of, tars) if table in listed]
    if format == "auto" and tables and len(tables) == len(shards):
        shards = []  # they are no shards, but lie beside shards
    if images:
        shards = [p for p in shards if not is_metadata(p)]
    if format == "auto":
        format = _recognise(uri, paths, len(shards), len(tars), len(arrows), len(images))
    if not (follow_links or is_file(uri)):
        used = {"parquet": shards, "webdataset": tars, "arrow": arrows, "folder": images}
        refuse_escaping_links(uri, used.get(format, ()))
    if format == "parquet":
        if not shards:
            raise UserError(f"There are no .parquet files in {uri}: give a folder that has some.")
        folder_uri, only = _place(uri)
        column = find_image_column(folder_uri, shards, image_column)
        return ParquetCorpus(folder_uri, column, rows_per_slice, only, follow_links=follow_links)
    if format == "arrow":
        return open_saved(uri, image_column, rows_per_slice, follow_links)
    if format == "webdataset":
        _refuse_packed(paths)
        if not tars:
            raise UserError(f"There are no .tar files in {uri}: give a folder that has some.")
        folder_uri, only = _place(uri)
        extension = (image_column or "").removeprefix(".").lower()
        _refuse_tables_without_keys(folder_uri, tables)
        return WebDatasetCorpus(folder_uri, extension, rows_per_slice, only, bool(tables), follow_links)
    if is_file(uri):
        raise UserError(f"{uri} is a single file: give the folder that holds the images.")
    if not images:
        raise UserError(f"There are no images in {uri}: give a folder with {KINDS} files.")
    return FolderCorpus(uri, rows_per_slice, follow_links)


def _place(uri: str) -> tuple[str, str]:
    """The folder, and the file's name when `uri` is one file."""
    if not is_file(uri):
        return uri, ""
    folder, _, only = uri.rpartition("/")
    return folder or ".", only


def open_by(settings: CorpusSettings, uri: str) -> Corpus:
    """Open a corpus as the settings say.

    Args:
        settings: the section `corpus` of the configuration.
        uri: as for `open_corpus`.

    Raises:
        UserError: as `open_corpus`.
    """
    return open_corpus(
        uri,
        settings.format,
        settings.image_column,
        settings.slice_rows,
        settings.version,
        settings.follow_links,
    )


def _refuse_tables_without_keys(uri: str, tables: list[str]) -> None:
    """Raise UserError if the first table that can be read has no column for keys."""
    for table in tables:
        with contextlib.suppress(UnreadableError):
            key_column(uri, table)
            return


def _refuse_packed(paths: list[str]) -> None:
    if packed := [p for p in paths if p.lower().endswith(_PACKED)]:
        raise UserError(f"The shard {packed[0]} is compressed: unpack it to a plain .tar file.")


def _recognise(uri: str, paths: list[str], *numbers: int) -> str:
    names = {
        "parquet": "Parquet files",
        "webdataset": "tar files",
        "arrow": "Arrow files",
        "folder": "images",
    }
    counts = dict(zip(names, numbers, strict=True))
    found = [kind for kind, n in counts.items() if n]
    if len(found) > 1:
        raise UserError(
            f"{uri} mixes {' and '.join(f'{counts[k]} {names[k]}' for k in found)}: separate them, or set "
            f"the format to {' or '.join(found)} to use one kind."
        )
    if found:
        return found[0]
    if not paths:
        raise UserError(f"{uri} is empty: give a folder with Parquet files, WebDataset tars or images.")
    _refuse_packed(paths)
    raise UserError(
        f"The format of {uri} is not recognised (it holds {paths[0]}): give Parquet files (.parquet), "
        f"WebDataset shards (.tar), saved datasets (.arrow) or images ({', '.join(IMAGE_SUFFIXES)})."
    )

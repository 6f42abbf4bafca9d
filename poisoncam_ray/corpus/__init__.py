"""Corpora of images on any fsspec URL: Parquet shards, WebDataset tars or image folders, original bytes
untouched.

`open_corpus` gives a small picklable object; all kinds have the same methods: sources, check, slices, units,
read, fetch, labels, split, rewrite.
"""

from __future__ import annotations

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.columns import find_image_column
from poisoncam_ray.corpus.folder import FolderCorpus
from poisoncam_ray.corpus.parquet import ParquetCorpus
from poisoncam_ray.corpus.shardfile import Problem
from poisoncam_ray.corpus.storage import IMAGE_SUFFIXES, PARQUET_SUFFIXES, Row, Slice, Source
from poisoncam_ray.corpus.webdataset import TAR_SUFFIXES, WebDatasetCorpus
from poisoncam_ray.errors import UserError

__all__ = [
    "Corpus",
    "FolderCorpus",
    "ParquetCorpus",
    "Problem",
    "Row",
    "Slice",
    "Source",
    "WebDatasetCorpus",
    "open_corpus",
]

Corpus = ParquetCorpus | FolderCorpus | WebDatasetCorpus

FORMATS = ("auto", "parquet", "folder", "webdataset")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_corpus(
    uri: str, format: str = "auto", image_column: str | None = None, rows_per_slice: int = 1024
) -> Corpus:
    """Open the corpus at `uri`, a folder (any depth) or one Parquet or tar file.

    `format` is auto, parquet, folder or webdataset. `image_column`: the Parquet column (default: the only
    binary or struct{bytes, path} one), or the extension of a sample's image (default: the only member that is
    a JPEG, PNG or WebP). Raises UserError when there is nothing there, the format or image column cannot be
    told, no shard can be read, tars are compressed, or a link leaves an image folder.
    """
    if format not in FORMATS:
        raise UserError(f"The corpus format {format} is not known: use one of {', '.join(FORMATS)}.")
    if rows_per_slice < 1:
        raise UserError(f"rows_per_slice is {rows_per_slice}: use 1 or more.")
    paths = [s.path for s in storage.list_sources(uri)]
    shards, tars, images = (
        [p for p in paths if p.lower().endswith(suffixes)]
        for suffixes in (PARQUET_SUFFIXES, TAR_SUFFIXES, IMAGE_SUFFIXES)
    )
    if format == "auto":
        format = _recognise(uri, paths, len(shards), len(tars), len(images))
    if format == "parquet":
        if not shards:
            raise UserError(f"There are no .parquet files in {uri}: give a folder that has some.")
        folder_uri, only = _place(uri)
        column = find_image_column(folder_uri, shards, image_column)
        return ParquetCorpus(folder_uri, column, rows_per_slice, only)
    if format == "webdataset":
        _refuse_packed(paths)
        if not tars:
            raise UserError(f"There are no .tar files in {uri}: give a folder that has some.")
        folder_uri, only = _place(uri)
        extension = (image_column or "").removeprefix(".").lower()
        return WebDatasetCorpus(folder_uri, extension, rows_per_slice, only)
    if storage.is_file(uri):
        raise UserError(f"{uri} is a single file: give the folder that holds the images.")
    if not images:
        raise UserError(f"There are no images in {uri}: give a folder with JPEG, PNG or WebP files.")
    storage.refuse_escaping_links(uri, images)
    return FolderCorpus(uri, rows_per_slice)


def _place(uri: str) -> tuple[str, str]:
    """The folder, and the file's name when `uri` is one file."""
    if not storage.is_file(uri):
        return uri, ""
    folder, _, only = uri.rpartition("/")
    return folder or ".", only


def _refuse_packed(paths: list[str]) -> None:
    if packed := [p for p in paths if p.lower().endswith(_PACKED)]:
        raise UserError(f"The shard {packed[0]} is compressed: unpack it to a plain .tar file.")


def _recognise(uri: str, paths: list[str], n_parquet: int, n_tars: int, n_images: int) -> str:
    counts = {"parquet": n_parquet, "webdataset": n_tars, "folder": n_images}
    names = {"parquet": "Parquet files", "webdataset": "tar files", "folder": "images"}
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
        f"WebDataset shards (.tar) or images ({', '.join(IMAGE_SUFFIXES)})."
    )

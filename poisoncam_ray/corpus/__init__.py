"""Corpora of images on any fsspec URL: Parquet shards or image folders, original bytes untouched.

`open_corpus` gives a small picklable object; both kinds have the same methods: sources, slices, units,
changed, read, fetch, labels, split, rewrite.
"""

from __future__ import annotations

from poisoncam_ray.corpus import storage
from poisoncam_ray.corpus.folder import FolderCorpus
from poisoncam_ray.corpus.parquet import ParquetCorpus, find_image_column
from poisoncam_ray.corpus.storage import IMAGE_SUFFIXES, PARQUET_SUFFIXES, Row, Slice, Source
from poisoncam_ray.errors import UserError

__all__ = ["Corpus", "FolderCorpus", "ParquetCorpus", "Row", "Slice", "Source", "open_corpus"]

Corpus = ParquetCorpus | FolderCorpus


def open_corpus(
    uri: str, format: str = "auto", image_column: str | None = None, rows_per_slice: int = 1024
) -> Corpus:
    """Open the corpus at `uri`, a folder (any depth) or one Parquet file.

    `format` is auto, parquet or folder. Without `image_column` the only binary or struct{bytes, path} column
    of the Parquet shards is taken. Raises UserError when there is nothing there, the format or image column
    cannot be told, the first shard cannot be read, or a link leaves an image folder.
    """
    if format not in ("auto", "parquet", "folder"):
        raise UserError(f"The corpus format {format} is not known: use auto, parquet or folder.")
    if rows_per_slice < 1:
        raise UserError(f"rows_per_slice is {rows_per_slice}: use 1 or more.")
    paths = [s.path for s in storage.list_sources(uri)]
    shards = [p for p in paths if p.lower().endswith(PARQUET_SUFFIXES)]
    images = [p for p in paths if p.lower().endswith(IMAGE_SUFFIXES)]
    if format == "auto":
        format = _recognise(uri, paths, len(shards), len(images))
    if format == "parquet":
        if not shards:
            raise UserError(f"There are no .parquet files in {uri}: give a folder that has some.")
        folder_uri, only = uri, ""
        if storage.is_file(uri):
            folder_uri, _, only = uri.rpartition("/")
        folder_uri = folder_uri or "."
        column = find_image_column(folder_uri, shards, image_column)
        return ParquetCorpus(folder_uri, column, rows_per_slice, only)
    if storage.is_file(uri):
        raise UserError(f"{uri} is a single file: give the folder that holds the images.")
    if not images:
        raise UserError(f"There are no images in {uri}: give a folder with JPEG, PNG or WebP files.")
    storage.refuse_escaping_links(uri, images)
    return FolderCorpus(uri, rows_per_slice)


def _recognise(uri: str, paths: list[str], n_parquet: int, n_images: int) -> str:
    if n_parquet and n_images:
        raise UserError(
            f"{uri} mixes {n_parquet} Parquet files and {n_images} images: separate them, or set the format "
            "to parquet or folder to use one kind."
        )
    if n_parquet or n_images:
        return "parquet" if n_parquet else "folder"
    if not paths:
        raise UserError(f"{uri} is empty: give a folder with Parquet files or images.")
    raise UserError(
        f"The format of {uri} is not recognised (it holds {paths[0]}): give Parquet files (.parquet) or "
        f"images ({', '.join(IMAGE_SUFFIXES)})."
    )

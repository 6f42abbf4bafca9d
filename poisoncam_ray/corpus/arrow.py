"""A folder that `datasets.save_to_disk` wrote as a corpus: Arrow shards, and JSON files that list them.

A dataset's `state.json` names its shards, so other Arrow files beside them (caches of `datasets`) are no part
of it. A DatasetDict has a folder for each split, named in `dataset_dict.json`.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from poisoncam_ray.corpus.arrow_shard import open_arrow, open_arrow_writer
from poisoncam_ray.corpus.columns import find_image_column
from poisoncam_ray.corpus.listing import is_file, list_sources, refuse_escaping_links
from poisoncam_ray.corpus.parquet import ParquetCorpus
from poisoncam_ray.corpus.protocol import Lost, Problem, Slice, Source
from poisoncam_ray.errors import UserError
from poisoncam_ray.store import delete, exists, read_bytes, write_bytes

ARROW_SUFFIXES = (".arrow",)
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
# The names of a dataset's shards, or its features with all names of classes.
_JSON_MAX = 2**26
# Where versions of datasets kept a selection of the rows, which would have to be split as well.
_SELECTIONS = ("_indices_files", "_indices_data_files", "_indices_name")


@dataclass(frozen=True)
class ArrowCorpus(ParquetCorpus):
    """The shards of the saved datasets under `uri`. A record batch takes the place of a row group."""

    kind: ClassVar[str] = "Arrow"

    def sources(self) -> list[Source]:
        """The shards that the datasets name, and the JSON files that describe them, sorted by path."""
        shards, _, beside = _shards(self.uri, self.follow_links)
        return sorted([*shards, *beside], key=lambda source: source.path)

    def check(self, source: Source) -> Problem | None:
        """Walk the shard's headers. A JSON file was checked when the corpus was opened."""
        return super().check(source) if _is_shard(source) else None

    def slices(self, sources: Sequence[Source] | None = None) -> list[Slice]:
        """As of Parquet shards, with a record batch in the place of a row group."""
        return super().slices(list(filter(_is_shard, self.sources() if sources is None else sources)))

    def finish(self, kept_uri: str, removed_uri: str, lost: Lost) -> None:
        """Write the JSON files beside the written shards, so that `datasets.load_from_disk` opens both
        folders. They name the shards that were written. The fingerprint is left out: `datasets` must not take
        its cached results of the whole corpus for those of the clean one."""
        _, states, beside = _shards(self.uri, self.follow_links)
        for out in (kept_uri, removed_uri):
            written = {source.path for source in list_sources(out)} if exists(out) else set()
            left = {folder for folder, state in states.items() if self._finish(folder, state, written, out)}
            for source in (source for source in beside if posixpath.basename(source.path) == _DICT):
                folder, path = posixpath.dirname(source.path), source.path
                names = [name for name in _splits(self.uri, source) if posixpath.join(folder, name) in left]
                _write(out, path, json.dumps({"splits": names}).encode() if names else None)

    def _finish(self, folder: str, state: dict[str, Any], written: set[str], out: str) -> bool:
        """Write the files of one dataset, or delete them when none of its shards was written. Whether one
        was."""
        files = [file for file in state["_data_files"] if posixpath.join(folder, file["filename"]) in written]
        whole = state | {"_data_files": files, "_fingerprint": None}
        info = posixpath.join(folder, _INFO)
        has_info = exists(self.uri, info)
        _write(out, info, read_bytes(self.uri, info) if files and has_info else None)
        _write(out, posixpath.join(folder, _STATE), json.dumps(whole, indent=2).encode() if files else None)
        return bool(files)

    def open_shard(self, source: str, version: str | None = None) -> AbstractContextManager[Any]:
        """Open a shard; `arrow_shard.open_arrow` says how."""
        return open_arrow(self.uri, source, version)

    def open_writer(self, like: Any, uri: str) -> AbstractContextManager[Callable[[pa.Table], None]]:
        """Write a shard like another one; `arrow_shard.open_arrow_writer` says how."""
        return open_arrow_writer(like, uri)


def open_saved(
    uri: str, image_column: str | None, rows_per_slice: int, follow_links: bool = False
) -> ArrowCorpus:
    """Open a folder of saved datasets.

    Args:
        uri: the folder.
        image_column: the column that holds the images; None for the only one that can.
        rows_per_slice: rows of a slice, at most.
        follow_links: whether links that leave the folder are followed.

    Raises:
        UserError: a JSON file is missing or is not what `datasets` writes, a shard is gone, or no image
            column is found.
    """
    if is_file(uri):
        raise UserError(f"{uri} is a single Arrow file: give the folder that datasets.save_to_disk wrote.")
    paths = [source.path for source in _shards(uri, follow_links)[0]]
    column = find_image_column(uri, paths, image_column, open_arrow, "Arrow")
    return ArrowCorpus(uri, column, rows_per_slice, follow_links=follow_links)


def _shards(uri: str, follow_links: bool) -> tuple[list[Source], dict[str, dict[str, Any]], list[Source]]:
    """The shards of all datasets, sorted by path; each dataset's state by its folder; and the JSON files.

    Raises:
        UserError: a JSON file is missing, too large, not what `datasets` writes, or a link that leaves the
            folder; or a shard is gone or such a link.
    """
    listed = {source.path: source for source in list_sources(uri, follow_links=follow_links)}
    beside = [source for path, source in listed.items() if posixpath.basename(path) in (_STATE, _INFO, _DICT)]
    if not follow_links:
        # They are copied, and must not bring along what lies elsewhere.
        refuse_escaping_links(uri, (source.path for source in beside))
    states: dict[str, dict[str, Any]] = {}
    for source in beside:
        folder, name = posixpath.split(source.path)
        if name == _STATE:
            states[folder] = _state(uri, source)
        elif name == _DICT:
            _splits(uri, source)
        else:
            _json(uri, source)
    if not states:
        raise UserError(
            f"There is no state.json in {uri}: give a folder that datasets.save_to_disk wrote, or Parquet "
            "files."
        )
    named = [
        posixpath.join(folder, file["filename"])
        for folder, state in states.items()
        for file in state["_data_files"]
    ]
    if gone := next((path for path in named if path not in listed), None):
        raise UserError(f"The shard {gone} is gone from {uri}: restore it, or save the dataset again.")
    if not follow_links:
        refuse_escaping_links(uri, named)
    return [listed[path] for path in sorted(named)], states, beside


def _is_shard(source: Source) -> bool:
    return source.path.lower().endswith(ARROW_SUFFIXES)


def _splits(uri: str, source: Source) -> list[str]:
    """The names of the splits in a dataset_dict.json."""
    names = _json(uri, source).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _foreign(uri, source.path)
    return names


def _state(uri: str, source: Source) -> dict[str, Any]:
    state, path = _json(uri, source), source.path
    files = state.get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in _list(files)]
    wrong = [n for n in names if not isinstance(n, str) or "/" in n or not n.lower().endswith(ARROW_SUFFIXES)]
    if not isinstance(files, list) or wrong or len(set(names)) < len(names):
        raise _foreign(uri, path)
    if any(state.get(name) for name in _SELECTIONS):
        raise UserError(
            f"{uri}/{path} names a selection of rows, which old versions of datasets kept apart: save it "
            "again with load_from_disk(…).flatten_indices().save_to_disk(…)."
        )
    return state


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _json(uri: str, source: Source) -> dict[str, Any]:
    path = source.path
    try:
        tree = json.loads(read_bytes(uri, path)) if source.size <= _JSON_MAX else None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise _foreign(uri, path)
    return tree


def _foreign(uri: str, path: str) -> UserError:
    return UserError(f"{uri}/{path} is not what datasets.save_to_disk writes: save the dataset again.")


def _write(uri: str, path: str, data: bytes | None) -> None:
    """Write a file; None deletes what an earlier try left."""
    if data is None:
        delete(uri, path)
    else:
        write_bytes(uri, path, data)

"""Folders on any fsspec filesystem: files written atomically, and the manifest that commits an artifact.

Files are JSON, Parquet and safetensors. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray import store

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "_manifest.json"
STARTED = "_started.json"
DELETES = 3


@dataclass(frozen=True)
class Folder:
    """A folder named by a URI or a local path. It holds no open handle, so it can be sent to other
    processes."""

    uri: str

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        return store.connect(self.uri)[0]

    @property
    def path(self) -> str:
        return store.connect(self.uri)[1]

    def _at(self, name: str) -> str:
        return posixpath.join(self.path, name) if name else self.path

    def exists(self, name: str = "") -> bool:
        return store.exists(self.uri, name)

    def names(self) -> list[str]:
        """The sorted names of files and folders directly in the folder; empty when there is no folder."""
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(self.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {posixpath.basename(str(path).rstrip("/")) for path in found}
        # Unfinished files of a killed process start with a dot.
        return sorted(name for name in names if name and not name.startswith("."))

    def parts(self) -> list[str]:
        return [name for name in self.names() if name.startswith("part-") and name.endswith(".parquet")]

    def delete(self, name: str = "") -> None:
        for _ in range(DELETES):
            if not self._holds(name):
                return
            # S3 may keep some of many keys, and says so in an answer that s3fs does not read.
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm(self._at(name), recursive=True)
        if self._holds(name):
            raise OSError(f"{self.uri}/{name} cannot be deleted")

    def _holds(self, name: str) -> bool:
        """Whether anything is there. Some stores still show a folder whose last object is gone, so only
        objects count on a remote store."""
        filesystem = self.filesystem
        if store.is_local(filesystem):
            return self.exists(name)
        filesystem.invalidate_cache()
        return bool(filesystem.find(self._at(name)))

    def read_bytes(self, name: str) -> bytes:
        return store.read_bytes(self.uri, name)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file. Readers see the old file or the whole new one."""
        store.write_bytes(self.uri, name, data)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.read_bytes(name)), columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def open(self, name: str) -> Any:
        """Open a file to read parts of it."""
        filesystem = self.filesystem
        # The parts are small. A read-ahead cache would fetch megabytes.
        remote = {} if store.is_local(filesystem) else {"cache_type": "none"}
        return filesystem.open(self._at(name), "rb", **remote)

    def rows(self, name: str) -> int:
        """The number of rows of a Parquet file, from its footer."""
        with self.open(name) as file:
            return pq.read_metadata(file).num_rows

    def total_bytes(self) -> int:
        """The size of all files in the folder, at any depth; 0 when there is no folder."""
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        found = filesystem.find(self.path, detail=True)
        # Unfinished files of a killed process start with a dot.
        return sum(
            info["size"] for path, info in found.items() if not posixpath.basename(path).startswith(".")
        )

    def total_rows(self) -> int:
        """The number of rows of all parts, from their footers."""
        return sum(store.in_parallel(self.rows, self.parts()))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        import safetensors.torch

        return safetensors.torch.load(self.read_bytes(name))

    def write_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        import safetensors.torch

        self.write_bytes(name, safetensors.torch.save({key: t.contiguous() for key, t in tensors.items()}))


@dataclass(frozen=True)
class Ledger:
    """Where the rows of a stage went. A stage fails unless `rows_in` = `rows_out` + `removed` + `dead` +
    `no_image`. `no_image`: of Index, rows whose image is null, which Clean keeps: there they are part of
    `rows_out`. `restored`: of `rows_out`, those that had been flagged and were kept by a review."""

    rows_in: int
    rows_out: int
    removed: int = 0
    dead: int = 0
    no_image: int = 0
    restored: int = 0

    @property
    def balanced(self) -> bool:
        return self.rows_in == self.rows_out + self.removed + self.dead + self.no_image


@dataclass(frozen=True)
class Manifest:
    """The record that commits an artifact.

    Attributes:
        identity: what the content depends on: stage, version, seed, configuration, sources.
        inputs: the digest of each input's manifest, by the input's name.
        fingerprint: a hash of the identity.
        ledger: where the rows went; None for a stage that handles no rows.
        seconds: how long the stage took.
        facts: what the stage reports (poisoncam_ray.facts).
    """

    identity: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    ledger: Ledger | None = None
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Folder, name: str = MANIFEST) -> None:
        folder.write_json(name, asdict(self))

    @staticmethod
    def read(folder: Folder, name: str = MANIFEST) -> Manifest | None:
        """The manifest of an artifact; None when it is not committed."""
        if not folder.exists(name):
            return None
        tree = folder.read_json(name)
        ledger = Ledger(**tree.pop("ledger")) if tree.get("ledger") else None
        tree.pop("ledger", None)
        return Manifest(ledger=ledger, **tree)


def absolute(uri: str) -> str:
    """A local path made independent of the working folder, or a URI; without a slash at its end, so that a
    place has one name."""
    filesystem, path = store.connect(uri)
    if store.is_local(filesystem):
        return path
    return uri if uri.endswith("://") else uri.rstrip("/")


def part_name(index: int) -> str:
    return f"part-{index:06d}.parquet"


def part_index(name: str) -> int:
    return int(name.removeprefix("part-").removesuffix(".parquet"))

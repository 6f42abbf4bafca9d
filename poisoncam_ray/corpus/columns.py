"""Which column of a corpus of tables holds the images, and its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa

from poisoncam_ray.corpus.parquet_shard import open_shard
from poisoncam_ray.corpus.shardfile import UnreadableError
from poisoncam_ray.errors import UserError

# So many shards are opened, at most, to find the image column.
_LOOKED_AT = 100


class Shard(Protocol):
    """What is looked at of an open shard."""

    @property
    def source(self) -> str: ...
    @property
    def schema(self) -> pa.Schema: ...
    @property
    def n_rows(self) -> int: ...


Opener = Callable[[str, str], AbstractContextManager[Shard]]
"""Opens a shard, from the corpus and the shard's path in it."""


class NoImageColumnError(UserError):
    """A shard has no image column. `reason` and `advice`: in words, without a full stop."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason, advice)
        self.reason, self.advice = reason, advice

    def __str__(self) -> str:
        return f"{self.reason}{self.advice}."


def find_image_column(
    uri: str,
    paths: Sequence[str],
    asked: str | None,
    open_shard: Opener = open_shard,
    kind: str = "Parquet",
) -> str:
    """Find the image column by the first shard that can be read, has rows and has such a column.

    Args:
        uri: the corpus.
        paths: its shards.
        asked: the column that the user named; None to take the only one that can hold images.
        open_shard: opens one of them.
        kind: what the message calls the shards.

    Returns:
        The column's name.

    Raises:
        UserError: several columns may hold images, or none of the first shards has a column that can.
    """
    mistake: UserError | None = None
    looked = 0
    for path in paths:
        try:
            with open_shard(uri, path) as shard:
                if shard.n_rows:
                    looked += 1
                    return _image_column(shard, asked)
        except (UnreadableError, NoImageColumnError) as error:
            mistake = mistake or error
            looked += isinstance(error, UnreadableError)
        if looked == _LOOKED_AT:
            break
    raise mistake or UserError(f"The {kind} files in {uri} hold no rows: give a corpus that has images.")


def _image_column(shard: Shard, asked: str | None) -> str:
    names, fit = shard.schema.names, _candidates(shard)
    if asked:
        check_image_column(shard, asked)
        return asked
    if len(fit) > 1:
        raise UserError(
            f"Several columns of {shard.source} may hold images: set image_column to one of {', '.join(fit)}."
        )
    if not fit:
        raise NoImageColumnError(
            f"No column of {shard.source} holds images (binary or struct{{bytes, path}})",
            f": it has {', '.join(names)}",
        )
    return fit[0]


def _candidates(shard: Shard) -> list[str]:
    return [f.name for f in shard.schema if is_image_type(f.type)]


def column_fault(shard: Shard, name: str) -> str | None:
    """What is wrong with the image column `name` of the shard, in words; None if nothing is."""
    names = shard.schema.names
    # A shard in which every image is null may have lost the column's type.
    if name in _candidates(shard) or (name in names and pa.types.is_null(shard.schema.field(name).type)):
        return None
    return "is not binary or struct{bytes, path}" if name in names else "is missing"


def check_image_column(shard: Shard, name: str) -> None:
    """Raise NoImageColumnError if the column `name` cannot hold the shard's images."""
    wrong = column_fault(shard, name)
    if wrong is None:
        return
    names, fit = shard.schema.names, _candidates(shard)
    advice = f"set image_column to {' or '.join(fit)}" if fit else f"the shard has only {', '.join(names)}"
    raise NoImageColumnError(f"The image column {name} {wrong} in {shard.source}", f": {advice}")


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: binary, or a struct with a binary field `bytes`."""
    if pa.types.is_struct(kind):
        i = kind.get_field_index("bytes")
        return i >= 0 and _is_binary(kind.field(i).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def image_paths(array: pa.Array) -> pa.Array | None:
    """The paths of an image column that is a struct with a string field `path`; None for others."""
    if not pa.types.is_struct(array.type):
        return None
    i = array.type.get_field_index("path")
    return array.flatten()[i] if i >= 0 and is_text(array.type.field(i).type) else None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def image_values(array: pa.Array) -> pa.Array:
    """The binary values of an image column, null where the struct or its bytes are null."""
    if pa.types.is_struct(array.type):
        array = array.flatten()[array.type.get_field_index("bytes")]
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array

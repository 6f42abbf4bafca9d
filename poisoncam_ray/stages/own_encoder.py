"""A user's own encoder: a checkpoint that is used instead of pretraining, or that pretraining starts with."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from poisoncam_ray.config import Config
from poisoncam_ray.errors import StoreAwayError, UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import Encoder, build_encoder, load_encoder_state
from poisoncam_ray.stages.embed import write_encoder
from poisoncam_ray.store import connect

MAX_BYTES = 8 * 2**30
"""Of a checkpoint."""


def check_encoder(config: Config) -> None:
    """Check the encoder's settings, and read the checkpoint if there is one.

    Raises:
        UserError: the backbone cannot be built, or the checkpoint cannot be used.
    """
    if given := config.encoder.checkpoint or config.pretrain.init:
        own_encoder(given, config)
        return
    made = config.encoder
    try:
        build_encoder(made.backbone, made.image_size, made.patch_size)
    except ValueError as error:
        raise UserError(f"Configuration section encoder: {error}") from None


def checkpoint_sha256(uri: str) -> str:
    """The digest of the checkpoint's bytes, in hex.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    return hashlib.sha256(_read(uri)).hexdigest()


def import_encoder(uri: str, config: Config, out: Folder) -> None:
    """Write the checkpoint's encoder as Pretrain writes the one that it has trained.

    Args:
        uri: the checkpoint.
        config: the configuration, whose backbone the checkpoint must fit.
        out: the folder. Nothing is written when the checkpoint is refused.

    Raises:
        UserError: the checkpoint is missing, unsafe, or does not fit the backbone.
    """
    write_encoder(config, own_encoder(uri, config), out)


def own_encoder(uri: str, config: Config) -> Encoder:
    """The configured backbone with the weights of the checkpoint.

    Raises:
        UserError: the checkpoint is missing, unsafe, or does not fit the backbone.
    """
    made, state = config.encoder, read_checkpoint(uri)
    try:
        encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
        load_encoder_state(encoder, state)
    except ValueError as error:
        raise UserError(f"The encoder {uri}: {error}") from None
    return encoder


def read_checkpoint(uri: str) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file, or from a torch file that holds only tensors.

    Raises:
        UserError: the file cannot be read, exceeds MAX_BYTES, is compressed, or holds anything else.
        StoreAwayError: the store does not answer.
    """
    data = _read(uri)
    if not uri.endswith(".safetensors"):
        _refuse_packed(uri, data)
    try:
        if uri.endswith(".safetensors"):
            state: Any = safetensors.torch.load(data)
        else:
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    except pickle.UnpicklingError:
        raise UserError(
            f"The encoder {uri} holds Python objects besides tensors: save its state dict as safetensors."
        ) from None
    except Exception as error:  # a damaged file can fail anywhere in either reader
        reason = next(iter(str(error).splitlines()), "it ends early")
        raise UserError(f"The encoder {uri} is no checkpoint: {reason}.") from None
    if not isinstance(state, dict) or not all(_is_weight(*item) for item in state.items()):
        raise UserError(f"The encoder {uri} holds no state dict: save one as safetensors.")
    return state


def _read(uri: str) -> bytes:
    try:
        filesystem, path = connect(uri)
    except UserError as error:
        raise UserError(f"The encoder cannot be read: {error}") from None
    try:
        size = filesystem.size(path) or 0
        if size > MAX_BYTES:
            raise UserError(
                f"The encoder {uri} has {size:,} bytes, more than the limit of {MAX_BYTES:,}: save the "
                "backbone's weights alone."
            )
        return filesystem.cat_file(path)
    except StoreAwayError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"The encoder {uri} cannot be read: {error}.") from None


def _refuse_packed(uri: str, data: bytes) -> None:
    """Raise UserError for a compressed archive, which may unpack to any size. torch.save never compresses."""
    # Without this signature torch reads the file as a bare pickle of tensors, which is not compressed.
    if not data.startswith(b"PK\x03\x04"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"The encoder {uri} is no checkpoint: {error}.") from None
    if unpacked > len(data):
        raise UserError(
            f"The encoder {uri} would unpack from {len(data):,} to {unpacked:,} bytes: save its state "
            "dict as safetensors."
        )


def _is_weight(name: Any, value: Any) -> bool:
    """Whether it is a named, dense tensor: a sparse or meta tensor can have any shape and hold no data."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )

"""Bring your own encoder: a checkpoint of the user's own pretraining takes the place of stage 1."""

from __future__ import annotations

import io
import pickle

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from poisoncam_ray.artifact import Folder
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.encoder import Encoder, build_encoder, load_encoder_state
from poisoncam_ray.stages.embed import write_encoder


def check_encoder(config: Config) -> None:
    """UserError when the backbone cannot be built, or the checkpoint cannot be taken over."""
    if config.encoder.checkpoint:
        own_encoder(config.encoder.checkpoint, config)
        return
    made = config.encoder
    try:
        build_encoder(made.backbone, made.image_size, made.patch_size)
    except ValueError as error:
        raise UserError(f"Configuration section encoder: {error}") from None


def import_encoder(uri: str, config: Config, out: Folder) -> None:
    """Read the checkpoint into 01_encoder."""
    write_encoder(config, own_encoder(uri, config), out)


def own_encoder(uri: str, config: Config) -> Encoder:
    """UserError when the checkpoint is missing, unsafe, or does not fit the backbone."""
    made, state = config.encoder, read_checkpoint(uri)
    try:
        encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
        load_encoder_state(encoder, state)
    except ValueError as error:
        raise UserError(f"The encoder {uri}: {error}") from None
    return encoder


def read_checkpoint(uri: str) -> dict[str, Tensor]:
    """The state dict of a safetensors file, or of a torch file that holds tensors only (weights_only)."""
    try:
        with fsspec.open(uri, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"The encoder {uri} cannot be read: {error}.") from None
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"The encoder {uri} holds Python objects besides tensors: save its state dict as safetensors."
        ) from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "it ends early")
        raise UserError(f"The encoder {uri} is no checkpoint: {reason}.") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"The encoder {uri} holds no state dict: save one as safetensors.")
    return state

"""Embed: the L2-normalised backbone feature of every indexed image.

N images   B images of a batch   D feature dimensions   C channels   H = W image side
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts, metrics
from poisoncam_ray.config import Config, Wanted
from poisoncam_ray.folder import Folder, Ledger, part_name
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.dataflow import fill_parts, stream_images
from poisoncam_ray.stages.pixels import Pixels
from poisoncam_ray.stages.precision import dtype_of


class Embed(Stage):
    name = artifact.FEATURES
    title = "Embed"
    version = 6
    inputs = (artifact.INDEX, artifact.ENCODER)
    sections = ("encoder", "embed")

    def depends_on(self, config: Config) -> dict[str, Any]:
        return {"resources.precision": config.resources.precision}

    def run(self, run: Run) -> Outcome:
        arguments = (run.config, run.folder / artifact.ENCODER, run.out)
        done = fill_parts(run, lambda todo: stream_images(run, todo, EmbedSlice, arguments))
        said = facts.Embedded(done.rows, done.slices, done.reused)
        return Outcome(said, Ledger(sum(run.slice_rows()), done.rows))


class EmbedSlice:
    """The actor: holds the encoder, and writes the features of one slice at a time."""

    def __init__(self, config: Config, encoder: Folder, out: Folder) -> None:
        set_up(config.resources)
        self.encoder = load_encoder(encoder, config.resources.precision)
        self.out, self.batch_size = out, config.embed.batch_size

    def __call__(self, index: int, ids: list[str], x_NCHW: Pixels) -> dict[str, int]:
        f_ND = embed_images(self.encoder, torch.from_numpy(x_NCHW), self.batch_size)
        self.out.write_table(part_name(index), feature_table(ids, f_ND))
        metrics.count("rows", len(ids), stage=Embed.title)
        return {"index": index, "rows": len(ids)}


def write_encoder(config: Config, encoder: Encoder, folder: Folder) -> None:
    """Write the weights and the settings that build the encoder: what `load_encoder` reads."""
    folder.write_tensors(artifact.WEIGHTS, {key: t.cpu() for key, t in encoder.state_dict().items()})
    folder.write_json(artifact.ENCODER_CONFIG, config.encoder.model_dump() | {"dim": encoder.dim})


def load_encoder(folder: Folder, precision: Wanted = "float32") -> Encoder:
    """The committed encoder in evaluation mode, on this process's device.

    Args:
        folder: the artifact of Pretrain.
        precision: of `Encoder.embed`, as the run has decided it; undecided, it is float32.
    """
    made = folder.read_json(artifact.ENCODER_CONFIG)
    encoder = build_encoder(made["backbone"], made["image_size"], made["patch_size"])
    encoder.load_state_dict(folder.read_tensors(artifact.WEIGHTS))
    return encoder.to(device()).freeze(dtype_of(precision))


@torch.inference_mode()
def embed_images(encoder: Encoder, x_NCHW: Tensor, batch_size: int) -> Tensor:
    """Embed images in batches.

    Args:
        encoder: the encoder, on this process's device.
        x_NCHW: uint8 images.
        batch_size: images of a batch.

    Returns:
        f_ND, float32 on the CPU, of unit length.
    """
    f_BD = [encoder.embed(x_BCHW.to(device()).float() / 255).cpu() for x_BCHW in x_NCHW.split(batch_size)]
    return torch.cat(f_BD) if len(x_NCHW) else torch.empty(0, encoder.dim)


def feature_table(ids: list[str], f_ND: Tensor) -> pa.Table:
    """A part of the artifact: image_id, feature (float16)."""
    values = pa.array(f_ND.numpy().astype(np.float16).reshape(-1))
    features = pa.FixedSizeListArray.from_arrays(values, f_ND.shape[1])
    return pa.table({"image_id": pa.array(ids, pa.string()), "feature": features})


def read_features(folder: Folder, name: str) -> tuple[list[str], Tensor]:
    """Ids and f_ND (float32) of one part."""
    table = folder.read_table(name)
    column = table["feature"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return table["image_id"].to_pylist(), torch.from_numpy(flat).reshape(len(table), column.type.list_size)

"""The actor of the search: finds the candidate window of each image, and pastes it on the flip-test images.

N candidates   F flip-test images   C channels   H = W image side   B masks   K clusters
box_N4 integer [x0, y0, x1, y1)
"""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor

from poisoncam_ray import metrics
from poisoncam_ray.artifact import READINGS, SEARCH, SIDES, TITLES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.cam import gradcam_windows, mean_colour, refine_windows, windows_in_one_pass
from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.geometry import about_centres, crop
from poisoncam_ray.method.masked import Hiding
from poisoncam_ray.method.masks import SMOOTH, cell_of_patches, keep_only, make_masks
from poisoncam_ray.method.score import occlusion_flips, poison_scores, supercluster_gain, unchanged_flips
from poisoncam_ray.stages.cluster import read_centroids
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.crops import from_png, to_png
from poisoncam_ray.stages.embed import embed_images, load_encoder
from poisoncam_ray.stages.pixels import Pixels, fetch_images
from poisoncam_ray.stages.pool import image_seed
from poisoncam_ray.stages.shrunk import Copies

LEAST_PATCHES = 2.5
"""Patches across a window from which tokens are dropped. With 2.75 windows were found as well as by painting;
with 1.4, where a window holds one whole patch at most, far worse."""


class Chunk(NamedTuple):
    """Images whose windows are to be found and scored.

    Attributes:
        rows: image ids, each with the cluster that its stored feature lies in.
        y_F: the clusters of the first flip-test images: as many are pasted on.
    """

    rows: list[tuple[str, int]]
    y_F: list[int]


class Contestant(NamedTuple):
    """A candidate of the race.

    Attributes:
        place: its number in the caller's list.
        image_id: its image.
        own: the image's own cluster.
        crop: its window as PNG.
    """

    place: int
    image_id: str
    own: int
    crop: bytes


class Pastes(NamedTuple):
    """Candidates that are to be pasted on the flip-test images start … stop − 1; y_F: the clusters of all."""

    contestants: list[Contestant]
    start: int
    stop: int
    y_F: list[int]


class Scorer:
    """The actor: holds encoder, centroids and flip-test images; finds and scores candidates."""

    def __init__(
        self,
        config: Config,
        images: Corpus | Copies,
        encoder: Folder,
        clusters: Folder,
        x_FCHW: Pixels,
        supercluster_K: Tensor,
    ) -> None:
        set_up(config.resources)
        self.config, self.images, self.device = config, images, device()
        self.encoder = load_encoder(encoder, config.resources.precision)
        self.c_KD = read_centroids(clusters).to(self.device)
        self.supercluster_K = supercluster_K.to(self.device)
        self.x_FCHW = torch.from_numpy(x_FCHW.copy()).to(self.device)
        self.m_BHW = search_masks(config, self.encoder)
        # Of two calls at once one reads and decodes while the other computes.
        self.computing = Lock()

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        """Return when the actor is up, also after a restart on another node."""

    def flip_clusters(self, _: None = None) -> tuple[list[int], int]:
        """The clusters of the flip-test images, computed as those of the pasted ones are, and how many of the
        images leave their cluster although nothing was pasted. There should be none."""
        with self.computing:
            batch = self.config.search.batch_size
            f_FD = embed_images(self.encoder, self.x_FCHW, batch).to(self.device)
            y_F = assign(f_FD, self.c_KD)[0]
            x_FCHW = self._flip_images(0, len(y_F))
            flips_F = unchanged_flips(self.encoder, x_FCHW, y_F, self.c_KD, batch)
        return y_F.tolist(), int(flips_F.sum())

    def work(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Find the candidate trigger of each image and score it at every scale.

        Args:
            chunk: the images. Rounding can move an image at a boundary, so masks and pastes are compared with
                the cluster found beside them, not with that of the stored feature.

        Returns:
            A row of CANDIDATE_SCHEMA for each image: the scale of its best score.
        """
        ids = [image_id for image_id, _ in chunk.rows]
        pixels = torch.from_numpy(fetch_images(self.images, self.config, ids))
        with self.computing:
            rows = self._rows(chunk, pixels)
        metrics.count("rows", len(ids), stage=TITLES[SEARCH])
        return rows

    def paste(self, pastes: Pastes) -> tuple[list[int], dict[str, list[int]]]:
        """Paste windows on further flip-test images.

        Returns:
            The places of the candidates, and each one's counts by reading.
        """
        own_N = torch.tensor([one.own for one in pastes.contestants], device=self.device)
        seeds_N = torch.tensor([image_seed(self.config.seed, one.image_id) for one in pastes.contestants])
        places, start, stop = [one.place for one in pastes.contestants], pastes.start, pastes.stop
        # All windows of one chunk have one size, but for search.scales.
        crops = [from_png(one.crop).to(self.device) for one in pastes.contestants]
        readings = {name: [0] * len(crops) for name in READINGS}
        with self.computing:
            x_FCHW = self._flip_images(start, stop)
            y_F = torch.tensor(pastes.y_F[start:stop], device=self.device)
            for size in sorted({t_Cww.shape[-1] for t_Cww in crops}):
                i_M = torch.tensor([i for i, t_Cww in enumerate(crops) if t_Cww.shape[-1] == size])
                t_MCww = torch.stack([crops[i] for i in i_M.tolist()])
                counts, _ = self._counts(t_MCww, own_N[i_M], seeds_N[i_M], x_FCHW, y_F, start)
                for name, count_M in counts.items():
                    for i, count in zip(i_M.tolist(), count_M.tolist(), strict=True):
                        readings[name][i] = count
        return places, readings

    def _flip_images(self, start: int, stop: int) -> Tensor:
        return self.x_FCHW[start:stop].float() / 255

    def _rows(self, chunk: Chunk, pixels: Tensor) -> list[dict[str, Any]]:
        x_NCHW = pixels.to(self.device).float() / 255
        own_N, box_N4 = find_windows(self.config, self.encoder, x_NCHW, self.c_KD, self.m_BHW)
        seeds_N = torch.tensor([image_seed(self.config.seed, image_id) for image_id, _ in chunk.rows])
        y_F = torch.tensor(chunk.y_F, device=self.device)
        sizes = self.config.scales_px
        scaled = [about_centres(box_N4, size, x_NCHW.shape[-1]) for size in sizes]
        tried = [self._score(x_NCHW, own_N, box_N4, seeds_N, y_F) for box_N4 in scaled]
        # Among equal scores the first scale wins.
        best_N = torch.stack([columns["score"] for columns in tried]).argmax(dim=0).tolist()
        listed = [{name: column.tolist() for name, column in columns.items()} for columns in tried]
        own = own_N.tolist()
        return [
            {
                "image_id": image_id,
                "cluster": cluster,
                "own": own[i],
                **dict(zip(SIDES, scaled[scale][i].tolist(), strict=True)),
                **{name: column[i] for name, column in listed[scale].items()},
                "n_flip": len(y_F),
                "crop": to_png(crop(x_NCHW[i : i + 1], scaled[scale][i : i + 1])[0]),
            }
            for i, ((image_id, cluster), scale) in enumerate(zip(chunk.rows, best_N, strict=True))
        ]

    def _score(
        self, x_NCHW: Tensor, own_N: Tensor, box_N4: Tensor, seeds_N: Tensor, y_F: Tensor
    ) -> dict[str, Tensor]:
        """Columns of CANDIDATE_SCHEMA, one row for each window."""
        settings, fill_NC = self.config.search, mean_colour(x_NCHW)
        x_FCHW = self._flip_images(0, len(y_F))
        readings, landed_NF = self._counts(crop(x_NCHW, box_N4), own_N, seeds_N, x_FCHW, y_F, 0)
        flips_N = occlusion_flips(
            self.encoder, x_NCHW, box_N4, own_N, self.c_KD, fill_NC, settings.batch_size,
            hiding_of(self.config, self.encoder),
        )  # fmt: skip
        score_N = readings[settings.reading].clamp(min=0) / len(y_F)
        return readings | {"score": score_N, "occlusion_flips": flips_N, "landed": landed_NF}

    def _counts(
        self, t_NCww: Tensor, own_N: Tensor, seeds_N: Tensor, x_FCHW: Tensor, y_F: Tensor, first: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The readings of the poison score by name, and where each paste landed, landed_NF."""
        changed_N, gain_N, landed_NF = poison_scores(
            self.encoder, t_NCww, x_FCHW, y_F, own_N, self.c_KD, seeds_N, self.config.search.batch_size, first
        )
        in_super_N = supercluster_gain(landed_NF, y_F, own_N, self.supercluster_K)
        return dict(zip(READINGS, (changed_N, gain_N, in_super_N), strict=True)), landed_NF


def hiding_of(config: Config, encoder: Encoder) -> Hiding:
    """How masks hide pixels from this encoder."""
    patch = encoder.patch_size
    return "paint" if patch is None or config.window_px < LEAST_PATCHES * patch else config.search.hiding


def search_masks(config: Config, encoder: Encoder) -> Tensor | None:
    """The masks m_BHW of the configured strategy; None for Grad-CAM, which uses none.

    Where tokens are dropped for cells, these are made of whole patches.
    """
    settings, cell = config.search, config.cell_px
    if settings.strategy == "gradcam":
        return None
    if encoder.patch_size and hiding_of(config, encoder) == "drop" and settings.strategy not in SMOOTH:
        cell = cell_of_patches(cell, encoder.patch_size)
    generator = torch.Generator().manual_seed(config.seed)
    side = config.encoder.image_size
    return make_masks(settings.strategy, settings.masks, side, cell, config.window_px, generator)


def find_windows(
    config: Config, encoder: Encoder, x_NCHW: Tensor, c_KD: Tensor, m_BHW: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Find each image's cluster, and its candidate trigger by the configured strategy.

    Args:
        config: the configuration.
        encoder: the encoder.
        x_NCHW: images, floats in [0, 1].
        c_KD: the centroids.
        m_BHW: the masks, from `search_masks`.

    Returns:
        own_N, the clusters, and box_N4 in pixels of x_NCHW.
    """
    settings, fill_NC, hiding = config.search, mean_colour(x_NCHW), hiding_of(config, encoder)
    if m_BHW is None or settings.strategy == "gradcam":
        with torch.no_grad():
            own_N, _ = assign(encoder.embed(x_NCHW), c_KD)
        box_N4 = gradcam_windows(encoder, x_NCHW, own_N, c_KD, config.window_px, settings.batch_size)
    else:
        keep_B = keep_only(settings.strategy, len(m_BHW))
        own_N, box_N4, _ = windows_in_one_pass(
            encoder, x_NCHW, c_KD, m_BHW, settings.score, keep_B, config.window_px, fill_NC,
            settings.batch_size, hiding,
        )  # fmt: skip
    if settings.refine:
        box_N4 = refine_windows(
            encoder, x_NCHW, box_N4, own_N, c_KD, settings.score, fill_NC, settings.batch_size, hiding,
            settings.refine_hidden, settings.refine_shown, settings.refine_passes,
        )  # fmt: skip
    return own_N, box_N4

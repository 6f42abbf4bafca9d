"""Configuration: one frozen, validated section per stage. How it is read from presets, files and the command
line: settings.py.

Fractions are shares of the encoder's image side unless a docstring says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
SEEDS = 2**23
"""How many seeds there are."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Strategy = Literal["interval", "random", "full_coverage", "sliding", "keep_only", "mixed"]


class Section(BaseModel):
    how: ClassVar[frozenset[str]] = frozenset()
    """Keys that say how the work is done, not what comes out: free to change in a run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def outcome(self) -> dict[str, Any]:
        """The keys that decide what comes out, as JSON holds them: what a folder is compared by."""
        return self.model_dump(mode="json", exclude=set(self.how))


class CorpusSettings(Section):
    """What counts as a corpus row, and how many rows make one unit of work."""

    how: ClassVar[frozenset[str]] = frozenset({"max_dead_fraction"})

    format: Literal["auto", "parquet", "folder", "webdataset"] = "auto"
    image_column: str | None = None
    rows_per_slice: Count = 1024
    max_pixels: Count = 64_000_000
    """A header that announces more pixels is a decompression bomb: dead letter, never decoded."""
    max_bytes: Count = 128 * 2**20
    max_dead_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The job stops when more than this share of the rows is broken."""
    skip_unreadable: bool = False
    """Go on without the shards that cannot be opened or have no image column, and count their rows as dead.
    Otherwise such shards are listed and the job stops before any work."""


class Encoder(Section):
    """The backbone, ours to pretrain or the user's own (`checkpoint`)."""

    backbone: str = "resnet_tiny_s2"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 32
    patch_size: Count | None = None
    checkpoint: str | None = None
    """URI of a safetensors or MoCo-v3-layout checkpoint: skips pretraining."""


class Pretrain(Section):
    """The threat model. `lr` is the base rate: lr × batch_size / 256 is used."""

    how: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "max_failures"})

    objective: Literal["moco_v3", "simclr", "byol"] = "moco_v3"
    """What is minimised; `temperature` means nothing to BYOL, `momentum` nothing to SimCLR."""
    epochs: Count = 20
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Annotated[float, Field(gt=0)] = 8e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 1
    temperature: Annotated[float, Field(gt=0)] = 0.2
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    hidden_dim: Count = 512
    out_dim: Count = 128
    crop_min: Fraction = 0.4
    """The least share of an image's area that a view shows."""
    workers: Count = 1
    shuffle_rows: Count = 65_536
    """Rows a worker holds to shuffle from: a shard that fits is shuffled perfectly every epoch."""
    checkpoint_every: Count = 100
    """Steps between checkpoints: what a killed job loses at most."""
    max_failures: Annotated[int, Field(ge=0)] = 3


class Embed(Section):
    """Features of all images."""

    how: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    batch_size: Count = 256


class Cluster(Section):
    """k-means. `k` null takes 3·√N: 1,068 for the paper's 126,689 images (paper: 1000)."""

    k: Annotated[int, Field(ge=2)] | None = None
    iterations: Count = 20
    sample: Count = 250_000
    """Rows that k-means is trained on, at most; the rest are only assigned."""


class Search(Section):
    """Cluster Activation Masking, poison score, pruning."""

    how: ClassVar[frozenset[str]] = frozenset({"batch_size", "chunk"})

    strategy: Literal[Strategy, "gradcam"] = "mixed"
    """How the window is found: a kind of masks, or the peer's Grad-CAM."""
    score: Literal["hard", "margin", "distance"] = "distance"
    masks: Annotated[int, Field(ge=2)] = 128
    cell: Fraction = 0.125
    window: Fraction = 0.35
    refine: bool = True
    """A second look with shifted windows around the first: 50 more masks an image."""
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = (1.0,)
    """Multiples of the window, about its centre, to paste and score; each image keeps the best. Triggers
    larger or smaller than the window want more than one: each costs flip_images forwards a candidate."""
    reading: Literal["changed", "gain", "supercluster_gain"] = "supercluster_gain"
    """Which reading of the poison score ranks candidates; all are recorded. The paper's: changed;
    PatchSearch's: gain of the own cluster; ours: gain of its supercluster."""
    flip_images: Count = 100
    per_cluster: Count = 2
    prune: Annotated[float, Field(gt=0, lt=1)] = 0.25
    min_live: Count = 8
    """The search stops when no more clusters than this are live …"""
    max_rounds: Count = 50
    max_candidates: Count = 100_000
    """… or after this many rounds, or when the next round would score more candidates than this in all."""
    batch_size: Count = 128
    chunk: Count = 32
    """Candidates in one unit of work."""


class Verdict(Section):
    """Whether there is poison. The constants of the verdict: poisoncam_ray.method.verdict.VerdictRules."""

    false_alarm_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The nominal chance that a clean corpus is called poisoned. 1 asks for no evidence and always finds
    poison, as the paper does."""


class Classify(Section):
    """The poison classifier. The paper: 2000 steps of SGD at 0.01, batch 32, five models;
    with AdamW, one cycle and a robust loss 150 steps did as well on photographs of 32 px."""

    top_k: Annotated[int, Field(ge=2, le=200)] = 20
    """Windows of each trigger family that its ensemble learns from."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the top-k triggers kept from training, to validate on."""
    paste_min: Fraction = 0.18
    paste_max: Fraction = 0.40
    """Side of a paste. The paper's 0.09 to 0.36 are for 224 px: below 6 px a paste is noise."""
    models: Count = 3
    steps: Annotated[int, Field(ge=6)] = 150
    """At least six: a fifth of them is warm-up, and torch divides by what a warm-up of one step has left."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Photographs a step, each seen with and without a paste."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    sample: Count = 20_000
    """Corpus images that positives and negatives are drawn from, at most."""

    @model_validator(mode="after")
    def _sizes(self) -> Classify:
        if self.paste_min > self.paste_max:
            raise ValueError("paste_min must not exceed paste_max")
        return self


class Resources(Section):
    """What each Ray actor asks for. Not part of any fingerprint: it changes a result by no more than rounding
    (threads sum in another order; a GPU trains in bfloat16)."""

    min_actors: Count = 1
    """Actors that Embed and Judge start with …"""
    actors: Count = 1
    """… and the most of any stage: pools grow as far as the cluster has room, or an autoscaler makes it."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    """0.5 puts two actors on one GPU; a training worker always has a whole one where this is not 0."""
    threads_per_actor: Count | None = None
    """Torch threads in each actor and training worker; null: the machine's cores over the actors."""
    cpus_per_reader: Annotated[float, Field(gt=0)] = 0.5
    readers: Count | None = 2
    """Reading tasks at once, each a process of its own; null: as many as the cluster has CPUs for."""

    @model_validator(mode="after")
    def _pool(self) -> Resources:
        if self.min_actors > self.actors:
            raise ValueError("min_actors must not exceed actors")
        return self


class Config(Section):
    seed: Seed = 0
    corpus: CorpusSettings = CorpusSettings()
    encoder: Encoder = Encoder()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    search: Search = Search()
    verdict: Verdict = Verdict()
    classify: Classify = Classify()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        side = self.encoder.image_size
        if self.window_px < 2:
            raise ValueError(f"search.window={self.search.window} of {side} px is less than 2 px")
        if not self.search.scales:
            raise ValueError("search.scales is empty: give at least [1.0]")
        if self.search.strategy == "full_coverage" and self.search.masks % 4:
            raise ValueError(f"search.masks={self.search.masks} must be a multiple of 4 for full_coverage")
        if self.pretrain.batch_size % self.pretrain.workers:
            raise ValueError("pretrain.batch_size must be a multiple of pretrain.workers")
        if self.pretrain.batch_size < 2 * self.pretrain.workers:
            raise ValueError("pretrain.batch_size must give every worker two images: a batch is normalised")
        if self.corpus.rows_per_slice * 3 * side**2 >= 2**31:
            raise ValueError(
                f"corpus.rows_per_slice={self.corpus.rows_per_slice} images of {side} px are more than the "
                f"2 GiB that travel at once: use at most {(2**31 - 1) // (3 * side**2)}"
            )
        if self.encoder.patch_size and side % self.encoder.patch_size:
            raise ValueError(
                f"encoder.patch_size={self.encoder.patch_size} does not divide encoder.image_size={side}"
            )
        return self

    @property
    def window_px(self) -> int:
        return max(1, round(self.search.window * self.encoder.image_size))

    @property
    def scales_px(self) -> list[int]:
        """Sides of the windows that are pasted, each once, within 2 px and the image."""
        side = self.encoder.image_size
        sizes = [min(side, max(2, round(scale * self.window_px))) for scale in self.search.scales]
        return list(dict.fromkeys(sizes))

    @property
    def cell_px(self) -> int:
        return max(1, round(self.search.cell * self.encoder.image_size))

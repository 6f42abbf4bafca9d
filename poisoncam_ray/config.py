"""The configuration: one frozen, validated section for each stage. settings.py reads it.

Fractions are shares of the encoder's image side unless a comment says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
SEEDS = 2**23
"""Seeds are 0 … SEEDS − 1."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
SAMPLED_SLICES, SAMPLED_ROWS = 32, 64
"""A sample is of at least so many slices, unless these would have fewer rows than this."""
Strategy = Literal["interval", "random", "full_coverage", "sliding", "keep_only", "mixed", "mixed_binary"]
Precision = Literal["float32", "bfloat16"]
Wanted = Literal["auto", Precision]


class Section(BaseModel):
    """One section of the configuration."""

    how: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how the work is done and not its result. They may change while a run folder is
    resumed."""

    # `config show` prints what stands below each key.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def outcome(self) -> dict[str, Any]:
        """The keys that decide the result, as JSON. A run folder is compared by them."""
        return self.model_dump(mode="json", exclude=set(self.how))


class CorpusSettings(Section):
    """The input: its format, its limits, and how many rows make one slice, the unit of work."""

    how: ClassVar[frozenset[str]] = frozenset({"max_dead_fraction", "version", "follow_links"})

    format: Literal["auto", "parquet", "folder", "webdataset", "delta", "arrow"] = "auto"
    image_column: str | None = None
    """The Parquet column, or the extension of a sample's image. null: the only one that holds images."""
    version: Annotated[int, Field(ge=0)] | None = None
    """The version of a Delta table. null: the current one. Run folders are compared by its files."""
    follow_links: bool = False
    """Read what symbolic links on a local disk lead to, wherever it lies, each folder once. Otherwise a link
    that leaves the input is refused by name."""
    rows_per_slice: Count = 1024
    max_pixels: Count = 64_000_000
    """An image whose header announces more pixels is never decoded. Its row is dead."""
    max_bytes: Count = 128 * 2**20
    """A larger image is never decoded. Its row is dead."""
    max_dead_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The job stops when more than this share of the rows is dead."""
    limit: Count | None = None
    """Look at a sample of so many rows, or a few more: slices drawn at random by the seed. null: all rows."""
    shrink_to: Annotated[int, Field(ge=32, le=4096)] | None = None
    """Index keeps a smaller JPEG copy of each larger image in work/, its long side so many pixels, and all
    later stages but Clean and Report decode the copies: at least twice encoder.image_size. It pays for images
    much larger than this, and results differ slightly. A corpus that changes during the run is noticed by
    Clean only. null: no copies."""
    skip_unreadable: bool = False
    """Go on without the shards that cannot be opened or have no image column, and count their rows as dead.
    Otherwise such shards are listed and the job stops before any work."""

    @property
    def slice_rows(self) -> int:
        """Rows of a slice, at most. A sample is of shorter slices, because neighbouring rows may be alike."""
        if self.limit is None:
            return self.rows_per_slice
        return min(self.rows_per_slice, max(SAMPLED_ROWS, self.limit // SAMPLED_SLICES))


class Encoder(Section):
    """The backbone. It is pretrained here, or read from a checkpoint."""

    backbone: str = "resnet_tiny_s2"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 32
    patch_size: Count | None = None
    checkpoint: str | None = None
    """URI of your own weights (safetensors, or a MoCo-v3 checkpoint). Skips pretraining."""


class Pretrain(Section):
    """The training of the threat model. The learning rate used is lr × batch_size / 256."""

    how: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "max_failures"})

    init: str | None = None
    """URI of weights that training starts with: safetensors of timm or of a run, or a MoCo-v3 checkpoint.
    null: random weights."""
    objective: Literal["moco_v3", "simclr", "byol", "simsiam"] = "moco_v3"
    """BYOL and SimSiam do not use `temperature`, SimCLR and SimSiam do not use `momentum`."""
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
    """The smallest share of an image's area that a view shows."""
    crop_shape: Literal["square", "own"] = "square"
    """Aspects of crops. square: 3/4 … 4/3 in stored pixels, as in most training loaders. own: times the
    image's aspect, for models whose training squeezes whole images. Of square images both are the same."""
    max_images: Count | None = None
    """Images shown at most, each as often as it is shown. The training ends early, and its schedule with it.
    null: those of all epochs."""
    sample: Annotated[float, Field(gt=0)] | None = None
    """Train on a part of the images, drawn by a hash of the seed and their ids. Up to 1: a share of them;
    above 1: about so many. An epoch is then one of this part. null: all images."""
    precision: Wanted = "auto"
    """Number format of forward and backward passes. Weights and losses are float32. auto: bfloat16 on GPUs
    that have it and on CPUs that are faster in it, else float32. A resumed training keeps its format."""
    workers: Count = 1
    """Each trains on a part of every batch. Batches do not depend on the number of workers."""
    shuffle_rows: Count = 32_768
    """Rows that are shuffled together. The workers hold them in memory, each its part, with two crops of
    each."""
    checkpoint_every: Count = 100
    """Steps between checkpoints. A killed job loses at most so many."""
    max_failures: Annotated[int, Field(ge=0)] = 3


class Embed(Section):
    """Features of all images."""

    how: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    batch_size: Count = 256


class Cluster(Section):
    """k-means. k null: 3·√N, which is 1,068 for the paper's 126,689 images (the paper has 1000)."""

    k: Annotated[int, Field(ge=2)] | None = None
    iterations: Count = 20
    sample: Count = 250_000
    """The most rows that k-means is trained on. The others are only assigned."""


class Race(Section):
    """How many flip-test images a window is pasted on. The verdict rests on the first images, the same for
    all windows. Only the ranking of the best windows uses the others, and spends them on the best alone."""

    first: Count = 64
    """Flip-test images that every window is pasted on. From flip_images on there is no race."""
    factor: Annotated[int, Field(ge=2)] = 4
    """By how much the images of those in the race grow from rung to rung."""
    keep: Annotated[float, Field(ge=0, le=1)] = 0.0625
    """Share of the windows that comes to the next rung. 0: no race."""


class Search(Section):
    """Cluster Activation Masking, the poison score, and the pruning of clusters."""

    how: ClassVar[frozenset[str]] = frozenset({"batch_size", "chunk"})

    strategy: Literal[Strategy, "gradcam"] = "mixed"
    """How the candidate window is found: by a kind of masks, or by PatchSearch's Grad-CAM."""
    score: Literal["hard", "margin", "distance"] = "distance"
    masks: Annotated[int, Field(ge=2)] = 128
    cell: Fraction = 0.125
    window: Fraction = 0.35
    hiding: Literal["paint", "drop"] = "paint"
    """How masks hide pixels: by the image's mean colour, or in a ViT by dropping the tokens of wholly hidden
    patches, which costs less. A convolutional network paints in any case, and so does a ViT whose window is
    narrower than 2.5 patches."""
    refine: bool = True
    """Shift the window by small steps and keep the best place. Each pass costs 25 shown and
    refine_hidden hidden masks an image."""
    refine_hidden: Annotated[int, Field(ge=0, le=25)] = 25
    """Of the 25 shifted windows so many, the best when shown alone, are also scored hidden. On
    the runs that this was tried on, 13 found about as many triggers as 25, and 5 found fewer. Where tokens
    are dropped, a shown window costs a tenth of a hidden one."""
    refine_shown: bool = True
    """Whether the shifted windows are also scored shown alone. false: refine_hidden of them, spread evenly,
    are scored hidden only. Of two small ViTs whose tokens are dropped, one found the place better by hidden
    windows alone, the other by shown ones."""
    refine_passes: Annotated[int, Field(ge=1, le=5)] = 1
    """How often the window is shifted to a better place, each time by at most two steps."""
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = (1.0,)
    """Sizes of the pasted window, as multiples of `window`. Each image keeps the best. More than one size
    finds triggers that are larger or smaller than the window; each costs race.first forwards a candidate."""
    reading: Literal["changed", "gain", "supercluster_gain"] = "supercluster_gain"
    """The reading of the poison score that ranks candidates. The paper counts all changed images, PatchSearch
    the net gain of the candidate's cluster; the default is the net gain of its supercluster."""
    flip_images: Count = 100
    """Images of the flip test, from all clusters in turn."""
    race: Race = Race()
    """first: flip-test images that every window is pasted on. Evidence rests on these, and from flip_images
    on there is no race. The best share `keep` is pasted on `factor` times as many, and so on up to
    flip_images: this ranks the windows."""
    per_cluster: Count = 2
    prune: Annotated[float, Field(gt=0, lt=1)] = 0.25
    min_live: Count = 8
    """The search stops when so few clusters are left."""
    max_rounds: Count = 50
    """The search stops after so many rounds."""
    max_candidates: Count = 100_000
    """The search stops before it would score more candidates than this."""
    batch_size: Count = 128
    chunk: Count = 32
    """Candidates that one call of an actor scores."""


class Verdict(Section):
    """Whether there is poison. The constants of the verdict: poisoncam_ray.method.verdict.VerdictRules."""

    false_alarm_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The nominal chance that a clean corpus is called poisoned. 1 asks for no evidence and always finds
    poison, as the paper does."""


class Classify(Section):
    """The poison classifier. The paper trains five models by 2000 steps of SGD at 0.01; the default trains
    three by 150 steps of AdamW with one cycle and a robust loss."""

    top_k: Annotated[int, Field(ge=2, le=200)] = 20
    """The most windows of a trigger family that its ensemble learns from."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of these windows that is held out for validation."""
    paste_min: Fraction = 0.18
    paste_max: Fraction = 0.40
    """The side of a paste. The paper's 0.09 to 0.36 are for 224 px; at 32 px the smaller ones would be
    noise."""
    models: Count = 3
    steps: Annotated[int, Field(ge=6)] = 150
    """At least six, because a fifth of them is warm-up and torch cannot warm up in one step."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images a step. Each is seen with and without a paste."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    sample: Count = 20_000
    """The most corpus images that positives and negatives are drawn from."""

    @model_validator(mode="after")
    def _sizes(self) -> Classify:
        if self.paste_min > self.paste_max:
            raise ValueError("paste_min must not exceed paste_max")
        return self


class Clean(Section):
    """What is written of the corpus."""

    copy_corpus: bool | None = None
    """Write the kept rows to clean/. false: leave the corpus where it is, and list them in keep/. null: write
    them, unless the run looks at a sample (corpus.limit)."""


class Resources(Section):
    """What each Ray actor asks for, and in which precision it computes. Only the precision is part of
    fingerprints: the others change results by rounding at most, as more threads add in another order."""

    precision: Wanted = "auto"
    """Number format of the networks in Embed, Search and Judge. auto: bfloat16 on GPUs that have it and on
    CPUs that are faster in it, else float32. A run folder keeps what was decided when it was begun."""

    min_actors: Count = 1
    """Actors that Embed and Judge start with."""
    actors: Count | None = 1
    """The most actors of a stage. Pools grow as far as the cluster has room or an autoscaler makes room.
    null: as many as find place in the cluster, and no fewer than there are training workers, which an
    autoscaler brings nodes for."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    """0.5 puts two actors on one GPU. Where it is above 0, a training worker has a whole GPU."""
    threads_per_actor: Count | None = None
    """Torch threads of each actor and training worker. null: the machine's cores divided by `actors`; without
    these, as many as CPUs."""
    cpus_per_reader: Annotated[float, Field(gt=0)] = 0.5
    readers: Count | None = 2
    """Reading tasks at once, each in its own process; a training worker has two or more. null: as many as the
    cluster has CPUs for."""

    @model_validator(mode="after")
    def _pool(self) -> Resources:
        if self.actors is not None and self.min_actors > self.actors:
            raise ValueError("min_actors must not exceed actors")
        return self


class Config(Section):
    """The whole configuration."""

    seed: Seed = 0
    corpus: CorpusSettings = CorpusSettings()
    encoder: Encoder = Encoder()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    search: Search = Search()
    verdict: Verdict = Verdict()
    classify: Classify = Classify()
    clean: Clean = Clean()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        side = self.encoder.image_size
        if self.clean.copy_corpus and self.corpus.limit is not None:
            raise ValueError(
                "clean.copy_corpus=true with corpus.limit would leave a part of the corpus that looks like a "
                "cleaned one; leave one of them out"
            )
        if self.window_px < 2:
            raise ValueError(f"search.window={self.search.window} of {side} px is less than 2 px")
        if not self.search.scales:
            raise ValueError("search.scales is empty: give at least [1.0]")
        if self.search.hiding == "drop" and max(self.window_px, *self.scales_px) >= side:
            raise ValueError(
                "search.hiding=drop leaves no token where a window is as large as the image: use "
                "search.hiding=paint, or lower search.window or search.scales"
            )
        if self.search.refine and not (self.search.refine_shown or self.search.refine_hidden):
            raise ValueError(
                "search.refine_hidden=0 with search.refine_shown=false leaves nothing to refine by: set "
                "search.refine=false"
            )
        if (
            self.search.hiding == "drop"
            and self.search.strategy == "full_coverage"
            # Rounded to whole patches, a larger cell may cover the image.
            and self.search.cell > 0.5
        ):
            raise ValueError(
                f"search.cell={self.search.cell} with search.hiding=drop may leave no token where a mask of "
                "full_coverage hides a cell: use at most 0.5, or search.hiding=paint"
            )
        if self.search.strategy == "full_coverage" and self.search.masks % 4:
            raise ValueError(f"search.masks={self.search.masks} must be a multiple of 4 for full_coverage")
        if self.pretrain.init and self.encoder.checkpoint:
            raise ValueError(
                "pretrain.init has no effect with encoder.checkpoint, which skips pretraining; leave one out"
            )
        if self.pretrain.batch_size % self.pretrain.workers:
            raise ValueError("pretrain.batch_size must be a multiple of pretrain.workers")
        if self.pretrain.batch_size < 2 * self.pretrain.workers:
            raise ValueError("pretrain.batch_size must give every worker two images: a batch is normalised")
        shown = self.pretrain.max_images
        if shown is not None and shown < self.pretrain.batch_size:
            raise ValueError(
                f"pretrain.max_images={shown} is less than one batch: pretrain.batch_size is "
                f"{self.pretrain.batch_size}"
            )
        copies = self.corpus.shrink_to
        if copies is not None and copies < 2 * side:
            raise ValueError(
                f"corpus.shrink_to={copies} is less than twice encoder.image_size={side}, so the short side "
                f"of a copy could be less than the encoder sees: use {2 * side} or more, or null"
            )
        # Pretrain has two crops of each image.
        if self.corpus.rows_per_slice * 6 * side**2 >= 2**31:
            raise ValueError(
                f"corpus.rows_per_slice={self.corpus.rows_per_slice} images of {side} px are more than the "
                f"2 GiB that travel at once: use at most {(2**31 - 1) // (6 * side**2)}"
            )
        if self.encoder.patch_size and side % self.encoder.patch_size:
            raise ValueError(
                f"encoder.patch_size={self.encoder.patch_size} does not divide encoder.image_size={side}"
            )
        return self

    @property
    def copies(self) -> bool:
        """Whether the kept rows are written to clean/."""
        return self.corpus.limit is None and self.clean.copy_corpus is not False

    @property
    def window_px(self) -> int:
        """The side of the candidate window in pixels of the encoder's image."""
        return max(1, round(self.search.window * self.encoder.image_size))

    @property
    def scales_px(self) -> list[int]:
        """The different sides of the pasted windows in pixels, from 2 to the image's side."""
        side = self.encoder.image_size
        sizes = [min(side, max(2, round(scale * self.window_px))) for scale in self.search.scales]
        return list(dict.fromkeys(sizes))

    @property
    def cell_px(self) -> int:
        """The side of a mask's cell in pixels of the encoder's image."""
        return max(1, round(self.search.cell * self.encoder.image_size))

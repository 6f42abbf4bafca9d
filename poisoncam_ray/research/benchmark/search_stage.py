"""The whole Search stage on Ray, as a preset has it, against the naive bill of its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.method.encoder import Encoder
from poisoncam_ray.method.masks import SMOOTH, cell_of_patches
from poisoncam_ray.research.benchmark.candidate import FULL, naive_way
from poisoncam_ray.research.benchmark.candidate import Sizes as CandidateSizes
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, alternate, scaled
from poisoncam_ray.research.benchmark.images import draw_images, pixels
from poisoncam_ray.research.benchmark.made_up import with_checkpoint
from poisoncam_ray.research.benchmark.search import masks_of, one_at_a_time, work_on
from poisoncam_ray.research.benchmark.timed_stage import TimedStage, stage_config
from poisoncam_ray.research.study.flops import Way, bill, forward_flops
from poisoncam_ray.stages.cluster import Cluster
from poisoncam_ray.stages.compute import device
from poisoncam_ray.stages.embed import Embed, load_encoder
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.pretrain import Pretrain
from poisoncam_ray.stages.ranking import race_rules
from poisoncam_ray.stages.scorer import hiding_of
from poisoncam_ray.stages.search import Search


@dataclass(frozen=True)
class Sizes:
    """Of the part `search`.

    Attributes:
        naive: the encoder, and the naive bill.
        preset: whose section `search` is measured.
        settings: of the run, which win over the preset.
        images: in the corpus.
        stored: the side of a stored image in pixels.
        k, per_cluster: clusters, and candidates of each.
    """

    naive: CandidateSizes = FULL
    preset: str | None = "imagenet100"
    settings: tuple[str, ...] = ()
    images: int = 1024
    stored: int = 224
    k: int = 8
    per_cluster: int = 4


def measure_search(setting: Setting, sizes: Sizes) -> Measured:
    """One round of the stage against the naive loop on as many candidates."""
    naive, folder = sizes.naive, setting.out / "search"
    corpus = draw_images(setting.out / "corpora", sizes.images, sizes.stored, sizes.stored, shards=4)
    config = stage_config(
        setting,
        f"encoder.backbone={naive.backbone}",
        "encoder.patch_size=null",
        f"encoder.image_size={naive.image_size}",
        f"cluster.k={sizes.k}",
        f"search.per_cluster={sizes.per_cluster}",
        f"search.flip_images={naive.flip_images}",
        f"search.batch_size={setting.batch(naive.batch)}",
        "search.min_live=1",
        "search.max_rounds=1",
        *sizes.settings,
        preset=sizes.preset,
    )
    config = with_checkpoint(config, folder)
    stages = [Index(), Pretrain(), Embed(), Cluster(), Search()]
    stage = TimedStage(corpus, folder / "run", config, stages)
    encoder = load_encoder(stage.run_folder / artifact.ENCODER, "float32")
    n_flip = max(1, naive.flip_images // naive.sampled)
    work = work_on(encoder, pixels(1 + n_flip, naive.image_size).to(device()), 1, sizes.k, naive.batch)
    way = naive_way(naive)
    m_BHW = masks_of(way, naive.image_size)[:: naive.sampled].to(device())
    loop = partial(one_at_a_time, encoder, work, way, m_BHW, "hard")
    (ours, looped), _ = alternate((stage.again, loop), setting.rounds, warm=False)
    table = (stage.out / artifact.round_name(0)).read_table(artifact.CANDIDATES, ["image_id"])
    n, forwards = len(table), naive.naive_masks + naive.flip_images
    cost = bill(encoder, way_of(config, encoder, n)).total * n
    # The flip-test images themselves are embedded twice: to find their clusters, and whether these are firm.
    once = 2 * naive.flip_images * forward_flops(encoder)
    cost += once
    row = Row(
        f"the stage Search, {n} candidates",
        (f"on Ray, preset {sizes.preset}" if sizes.preset else "on Ray", "naive loop, float32"),
        (ours, scaled(looped, n * forwards / (len(m_BHW) + n_flip))),
        f"{naive.backbone}, {naive.image_size} px, {config.search.masks} masks of "
        f"{config.search.strategy}, {config.search.hiding}, "
        f"{config.resources.precision}, {naive.flip_images:,} flip-test images, batches "
        f"of {config.search.batch_size}; start of the actor and reading included",
        flop=(cost, bill(encoder, way).total * n),
    )
    note = (
        f"{median(ours) / n:.3g} s a candidate. The flip-test images, which are embedded for all candidates "
        f"together, are {once / cost:.2f} of the stage's FLOPs with so few of them."
    )
    return Measured([row], notes=[note])


def way_of(config: Config, encoder: Encoder, candidates: int) -> Way:
    """How the stage treats a candidate by this configuration.

    Raises:
        ValueError: by Grad-CAM, which has no bill.
    """
    settings, cell = config.search, config.cell_px
    if settings.strategy == "gradcam":
        raise ValueError("Grad-CAM has no masks to count")
    hiding = hiding_of(config, encoder)
    if encoder.patch_size and hiding == "drop" and settings.strategy not in SMOOTH:
        cell = cell_of_patches(cell, encoder.patch_size)
    return Way(
        settings.strategy,
        settings.masks,
        cell,
        config.window_px,
        hiding,
        settings.refine,
        settings.refine_hidden,
        settings.refine_shown,
        settings.refine_passes,
        checks=2,
        flip_images=settings.flip_images,
        rules=race_rules(settings),
        candidates=candidates,
    )

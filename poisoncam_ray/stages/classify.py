"""Classify: for each trigger family an ensemble trained on pastes of its best windows, and a threshold chosen
without labels. Without evidence of poison nothing is trained.

N images   V held-out pastes   M crops   C channels   H = W image side   h, w a window's sides
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.classifier import choose_threshold, held_out_pastes, poison_logit, train_classifier
from poisoncam_ray.method.crops import MOST_SQUEEZED, PART_ASPECT
from poisoncam_ray.method.geometry import same_size
from poisoncam_ray.method.localise import whole_triggers
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import device, set_up
from poisoncam_ray.stages.crops import from_png, to_png
from poisoncam_ray.stages.ensembles import load_models
from poisoncam_ray.stages.pixels import Pixels, fetch_images, fetch_with_aspects, images_of
from poisoncam_ray.stages.pool import assignments
from poisoncam_ray.stages.ray_cluster import RESTARTS, actors_at_most, in_flight
from poisoncam_ray.stages.shrunk import Copies

ROLE_NAMES = ("train", "validate")
MOST_UNSURE = 0.03
"""A family is erased only if at most this share of the corpus lies within one logit of its threshold: between
the shares seen of triggers and of benign windows that were taken for a family."""
VALIDATION_PASTES = 1000
ASPECT_SLICES = 256
"""Slices of the corpus, at most, whose images' aspects are looked at."""
WINDOWS_PER_PICTURE = 50
"""Best windows of a family that its trigger pictures are made from: fewer leave rare views of it out."""


class Classify(Stage):
    name = artifact.CLASSIFIER
    title = "Classify"
    version = 10
    inputs = (artifact.INDEX, artifact.CLUSTERS, artifact.VERDICT)
    sections = ("encoder", "classify")

    def depends_on(self, config: Config) -> dict[str, Any]:
        # Thresholds are chosen at the precision that Judge scores with.
        return {"resources.precision": config.resources.precision}

    def run(self, run: Run) -> Outcome:
        folder = run.folder / artifact.VERDICT
        found = artifact.Verdict.read(folder)
        if not found.poison:
            nothing = {"threshold": 0.5, "trained": False, "families": {}}
            run.out.write_json(artifact.VALIDATION, nothing)
            return Outcome(facts.Classified(trained=False))
        settings = run.config.classify
        triggers = with_roles(
            folder.read_table(artifact.TRIGGERS), settings.top_k, settings.held_out, run.config.seed
        )
        run.out.write_table(artifact.ROLES, triggers)
        run.progress.update(0, note="drawing images to train on")
        negatives, whole = draw_samples(run.folder / artifact.CLUSTERS, triggers, settings.sample)
        if not negatives:
            raise UserError("No image is left to train the poison classifier on: the corpus is too small.")
        numbers = families_of(triggers)
        crops = {family: [crops_of(triggers, family, role) for role in ROLE_NAMES] for family in numbers}
        reused, chosen = self._train(run, negatives, whole, crops)
        run.out.write_table(artifact.WHOLE_TRIGGERS, _picture_families(run, triggers, numbers))
        for figures in chosen.values():
            figures["erased"] = sure_enough(figures["unsure_share"], found.false_alarm_rate)
        # At the top level: the figures of the family with the lowest recall.
        least = min(chosen.values(), key=lambda figures: figures["recall"])
        run.out.write_json(artifact.VALIDATION, least | {"trained": True, "families": chosen})
        in_doubt = [int(family) for family, figures in chosen.items() if not figures["erased"]]
        said = facts.Classified(True, len(numbers), settings.models, reused, least["recall"], in_doubt)
        return Outcome(said)

    def _train(
        self, run: Run, negatives: list[str], whole: list[str], crops: dict[int, list[Tensor]]
    ) -> tuple[int, dict[str, dict[str, Any]]]:
        """Train the models that are missing, then choose each family's threshold.

        Args:
            run: the run.
            negatives: ids of the images that pastes are trained against.
            whole: ids of the images, drawn from the whole corpus, that the threshold is chosen on.
            crops: crops of each family, one tensor for each of ROLE_NAMES.

        Returns:
            How many models an earlier attempt had trained, and the validation figures by family.
        """
        settings, resources = run.config.classify, run.config.resources
        every = [(family, i) for family in crops for i in range(settings.models)]
        todo = [(family, i) for family, i in every if not run.out.exists(artifact.model_name(family, i))]
        # Fetched on a worker node: the driver's node may be a small one.
        fetch = ray.remote(fetch_images).options(num_cpus=resources.cpus_per_reader, max_retries=RESTARTS)
        stored = images_of(run.corpus, run.config, run.folder / artifact.INDEX)
        images = fetch.remote(stored, run.config, negatives)
        needs: dict[str, Any] = {
            "num_cpus": resources.cpus_per_actor,
            "num_gpus": resources.gpus_per_actor,
            "max_retries": RESTARTS,
        }
        train = ray.remote(train_model).options(**needs)
        aspects = aspects_of(run.folder / artifact.INDEX)
        calls = (
            partial(train.remote, family, i, run.config, images, crops[family][0], aspects, run.out)
            for family, i in todo
        )
        # As many at once as other stages have actors: each uses its share of the machine's threads.
        most = actors_at_most(resources, run.config.pretrain.workers)
        reused = len(every) - len(todo)
        run.progress.update(reused, len(every), "models")
        for done, _ in enumerate(in_flight(calls, most), start=reused + 1):
            run.progress.update(done, len(every), "models")
        validate = ray.remote(validate_family).options(**needs)
        whole_images = fetch.remote(stored, run.config, whole)
        chosen = {}
        for done, family in enumerate(crops):
            run.progress.update(done, len(crops), "thresholds")
            held_out = crops[family][1]
            figures = validate.remote(family, run.config, images, whole_images, held_out, run.out)
            chosen[str(family)] = ray.get(figures)
        return reused, chosen


def _picture_families(run: Run, triggers: pa.Table, families: list[int]) -> pa.Table:
    """Pictures of each family's whole trigger (WHOLE_TRIGGER_SCHEMA), from the images of its best windows."""
    task = ray.remote(picture_trigger).options(
        num_cpus=run.config.resources.cpus_per_reader, max_retries=RESTARTS
    )
    windows = [
        triggers.filter(pc.equal(triggers["family"], family))[:WINDOWS_PER_PICTURE] for family in families
    ]
    stored = images_of(run.corpus, run.config, run.folder / artifact.INDEX)
    found = ray.get([task.remote(stored, run.config, table) for table in windows])
    rows = [
        {"family": family, "picture": data, "aspect": aspect}
        for family, pictures in zip(families, found, strict=True)
        for data, aspect in pictures
    ]
    return pa.Table.from_pylist(rows, schema=artifact.WHOLE_TRIGGER_SCHEMA)


def aspects_of(index: Folder) -> float:
    """The greatest aspect (width over height) of what is seen of the corpus's images over the least, without
    the outermost hundredths; 1 for a corpus of squares. From a bounded number of slices."""
    names = index.parts()
    some = names[:: -(-len(names) // ASPECT_SLICES)]
    sizes = pa.concat_tables([index.read_table(name, ["width", "height"]) for name in some])
    if not len(sizes):
        return 1.0
    log_N = np.log(sizes["width"].to_numpy() / sizes["height"].to_numpy())
    # Longer images are seen by their parts. Those above 12.5:1 have longer parts, and are too rare to count.
    long_N = np.abs(log_N) > np.log(MOST_SQUEEZED)
    aspect_N = np.exp(np.where(long_N, np.sign(log_N) * np.log(PART_ASPECT), log_N))
    least, greatest = np.quantile(aspect_N, (0.01, 0.99))
    return float(greatest / least)


def sure_enough(unsure_share: float, false_alarm_rate: float) -> bool:
    """Whether a family is erased.

    Args:
        unsure_share: the share of the corpus within one logit of the family's threshold.
        false_alarm_rate: of the verdict; at 1 no evidence was asked for, and every family is erased.
    """
    return unsure_share <= MOST_UNSURE or false_alarm_rate >= 1


def families_of(triggers: pa.Table) -> list[int]:
    """The numbers of the families that have windows to train on, ascending from 1."""
    return sorted(set(triggers.filter(pc.not_equal(triggers["role"], "unused"))["family"].to_pylist()))


def with_roles(triggers: pa.Table, top_k: int, held_out: float, seed: int) -> pa.Table:
    """Append the column `role` to the triggers.

    Args:
        triggers: the triggers, best first.
        top_k: windows of each family that are used.
        held_out: the share of them that validates; the others train.
        seed: draws the windows that validate.

    Returns:
        The triggers with role train, validate, or unused: windows below the top, or of no family.
    """
    roles = ["unused"] * len(triggers)
    family_of = triggers["family"].to_pylist()
    for family in sorted(set(family_of) - {0}):
        places = [i for i, of in enumerate(family_of) if of == family][:top_k]
        k = len(places)
        n_held = min(k - 1, max(1, round(k * held_out))) if k > 1 else 0
        order = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).tolist()
        held = set(order[:n_held])
        for i, place in enumerate(places):
            roles[place] = "validate" if i in held else "train"
    return triggers.append_column("role", pa.array(roles))


def crops_of(triggers: pa.Table, family: int, role: str) -> Tensor:
    """The family's crops of that role, t_MCww uint8. A family's only window has both roles."""
    ours = triggers.filter(pc.equal(triggers["family"], family))
    rows = ours.filter(pc.equal(ours["role"], role))
    t_MCww = same_size([from_png(data) for data in (rows if len(rows) else ours[:1])["crop"].to_pylist()])
    return (t_MCww * 255).round().to(torch.uint8)


def draw_samples(clusters: Folder, triggers: pa.Table, most: int) -> tuple[list[str], list[str]]:
    """Draw two random samples of image ids by the seed of their `draw` column.

    Args:
        clusters: the artifact of Cluster.
        triggers: the triggers with their roles.
        most: ids of each sample, at most.

    Returns:
        (negatives, whole). `whole` is drawn from the whole corpus. `negatives` is drawn from the clusters
        without a used trigger, since the others may hold poison; when that leaves too few images,
        `negatives` is `whole` without the images of used triggers.
    """
    top = triggers.filter(pc.not_equal(triggers["role"], "unused"))
    bad_clusters = pa.array(sorted(set(top["cluster"].to_pylist())), pa.int32())
    whole = outside = None
    for table in assignments(clusters):
        table = table.select(["image_id", "cluster", "draw"])
        good = table.filter(pc.invert(pc.is_in(table["cluster"], bad_clusters)))
        whole, outside = _first(whole, table, most), _first(outside, good, most)
    if whole is None or outside is None:
        return [], []
    ids = sorted(whole["image_id"].to_pylist())
    if len(outside) < len(whole) // 4:
        bad_ids = set(top["image_id"].to_pylist())
        return [i for i in ids if i not in bad_ids], ids
    return sorted(outside["image_id"].to_pylist()), ids


def _first(earlier: pa.Table | None, table: pa.Table, most: int) -> pa.Table:
    """The `most` rows of lowest `draw` of both tables."""
    both = table if earlier is None else pa.concat_tables([earlier, table])
    return both.sort_by([("draw", "ascending"), ("image_id", "ascending")]).slice(0, most)


def tensor(x_NCHW: Pixels) -> Tensor:
    """A copy on this process's device: Ray's shared memory is read-only."""
    return torch.from_numpy(x_NCHW.copy()).to(device())


def picture_trigger(images: Corpus | Copies, config: Config, windows: pa.Table) -> list[tuple[bytes, float]]:
    """The task for one family: pictures of its whole trigger as PNG, from the images of `windows`, and the
    aspect of what each was cut from."""
    set_up(config.resources)
    ids = windows["image_id"].to_pylist()
    pixels, aspects = fetch_with_aspects(images, config, ids)
    box_N4 = torch.tensor([windows[side].to_pylist() for side in SIDES]).T
    pictures, cut_from = whole_triggers(torch.from_numpy(pixels).float() / 255, box_N4)
    return [(to_png(t_Chw), aspects[i]) for t_Chw, i in zip(pictures, cut_from, strict=True)]


def train_model(
    family: int, i: int, config: Config, x_NCHW: Pixels, crops_MCww: Tensor, aspects: float, out: Folder
) -> None:
    """The task for model `i` of one family: train it on pastes of the crops, and write its weights."""
    set_up(config.resources)
    settings = config.classify
    model = train_classifier(
        tensor(x_NCHW),
        crops_MCww.to(device()),
        seed=config.seed * 1000 + 100 * (family - 1) + i,
        aspects=aspects,
        steps=settings.steps,
        batch=settings.batch_size,
        learning_rate=settings.lr,
        paste_size=(settings.paste_min, settings.paste_max),
    )
    out.write_tensors(artifact.model_name(family, i), {key: t.cpu() for key, t in model.state_dict().items()})


def validate_family(
    family: int,
    config: Config,
    negative_NCHW: Pixels,
    whole_NCHW: Pixels,
    crops_MCww: Tensor,
    out: Folder,
) -> dict[str, Any]:
    """The task for one family: choose its threshold.

    Args:
        family: the family's number.
        config: the configuration.
        negative_NCHW: images that held-out crops are pasted into.
        whole_NCHW: images drawn from the whole corpus.
        crops_MCww: the held-out crops, uint8.
        out: the artifact of Classify, which holds the family's models.

    Returns:
        The family's entry in validation.json.
    """
    set_up(config.resources, processes=1)
    models = load_models(config, out, family)
    x_NCHW, n = tensor(negative_NCHW), min(VALIDATION_PASTES, 4 * len(negative_NCHW))
    x_VCHW = held_out_pastes(x_NCHW, crops_MCww.to(device()), n, config.seed)
    held_out_logit_V = poison_logit(models, x_VCHW)
    figures = choose_threshold(
        held_out_logit_V, poison_logit(models, tensor(whole_NCHW)), n_crops=len(crops_MCww)
    )
    return {"threshold": 0.5, "n_validation": n, **figures}

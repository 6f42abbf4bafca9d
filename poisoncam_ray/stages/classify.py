"""Classify: an ensemble trained on pastes of the top triggers, and a threshold from data the defence has
(DESIGN step 6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor, nn

from poisoncam_ray.artifact import Folder
from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.method.classifier import (
    PoisonClassifier,
    held_out_pastes,
    poison_logit,
    train_classifier,
)
from poisoncam_ray.method.threshold import choose_threshold
from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.stages.compute import device, set_threads
from poisoncam_ray.stages.dataflow import RESTARTS, Pixels, fetch_images, in_flight
from poisoncam_ray.stages.pool import assignments
from poisoncam_ray.stages.search import TRIGGERS, from_png

VALIDATION = "validation.json"
ROLES = "triggers.parquet"
VALIDATION_PASTES = 1000


class Classify(Stage):
    name = "05_classifier"
    title = "Classify"
    version = 2
    inputs = ("00_index", "03_clusters", "04_search")
    sections = ("encoder", "classify")

    def run(self, run: Run) -> Outcome:
        settings, resources = run.config.classify, run.config.resources
        triggers = with_roles(
            run.artifact("04_search").read_table(TRIGGERS), settings.top_k, settings.held_out, run.config.seed
        )
        run.out.write_table(ROLES, triggers)
        clusters = run.artifact("03_clusters")
        negatives, whole = draw_samples(clusters, triggers, settings.sample)
        if not negatives:
            raise UserError("No image is left to train the poison classifier on: the corpus is too small.")
        crops = {role: crops_of(triggers, role) for role in ("train", "validate")}
        todo = [i for i in range(settings.models) if not run.out.exists(model_name(i))]
        # On a worker node: the driver's may be a small one.
        fetch = ray.remote(fetch_images).options(num_cpus=resources.cpus_per_reader, max_retries=RESTARTS)
        images = fetch.remote(run.corpus, run.config, negatives)
        needs: dict[str, Any] = {
            "num_cpus": resources.cpus_per_actor,
            "num_gpus": resources.gpus_per_actor,
            "max_retries": RESTARTS,
        }
        task = ray.remote(_train).options(**needs)
        calls = (partial(task.remote, i, run.config, images, crops["train"], run.out) for i in todo)
        # As many at once as there are actors elsewhere: each takes its share of the machine's threads.
        for done, _ in enumerate(in_flight(calls, resources.actors), start=1):
            run.progress.update(f"{done} of {len(todo)} models")
        validate = ray.remote(_validate).options(**needs)
        whole_images = fetch.remote(run.corpus, run.config, whole)
        chosen = ray.get(validate.remote(run.config, images, whole_images, crops["validate"], run.out))
        run.out.write_json(VALIDATION, chosen)
        facts = {
            "summary": f"{settings.models} models, {chosen['recall']:.1%} of held-out pastes recognised",
            "models_reused": settings.models - len(todo),
            **chosen,
        }
        return Outcome(facts=facts)


def model_name(i: int) -> str:
    return f"model_{i}.safetensors"


def with_roles(triggers: pa.Table, top_k: int, held_out: float, seed: int) -> pa.Table:
    """The triggers with a `role`: of the best `top_k` a random share is held out to validate on, the others
    train; the rest is unused."""
    k = min(top_k, len(triggers))
    n_held = min(k - 1, max(1, round(k * held_out))) if k > 1 else 0
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:n_held])
    roles = ["validate" if i in held else "train" if i < k else "unused" for i in range(len(triggers))]
    families = pa.array([0] * len(triggers), pa.int32())
    return triggers.append_column("role", pa.array(roles)).append_column("family", families)


def crops_of(triggers: pa.Table, role: str) -> Tensor:
    """t_MCww uint8; a single trigger must serve both roles."""
    rows = [row for row in triggers.to_pylist() if row["role"] == role] or triggers.slice(0, 1).to_pylist()
    return (torch.stack([from_png(row["crop"]) for row in rows]) * 255).round().to(torch.uint8)


def draw_samples(clusters: Folder, triggers: pa.Table, most: int) -> tuple[list[str], list[str]]:
    """Two seeded random samples of at most `most` image ids: (negatives, whole).

    `whole` is drawn from the whole corpus, as the threshold wants it. `negatives` leaves out the top
    triggers' clusters: what the search itself found poisonous must be no negative example. When that leaves
    too few, only the top images themselves are left out.
    """
    top = [row for row in triggers.to_pylist() if row["role"] != "unused"]
    bad_clusters = pa.array(sorted({row["cluster"] for row in top}), pa.int32())
    whole = outside = None
    for table in assignments(clusters):
        table = table.select(["image_id", "cluster", "draw"])
        good = table.filter(pc.invert(pc.is_in(table["cluster"], bad_clusters)))
        whole, outside = _first(whole, table, most), _first(outside, good, most)
    if whole is None or outside is None:
        return [], []
    ids = sorted(whole["image_id"].to_pylist())
    if len(outside) < len(whole) // 4:
        bad_ids = {row["image_id"] for row in top}
        return [i for i in ids if i not in bad_ids], ids
    return sorted(outside["image_id"].to_pylist()), ids


def _first(earlier: pa.Table | None, table: pa.Table, most: int) -> pa.Table:
    """The `most` rows of lowest draw of both."""
    both = table if earlier is None else pa.concat_tables([earlier, table])
    return both.sort_by([("draw", "ascending"), ("image_id", "ascending")]).slice(0, most)


@dataclass(frozen=True)
class Ensemble:
    """The committed classifier, ready to judge."""

    models: list[nn.Module]
    threshold_logit: float

    def p_poison(self, x_NCHW: Tensor) -> Tensor:
        """p_N on the CPU, of uint8 images; above 0.5 is poison. Logits are read from the threshold, which may
        lie where a plain sigmoid no longer tells one image from another."""
        logit_N = poison_logit(self.models, x_NCHW.to(device()))
        return (logit_N - self.threshold_logit).sigmoid().cpu()


def load_models(config: Config, out: Folder) -> list[nn.Module]:
    models: list[nn.Module] = []
    for i in range(config.classify.models):
        model = PoisonClassifier(config.encoder.image_size)
        model.load_state_dict(out.read_tensors(model_name(i)))
        models.append(model.to(device()).eval())
    return models


def load_ensemble(config: Config, out: Folder) -> Ensemble:
    return Ensemble(load_models(config, out), out.read_json(VALIDATION)["threshold_logit"])


def tensor(x_NCHW: Pixels) -> Tensor:
    """On this process's device; a copy, because Ray's shared memory may not be written to."""
    return torch.from_numpy(x_NCHW.copy()).to(device())


def _train(i: int, config: Config, x_NCHW: Pixels, crops_MCww: Tensor, out: Folder) -> None:
    set_threads(config.resources)
    settings = config.classify
    model = train_classifier(
        tensor(x_NCHW),
        crops_MCww.to(device()),
        seed=config.seed * 1000 + i,
        steps=settings.steps,
        batch=settings.batch_size,
        learning_rate=settings.lr,
        paste_size=(settings.paste_min, settings.paste_max),
    )
    out.write_tensors(model_name(i), {key: t.cpu() for key, t in model.state_dict().items()})


def _validate(
    config: Config, negative_NCHW: Pixels, whole_NCHW: Pixels, crops_MCww: Tensor, out: Folder
) -> dict[str, Any]:
    set_threads(config.resources, processes=1)
    models = load_models(config, out)
    x_NCHW, n = tensor(negative_NCHW), min(VALIDATION_PASTES, 4 * len(negative_NCHW))
    x_VCHW = held_out_pastes(x_NCHW, crops_MCww.to(device()), n, config.seed)
    held_out_logit_V = poison_logit(models, x_VCHW)
    _, facts = choose_threshold(
        held_out_logit_V, poison_logit(models, tensor(whole_NCHW)), n_crops=len(crops_MCww)
    )
    return {"threshold": 0.5, "n_validation": n, **facts}

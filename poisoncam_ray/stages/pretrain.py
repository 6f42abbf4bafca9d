"""Pretrain: the threat model, MoCo-v3, SimCLR or BYOL on the suspicious corpus itself, on Ray Train.

Every random draw is a pure function of (seed, step, rank), so a checkpoint holds tensors and a step number
and the resumed training is the undisturbed one. Checkpoints are ours (safetensors and JSON): nothing that
comes from storage is unpickled.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from poisoncam_ray import artifact, facts
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.augment import two_views
from poisoncam_ray.method.encoder import Encoder, build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES, Objective, gather_rows, learning_rate_at, momentum_at
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.compute import set_up
from poisoncam_ray.stages.dataflow import hush
from poisoncam_ray.stages.embed import write_encoder
from poisoncam_ray.stages.own_encoder import check_encoder, checkpoint_sha256, import_encoder
from poisoncam_ray.stages.training_data import Epochs, drawn_by

STATE = "state.json"
WATCH_EVERY_S = 3


class Pretrain(Stage):
    name = artifact.ENCODER
    title = "Pretrain"
    version = 3
    inputs = (artifact.INDEX,)
    sections = ("encoder", "pretrain")

    def check(self, config: Config, rows: int | None) -> None:
        if rows is None:
            # A checkpoint is read for that, whole: once is enough.
            check_encoder(config)
        elif rows < config.pretrain.batch_size and not config.encoder.checkpoint:
            raise UserError(
                f"pretrain.batch_size={config.pretrain.batch_size} is more than the {rows} images there are: "
                "lower it."
            )

    def depends_on(self, config: Config) -> dict[str, Any]:
        checkpoint = config.encoder.checkpoint
        return {"checkpoint_sha256": checkpoint_sha256(checkpoint)} if checkpoint else {}

    def run(self, run: Run) -> Outcome:
        encoder = run.config.encoder
        if encoder.checkpoint:
            import_encoder(encoder.checkpoint, run.config, run.out)
            return Outcome(facts.Pretrained(encoder.backbone, checkpoint=encoder.checkpoint))
        job = Job(run.config, run.corpus, run.folder / artifact.INDEX, run.out, run.slice_rows())
        resumed = latest_checkpoint(run.out)
        # The history is written after the encoder, so it says that training is over.
        if not run.out.exists(artifact.HISTORY):
            _fit(job, run)
        last = run.out.read_json(artifact.HISTORY)[-1]
        said = facts.Pretrained(
            encoder.backbone,
            run.config.pretrain.objective,
            epochs=round(last["epoch"]),
            loss=last["loss"],
            steps=job.epochs.total,
            resumed_at_step=resumed or 0,
        )
        return Outcome(said)


@dataclass(frozen=True)
class Job:
    """All that a training worker needs; small, so that it travels."""

    config: Config
    corpus: Corpus
    index: Folder
    out: Folder
    slice_rows: list[int]

    @property
    def epochs(self) -> Epochs:
        p = self.config.pretrain
        return Epochs(self.slice_rows, p.epochs, p.batch_size, p.workers, self.config.seed, p.shuffle_rows)


def _fit(job: Job, run: Run) -> None:
    settings, resources = run.config.pretrain, run.config.resources
    gpu = resources.gpus_per_actor > 0
    name = f"poisoncam-train-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": resources.cpus_per_actor, "GPU": 1 if gpu else 0},
        ),
        # A finished run of the same name would train nothing; our own checkpoints carry the state.
        run_config=RunConfig(
            name=name,
            # Ray Train's own notes: our checkpoints go to the run folder by our own door.
            storage_path=tempfile.gettempdir(),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    training: Future[Any] = Future()

    def fit() -> None:
        try:
            training.set_result(trainer.fit())
        except BaseException as error:
            training.set_exception(error)

    # In the main thread fit() would take over what Ctrl-C does, for good; a daemon never holds the exit up.
    Thread(target=fit, daemon=True).start()
    try:
        _watch(run, training)
        training.result()
    finally:
        shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)


def _watch(run: Run, training: Future[Any]) -> None:
    """Ray's fit() says nothing until it ends; rank 0 leaves its progress in the run folder."""
    while not wait([training], timeout=WATCH_EVERY_S).done:
        if run.out.exists(artifact.TRAINING_PROGRESS):
            at = run.out.read_json(artifact.TRAINING_PROGRESS)
            run.progress.update(f"step {at['step']} of {at['total']}, loss {at['loss']:.3f}")


def train_worker(config: dict[str, Any]) -> None:
    """One rank of the training. Rank 0 writes checkpoints, history and at last the encoder."""
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings, epochs = job.config.pretrain, job.epochs
    hush()
    set_up(job.config.resources, processes=max(1, context.get_local_world_size()))
    # Late in training, denormal numbers slow a CPU down many times over.
    torch.set_flush_denormal(True)
    device = ray.train.torch.get_device()
    # Weights first, on every rank alike, before anything else draws from the global generator.
    torch.manual_seed(job.config.seed)
    made = job.config.encoder
    encoder = build_encoder(made.backbone, made.image_size, made.patch_size)
    objective = OBJECTIVES[settings.objective]
    model = objective(encoder, settings.hidden_dim, settings.out_dim, settings.temperature)
    # A third less time a step on a CPU, and what tensor cores want.
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, settings.weight_decay)
    step, history = restore(job.out, model, optimizer)
    whole, gather = _distributed(model, device), gather_rows if world > 1 else None
    base_rate = settings.lr * settings.batch_size / 256
    warmup = round(settings.warmup_epochs * epochs.steps_per_epoch)
    began, losses = time.monotonic(), []
    model.train()
    for x_BCHW in epochs.batches(job.corpus, job.config, job.index, rank, start=step):
        rate = learning_rate_at(step, epochs.total, warmup, base_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        generator = drawn_by(job.config.seed, step, rank)
        x_BCHW = x_BCHW.to(device).float() / 255
        views = two_views(x_BCHW, (settings.crop_min, 1.0), generator, recipe=model.recipe)
        v1_BCHW, v2_BCHW = (v.contiguous(memory_format=torch.channels_last) for v in views)
        model.update_target(momentum_at(step, epochs.total, settings.momentum))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = whole(v1_BCHW, v2_BCHW, gather, rank)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        losses.append(loss.detach())
        due = step % settings.checkpoint_every == 0 or step == epochs.total
        if step % epochs.steps_per_epoch == 0 or due:
            mean = _mean_over_ranks(torch.stack(losses).mean())
            losses = []
            if rank == 0:
                at = {
                    "step": step,
                    "total": epochs.total,
                    "epoch": step / epochs.steps_per_epoch,
                    "loss": mean,
                    "lr": rate,
                }
                history.append(at | {"seconds": round(time.monotonic() - began, 1)})
                job.out.write_json(artifact.TRAINING_PROGRESS, at)
                if due:
                    save(job.out, step, model, optimizer, history)
            ray.train.report({"step": step, "loss": mean})
    if rank == 0:
        write_encoder(job.config, model.encoder, job.out)
        job.out.write_json(artifact.HISTORY, history)


def save(
    out: Folder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]
) -> None:
    """One checkpoint; its state.json, written last, commits it. The one before goes when it is safe."""
    folder = out / artifact.CHECKPOINTS / f"step-{step:08d}"
    folder.write_tensors(artifact.WEIGHTS, {key: t.detach().cpu() for key, t in model.state_dict().items()})
    moments = optimizer.state_dict()["state"]
    flat = {f"{i}.{name}": t.detach().cpu() for i, entry in moments.items() for name, t in entry.items()}
    folder.write_tensors("optimizer.safetensors", flat)
    folder.write_json(STATE, {"step": step, "history": history})
    for name in (out / artifact.CHECKPOINTS).names():
        if name < f"step-{step:08d}":
            (out / artifact.CHECKPOINTS / name).delete()


def latest_checkpoint(out: Folder) -> int | None:
    """The step of the newest committed checkpoint."""
    folder = out / artifact.CHECKPOINTS
    steps = [int(name.removeprefix("step-")) for name in folder.names() if (folder / name).exists(STATE)]
    return max(steps, default=None)


def restore(
    out: Folder, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest checkpoint, if any: the step to go on at, and the history until then."""
    step = latest_checkpoint(out)
    if step is None:
        return 0, []
    folder = out / artifact.CHECKPOINTS / f"step-{step:08d}"
    model.load_state_dict(folder.read_tensors(artifact.WEIGHTS))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in folder.read_tensors("optimizer.safetensors").items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        # The fused AdamW walks through memory: moments laid out otherwise would meet the wrong weights.
        moment = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step, folder.read_json(STATE)["history"]


def _optimizer(model: Objective, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=weight_decay, fused=True
    )


def _distributed(model: Objective, device: torch.device) -> nn.Module:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    if device.type == "cuda":
        # Heads are normalised over the joined batch; SyncBatchNorm has no CPU version.
        for name, head in model.named_children():
            if not isinstance(head, Encoder):
                setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(head))
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _mean_over_ranks(value: Tensor) -> float:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)

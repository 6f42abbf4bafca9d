"""Pretrain: train the threat model (MoCo-v3, SimCLR, BYOL or SimSiam) on the suspicious corpus, on Ray Train.

Every random draw depends only on (seed, step). So a checkpoint needs no state but tensors and the step, and a
resumed training equals one that was not interrupted. Checkpoints are safetensors and JSON: nothing that
is read from storage is unpickled.

B images of a batch, of one rank   2 crops of an image   C channels   H = W image side
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

from poisoncam_ray import artifact, facts
from poisoncam_ray.config import Config, Precision, Wanted
from poisoncam_ray.corpus import Corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.stage import Outcome, Run, Stage
from poisoncam_ray.stages.batches import Batches
from poisoncam_ray.stages.compute import ONE_HEAP, set_up
from poisoncam_ray.stages.embed import write_encoder
from poisoncam_ray.stages.own_encoder import check_encoder, checkpoint_sha256, import_encoder
from poisoncam_ray.stages.precision import choose
from poisoncam_ray.stages.ray_cluster import hush
from poisoncam_ray.stages.sample import drawn_rows, share_of
from poisoncam_ray.stages.training_data import Epochs
from poisoncam_ray.stages.training_step import Schedule, Trainer

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
WATCH_EVERY_S = 3


class Pretrain(Stage):
    name = artifact.ENCODER
    title = "Pretrain"
    version = 6
    inputs = (artifact.INDEX,)
    sections = ("encoder", "pretrain")

    def check(self, config: Config, rows: int | None) -> None:
        if rows is None:
            # Reads the whole checkpoint: only at the start, not again when the rows are known.
            check_encoder(config)
        elif not config.encoder.checkpoint:
            _check_rows(config, rows, share_of(config, rows) * rows)

    def depends_on(self, config: Config) -> dict[str, Any]:
        files = {"checkpoint_sha256": config.encoder.checkpoint, "init_sha256": config.pretrain.init}
        return {name: checkpoint_sha256(uri) for name, uri in files.items() if uri}

    def run(self, run: Run) -> Outcome:
        encoder = run.config.encoder
        if encoder.checkpoint:
            import_encoder(encoder.checkpoint, run.config, run.out)
            return Outcome(facts.Pretrained(encoder.backbone, checkpoint=encoder.checkpoint))
        share, slice_rows = drawn_rows(run)
        rows = sum(run.slice_rows())
        _check_rows(run.config, rows, sum(slice_rows))
        init, start = run.config.pretrain.init, run.out / artifact.INIT
        if init and not start.exists(artifact.ENCODER_CONFIG):
            # Copied once: the workers may not reach the file, and it may change while they train.
            import_encoder(init, run.config, start)
        job = Job(run.config, run.corpus, run.folder / artifact.INDEX, run.out, slice_rows, share)
        resumed = latest_checkpoint(run.out)
        # The history is written last, after the encoder.
        if not run.out.exists(artifact.HISTORY):
            run.progress.update(resumed or 0, job.epochs.total, "steps")
            _fit(job, run)
        last = run.out.read_json(artifact.HISTORY)[-1]
        said = facts.Pretrained(
            encoder.backbone,
            run.config.pretrain.objective,
            epochs=round(last["epoch"]),
            loss=last["loss"],
            steps=job.epochs.total,
            resumed_at_step=resumed or 0,
            images=rows,
            images_seen=job.epochs.seen,
            images_shown=job.epochs.total * run.config.pretrain.batch_size,
            init=init,
            precision=run.out.read_json(artifact.TRAINING)["precision"],
        )
        return Outcome(said)


def _check_rows(config: Config, rows: int, drawn: float) -> None:
    """Refuse a training without a batch: `rows` images, of which so many are drawn."""
    size, sample = config.pretrain.batch_size, config.pretrain.sample
    if drawn >= size:
        return
    if sample is None or rows < size:
        raise UserError(f"pretrain.batch_size={size} is more than the {rows} images there are: lower it.")
    raise UserError(
        f"pretrain.sample={sample:g} draws {drawn:.0f} of the {rows} images, fewer than "
        f"pretrain.batch_size={size}: set it higher."
    )


@dataclass(frozen=True)
class Job:
    """What a training worker needs. Small, since it is sent to every worker.

    Attributes:
        index: the artifact of Index.
        out: the artifact of Pretrain.
        slice_rows: rows of each slice that the training may use.
        share: of the indexed rows, which these are, as `method.crops.in_sample` draws them.
    """

    config: Config
    corpus: Corpus
    index: Folder
    out: Folder
    slice_rows: list[int]
    share: float

    @property
    def epochs(self) -> Epochs:
        """The order of the training's batches."""
        p = self.config.pretrain
        rows, seed = self.slice_rows, self.config.seed
        return Epochs(rows, p.epochs, p.batch_size, seed, p.shuffle_rows, p.max_images)


def _fit(job: Job, run: Run) -> None:
    """Train on the cluster until the encoder and the history are written."""
    settings, resources = run.config.pretrain, run.config.resources
    gpu = resources.gpus_per_actor > 0
    name = f"poisoncam-train-{uuid.uuid4().hex[:8]}"
    # Ray's type hints are those of its older RunConfig.
    new_options: dict[str, Any] = {"worker_runtime_env": {"env_vars": ONE_HEAP}}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": resources.cpus_per_actor, "GPU": 1 if gpu else 0},
        ),
        # A new name each time: Ray Train would take up a finished run of the same name and train nothing.
        run_config=RunConfig(
            name=name,
            # For Ray Train's own files; our checkpoints go to the run folder.
            storage_path=tempfile.gettempdir(),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            **new_options,
        ),
    )
    training: Future[Any] = Future()

    def fit() -> None:
        try:
            training.set_result(trainer.fit())
        except BaseException as error:
            training.set_exception(error)

    # Not in the main thread, where fit() replaces the handler of Ctrl-C. A daemon does not delay the exit.
    Thread(target=fit, daemon=True).start()
    try:
        _watch(run, training)
        training.result()
    finally:
        shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)


def _watch(run: Run, training: Future[Any]) -> None:
    """Show the progress that rank 0 writes into the run folder, until the training ends."""
    earlier = _training_progress(run)
    while not wait([training], timeout=WATCH_EVERY_S).done:
        # What an earlier attempt has left may be ahead of its last checkpoint.
        if (at := _training_progress(run)) != earlier:
            run.progress.update(at["step"], at["total"], "steps", f"loss {at['loss']:.3f}")


def _training_progress(run: Run) -> dict[str, Any]:
    if not run.out.exists(artifact.TRAINING_PROGRESS):
        return {}
    return run.out.read_json(artifact.TRAINING_PROGRESS)


def train_worker(config: dict[str, Any]) -> None:
    """Train as one rank, on a Ray Train worker. Rank 0 writes checkpoints, then encoder, then history.

    Args:
        config: {"job": Job}.
    """
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings, epochs = job.config.pretrain, job.epochs
    hush()
    set_up(job.config.resources, processes=max(1, context.get_local_world_size()))
    # Late in training, denormal numbers make a CPU many times slower.
    torch.set_flush_denormal(True)
    device = ray.train.torch.get_device()
    trainer = Trainer(
        job.config,
        Schedule(epochs.total, warmup=round(settings.warmup_epochs * epochs.total / settings.epochs)),
        device,
        decided_precision(job.out, settings.precision, device, rank, world),
        start_weights(job),
        rank,
        world,
    )
    step, history = restore(job.out, trainer.model, trainer.optimizer)
    began, losses = time.monotonic(), []
    batches = Batches(job.corpus, job.config, job.index, job.share, epochs)
    for x_B2CHW in batches.read(rank, world, step, device):
        losses.append(trainer.step(step, x_B2CHW))
        step += 1
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
                    "lr": trainer.learning_rate(step - 1),
                }
                history.append(at | {"seconds": round(time.monotonic() - began, 1)})
                job.out.write_json(artifact.TRAINING_PROGRESS, at)
                if due:
                    save(job.out, step, trainer.model, trainer.optimizer, history)
            ray.train.report({"step": step, "loss": mean})
    if rank == 0:
        write_encoder(job.config, trainer.model.encoder, job.out)
        job.out.write_json(artifact.HISTORY, history)


def decided_precision(out: Folder, wanted: Wanted, device: torch.device, rank: int, world: int) -> Precision:
    """The precision of this training: what rank 0 of its first attempt chose.

    Another attempt may run on other machines, and must train on as this one did.

    Args:
        out: the artifact of Pretrain, which holds the decision.
        wanted: the setting.
        device: of this rank.
        rank: this rank.
        world: the number of ranks.
    """
    if rank == 0 and not out.exists(artifact.TRAINING):
        out.write_json(artifact.TRAINING, {"precision": choose(wanted, device.type == "cuda")})
    if world > 1:
        dist.barrier()
    return out.read_json(artifact.TRAINING)["precision"]


def start_weights(job: Job) -> dict[str, Tensor] | None:
    """The weights that the encoder starts with; None: random ones."""
    if not job.config.pretrain.init:
        return None
    return (job.out / artifact.INIT).read_tensors(artifact.WEIGHTS)


def save(
    out: Folder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]
) -> None:
    """Write a checkpoint, and then delete the earlier ones. Its state.json, written last, commits it.

    Args:
        out: the artifact of Pretrain.
        step: the number of steps done.
        model: the model in training.
        optimizer: its optimizer.
        history: the means of the loss until now.
    """
    folder = out / artifact.CHECKPOINTS / f"step-{step:08d}"
    folder.write_tensors(artifact.WEIGHTS, {key: t.detach().cpu() for key, t in model.state_dict().items()})
    moments = optimizer.state_dict()["state"]
    flat = {f"{i}.{name}": t.detach().cpu() for i, entry in moments.items() for name, t in entry.items()}
    folder.write_tensors(OPTIMIZER, flat)
    folder.write_json(STATE, {"step": step, "history": history})
    for name in (out / artifact.CHECKPOINTS).names():
        if name < f"step-{step:08d}":
            (out / artifact.CHECKPOINTS / name).delete()


def latest_checkpoint(out: Folder) -> int | None:
    """The step of the newest committed checkpoint; None without one."""
    folder = out / artifact.CHECKPOINTS
    steps = [int(name.removeprefix("step-")) for name in folder.names() if (folder / name).exists(STATE)]
    return max(steps, default=None)


def restore(
    out: Folder, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest checkpoint, if there is one.

    Args:
        out: the artifact of Pretrain.
        model: gets the weights.
        optimizer: gets the moments.

    Returns:
        The number of steps done, and the history until then.
    """
    step = latest_checkpoint(out)
    if step is None:
        return 0, []
    folder = out / artifact.CHECKPOINTS / f"step-{step:08d}"
    model.load_state_dict(folder.read_tensors(artifact.WEIGHTS))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in folder.read_tensors(OPTIMIZER).items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        # The fused AdamW goes through memory in order: a moment needs the memory layout of its weight.
        moment = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(int(index), {})[name] = moment
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step, folder.read_json(STATE)["history"]


def _mean_over_ranks(value: Tensor) -> float:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)

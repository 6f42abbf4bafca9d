"""Pretrain: a checkpoint holds the whole state of the training; a user's own checkpoint runs no code."""

from __future__ import annotations

import itertools
import os
import pickle
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from poisoncam_ray import artifact
from poisoncam_ray.config import Config, Precision
from poisoncam_ray.errors import StoreAwayError, UserError
from poisoncam_ray.facts import Pretrained, of_manifest
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages import pretrain
from poisoncam_ray.stages.compute import ONE_HEAP
from poisoncam_ray.stages.embed import load_encoder
from poisoncam_ray.stages.index import Index
from poisoncam_ray.stages.own_encoder import import_encoder, read_checkpoint
from poisoncam_ray.stages.pretrain import (
    Pretrain,
    decided_precision,
    latest_checkpoint,
    restore,
    save,
    start_weights,
)
from poisoncam_ray.stages.training_data import drawn_by
from poisoncam_ray.stages.training_step import Schedule, Trainer
from tests.small import SETTINGS, draw_small

SIDE, BATCH = 16, 8


def fresh(
    seed: int, backbone: str = "resnet_tiny_s2", objective: str = "moco_v3", precision: Precision = "float32"
) -> Trainer:
    """The training of a worker at its beginning."""
    settings = {"objective": objective, "batch_size": BATCH, "hidden_dim": 32, "out_dim": 16, "lr": 0.03}
    made = {"backbone": backbone, "image_size": SIDE}
    config = Config.model_validate({"seed": seed, "encoder": made, "pretrain": settings})
    return Trainer(config, Schedule(total=10, warmup=2), torch.device("cpu"), precision)


def train(trainer: Trainer, steps: range) -> list[float]:
    """The losses of some steps on batches that depend on the step alone."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        size = (BATCH, 2, 3, SIDE, SIDE)
        x_B2CHW = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        losses.append(trainer.step(step, x_B2CHW).item())
    return losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("backbone", "objective"),
    [
        ("vit_tiny_convstem", "moco_v3"),
        ("resnet_tiny_s2", "moco_v3"),
        ("resnet_tiny_s2", "simclr"),
        ("resnet_tiny_s2", "byol"),
        ("resnet_tiny_s2", "simsiam"),
    ],
)
def test_a_resumed_training_is_the_undisturbed_one_to_the_bit(tmp_path, backbone, objective, precision):
    out = Folder(str(tmp_path))
    trainer = fresh(0, backbone, objective, precision)
    train(trainer, range(3))
    save(out, 3, trainer.model, trainer.optimizer, [{"step": 3}])
    undisturbed = train(trainer, range(3, 6))
    again = fresh(0, backbone, objective, precision)
    # Nothing may be left of the weights that the new process began with.
    with torch.no_grad():
        for p in again.model.parameters():
            p.add_(1.0)
    assert restore(out, again.model, again.optimizer) == (3, [{"step": 3}])
    assert train(again, range(3, 6)) == undisturbed
    ours, theirs = again.model.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_first_attempt_decides_the_precision_and_later_ones_obey(tmp_path, monkeypatch):
    out, cpu = Folder(str(tmp_path)), torch.device("cpu")
    monkeypatch.setattr(pretrain, "choose", lambda wanted, gpu: "bfloat16" if wanted == "auto" else wanted)
    assert decided_precision(out, "auto", cpu, 0, 1) == "bfloat16"
    # On another machine the choice would be another.
    monkeypatch.setattr(pretrain, "choose", lambda *_: pytest.fail("chosen again"))
    assert decided_precision(out, "auto", cpu, 0, 1) == "bfloat16"
    met = []
    monkeypatch.setattr(dist, "barrier", lambda: met.append(1))
    assert decided_precision(out, "auto", cpu, 1, 2) == "bfloat16" and met == [1]


def test_without_a_checkpoint_training_starts_at_its_beginning(tmp_path):
    trainer = fresh(0)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    assert restore(Folder(str(tmp_path)), trainer.model, trainer.optimizer) == (0, [])
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())
    assert not trainer.optimizer.state


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path):
    out = Folder(str(tmp_path))
    trainer = fresh(0)
    assert latest_checkpoint(out) is None
    (out / "checkpoints" / "step-00000002").write_bytes("model.safetensors", b"cut off")
    assert latest_checkpoint(out) is None
    train(trainer, range(1))
    save(out, 4, trainer.model, trainer.optimizer, [])
    (out / "checkpoints" / "step-00000009").write_bytes("model.safetensors", b"cut off")
    assert latest_checkpoint(out) == 4
    other = fresh(1)
    assert restore(out, other.model, other.optimizer)[0] == 4


def test_only_the_newest_checkpoint_is_kept_and_a_later_one_never_dropped(tmp_path):
    out = Folder(str(tmp_path))
    trainer = fresh(0)
    train(trainer, range(1))
    for step in (2, 4, 10):
        save(out, step, trainer.model, trainer.optimizer, [])
    assert (out / "checkpoints").names() == ["step-00000010"]


def test_no_checkpoint_file_is_a_pickle(tmp_path):
    trainer = fresh(0)
    train(trainer, range(1))
    save(Folder(str(tmp_path)), 1, trainer.model, trainer.optimizer, [])
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_every_step_draws_from_a_generator_of_its_own():
    numbers = list(itertools.product((0, 1, 622, 2**23 - 1), (*range(400), 2**20, 2**20 + 1)))
    streams = {tuple(torch.rand(3, generator=drawn_by(*each)).tolist()) for each in numbers}
    assert len(streams) == len(numbers)
    assert torch.equal(*(torch.rand(3, generator=drawn_by(7, 1)) for _ in range(2)))


# ----------------------------------------------------------- a budget, a sample


def refused_rows(rows: int, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Pretrain().check(load_config(overrides=["pretrain.batch_size=64", *overrides]), rows)
    return str(caught.value)


def test_too_few_rows_are_refused_with_what_to_change():
    assert "more than the 63 images there are" in refused_rows(63)
    assert refused_rows(1000, "pretrain.sample=0.05") == (
        "pretrain.sample=0.05 draws 50 of the 1000 images, fewer than pretrain.batch_size=64: set it higher."
    )
    assert "pretrain.sample=40 draws 40" in refused_rows(1000, "pretrain.sample=40")
    assert "more than the 63 images" in refused_rows(63, "pretrain.sample=0.5")
    Pretrain().check(load_config(overrides=["pretrain.batch_size=64", "pretrain.sample=100"]), 1000)


def test_a_training_on_a_sample_ends_with_its_budget_and_says_what_it_saw(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer, seen = pretrain.TorchTrainer, []
    monkeypatch.setattr(
        pretrain, "TorchTrainer", lambda *_, **given: seen.append(given["run_config"]) or trainer(*_, **given)
    )
    draw_small(tmp_path / "corpus")
    settings = [*SETTINGS, "pretrain.batch_size=32", "pretrain.sample=0.5", "pretrain.max_images=100"]
    runner = Runner(
        str(tmp_path / "corpus"),
        str(tmp_path / "run"),
        load_config(overrides=[*settings, "pretrain.epochs=3", "pretrain.workers=2"]),
        [Index(), Pretrain()],
    )
    runner.run(Progress())
    said = of_manifest(Pretrained, Manifest.read(runner.folder / artifact.ENCODER))
    assert (said.images, said.steps, said.images_shown) == (240, 3, 96)
    assert seen[0].worker_runtime_env == {"env_vars": ONE_HEAP}
    assert said.images_seen == 96
    assert said.summary.startswith("resnet_tiny_s2 by moco_v3, 96 images shown (96 of 240)")
    last = (runner.folder / artifact.ENCODER).read_json(artifact.HISTORY)[-1]
    assert last["step"] == last["total"] == 3
    # The schedule follows the budget: one step of warm-up, then a cosine of two, whose middle this is.
    assert last["lr"] == pytest.approx(0.5 * runner.config.pretrain.lr * 32 / 256)


# ------------------------------------------------------------- your own encoder


def config(*overrides: str) -> Config:
    return load_config(overrides=["encoder.backbone=resnet_tiny", "encoder.image_size=16", *overrides])


def theirs(backbone: str = "resnet_tiny") -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return build_encoder(backbone, SIDE).backbone.state_dict()


def imported(path: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    out = Folder(str(tmp_path / artifact.ENCODER))
    import_encoder(str(path), config(), out)
    return load_encoder(out).backbone.state_dict()


def refused(path: Path, tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        import_encoder(str(path), config(*overrides), Folder(str(tmp_path / artifact.ENCODER)))
    assert not (tmp_path / artifact.ENCODER).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_safetensors_of_a_plain_model_are_taken_over(tmp_path):
    path = tmp_path / "mine.safetensors"
    head = {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    safetensors.torch.save_file({**theirs(), **head}, path)
    found = imported(path, tmp_path)
    assert all(torch.equal(found[key], value) for key, value in theirs().items())


def test_a_moco_v3_checkpoint_is_taken_over(tmp_path):
    """As moco-v3's main_moco.py saves it: both networks, heads, optimiser and scaler in one torch file."""
    state = {f"module.base_encoder.{key}": value for key, value in theirs().items()}
    state |= {f"module.momentum_encoder.{key}": torch.zeros_like(value) for key, value in theirs().items()}
    state |= {
        "module.base_encoder.fc.0.weight": torch.zeros(4, 4),
        "module.predictor.0.weight": torch.zeros(4, 4),
    }
    whole = {
        "epoch": 300,
        "arch": "resnet_tiny",
        "state_dict": state,
        "optimizer": {"state": {0: {"step": 5}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scaler": {"scale": 65536.0},
    }
    path = tmp_path / "checkpoint_0299.pth.tar"
    torch.save(whole, path)
    found = imported(path, tmp_path)
    assert all(torch.equal(found[key], value) for key, value in theirs().items())


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["torch", "pickle", "state dict"])
def test_a_malicious_checkpoint_is_refused_and_never_runs(tmp_path, how):
    path, trace = tmp_path / "evil.pt", tmp_path / "owned"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trace), 2))
    else:
        torch.save(
            {"state_dict": theirs(), "args": Malicious(trace)} if how == "state dict" else Malicious(trace),
            path,
        )
    assert "as safetensors" in refused(path, tmp_path)
    assert not trace.exists()


def test_a_checkpoint_of_another_network_is_told_what_does_not_fit(tmp_path):
    path = tmp_path / "other.safetensors"
    state = {key: value for key, value in theirs().items() if key != "layer4.conv1.weight"}
    safetensors.torch.save_file({**state, "layer9.weight": torch.zeros(1)}, path)
    said = refused(path, tmp_path)
    assert "does not fit" in said and "layer4.conv1.weight" in said and "layer9.weight" in said
    assert "has no patches" in refused(path, tmp_path, "encoder.patch_size=4")
    assert "Unknown backbone" in refused(path, tmp_path, "encoder.backbone=resnet_tinny")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.safetensors", b"\x08\0\0\0\0\0\0\0{"),
        ("empty.safetensors", b""),
        ("empty.pt", b""),
        ("text.pt", b"not a checkpoint at all"),
        ("zip.pt", b"PK\x03\x04 and then nothing"),
        ("binary.pt", bytes(range(256))),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert name in refused(path, tmp_path)


@pytest.mark.parametrize("value", [[1, 2], {"state_dict": [torch.zeros(1)]}, torch.zeros(3), {"epoch": 3}])
def test_torch_files_without_a_state_dict(tmp_path, value):
    path = tmp_path / "odd.pt"
    torch.save(value, path)
    assert "holds no state dict" in refused(path, tmp_path)


def test_a_store_that_stays_away_is_no_mistake_of_the_user_s(tmp_path, monkeypatch):
    def away(*_: object) -> None:
        raise StoreAwayError("The store failed for 150 s")

    (tmp_path / "a.pt").write_bytes(b"x")
    monkeypatch.setattr(LocalFileSystem, "cat_file", away)
    with pytest.raises(StoreAwayError):
        read_checkpoint(str(tmp_path / "a.pt"))


def test_checkpoints_that_are_not_there(tmp_path):
    assert "cannot be read" in refused(tmp_path / "none.pt", tmp_path)
    assert "cannot be read" in refused(tmp_path, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        import_encoder("nope://x/y.pt", config(), Folder(str(tmp_path / "out")))


# ------------------------------------------------------------- weights to start with


def test_an_init_of_another_network_is_refused_before_any_work(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(theirs("resnet_tiny") | {"layer9.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"does not fit the backbone.*layer9\.weight"):
        Pretrain().check(config(f"pretrain.init={path}"), None)
    with pytest.raises(UserError, match="cannot be read"):
        Pretrain().check(config(f"pretrain.init={tmp_path / 'none.safetensors'}"), None)
    safetensors.torch.save_file(theirs("resnet_tiny"), path)
    Pretrain().check(config(f"pretrain.init={path}"), None)


def test_an_init_is_known_by_its_bytes(tmp_path):
    """The runner refuses to go on with a folder whose stage depended on something else."""
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(theirs(), path)
    settings = config(f"pretrain.init={path}")
    before = Pretrain().depends_on(settings)
    assert list(before) == ["init_sha256"] and Pretrain().depends_on(settings) == before
    safetensors.torch.save_file({key: value + 1 for key, value in theirs().items()}, path)
    assert Pretrain().depends_on(settings) != before
    assert Pretrain().depends_on(config()) == {}


def test_workers_start_with_the_copy_in_the_run_folder(tmp_path):
    """They may not reach the user's file, and it may change while they train."""
    path, out = tmp_path / "mine.safetensors", Folder(str(tmp_path / artifact.ENCODER))
    safetensors.torch.save_file(theirs(), path)
    settings = config(f"pretrain.init={path}")
    import_encoder(str(path), settings, out / artifact.INIT)
    path.unlink()
    start = start_weights(SimpleNamespace(config=settings, out=out))
    assert all(torch.equal(start[f"backbone.{key}"], value) for key, value in theirs().items())
    assert start_weights(SimpleNamespace(config=config(), out=out)) is None


def test_an_init_where_nobody_trains_is_refused(tmp_path):
    with pytest.raises(UserError, match="leave one out"):
        config("pretrain.init=a.safetensors", "encoder.checkpoint=b.safetensors")


def test_progress_that_an_earlier_attempt_has_left_is_not_shown(tmp_path, monkeypatch):
    """It may be ahead of the checkpoint from which this attempt goes on."""
    monkeypatch.setattr(pretrain, "WATCH_EVERY_S", 0.02)
    out, training, seen = Folder(str(tmp_path)), Future(), []
    out.write_json(artifact.TRAINING_PROGRESS, {"step": 150, "total": 400, "loss": 2.0})

    class Watched:
        def update(self, done: int, total: int, unit: str, note: str) -> None:
            seen.append((done, total, unit, note))
            training.set_result(None)

    def train() -> None:
        time.sleep(0.2)
        out.write_json(artifact.TRAINING_PROGRESS, {"step": 101, "total": 400, "loss": 2.5})

    worker = Thread(target=train)
    worker.start()
    pretrain._watch(SimpleNamespace(out=out, progress=Watched()), training)
    worker.join()
    assert seen == [(101, 400, "steps", "loss 2.500")]

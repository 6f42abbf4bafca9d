"""The precision: decided by the hardware, once, and never against the user."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from poisoncam_ray.stages import precision
from poisoncam_ray.stages.precision import choose, dtype_of, measured_gain


def test_what_the_user_wants_is_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "measured_gain", lambda: pytest.fail("measured"))
    for gpu in (False, True):
        assert choose("float32", gpu) == "float32"
        assert choose("bfloat16", gpu) == "bfloat16"


@pytest.mark.parametrize(
    ("seen", "capability", "chosen"),
    [
        (True, (9, 0), "bfloat16"),
        (True, (8, 0), "bfloat16"),
        (True, (7, 5), "float32"),
        (False, (0, 0), "bfloat16"),
    ],
)
def test_gpus_decide_by_their_compute_capability(monkeypatch, seen, capability, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose("auto", gpu=True) == chosen


@pytest.mark.parametrize(
    ("amx", "gain", "chosen"),
    [(True, 3.0, "bfloat16"), (True, 1.29, "float32"), (False, 3.0, "float32")],
)
def test_cpus_need_amx_and_a_measured_gain(monkeypatch, amx, gain, chosen):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "measured_gain", lambda: gain)
    assert choose("auto", gpu=False) == chosen


def test_the_gain_is_a_ratio_of_times_and_takes_part_of_a_second(monkeypatch):
    clock, seconds = [0.0], {torch.float32: 0.003, torch.bfloat16: 0.001}

    def product(a_SS: torch.Tensor, _: torch.Tensor) -> None:
        clock[0] += seconds[a_SS.dtype]

    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(torch, "mm", product)
    assert measured_gain() == pytest.approx(3)
    assert clock[0] < 0.5


def test_names_are_those_of_torch():
    assert [dtype_of(name) for name in ("float32", "bfloat16")] == [torch.float32, torch.bfloat16]

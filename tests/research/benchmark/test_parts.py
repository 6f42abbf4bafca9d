"""All parts at sizes of seconds: that they work and write what they found. Times have no threshold."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark import parts, peaks
from poisoncam_ray.research.benchmark.compare import Measured, Row, Setting, Table
from poisoncam_ray.research.benchmark.decode import Sizes
from poisoncam_ray.research.benchmark.exponents import exponent
from poisoncam_ray.research.benchmark.parts import NAMES, PARTS, Part, measure

WITHOUT_RAY = ("cam", "pastes", "share", "step", "decode", "exponents")
ON_RAY = ("search", "embed", "judge", "epoch", "workers", "shards")
APART = ("precision", "allocator", "memory")
"""In processes of their own. The memory of a run is measured in test_benchmark_memory.py."""


def setting(tmp_path, **changed) -> Setting:
    return Setting(Folder(str(tmp_path)), **{"rounds": 1, **changed})


def silent(line: str) -> None:
    pass


def test_every_part_has_a_test():
    assert sorted(WITHOUT_RAY + ON_RAY + APART) == sorted(NAMES)


@pytest.mark.parametrize("name", WITHOUT_RAY)
def test_parts_without_ray(tmp_path, name):
    check(tmp_path, name)


@pytest.mark.parametrize("name", ["precision", "allocator"])
def test_parts_in_processes_of_their_own(tmp_path, name):
    check(tmp_path, name)


@pytest.mark.parametrize("name", ON_RAY)
def test_parts_on_ray(tmp_path, name, ray_cluster):
    check(tmp_path, name)


def check(tmp_path, name: str) -> None:
    found = measure(setting(tmp_path), [name], quick=True, say=silent)["parts"][name]
    assert "failed" not in found, found.get("failed")
    assert found["rows"] or found["tables"]
    assert all(len(row["ratios"]) == 1 and row["ratios"][0] > 0 for row in found["rows"])
    assert {"device", "cores", "threads", "amx", "cpu_flags", "torch", "ray", "timm", "onednn"} <= set(
        found["machine"]
    )
    page = (tmp_path / "benchmark.md").read_text()
    assert found["title"] in page and "figures mean nothing" in page
    # A row of a table has as many cells as its heading.
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_the_answers_of_both_sides_agree(tmp_path):
    """Of the parts above, those whose ways give answers."""
    found = measure(setting(tmp_path), ["pastes"], quick=True, say=silent)["parts"]
    assert "1 of the 1 best are the same" in found["pastes"]["rows"][0]["answers"]


def made(calls: list[str], name: str, error: Exception | None = None) -> Part:
    def work(setting: Setting, sizes: Sizes) -> Measured:
        calls.append(name)
        if error:
            raise error
        row = Row(name, ("ours", "other"), ([1.0], [4.0]), "", 8, (1.0, 20.0), 10, units=2)
        return Measured([row], [Table("Figures", ("a", "b"), [("1", "2")])], ["A note."])

    return Part(name, name.title(), work, Sizes(1), Sizes(2))


def test_a_part_that_fails_names_itself_and_the_others_run(tmp_path, monkeypatch):
    calls: list[str] = []
    broken = made(calls, "pastes", ValueError("no pastes today"))
    monkeypatch.setattr(parts, "PARTS", (made(calls, "cam"), broken, made(calls, "decode")))
    found = measure(setting(tmp_path), say=silent)["parts"]
    assert calls == ["cam", "pastes", "decode"]
    assert found["pastes"]["failed"] == "ValueError: no pastes today"
    page = (tmp_path / "benchmark.md").read_text()
    assert "`pastes`) failed:** ValueError: no pastes today" in page
    assert "**Marks that are missed:** cam, ours (4 of 8, FLOPs 20 of 10)" in page
    # What failed is tried again, what was measured is not.
    measure(setting(tmp_path), say=silent)
    assert calls == ["cam", "pastes", "decode", "pastes"]


def test_finished_parts_are_kept_while_nothing_has_changed(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(parts, "PARTS", (made(calls, "cam"), made(calls, "decode")))
    first = measure(setting(tmp_path), ["decode"], say=silent)
    assert list(first["parts"]) == ["decode"]
    whole = measure(setting(tmp_path), say=silent)["parts"]
    assert calls == ["decode", "cam"] and whole["decode"] == first["parts"]["decode"]
    assert list(json.loads((tmp_path / "benchmark.json").read_text())["parts"]) == ["cam", "decode"]
    for changed in ({"rounds": 2}, {"threads": 2}, {"overrides": ("seed=1",)}):
        calls.clear()
        measure(setting(tmp_path, **changed), ["cam"], say=silent)
        assert calls == ["cam"], changed
    calls.clear()
    measure(setting(tmp_path), ["decode"], quick=True, say=silent)
    assert calls == ["decode"]
    monkeypatch.setattr(parts, "machine", lambda threads: {"device": "another"})
    calls.clear()
    measure(setting(tmp_path), ["decode"], quick=True, say=silent)
    assert calls == ["decode"]


def test_a_part_that_does_not_exist_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no part speed: use cam, "):
        measure(setting(tmp_path), ["speed"], say=silent)


def test_the_committed_sizes_are_the_papers():
    cam = next(part.full for part in PARTS if part.name == "cam")
    assert (cam.backbone, cam.image_size, cam.candidates) == ("vit_small_patch16_224", 224, 16)
    assert (cam.naive_masks, cam.flip_images, cam.window) == (256, 1000, 60)


@pytest.mark.parametrize("slope", [0.0, 1.0, 1.5])
def test_an_exponent_is_the_slope_of_the_logarithms(slope):
    sizes = [10, 20, 40]
    assert exponent(sizes, [3 * size**slope for size in sizes]) == pytest.approx(slope)


def test_the_sizes_of_a_part_are_in_its_results(tmp_path, monkeypatch):
    (decoding,) = [part for part in PARTS if part.name == "decode"]
    small = replace(decoding.quick, images=2)
    monkeypatch.setattr(parts, "PARTS", (replace(decoding, quick=small),))
    found = measure(setting(tmp_path), ["decode"], quick=True, say=silent)["parts"]["decode"]
    assert found["sizes"]["images"] == 2 and found["rounds"] == 1


def test_the_peaks_of_every_stage_are_one_table(tmp_path, monkeypatch):
    def measured(config: Config, out: Folder, rows: int) -> str:
        stages = [
            {"stage": title, "driver": 100.0, "worker": peak * rows, "ray": 70.0, "store": 0.0}
            for title, peak in (("Index", 1), ("Embed", 2))
        ]
        earlier = out.read_json("memory.json") if out.exists("memory.json") else []
        out.write_json("memory.json", [*earlier, {"rows": rows, "stages": stages}])
        return ""

    monkeypatch.setattr(peaks, "measure_memory", measured)
    monkeypatch.setattr(peaks, "apart", lambda threads, keep: ThreadPoolExecutor(1))
    found = peaks.measure_peaks(setting(tmp_path), peaks.Sizes((10, 30)))
    lines = found.tables[0].lines
    assert [line[:4] for line in lines] == [
        ("10", "Index", "100", "10"),
        ("10", "Embed", "100", "20"),
        ("30", "Index", "100", "30"),
        ("30", "Embed", "100", "60"),
    ]
    assert "30 images over 10" in found.notes[0] and "largest worker 3.00" in found.notes[0]

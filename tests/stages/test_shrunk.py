"""Smaller copies of the images: who reads them sees what the stored images show, and no row is lost by them.
No Ray.

N images   V pastes   C channels   H = W image side
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slice_table
from poisoncam_ray.decode import decode, shrink
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.facts import Indexed
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.method.classifier import choose_threshold, held_out_pastes, poison_logit, train_classifier
from poisoncam_ray.method.crops import parts, shrunk_size
from poisoncam_ray.research.demo import SCENES, draw
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages import shrunk
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import fetch_images, images_of, read_crops, read_slice, read_views
from poisoncam_ray.stages.shrunk import GROUP_ROWS, Copies

SIDE, SHRINK = 16, 48
LIMIT = 10**7


def encode(x_HWC: np.ndarray, format: str = "JPEG", **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(x_HWC).save(sink, format, **({"quality": 95} if format == "JPEG" else {}) | options)
    return sink.getvalue()


def scene(width: int, height: int, seed: int) -> np.ndarray:
    names = list(SCENES)
    side = max(width, height)
    return draw(names[seed % len(names)], side, np.random.default_rng(seed))[:height, :width]


def some_images() -> list[bytes | None]:
    """Large and small ones, a long one, one with transparency, and rows that die or hold none."""
    clear = np.dstack([scene(144, 144, 4), np.full((144, 144), 255, np.uint8)])
    clear[40:110, 40:110, 3] = 0
    return [
        encode(scene(144, 144, 0)),
        b"broken",
        encode(scene(150, 90, 1)),
        encode(scene(20, 24, 2)),
        None,
        encode(scene(432, 72, 3)),
        encode(clear, "PNG"),
        encode(scene(144, 144, 5))[:500],
        encode(scene(90, 150, 6), "PNG"),
        encode(scene(48, 40, 7), "PNG"),
    ]


class Made:
    """A corpus as Index has left it."""

    def __init__(self, folder: Path, images: list[bytes | None], *overrides: str, name: str = "run") -> None:
        corpus = folder / "corpus"
        if not corpus.exists():
            corpus.mkdir(parents=True)
            pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), corpus / "a.parquet")
        self.config: Config = load_config(overrides=[f"encoder.image_size={SIDE}", *overrides])
        self.run = Folder(str(folder / name))
        self.index, self.dead = self.run / artifact.INDEX, self.run / artifact.DEAD_ROWS
        self.corpus = open_corpus(str(corpus), rows_per_slice=self.config.corpus.rows_per_slice)
        self.slices = self.corpus.slices()
        self.index.write_table(artifact.SLICES, slice_table(self.slices))
        for slice_ in self.slices:
            self.again(slice_)

    def again(self, slice_) -> dict:
        return index_slice(slice_, self.corpus, self.config, self.index, self.dead)

    @property
    def given(self):
        return self.corpus, self.config, self.index

    def fetch(self, ids: list[str]) -> np.ndarray:
        return fetch_images(images_of(*self.given), self.config, ids)

    def files(self) -> dict[str, bytes]:
        root = Path(self.run.uri)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}


def both(folder: Path, images: list[bytes | None], *overrides: str) -> tuple[Made, Made]:
    """Without and with copies."""
    return (
        Made(folder, images, *overrides, name="without"),
        Made(folder, images, f"corpus.shrink_to={SHRINK}", *overrides, name="with"),
    )


def apart(x: np.ndarray, y: np.ndarray) -> float:
    """Mean difference of pixels, 0 … 255."""
    assert x.shape == y.shape
    return float(np.abs(x.astype(int) - y).mean())


def test_copies_are_all_that_differs_in_the_index(tmp_path):
    without, made = both(tmp_path, some_images(), "corpus.rows_per_slice=4")
    copies = {name: data for name, data in made.files().items() if f"/{artifact.SHRUNK}/" in name}
    assert without.files() == {name: data for name, data in made.files().items() if name not in copies}
    assert len(copies) == 3
    for slice_ in made.slices:
        part = part_name(slice_.index)
        indexed = made.index.read_table(part)
        kept = (made.index / artifact.SHRUNK).read_table(part)
        assert kept.schema.equals(artifact.SHRUNK_SCHEMA)
        for name in ("image_id", "width", "height"):
            assert kept[name].equals(indexed[name])
        for row in kept.to_pylist():
            size = Image.open(io.BytesIO(row["image"])).size
            assert size == shrunk_size(row["width"], row["height"], SHRINK)
            assert (row["shown"] is None) == (row["image_id"] != "a.parquet#6")


def test_images_that_are_not_shrunk_are_read_bit_for_bit(tmp_path):
    images = [encode(scene(48, 30, i), format) for i in range(6) for format in ("JPEG", "PNG")]
    without, made = both(tmp_path, images)
    (slice_,) = made.slices
    kept = (made.index / artifact.SHRUNK).read_table(part_name(0))
    assert kept["image"].to_pylist() == images and kept["shown"].null_count == len(images)
    for read in (read_slice, read_views):
        assert np.array_equal(read(*made.given, slice_)[1], read(*without.given, slice_)[1])
    assert np.array_equal(read_crops(*made.given, slice_, 2), read_crops(*without.given, slice_, 2))


def test_copies_show_what_the_stored_images_show(tmp_path):
    without, made = both(tmp_path, some_images(), "corpus.rows_per_slice=4", "pretrain.crop_min=0.3")
    for slice_ in made.slices:
        ids, x_NCHW = read_slice(*made.given, slice_)
        assert ids == read_slice(*without.given, slice_)[0]
        assert apart(x_NCHW, read_slice(*without.given, slice_)[1]) < 4
        assert apart(read_crops(*made.given, slice_, 1), read_crops(*without.given, slice_, 1)) < 6
        (_, y_NCHW, views), (_, z_NCHW, wanted) = (
            read_views(*given, slice_) for given in (made.given, without.given)
        )
        assert apart(y_NCHW, z_NCHW) < 4
        # Parts of the long image are told in its own pixels; the transparent one has its second view.
        assert np.array_equal(views.rows_M, wanted.rows_M) and np.array_equal(views.part_M4, wanted.part_M4)
        assert len(views.rows_M) == 0 or apart(views.x_MCHW, wanted.x_MCHW) < 4


def test_images_are_fetched_by_id_from_wherever_they_lie(tmp_path):
    made = Made(tmp_path, [encode(scene(60 + i, 70, i)) for i in range(80)], f"corpus.shrink_to={SHRINK}",
                "corpus.rows_per_slice=37")  # fmt: skip
    every = {}
    for slice_ in made.slices:
        every |= dict(zip(*read_slice(*made.given, slice_), strict=True))
    asked = [f"a.parquet#{i}" for i in (79, 0, 36, 37, 5, 36)]
    assert np.array_equal(made.fetch(asked), np.stack([every[one] for one in asked]))
    with pytest.raises(LedgerError, match="no copy of"):
        made.fetch(["a.parquet#80"])
    # As it travels to the actors: without what it has read.
    copies = Copies(made.index)
    found, before = copies.fetch(asked), len(pickle.dumps(Copies(made.index)))
    assert len(pickle.dumps(copies)) == before and pickle.loads(pickle.dumps(copies)).fetch(asked) == found


def test_images_of_a_folder_are_fetched_by_their_paths(tmp_path):
    folder = tmp_path / "corpus"
    for name in ("a#b/x.jpg", "a/y.jpg", "b.jpg", "c/d/z.png", "é.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(scene(80, 60, len(name)), "PNG" if name.endswith("png") else "JPEG"))
    made = Made(tmp_path, [], f"corpus.shrink_to={SHRINK}", "corpus.rows_per_slice=2")
    every = {}
    for slice_ in made.slices:
        every |= dict(zip(*read_slice(*made.given, slice_), strict=True))
    assert len(every) == 5
    assert np.array_equal(made.fetch(list(every)[::-1]), np.stack(list(every.values())[::-1]))
    # The copies stand for what was indexed, also when a file is gone; Clean finds that.
    (folder / "b.jpg").unlink()
    assert len(made.fetch(["b.jpg"])) == 1


def test_for_one_image_one_row_group_is_read(tmp_path, monkeypatch):
    made = Made(tmp_path, [encode(scene(60, 70, i)) for i in range(3 * GROUP_ROWS + 1)],
                f"corpus.shrink_to={SHRINK}")  # fmt: skip
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda file, i, **k: read.append(i) or whole(file, i, **k)
    )
    made.fetch([f"a.parquet#{2 * GROUP_ROWS + 3}"])
    assert read == [2]
    read_crops(*made.given, made.slices[0], 0, rows_R=np.array([1, 3 * GROUP_ROWS]))
    assert read == [2, 0, 3]


def test_a_task_that_is_killed_before_the_part_is_done_again(tmp_path, monkeypatch):
    made = Made(tmp_path, some_images(), f"corpus.shrink_to={SHRINK}", "corpus.rows_per_slice=4")
    files = made.files()
    made.index.delete(part_name(1))
    write, killed = Folder.write_table, part_name(1)

    def kill(folder: Folder, name: str, table: pa.Table) -> None:
        if folder == made.index and name == killed:
            raise KeyboardInterrupt
        write(folder, name, table)

    monkeypatch.setattr(Folder, "write_table", kill)
    (made.index / artifact.SHRUNK).delete(part_name(1))
    with pytest.raises(KeyboardInterrupt):
        made.again(made.slices[1])
    assert (made.index / artifact.SHRUNK).exists(part_name(1)) and not made.index.exists(part_name(1))
    monkeypatch.undo()
    made.again(made.slices[1])
    assert made.files() == files


def test_a_task_that_is_killed_while_it_writes_leaves_no_copies(tmp_path, monkeypatch):
    made = Made(tmp_path, some_images(), f"corpus.shrink_to={SHRINK}")
    files = made.files()
    made.index.delete(part_name(0))
    (made.index / artifact.SHRUNK).delete(part_name(0))
    calls = iter(range(3))
    make = shrunk.shrink
    monkeypatch.setattr(shrunk, "shrink", lambda *a: make(*a) if next(calls) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.again(made.slices[0])
    assert (made.index / artifact.SHRUNK).parts() == [] and made.index.parts() == []
    monkeypatch.undo()
    made.again(made.slices[0])
    assert made.files() == files


def test_a_slice_of_dead_rows_leaves_no_copies(tmp_path):
    images = [b"broken", None, b""]
    made = Made(tmp_path, images, f"corpus.shrink_to={SHRINK}")
    place = made.index / artifact.SHRUNK
    assert place.parts() == []
    # Of an earlier try that did not end.
    place.write_bytes(part_name(0), b"left")
    made.again(made.slices[0])
    assert place.parts() == [] and read_slice(*made.given, made.slices[0])[0] == []


@pytest.mark.parametrize("damage", ["gone", "cut", "others", "fewer"])
def test_copies_that_are_gone_or_damaged_are_told(tmp_path, damage):
    made = Made(tmp_path, [encode(scene(60, 70, i)) for i in range(5)], f"corpus.shrink_to={SHRINK}")
    place, part = made.index / artifact.SHRUNK, part_name(0)
    table = place.read_table(part)
    if damage == "gone":
        place.delete(part)
    elif damage == "cut":
        place.write_bytes(part, place.read_bytes(part)[:-30])
    else:
        place.write_table(part, table.take([1, 0, 2, 3, 4]) if damage == "others" else table[:4])
    said = "of other images" if damage == "others" else "--redo index"
    with pytest.raises(LedgerError, match=said):
        read_slice(*made.given, made.slices[0])
    with pytest.raises(LedgerError, match=said):
        made.fetch(["a.parquet#4" if damage != "others" else "a.parquet#0"])


def test_a_copy_smaller_than_the_encoder_needs_is_refused():
    with pytest.raises(UserError, match=r"shrink_to=60 is less than twice encoder.image_size=32.*use 64"):
        load_config(overrides=["encoder.image_size=32", "corpus.shrink_to=60"])
    load_config(overrides=["encoder.image_size=32", "corpus.shrink_to=64"])
    assert load_config().corpus.shrink_to is None


@pytest.mark.parametrize("size", [(500, 375), (1600, 900), (64, 4000), (30_000, 40), (1, 9000), (10, 10)])
def test_the_short_side_of_what_is_seen_is_at_least_half_the_bound(size):
    w, h = shrunk_size(*size, 448)
    assert w <= size[0] and h <= size[1]
    seen = (parts(w, h) or [(0, 0, w, h)])[0][2:]
    if (w, h) == size:
        assert max(size) <= 448 or max((parts(*size) or [(0, 0, *size)])[0][2:]) <= 448
        return
    assert max(seen) <= 450 and w * h <= 450 * 450 * 3.2
    # Beyond the most parts a part is longer than 2:1.
    if max(size) <= 13 * min(size):
        assert min(seen) >= 222


def test_what_only_a_coarse_scaling_shows_is_not_in_a_copy():
    """Every eighth pixel is of a white square: readers that skip pixels see it, and neither decode nor the
    copy does."""
    x_HWC = np.full((256, 256, 3), 60, np.uint8)
    x_HWC[::8, ::8] = 255
    data = encode(x_HWC, "PNG")
    assert np.asarray(Image.open(io.BytesIO(data)))[::8, ::8].min() == 255
    copy, _ = shrink(data, (64, 64), LIMIT)
    assert np.asarray(Image.open(io.BytesIO(copy))).max() < 110
    assert apart(decode(copy, 32, LIMIT), decode(data, 32, LIMIT)) < 2


def test_a_copy_holds_no_metadata_and_two_makings_are_equal():
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    data = encode(scene(200, 100, 1), "JPEG", exif=exif.tobytes(), comment=b"where I live")
    copy, shown = shrink(data, (64, 32), LIMIT)
    assert b"where I live" not in copy and shown is None and Image.open(io.BytesIO(copy)).size == (64, 32)
    assert copy == shrink(data, (64, 32), LIMIT)[0]


def test_a_small_image_with_many_bytes_is_encoded_anew(tmp_path):
    """Bytes after the end of a picture must not fill the memory of those who read its copy."""
    data = encode(scene(40, 40, 1)) + bytes(300_000)
    made = Made(tmp_path, [data], f"corpus.shrink_to={SHRINK}")
    (kept,) = (made.index / artifact.SHRUNK).read_table(part_name(0))["image"].to_pylist()
    assert len(kept) < 10_000
    assert apart(decode(kept, SIDE, LIMIT), decode(data, SIDE, LIMIT)) < 2


def test_a_copy_may_be_larger_than_an_image_was_allowed_to_be(tmp_path):
    data = encode(np.random.default_rng(0).integers(0, 255, (120, 120, 3), dtype=np.uint8), quality=5)
    made = Made(tmp_path, [data], f"corpus.shrink_to={SHRINK}", f"corpus.max_bytes={len(data)}")
    (kept,) = (made.index / artifact.SHRUNK).read_table(part_name(0))["image"].to_pylist()
    made.config = load_config(overrides=[f"encoder.image_size={SIDE}", f"corpus.shrink_to={SHRINK}",
                                         f"corpus.max_bytes={len(kept) - 1}"])  # fmt: skip
    assert len(read_slice(*made.given, made.slices[0])[0]) == len(made.fetch(["a.parquet#0"])) == 1


def test_the_disk_that_copies_take_is_said(tmp_path):
    made = Made(tmp_path, some_images(), f"corpus.shrink_to={SHRINK}", "corpus.rows_per_slice=4")
    size = (made.index / artifact.SHRUNK).total_bytes()
    assert size == sum(len(data) for name, data in made.files().items() if artifact.SHRUNK in name) > 0
    assert (made.index / "nothing").total_bytes() == 0
    (Path(made.index.uri) / artifact.SHRUNK / ".part-00000.parquet.writing-1").write_bytes(
        b"of a killed process"
    )
    assert (made.index / artifact.SHRUNK).total_bytes() == size
    assert "copies of 2,500.0 MB" in Indexed(1, 0, 1, 0, 0, copies_bytes=2_500_000_000).summary
    assert "copies" not in Indexed(1, 0, 1, 0, 0).summary


def test_the_ids_of_copies_can_be_listed(tmp_path):
    made = Made(tmp_path, [encode(scene(60, 70, i)) for i in range(3)], f"corpus.shrink_to={SHRINK}")
    assert Copies(made.index).ids(part_name(0)) == [f"a.parquet#{i}" for i in range(3)]


def test_images_have_the_same_fate_with_and_without_copies(tmp_path):
    """A real classifier, trained on stored images of 144 px, judges them and their copies of 48 px."""
    rng = np.random.default_rng(0)
    trigger = np.kron(rng.integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255, np.ones((12, 12, 1), np.uint8))
    images: list[bytes | None] = []
    for i in range(90):
        x_HWC = scene(144, 144, i).copy()
        if i % 3 == 0:
            y, x = rng.integers(0, 96, 2)
            x_HWC[y : y + 48, x : x + 48] = trigger
        images.append(encode(x_HWC))
    settings = ["classify.models=1", "resources.precision=float32"]
    without, made = both(tmp_path, images, *settings)
    (slice_,) = made.slices
    _, x_NCHW = read_slice(*without.given, slice_)
    x_NCHW = torch.from_numpy(x_NCHW)
    clean_N = torch.arange(90) % 3 > 0
    crop_1Chw = torch.from_numpy(decode(encode(trigger, "PNG"), 6, LIMIT))[None]
    model = train_classifier(x_NCHW[clean_N], crop_1Chw, 0, 60, 16, paste_size=(0.25, 0.4))
    pastes_VCHW = held_out_pastes(x_NCHW[clean_N], crop_1Chw, 60, 0)
    chosen = choose_threshold(poison_logit([model], pastes_VCHW), poison_logit([model], x_NCHW))
    rows = {}
    for one in (without, made):
        classifier, out = one.run / artifact.CLASSIFIER, one.run / artifact.SCORES
        classifier.write_tensors(artifact.model_name(1, 0), dict(model.state_dict()))
        classifier.write_json(artifact.VALIDATION, {"families": {"1": {**chosen, "erased": True}}})
        pictures = {"family": [1], "picture": [to_png(crop_1Chw[0].float() / 255)], "aspect": [1.0]}
        classifier.write_table(
            artifact.WHOLE_TRIGGERS, pa.table(pictures, schema=artifact.WHOLE_TRIGGER_SCHEMA)
        )
        JudgeSlice(one.config, one.index, classifier, out)(0, *read_views(*one.given, slice_))
        rows[one] = out.read_table(part_name(0)).to_pylist()
    fates = [[row["fate"] for row in of] for of in rows.values()]
    assert fates[0] == fates[1] and 20 < fates[0].count(artifact.REMOVE) < 40
    for row, other in zip(*rows.values(), strict=True):
        assert other["p_poison"] == pytest.approx(row["p_poison"], abs=0.25)
        if row["fate"] == artifact.REMOVE:
            # Both in pixels of the stored image of 144 px: 9 of them are one of the encoder's.
            assert max(abs(row[side] - other[side]) for side in artifact.SIDES) <= 9

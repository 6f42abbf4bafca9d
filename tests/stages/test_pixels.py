"""The two crops of each training image: of the whole stored image, by seed, epoch and id alone. No Ray."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import LedgerError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.crops import in_sample, own_part
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.pixels import fetch_images, fetch_with_aspects, read_crops, read_slice, read_views

SIDE, N = 16, 40


def picture(width: int, height: int, seed: int) -> bytes:
    """Noise; the outer eighths of a wide or tall image are white."""
    x_HWC = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    if width > height:
        x_HWC[:, : width // 8] = x_HWC[:, -width // 8 :] = 255
    elif height > width:
        x_HWC[: height // 8] = x_HWC[-height // 8 :] = 255
    sink = io.BytesIO()
    Image.fromarray(x_HWC).save(sink, "PNG")
    return sink.getvalue()


def indexed(folder: Path, images: list[bytes | None], *overrides: str):
    """(corpus, config, index, slices) of a corpus with these images."""
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), folder / "corpus" / "a.parquet")
    config = load_config(overrides=[f"encoder.image_size={SIDE}", *overrides])
    corpus = open_corpus(str(folder / "corpus"), rows_per_slice=config.corpus.rows_per_slice)
    index = Folder(str(folder / "run")) / artifact.INDEX
    slices = corpus.slices()
    for slice_ in slices:
        index_slice(slice_, corpus, config, index, Folder(str(folder / "run")) / artifact.DEAD_ROWS)
    return corpus, config, index, slices


def all_crops(made, epoch: int) -> np.ndarray:
    corpus, config, index, slices = made
    return np.concatenate([read_crops(corpus, config, index, slice_, epoch) for slice_ in slices])


def test_crops_depend_on_seed_epoch_and_image_alone(tmp_path):
    images = [picture(40, 24, i) for i in range(N)]
    for name in "abc":
        (tmp_path / name).mkdir()
    one = indexed(tmp_path / "a", images)
    x_N2CHW = all_crops(one, 3)
    assert x_N2CHW.shape == (N, 2, 3, SIDE, SIDE) and x_N2CHW.dtype == np.uint8
    assert np.array_equal(x_N2CHW, all_crops(one, 3))
    other = indexed(tmp_path / "b", images, "corpus.rows_per_slice=7")
    assert np.array_equal(x_N2CHW, all_crops(other, 3))
    assert len({crop.tobytes() for crop in x_N2CHW.reshape(-1, 3, SIDE, SIDE)}) == 2 * N
    assert not (x_N2CHW == all_crops(one, 4)).all(axis=(1, 2, 3, 4)).any()
    assert (
        not (x_N2CHW == all_crops(indexed(tmp_path / "c", images, "seed=1"), 3)).all(axis=(1, 2, 3, 4)).any()
    )


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (48, 32)])
def test_the_margins_are_in_crops_and_in_the_square(tmp_path, width, height):
    made = indexed(tmp_path, [picture(width, height, i) for i in range(N)])
    _, x_NCHW = read_slice(*made[:3], made[3][0])
    white = (x_NCHW.min(axis=1) > 240).mean(axis=(1, 2))
    assert (white >= 0.12).all()
    seen = (all_crops(made, 0).min(axis=2) > 240).mean(axis=(2, 3)) > 0.02
    assert 0.25 < seen.mean() < 0.95


def test_a_long_image_is_seen_by_the_same_part_wherever_it_is_read(tmp_path):
    """Six times as wide as high, of six colours: a part shows some of them, and all parts show all."""
    six = np.kron(np.arange(6, dtype=np.uint8)[None, :] * 50, np.ones((32, 32), np.uint8))
    sink = io.BytesIO()
    Image.fromarray(np.repeat(six[..., None], 3, axis=2)).save(sink, "PNG")
    made = indexed(tmp_path, [sink.getvalue()] * 30)
    ids, x_NCHW = read_slice(*made[:3], made[3][0])
    assert np.array_equal(fetch_images(made[0], made[1], ids), x_NCHW)
    shown = [set(np.unique(x_CHW).tolist()) & {0, 50, 100, 150, 200, 250} for x_CHW in x_NCHW]
    assert max(map(len, shown)) <= 3 and set().union(*shown) == {0, 50, 100, 150, 200, 250}
    # Judge sees all of it, and then each part.
    _, whole_NCHW, second = read_views(*made[:3], made[3][0])
    assert whole_NCHW[0].min() == 0 and whole_NCHW[0].max() == 250
    own = [own_part(made[1].seed, image_id, 192, 32) for image_id in ids]
    for i, x_CHW in enumerate(x_NCHW):
        same = second.x_MCHW[(second.rows_M == i) & (second.part_M4 == own[i]).all(axis=1)]
        assert len(same) == 1 and np.array_equal(same[0], x_CHW)


def test_the_aspect_of_what_is_seen_is_that_of_the_part_of_a_long_image(tmp_path):
    images = [picture(w, h, 0) for w, h in ((32, 32), (48, 32), (192, 32), (20, 80))]
    corpus, config, index, (slice_,) = indexed(tmp_path, images)
    ids, x_NCHW = read_slice(corpus, config, index, slice_)
    fetched_NCHW, aspects = fetch_with_aspects(corpus, config, ids)
    assert aspects == [1, 1.5, 1.25, 0.8] and np.array_equal(fetched_NCHW, x_NCHW)


def test_a_small_crop_has_the_resolution_of_the_stored_image(tmp_path):
    """Stripes of 8 of 256 px: grey in the encoder's square of 16 px, sharp in a crop of a few of them."""
    stripes = np.broadcast_to((np.arange(256) // 8 % 2 * 255).astype(np.uint8)[None, :, None], (256, 256, 3))
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stripes)).save(sink, "JPEG", quality=95)
    made = indexed(tmp_path, [sink.getvalue()] * 30, "pretrain.crop_min=0.02")
    _, x_NCHW = read_slice(*made[:3], made[3][0])
    assert x_NCHW.std() < 30 and all_crops(made, 0).std(axis=(2, 3, 4)).max() > 60


def test_broken_rows_have_no_crops_and_a_changed_corpus_is_told(tmp_path):
    images = [picture(40, 24, i) for i in range(6)]
    corpus, config, index, (slice_,) = indexed(tmp_path, [*images[:2], b"broken", *images[2:]])
    assert read_crops(corpus, config, index, slice_, 0).shape[0] == 6
    index.write_table("part-000000.parquet", index.read_table("part-000000.parquet").slice(0, 4))
    (tmp_path / "corpus" / "a.parquet").unlink()
    pq.write_table(pa.table({"image": pa.array(images[:3], pa.binary())}), tmp_path / "corpus" / "a.parquet")
    changed = open_corpus(str(tmp_path / "corpus"))
    with pytest.raises(LedgerError):
        read_crops(changed, config, index, changed.slices()[0], 0)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_chosen_rows_have_the_crops_that_they_have_among_all(tmp_path, share):
    corpus, config, index, (slice_,) = indexed(tmp_path, [picture(40, 24, i) for i in range(N)])
    ids = index.read_table("part-000000.parquet", ["image_id"])["image_id"].to_pylist()
    drawn = [i for i, image_id in enumerate(ids) if in_sample(config.seed, share, image_id)]
    whole = read_crops(corpus, config, index, slice_, 1)
    rows = np.array([0, 3, 4, len(drawn) - 1])
    some = read_crops(corpus, config, index, slice_, 1, share, rows)
    assert np.array_equal(some, whole[np.array(drawn)[rows]])
    assert np.array_equal(read_crops(corpus, config, index, slice_, 1, share), whole[drawn])


def test_of_an_image_folder_only_the_chosen_files_are_read(tmp_path):
    (tmp_path / "corpus").mkdir()
    for i in range(8):
        (tmp_path / "corpus" / f"{i}.png").write_bytes(picture(40, 24, i))
    config = load_config(overrides=[f"encoder.image_size={SIDE}"])
    corpus = open_corpus(str(tmp_path / "corpus"))
    index = Folder(str(tmp_path / "run")) / artifact.INDEX
    (slice_,) = corpus.slices()
    index_slice(slice_, corpus, config, index, Folder(str(tmp_path / "run")) / artifact.DEAD_ROWS)
    whole = read_crops(corpus, config, index, slice_, 0)
    for i in (0, 1, 3, 4, 6, 7):
        (tmp_path / "corpus" / f"{i}.png").unlink()
    assert np.array_equal(read_crops(corpus, config, index, slice_, 0, 1.0, np.array([2, 5])), whole[[2, 5]])
    # A changed one is told.
    (tmp_path / "corpus" / "5.png").write_bytes(picture(40, 24, 99))
    with pytest.raises(LedgerError):
        read_crops(corpus, config, index, slice_, 0, 1.0, np.array([2, 5]))

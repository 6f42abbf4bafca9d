"""Drawn corpora: of the size asked for, no two rows the same, drawn once."""

from __future__ import annotations

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import header
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.benchmark.images import PAINTED, draw_images, megabytes, pixels
from tests.small import stamps


def test_a_drawn_corpus_is_one_of_the_defence(tmp_path):
    corpus = draw_images(Folder(str(tmp_path)), 50, 64, 48, shards=3)
    opened = open_corpus(corpus.uri)
    rows = [row.data for piece in opened.slices() for row in opened.read(piece)]
    assert len(rows) == len(set(rows)) == 50
    assert {header(data, 10_000) for data in rows} == {(64, 48, "JPEG")}
    assert megabytes(corpus) * 1e6 > sum(map(len, rows))
    drawn = stamps(tmp_path)
    assert draw_images(Folder(str(tmp_path)), 50, 64, 48, shards=3) == corpus
    assert stamps(tmp_path) == drawn


def test_pixels_repeat_the_pictures():
    x_NCHW = pixels(PAINTED + 3, 32)
    assert x_NCHW.shape == (PAINTED + 3, 3, 32, 32)
    assert x_NCHW[:3].equal(x_NCHW[PAINTED:]) and not x_NCHW[0].equal(x_NCHW[1])

"""Image folders: which files are images, by which names, and which links are refused."""

from __future__ import annotations

import os

import pytest

from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, open_corpus
from poisoncam_ray.errors import UserError
from tests.corpus.mistakes import refuse
from tests.tars import image, rows_of


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "in"
    for i, name in enumerate(["cat/1.png", "cat/x/[2]*.PNG", "dog/3 ä#.png", "top.png", "dog/4.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    (root / "captions.txt").write_text("not an image")
    for hidden in (".cache/9.png", "_old/9.png", "dog/._3.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"")
    return tmp_path


def test_image_ids_are_the_sorted_paths(pictures):
    corpus = open_corpus(str(pictures / "in"), rows_per_slice=2)
    rows = rows_of(corpus)
    assert [(r.row, r.image_id) for r in rows] == [
        (0, "cat/1.png"),
        (1, "cat/x/[2]*.PNG"),
        (2, "dog/3 ä#.png"),
        (3, "dog/4.png"),
        (4, "top.png"),
    ]
    assert [r.data for r in rows] == [image(0), image(1), image(2), image(4), image(3)]
    assert [len(s.files) for s in corpus.slices()] == [2, 2, 1] == [len(u[0].files) for u in corpus.units()]
    with pytest.raises(UserError, match=r"cat/none\.png is gone"):
        corpus.fetch(["cat/none.png"])
    with pytest.raises(UserError, match="leaves the corpus"):
        corpus.fetch(["../secret.png"])


def test_images_with_a_camera_s_underscore_are_seen_and_others_notes_are_not(tmp_path):
    for name in ("_MG_1.JPG", "a/__2.png", "_notes/3.png", ".4.png", "_.5.png", "_SUCCESS", "_list.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(0))
    assert [s.path for s in open_corpus(str(tmp_path)).sources()] == ["_MG_1.JPG", "a/__2.png"]


def test_a_file_too_large_for_any_image_costs_its_own_row(pictures):
    with open(pictures / "in" / "top.png", "wb") as file:
        file.truncate(2**40)
    rows = rows_of(open_corpus(str(pictures / "in"), rows_per_slice=2))
    assert [(row.image_id, row.error[0]) for row in rows if row.error] == [("top.png", "bomb")]
    assert len(rows) == 5


def test_images_of_an_earlier_try_are_written_again(pictures):
    kept_uri, removed_uri = (str(pictures / n) for n in ("clean", "removed"))
    corpus = open_corpus(str(pictures / "in"), rows_per_slice=3)
    first, second = corpus.units()
    (pictures / "clean/cat").mkdir(parents=True)
    (pictures / "clean/cat/1.png").write_bytes(b"half an image")
    assert corpus.split(first, [KEPT, REMOVED, KEPT], kept_uri, removed_uri) == (2, 1)
    assert corpus.split(second, [DEAD, KEPT], kept_uri, removed_uri) == (1, 0)
    assert {r.image_id: r.data for r in rows_of(open_corpus(kept_uri))} == {
        "cat/1.png": image(0),
        "dog/3 ä#.png": image(2),
        "top.png": image(3),
    }
    assert [(r.image_id, r.data) for r in rows_of(open_corpus(removed_uri))] == [("cat/x/[2]*.PNG", image(1))]


def test_links_that_leave_the_folder_are_refused(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.png").write_bytes(image(0))
    (root / "inside.png").symlink_to(root / "a.png")
    assert [r.data for r in rows_of(open_corpus(str(root)))] == [image(0)] * 2
    (tmp_path / "secret.png").write_bytes(image(1))
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    refuse("outside.png is a symbolic link that leaves", root)
    (root / "outside.png").unlink()
    (root / "broken.png").symlink_to(root / "none.png")
    refuse("broken.png is a broken symbolic link", root)
    (root / "broken.png").unlink()
    (root / "loop").symlink_to(root, target_is_directory=True)
    refuse("loop is a symbolic link to a folder", root)
    (root / "loop").unlink()
    # The corpus itself may be reached through a link.
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    assert len(rows_of(open_corpus(str(tmp_path / "alias")))) == 2


def test_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(image(0))
    refuse("not valid UTF-8", tmp_path)

"""Corpora of every format with broken files on a real S3 server: the fates and the bytes are those on
disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.store import connect
from tests.ledger import defend, write_mixed_parquet, write_mixed_tars
from tests.tars import image

pytestmark = pytest.mark.s3


@pytest.fixture
def bucket(s3, use_s3) -> str:
    use_s3(s3.environment())
    return f"s3://{s3.bucket}"


def write_images(folder: Path) -> None:
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.png").write_bytes(image(i))
    (folder / "empty.png").write_bytes(b"")


def files(uri: str) -> dict[str, bytes]:
    fs, root = connect(uri)
    return {str(path)[len(root) :]: fs.cat_file(path) for path in fs.find(root)}


@pytest.mark.parametrize("write", [write_mixed_parquet, write_mixed_tars, write_images])
def test_s3_and_disk_agree(tmp_path, bucket, write):
    write(tmp_path / "in")
    root = f"{bucket}/{write.__name__}"
    fs = connect(root)[0]
    for path in (tmp_path / "in").iterdir():
        fs.pipe_file(f"{root}/in/{path.name}", path.read_bytes())
    here, there = (
        open_corpus(str(tmp_path / "in"), rows_per_slice=9),
        open_corpus(f"{root}/in", rows_per_slice=9),
    )
    ends = defend(here, Folder(str(tmp_path / "run")))
    assert defend(there, Folder(f"{root}/run")) == ends and ends.errors
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS):
        assert files(f"{root}/run/{name}") == files(f"{tmp_path}/run/{name}")
    wanted = ends.kept[::-7] + ends.removed[:3]
    assert there.fetch(wanted) == here.fetch(wanted)

    # A shard that is written again while the job runs is refused.
    name = sorted(path.name for path in (tmp_path / "in").iterdir())[0]
    slices = there.slices()
    if write is not write_images:
        fs.pipe_file(f"{root}/in/{name}", b"other")
        with pytest.raises(UserError, match="changed since it was indexed"):
            list(there.read(next(s for s in slices if s.source == name)))

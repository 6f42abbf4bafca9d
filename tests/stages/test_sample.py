"""A sample is drawn by the seed from the whole corpus, says that it is one, and is never taken for a cleaned
corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact, facts
from poisoncam_ray.config import SAMPLED_ROWS
from poisoncam_ray.corpus import Slice, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.report.gather import gather
from poisoncam_ray.report.page import render
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import sample
from tests.fake_run import make_fake_run
from tests.ledger import defend
from tests.page import Page
from tests.stages.test_keep_list import write_images, write_parquet, write_tars


def cut(shards: int = 20, rows: int = 10) -> list[Slice]:
    places = ((shard, start) for shard in range(shards) for start in range(0, 100, rows))
    return [Slice(i, f"{s:03d}.parquet", a, a + rows) for i, (s, a) in enumerate(places)]


def drawn(limit: int, seed: int = 0) -> list[Slice]:
    return sample(cut(), load_config(overrides=[f"corpus.limit={limit}", f"seed={seed}"]))


def test_a_sample_has_the_rows_asked_for_from_all_over_the_corpus():
    slices = drawn(300)
    assert [slice_.index for slice_ in slices] == list(range(30))
    places = [(slice_.source, slice_.start) for slice_ in slices]
    assert places == sorted(places) and len(set(places)) == 30
    # Sorted shards: the first ones hold the first classes only.
    assert len({source for source, _ in places}) > 10 and places[-1][0] > "014"
    assert sum(slice_.stop - slice_.start for slice_ in drawn(295)) == 300


def test_the_same_seed_draws_the_same_rows_and_another_seed_others():
    assert drawn(300) == drawn(300) != drawn(300, seed=1)
    # A larger sample holds the smaller one.
    small, large = ({(s.source, s.start) for s in drawn(limit)} for limit in (200, 300))
    assert small < large


def test_without_a_limit_and_with_a_large_one_every_row_is_looked_at():
    slices = cut()
    assert sample(slices, load_config()) is slices
    assert drawn(10**6) == slices


def test_a_sample_is_of_short_slices():
    rows = [load_config(overrides=[f"corpus.limit={n}"]).corpus.slice_rows for n in (10, 10_000, 10**6)]
    assert rows == [SAMPLED_ROWS, 10_000 // 32, 1024] and load_config().corpus.slice_rows == 1024


def test_a_sample_is_not_copied_and_asking_for_it_is_refused():
    assert load_config().copies and not load_config(overrides=["clean.copy_corpus=false"]).copies
    assert not load_config(overrides=["corpus.limit=10"]).copies
    with pytest.raises(UserError, match="looks like a cleaned one; leave one of them out"):
        load_config(overrides=["corpus.limit=10", "clean.copy_corpus=true"])


@pytest.mark.parametrize("write", [write_parquet, write_images, write_tars])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_of_the_sample_is_kept_removed_or_dead(tmp_path, write, seed):
    write(tmp_path / "in")
    corpus, run = open_corpus(str(tmp_path / "in"), rows_per_slice=3), Folder(str(tmp_path / "run"))
    slices = sample(corpus.slices(), load_config(overrides=["corpus.limit=7", f"seed={seed}"]))
    ends = defend(corpus, run, copies=False, slices=slices)
    keep = run / artifact.KEEP_LIST
    listed = [row["image_id"] for name in keep.parts() for row in keep.read_table(name).to_pylist()]
    assert listed == ends.kept and 7 <= len(ends.kept + ends.removed) + len(ends.errors) <= 9
    if write is not write_parquet:
        return
    wanted = [image_id.rpartition("#") for image_id in ends.removed]
    expected = [pq.read_table(tmp_path / "in" / path)["number"][int(row)].as_py() for path, _, row in wanted]
    files = sorted(Path(run.uri, artifact.REMOVED_ROWS).rglob("*.parquet"))
    found = [pq.read_table(path)["number"].to_numpy() for path in files]
    assert np.concatenate([*found, []]).tolist() == expected


def test_the_report_and_the_facts_say_that_it_is_a_sample(tmp_path):
    fake = make_fake_run(tmp_path)
    index = Folder(fake.run) / artifact.INDEX
    assert "sample of" not in Page(render(gather(fake.run))).text
    said = facts.Indexed(119, 1, 3, 0, 0, corpus_rows=50_000)
    assert said.sample == (120, 50_000) and "a sample of 120 of 50,000 rows" in said.summary
    manifest = Manifest.read(index)
    Manifest(manifest.identity, {}, "0" * 64, manifest.ledger, 1.0, said.as_json()).write(index)
    text = Page(render(gather(fake.run))).text
    assert "This is a sample of 120 of 50,000 rows. Nothing is known about the other rows" in text

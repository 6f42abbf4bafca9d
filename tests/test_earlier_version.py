"""A run folder of an earlier version is refused before any work."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from poisoncam_ray import artifact
from tests.here import defend_here
from tests.small import stamps
from tests.tars import image


def test_a_run_folder_of_an_earlier_version_is_refused(tmp_path):
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    pq.write_table(pa.table({"image": pa.array([image(0)], pa.binary())}), corpus / "a.parquet")
    (run / "00_index").mkdir(parents=True)
    (run / "00_index" / "_manifest.json").write_text("{}")
    (run / artifact.RUN).write_text('{"input": "corpus", "config": {"seed": 0}}')
    before = stamps(run)
    code, said = defend_here("--input", str(corpus), "--output", str(run))
    assert code == 2, said
    assert said == (
        f"error The run folder {run} was made by another version of poisoncam_ray (format 1, this version "
        f"has format {artifact.FORMAT}): use a new output folder.\n"
    )
    assert stamps(run) == before

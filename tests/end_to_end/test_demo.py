"""The README's first command: the embedded demo, its detection asserted."""

from __future__ import annotations

import pytest
from poisoncam_ray.verdict import read_evidence

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder, Manifest


@pytest.mark.timeout(1800)
def test_the_demo_finds_the_poison_and_says_so(local_demo):
    folder, process = local_demo
    assert process.returncode == 0, process.said
    run = folder / "run"
    metrics = Folder(str(run / "report")).read_json("metrics.json")
    ledger = Manifest.read(Folder(str(run / artifact.CLEAN_ROWS))).ledger
    assert ledger.rows_in == metrics["n_images"] == 3000
    assert read_evidence(Folder(str(run / artifact.SEARCH))).poison
    assert "\nPoison found: " in process.said
    assert metrics["asr"] >= 0.5
    # Seen: 0.9. To end in five minutes the demo trains only until the backdoor shows.
    assert metrics["top20_precision"] >= 0.6
    assert metrics["trigger_detection_accuracy"] >= 0.8
    assert metrics["located_accuracy"] >= 0.95
    assert metrics["trigger_detection_final_accuracy"] >= 0.95
    assert metrics["recall"] >= 0.98
    assert metrics["false_positive_rate"] <= 0.01
    assert process.said.strip().endswith("report/index.html")
    assert "measured against truth" in (run / "report" / "index.html").read_text().lower()

"""The README's first command: the embedded demo, its detection asserted."""

from __future__ import annotations

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder, Manifest

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(1800)
def test_the_demo_finds_the_poison_and_says_so(local_demo):
    folder, process = local_demo
    assert process.returncode == 0, process.said
    run = folder / "run"
    metrics = Folder(str(run / artifact.PAGE)).read_json(artifact.METRICS)
    ledger = Manifest.read(Folder(str(run / artifact.CLEAN))).ledger
    assert ledger.rows_in == metrics["n_images"] == 3000
    assert artifact.Verdict.read(Folder(str(run / artifact.VERDICT))).poison
    assert "\nPoison found: " in process.said
    assert metrics["asr"] >= 0.5
    # Below the photographs' bound: the demo trains only until the backdoor shows.
    assert metrics["top20_precision"] >= 0.6
    assert metrics["trigger_detection_accuracy"] >= 0.8
    assert metrics["located_accuracy"] >= 0.95
    assert metrics["trigger_detection_final_accuracy"] >= 0.95
    assert metrics["recall"] >= 0.98
    assert metrics["false_positive_rate"] <= 0.01
    page = run / artifact.PAGE / artifact.HTML
    assert process.said.strip().endswith(f"{artifact.PAGE}/{artifact.HTML}")
    assert "measured against truth" in page.read_text().lower()

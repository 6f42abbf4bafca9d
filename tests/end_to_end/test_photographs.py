"""Real photographs, the CPU-sized preset, one seed and one of the tuning triggers: does it still hold?

The README's table, on other classes and triggers, comes from jobs/photographs.py.
"""

from __future__ import annotations

import pytest

from poisoncam_ray.folder import Folder
from poisoncam_ray.progress import Progress
from poisoncam_ray.research.evaluate.table import CANDIDATES, Setting, make_table
from poisoncam_ray.research.study.rules import decide_stored, stored_files
from poisoncam_ray.research.study.strata import NATURAL, OWN
from poisoncam_ray.settings import load_config

pytestmark = pytest.mark.e2e


@pytest.mark.photographs
@pytest.mark.timeout(2400)
def test_a_backdoor_in_photographs_is_found_and_removed(photographs, triggers, ray_cluster, tmp_path):
    setting = Setting(
        str(photographs / "train"),
        str(photographs / "val"),
        (str(triggers / "trigger_10.png"),),
        seeds=(0,),
        labels=tuple(range(10)),
    )
    (row,) = make_table(setting, load_config("tiny-cnn"), Folder(str(tmp_path)), Progress())
    # One run. The search's own figures differ most from seed to seed; a broken search does not reach these.
    assert row["verdict"] == "poison"
    assert row["asr"] >= 0.6
    assert row["asr_never_poisoned"] <= 0.2
    assert row["top20_precision"] >= 0.75
    assert row["trigger_detection_accuracy"] >= 0.75
    assert row["located_accuracy"] >= 0.95
    # A box as large as the search's windows has 0.8 at the most.
    assert row["located_mean_iou"] >= 0.8
    assert row["trigger_detection_final_accuracy"] >= 0.95
    assert row["recall"] >= 0.98
    assert row["false_positive_rate"] <= 0.01
    assert row["recorded accuracy"] >= 10 * row["gradcam accuracy"]
    # The table's file of its candidates gives the same verdict and figures.
    (file,) = stored_files([str(tmp_path / CANDIDATES)])
    (again,), strata = decide_stored(file, changes=[])
    assert (again.verdict, again.best_to_threshold) == (row["verdict"], row["best_group_in_thresholds"])
    assert again.precision is not None and again.precision >= 0.9
    detected = {one.stratum: one.accuracy for one in strata}
    assert detected[OWN] == row["trigger_detection_accuracy_poison_clusters"]
    assert detected.get(NATURAL) == row["trigger_detection_accuracy_natural_clusters"]

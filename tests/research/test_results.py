"""Rows and Markdown of the results table, those in jobs/results among them."""

import csv
import re
from pathlib import Path

import pytest

from poisoncam_ray.folder import Folder
from poisoncam_ray.research.evaluate.results import CLEANED, gaps, single_figures, write_results
from tests.small import ROOT

RESULTS = ROOT / "jobs" / "results"
COMMITTED = sorted(RESULTS.rglob("results.csv"))

METRICS = {
    "recall": 0.5,
    "precision": None,
    "n_removed": 7,
    "probes_labels": "those of the never-poisoned corpus",
    "recall_by_target": {"3": 0.5},
    "strategies": {"gradcam": {"accuracy": 0.25}},
    "probes": {
        "threat": {"knn": {"acc_clean": 0.4, "acc_patched": 0.1, "asr": 0.9}},
        "cleaned": {"knn": {"acc_clean": 0.4, "acc_patched": 0.4, "asr": 0.07}},
        "never_poisoned": {"knn": {"acc_clean": 0.5, "acc_patched": 0.35, "asr": None}},
    },
}


def test_figures_carry_the_path_to_them() -> None:
    got = single_figures(METRICS)
    assert list(got)[:3] == ["recall", "precision", "n_removed"]
    assert got["gradcam accuracy"] == 0.25 and got["threat knn asr"] == 0.9
    assert len(got) == 3 + 1 + 9 and "recall_by_target" not in got


def test_gaps_are_cleaned_less_never_poisoned() -> None:
    got = gaps(METRICS)
    assert got == {
        "cleaned less never_poisoned knn acc_clean": pytest.approx(-0.1),
        "cleaned less never_poisoned knn acc_patched": pytest.approx(0.05),
        "cleaned less never_poisoned knn asr": None,
    }
    assert gaps({"probes": {"threat": METRICS["probes"]["threat"]}}) == gaps({}) == {}


def row(seed: int, share: float, recall: float, kind: str = "patch", **more: object) -> dict:
    made = {"seed": seed, "kind": kind, "share": share, "poison_rate": share / 10}
    return made | {"trigger": "t", "target": "3", "recall": recall} | more


def test_a_table_for_each_kind_and_share_and_every_row_in_the_csv(tmp_path: Path) -> None:
    clean = {"seed": 1, "kind": "clean", "share": 0.0, "poison_rate": 0.0, "n_removed": 0}
    rows = [
        clean | {"verdict": "no_evidence"},
        clean | {"seed": 2, "n_removed": 4, "verdict": "poison"},
        row(1, 1.0, 0.8, verdict="poison", **{"seconds Search": 3.0, "seconds Judge": 2.0}),
        row(2, 1.0, 1.0, asr=None, verdict="poison", **{"seconds Search": 5.0, "seconds Judge": 2.0}),
        row(1, 0.5, 0.25, **{"peer trigger_detection_accuracy": 0.0312}, cleaned_corpus="a"),
        row(2, 0.5, 0.25, cleaned_corpus="a"),
        row(2, 0.5, 0.25, cleaned_corpus="a"),
        row(1, 0.5, 0.75, "blended"),
    ]
    out = Folder(str(tmp_path))
    write_results(out, rows)
    text = out.read_bytes("results.md").decode()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Never poisoned: 2 runs, nothing removed in 1",
        "## patch, share 1, 10.00% of the corpus: 2 runs",
        "## patch, share 0.5, 5.00% of the corpus: 3 runs",
        "## blended, share 0.5, 5.00% of the corpus: 1 run",
    ]
    assert "| recall of the poisoned images | 0.900 ± 0.141 | 0.800 – 1.000 | 2 |" in text
    assert "| recall of the poisoned images | 0.250 ± 0.000 | 0.250 – 0.250 | 3 |" in text
    assert "Different cleaned corpora: 2." in text
    assert "| verdict | no_evidence 1, poison 1 | | 2 |" in text
    assert "attack success (k-NN)" not in text and "Seconds, mean: Search 4, Judge 2." in text
    assert [line for line in text.splitlines() if line.startswith(("| patch", "| clean |"))] == [
        "| clean | 0 % | 2 | 1 | – | – | – | – | – | – | – | – |",
        "| patch | 10 % | 2 | 2 | – | – | – | – | – | – | 0.900 | – |",
        "| patch | 5 % | 3 | 0 | – | – | – | – | – | 0.031 | 0.250 | – |",
    ]
    assert "| seed | verdict | removed |\n|---|---|---|\n| 1 | no_evidence | 0 |\n| 2 | poison | 4 |" in text
    assert "| 1 | t | poison | 0.800 |\n| 2 | t | poison | 1.000 |\n" in text
    assert "| 1 | t | 0.250 | 0.031 | a |\n| 2 | t | 0.250 | – | a |\n" in text
    with (tmp_path / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [line["recall"] for line in read] == ["", "", "0.8", "1.0", "0.25", "0.25", "0.25", "0.75"]
    assert [line["verdict"] for line in read[:3]] == ["no_evidence", "poison", "poison"]


def committed_rows(file: Path) -> list[dict]:
    """The rows of a committed results.csv, with the types that they had when they were written."""
    texts = {"trigger", "target", "verdict", "kind", CLEANED}

    def typed(column: str, cell: str) -> str | int | float:
        if column in texts:
            return cell
        return float(cell) if column == "share" or "." in cell or "e" in cell else int(cell)

    with file.open() as lines:
        read = list(csv.DictReader(lines))
    # An empty cell is a figure that the run does not have.
    return [{key: typed(key, cell) for key, cell in row.items() if cell} for row in read]


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: str(file.parent.relative_to(RESULTS)))
def test_committed_tables_follow_from_their_committed_rows(file: Path, tmp_path: Path) -> None:
    write_results(Folder(str(tmp_path)), committed_rows(file))
    assert (tmp_path / "results.md").read_text() == (file.parent / "results.md").read_text()
    with file.open() as lines:
        assert "best_group_in_thresholds" in next(csv.reader(lines))


def test_links_in_the_results_lead_somewhere() -> None:
    text = (RESULTS / "README.md").read_text()
    titles = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    anchors = {"".join(c for c in title if c.isalnum() or c in " -").replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(([^)]+)\)", text)
    readme = re.findall(r"\]\(jobs/results/README\.md(#[^)]+)\)", (ROOT / "README.md").read_text())
    assert readme and len(links) > 20
    for link in [*links, *readme]:
        assert link[1:] in anchors if link[0] == "#" else (RESULTS / link).is_file(), link

"""How well a run did, measured against truth (DESIGN §3). Nothing but this package and study/ reads truth
or labels.

Images are joined on image_id, part by part: memory grows with the poisoned images, not with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from poisoncam_ray.artifact import Folder
from poisoncam_ray.errors import UserError
from poisoncam_ray.evaluate.detection import detection_metrics
from poisoncam_ray.evaluate.probes import probe
from poisoncam_ray.evaluate.strategies import compare_strategies
from poisoncam_ray.report import build_report

__all__ = ["compare_strategies", "detection_metrics", "evaluate_run", "probe"]


def evaluate_run(
    run_uri: str,
    truth_uri: str,
    strategies: Iterable[str] = (),
    validation_uri: str | None = None,
    patched_uri: str | None = None,
    label_column: str = "label",
    target: str | None = None,
) -> dict[str, Any]:
    """Measure a finished run, write report/metrics.json and put it into the report; returns the metrics.

    Detection always; each of `strategies` on the same scored poisoned images; with a validation set, its
    patched copy and the attack's target, also what the run's encoder has learned.
    """
    run = Folder(run_uri)
    metrics: dict[str, Any] = detection_metrics(run_uri, truth_uri)
    corpus_uri = run.read_json("run.json")["input"]
    if strategies:
        metrics["strategies"] = compare_strategies(run_uri, corpus_uri, truth_uri, strategies)
    given = (validation_uri, patched_uri, target)
    if any(given):
        if validation_uri is None or patched_uri is None or target is None:
            raise UserError("Give --validation, --patched and --target together, or none of them.")
        metrics |= probe(run_uri, corpus_uri, validation_uri, patched_uri, label_column, target)
    (run / "report").write_json("metrics.json", metrics)
    (run / "report").write_bytes("index.html", build_report(run_uri).encode())
    return metrics

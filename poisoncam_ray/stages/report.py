"""Report: one static page that shows what was found, why, and where every row went."""

from __future__ import annotations

from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.report import build_report


class Report(Stage):
    name = "report"
    title = "Report"
    version = 1
    inputs = ("04_search", "05_classifier", "06_verdicts", "07_clean")
    sections = ()

    def run(self, run: Run) -> Outcome:
        run.out.write_bytes("index.html", build_report(run.folder.uri).encode())
        return Outcome(facts={"summary": f"{run.out.uri}/index.html"})

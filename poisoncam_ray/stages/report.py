"""Report: one static page that shows what was found, why, and where every row went."""

from __future__ import annotations

from poisoncam_ray.pipeline import Outcome, Run, Stage
from poisoncam_ray.report import gather, render


class Report(Stage):
    name = "report"
    title = "Report"
    version = 2
    inputs = ("04_search", "05_classifier", "06_verdicts", "07_clean")
    sections = ()

    def run(self, run: Run) -> Outcome:
        found = gather(run.folder.uri)
        run.out.write_bytes("index.html", render(found).encode())
        by_family = {str(family): n for family, n in found.families.items()}
        return Outcome(facts={"summary": f"{run.out.uri}/index.html", "removed_by_family": by_family})

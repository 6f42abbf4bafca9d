"""Report: a static page that shows what was found, why, and where every row went; and the removed images as a
table."""

from __future__ import annotations

from typing import ClassVar

from poisoncam_ray import artifact, facts
from poisoncam_ray.report.gather import gather
from poisoncam_ray.report.page import render
from poisoncam_ray.report.removed import removed_csv, restored_csv
from poisoncam_ray.review import Decisions
from poisoncam_ray.stage import Outcome, Run, Stage


class Report(Stage):
    name = artifact.REPORT
    title = "Report"
    version = 4
    inputs: ClassVar[tuple[str, ...]] = (
        artifact.SEARCH,
        artifact.VERDICT,
        artifact.CLASSIFIER,
        artifact.SCORES,
        artifact.CLEAN,
    )
    sections = ()
    revised_by = (artifact.REVIEW, artifact.CLEAN)
    writes = (artifact.PAGE,)

    def run(self, run: Run) -> Outcome:
        page = run.folder / artifact.PAGE
        decisions = Decisions(run.folder)
        found = gather(run.folder.uri, decisions=decisions)
        page.write_bytes(artifact.HTML, render(found).encode())
        page.write_bytes(artifact.REMOVED_CSV, removed_csv(run.folder))
        if decisions.entries:
            page.write_bytes(artifact.RESTORED_CSV, restored_csv(decisions))
        verdict = (run.folder / artifact.VERDICT).read_json(artifact.VERDICT_FILE)
        # Who reads the verdict alone must see that it is about a sample.
        sample = facts.of_manifest(facts.Indexed, run.manifest(artifact.INDEX)).sample
        page.write_json(artifact.VERDICT_FILE, verdict | ({"sample": sample} if sample else {}))
        by_family = {str(family): n for family, n in found.families.items()}
        return Outcome(facts.Reported(f"{page.uri}/{artifact.HTML}", by_family))


class AppliedReport(Report):
    """The report of a run that looked for the triggers of an earlier one, and searched nothing itself."""

    inputs = (artifact.VERDICT, artifact.CLASSIFIER, artifact.SCORES, artifact.CLEAN)

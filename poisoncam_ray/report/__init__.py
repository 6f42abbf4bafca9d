"""One static, self-contained HTML page about a run."""

from __future__ import annotations

from collections.abc import Mapping

from poisoncam_ray.report.facts import gather
from poisoncam_ray.report.model import Facts, Fetcher
from poisoncam_ray.report.page import render
from poisoncam_ray.report.removed import removed_csv

__all__ = ["Facts", "Fetcher", "build_report", "gather", "removed_csv", "render"]


def build_report(
    run_uri: str,
    title: str = "PoisonCAM report",
    about: Mapping[str, str] | None = None,
    corpus: Fetcher | None = None,
) -> str:
    """The page of a finished run, as HTML text.

    `about`: facts shown under the headline as they are ({"Corpus": "s3://…"}). `corpus`: the input corpus,
    opened; when not given, the one that the run names (run.json). With report/metrics.json in the
    run folder the page gains a section 'measured against truth'. Raises UserError for an unfinished run.
    """
    return render(gather(run_uri, title, about, corpus))

"""The page: one static, self-contained HTML file.

It has no script and fetches nothing. All text of the corpus (names, messages, settings) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from poisoncam_ray import artifact
from poisoncam_ray.facts import without_image
from poisoncam_ray.report.gather import gather
from poisoncam_ray.report.model import Fetcher, PageContent
from poisoncam_ray.report.null_plot import against_null
from poisoncam_ray.report.plot import Plot, curve, histogram, ranked, stacked, steps
from poisoncam_ray.report.words import chance, p_figure, p_words, percent, why_not

NO_BREAK = "\N{NO-BREAK SPACE}"


DECISIONS_SHOWN = 50
"""Entries of the review's log that the page shows, the last ones."""
FILES = {
    "removed_csv": f"{artifact.PAGE}/{artifact.REMOVED_CSV}",
    "verdict_json": f"{artifact.PAGE}/{artifact.VERDICT_FILE}",
    "restored_csv": f"{artifact.PAGE}/{artifact.RESTORED_CSV}",
    "removed": f"{artifact.REMOVED_ROWS}/",
    "keep": f"{artifact.KEEP_LIST}/",
    "dead": f"{artifact.DEAD_ROWS}/",
}
"""Files and folders that the page names, relative to the run folder."""


def build_report(
    run_uri: str,
    title: str = "PoisonCAM report",
    about: Mapping[str, str] | None = None,
    corpus: Fetcher | None = None,
) -> str:
    """The page of a finished run, as HTML text.

    Args:
        run_uri: the run folder. With report/metrics.json the page has a section 'Measured against truth'.
        title: the title of the page.
        about: lines shown below the headline, by label: {"Corpus": "s3://…"}.
        corpus: the input corpus; None to open the one that the run names (run.json).

    Raises:
        UserError: the run is not finished.
    """
    return render(gather(run_uri, title, about, corpus))


def render(page: PageContent) -> str:
    """The page as HTML text. Equal content gives equal text."""
    ledger, verdict = page.ledger, page.verdict
    plots: dict[str, Plot | None] = {
        "ledger": stacked({"kept": ledger.rows_out, "removed": ledger.removed, "dead": ledger.dead}),
        "evidence": against_null(verdict.group_scores, verdict.null_scores, verdict.threshold)
        if verdict.null_scores
        else None,
        "scores": ranked(page.scores),
        "rounds": steps([row["live"] for row in page.rounds]),
        "histogram": histogram(page.kept_bins, page.removed_bins, page.threshold),
        "loss": curve(page.loss),
    }
    tables = _metric_tables(page.metrics or {})
    return in_style(
        "page.html.j2",
        page=page,
        plots=plots,
        files=FILES,
        decisions_shown=DECISIONS_SHOWN,
        tables=tables,
    )


def in_style(template: str, **values: Any) -> str:
    """A whole page in the report's style.

    Args:
        template: its file in this folder. It shows `style` and `style_hash` in its head.
        values: what else it shows.
    """
    style = resources.files("poisoncam_ray.report").joinpath("page.css").read_text()
    # Only this style block may apply: markup in a name could neither run nor restyle the page.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment().get_template(template)
    return page.render(**values, style=Markup(style), style_hash=style_hash).lstrip()


@dataclass(frozen=True)
class _Table:
    caption: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]


def _metric_tables(metrics: Mapping[str, Any]) -> list[_Table]:
    """The nested values of metrics.json as tables. Mappings with the same keys are rows of one table."""
    tables: list[_Table] = []
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for name, group in metrics.items():
        if not isinstance(group, Mapping) or not group:
            continue
        rows = dict(_leaves(group)) if any(isinstance(row, Mapping) for row in group.values()) else {}
        if rows:
            tables.append(
                _Table(name, list(dict.fromkeys(key for row in rows.values() for key in row)), rows)
            )
        else:
            groups.setdefault(tuple(group), {})[name] = group
    tables += [
        _Table("", keys, {_words(name): row for name, row in rows.items()}) for keys, rows in groups.items()
    ]
    return tables


def _leaves(group: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The innermost mappings by name; deeper ones by their path, in words."""
    for name, row in group.items():
        if not isinstance(row, Mapping):
            continue
        inner = [(f"{_words(name)} · {_words(path)}", leaf) for path, leaf in _leaves(row)]
        yield from inner or [(name, row)]


def environment() -> jinja2.Environment:
    """Templates of the report: all values are escaped, and a name that is missing is an error."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("poisoncam_ray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": lambda n: f"{n:,}",
        "without_image": without_image,
        "share": _share,
        "figure": _figure,
        "percent": percent,
        "chance": chance,
        "p_figure": p_figure,
        "p_words": _p_words,
        "duration": _duration,
        "words": _words,
        "why_not": why_not,
    }
    return made


def _share(value: float | None) -> str:
    """A share in per cent: 0.00687 → '0.69 %'."""
    if value is None:
        return "–"
    percent = 100 * value
    digits = 0 if percent in (0, 100) else 1 if 1 <= abs(percent) < 99.9 else 2
    return f"{percent:.{digits}f} %"


def _figure(value: Any) -> str:
    """A metric as text: shares are floats of at most 1, counts are integers."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return _share(value) if 0 <= value <= 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _p_words(p_value: float) -> str:
    return p_words(p_value).replace(" ", NO_BREAK)


def _words(key: str) -> str:
    """A key of metrics.json as a label: `top20_precision` → `Top-20 precision`."""
    text = re.sub(r"^n_", "number_of_", key).replace("top20", "top-20").replace("_", " ")
    for short, long in {"iou": "IoU", "asr": "attack success", "acc": "accuracy,"}.items():
        text = re.sub(rf"\b{short}\b", long, text)
    text = re.sub(r"\blinear (\d+)\b", r"linear on \1 % of the labels", text)
    text = text[:1].upper() + text[1:]
    return re.sub(r"\bknn\b", "k-NN", text, flags=re.IGNORECASE)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

"""The page itself: one static, self-contained HTML file. No script, no fetch, and nothing of the corpus
(names, messages, settings) reaches it unescaped."""

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

from poisoncam_ray.report.model import Facts
from poisoncam_ray.report.null_plot import against_null
from poisoncam_ray.report.plot import Plot, curve, histogram, ranked, stacked, steps
from poisoncam_ray.report.words import chance, p_figure, p_words, percent, why_not

NO_BREAK = "\N{NO-BREAK SPACE}"


def render(facts: Facts) -> str:
    """The page as HTML text. Deterministic: equal facts give equal pages."""
    environment = _environment()
    style = resources.files("poisoncam_ray.report").joinpath("page.css").read_text()
    ledger, evidence = facts.ledger, facts.evidence
    plots: dict[str, Plot | None] = {
        "ledger": stacked({"kept": ledger.rows_out, "removed": ledger.removed, "dead": ledger.dead}),
        "evidence": against_null(evidence.group_scores, evidence.null_scores, evidence.threshold)
        if evidence and evidence.null_scores
        else None,
        "scores": ranked(facts.scores),
        "rounds": steps([row["live"] for row in facts.rounds]),
        "histogram": histogram(facts.kept_bins, facts.removed_bins, facts.threshold),
        "loss": curve(facts.loss),
    }
    # Only this very style block may apply: markup smuggled in through a name could neither run nor restyle.
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment.get_template("page.html.j2")
    page = template.render(
        facts=facts,
        plots=plots,
        style=Markup(style),
        style_hash=style_hash,
        tables=_metric_tables(facts.metrics or {}),
    )
    return page.lstrip()


@dataclass(frozen=True)
class _Table:
    caption: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]


def _metric_tables(metrics: Mapping[str, Any]) -> list[_Table]:
    """The nested parts of metrics.json; groups of numbers with the same keys share a table, a row each."""
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
    """The innermost groups, each by its name; deeper ones by the path to it, in words."""
    for name, row in group.items():
        if not isinstance(row, Mapping):
            continue
        inner = [(f"{_words(name)} · {_words(path)}", leaf) for path, leaf in _leaves(row)]
        yield from inner or [(name, row)]


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("poisoncam_ray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,}",
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
    return environment


def _share(value: float | None) -> str:
    """0.00687 → 0.69 %."""
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

"""study.md: the study's results as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poisoncam_ray.research.study.grid import READS_CELL, REFERENCES, Grid
from poisoncam_ray.research.study.lines import around_base, best_score
from poisoncam_ray.research.study.pairs import Pair, base_way
from poisoncam_ray.research.study.poison_rate import MARKS, Rates
from poisoncam_ray.research.study.summary import Cube, Estimate

FEW_SEEDS = 5


def markdown(cube: Cube, grid: Grid, rates: Rates, plots: Iterable[str], pairs: Sequence[Pair] = ()) -> str:
    """The whole text.

    Args:
        cube: what was measured.
        grid: the grid.
        rates: figures by poison rate; may be empty.
        plots: file names of the plots.
        pairs: ways of hiding against the base, image by image; may be empty.
    """
    lines = [*_head(cube, grid), *_best(cube, grid), *_winners(cube, grid), *_scores(cube, grid)]
    lines += _clusters(cube, grid)
    if pairs:
        lines += _pairs(pairs, grid)
    if rates:
        lines += _rates(rates)
    lines += ["", "## Plots", ""]
    lines += [f"![{name.removesuffix('.svg').replace('_', ' ')}]({name})" for name in plots]
    return "\n".join(lines) + "\n"


def _head(cube: Cube, grid: Grid) -> Iterator[str]:
    n = cube.values["n"].max(axis=0)
    base = grid.base
    yield "# Study: masks, score, B, cell, window, K"
    yield ""
    before = ", before refinement," if grid.refines == (None,) else ""
    yield (
        f"{len(cube.seed_names)} runs, {int(n.sum())} poisoned images in all (at most {grid.images} a run), "
        f"{len(cube.settings):,} settings. Accuracy: the share of images whose candidate window{before} has "
        "IoU ≥ 0.5 with the true trigger. Of several triggers on one image the best counts. In brackets: "
        "95 % bootstrap intervals over seeds and the runs of each seed. The images of one run are not "
        "independent, nor are the runs of one seed, which share photographs and target."
    )
    if cube.n_seeds < FEW_SEEDS:
        yield ""
        yield (
            f"**There are fewer than {FEW_SEEDS} seeds (here {cube.n_seeds}), so the intervals are too "
            "narrow or missing.**"
        )
    yield ""
    yield (
        f"A setting that a table does not name is at the base: K = {base.k_factor:g}·√N, B = {base.masks}, "
        f"cells {base.cell:g} and windows {base.window:g} of the image side"
        f"{_hidden(base_way(grid)) if grid.varies_hiding else ''}."
    )


def _best(cube: Cube, grid: Grid) -> Iterator[str]:
    yield from _section(
        "The best setting at each cost",
        "Of all strategies, scores, cells, windows and K. The setting is chosen on these runs, so its "
        "accuracy is a little too high; in the last column the setting is chosen, for every run, on the runs "
        "of the other seeds.",
    )
    yield from _table_head(
        ["B", "GFLOPs", "strategy", "score", "cell", "window", "K / √N", "accuracy", "in poison clusters",
         "chosen on other seeds"]
    )  # fmt: skip
    for masks in sorted(grid.masks):
        rows = cube.where(masks=masks)
        if rows:
            yield _best_line(cube, str(masks), rows, grid.varies_hiding)
    for reference in REFERENCES:
        rows = cube.where(strategy=reference)
        if rows:
            yield _best_line(cube, "–", rows, grid.varies_hiding)


def _best_line(cube: Cube, masks: str, rows: Sequence[int], named: bool) -> str:
    best = cube.best(rows)
    how = cube.settings[best]
    cells: list[object] = [
        masks,
        f"{cube.estimate([best], 'flops')[0].mean / 1e9:.3g}",
        _name(how["strategy"]) + (_hidden(how) if how["hiding"] and named else ""),
        how["score"] or "–",
        "–" if how["cell"] is None else f"{how['cell']:g}",
        f"{how['window']:g}",
        f"{how['k_factor']:g}",
        cube.estimate([best])[0],
        cube.estimate([best], "accuracy_poison_clusters")[0],
        cube.chosen_elsewhere(rows),
    ]
    return _line(cells)


def _winners(cube: Cube, grid: Grid) -> Iterator[str]:
    yield from _section(
        "Which strategy and score win at which B and cell",
        "Each strategy has its best score. The lead is over the second strategy; an interval that contains 0 "
        "is no lead. Both are chosen on these runs, so a lead is a little too high.",
    )
    yield from _table_head(["B", "cell", "winner", "accuracy", "runner-up", "accuracy", "lead"])
    for masks in sorted(grid.masks):
        for cell in sorted(grid.cells):
            best = {}
            for strategy in grid.strategies:
                if strategy in REFERENCES:
                    continue
                changed = {"masks": masks} | ({"cell": cell} if strategy in READS_CELL else {})
                rows = [
                    row
                    for score in grid.scores
                    for row in cube.where(**around_base(grid, strategy, score, **changed))
                ]
                best[strategy] = cube.best(rows)
            order = sorted(best.values(), key=lambda row: -np.nanmean(cube.values["accuracy"][row]))
            cells: list[object] = [masks, f"{cell:g}"]
            for row in order[:2]:
                how = cube.settings[row]
                cells += [f"{_name(how['strategy'])}, {how['score']}", cube.estimate([row])[0]]
            cells.append(cube.difference(order[:1], order[1:2]) if len(order) > 1 else "–")
            yield _line(cells)


def _scores(cube: Cube, grid: Grid) -> Iterator[str]:
    soft = [score for score in grid.scores if score != "hard"]
    if "hard" not in grid.scores or not soft:
        return
    yield from _section(
        "Hard or soft",
        "The mean gain of a soft score over counted flips, over every B, cell, window and K.",
    )
    yield from _table_head(["strategy", "hard, at the base", *[f"{score} − hard" for score in soft]])
    for strategy in grid.strategies:
        if strategy in REFERENCES:
            continue
        base = cube.where(**around_base(grid, strategy, "hard"))
        cells: list[object] = [_name(strategy), cube.estimate(base)[0]]
        hard = cube.where(strategy=strategy, score="hard")
        for score in soft:
            # The same settings with another score.
            same = [cube.where(**cube.settings[row] | {"score": score})[0] for row in hard]
            cells.append(cube.difference(same, hard))
        yield _line(cells)


def _clusters(cube: Cube, grid: Grid) -> Iterator[str]:
    factors = sorted(grid.k_factors)
    yield from _section("The effect of K", "Each strategy has its best score at the base.")
    yield from _table_head(["strategy", "score", *[f"K = {factor:g}·√N" for factor in factors]])
    for strategy in grid.strategies:
        score = best_score(cube, grid, strategy)
        rows = [row for f in factors for row in cube.where(**around_base(grid, strategy, score, k_factor=f))]
        yield _line([_name(strategy), score or "–", *cube.estimate(rows)])
    shares = []
    for factor in factors:
        rows = cube.where(k_factor=factor)[:1]
        pure = cube.values["n_poison_clusters"][rows] / cube.values["n"][rows]
        shares.append(cube.estimates(pure)[0])
    yield _line(["images in clusters that are mostly poison", "", *shares])


def _pairs(pairs: Sequence[Pair], grid: Grid) -> Iterator[str]:
    base, score = base_way(grid), pairs[0].setting["score"]
    yield from _section(
        "Ways of hiding, image by image",
        f"Each way against {_name(base['strategy'])} masks, B = {base['masks']}{_hidden(base)}, scored by "
        f"{score}, on the same images. Only here, only base: images on which one of the two alone finds the "
        "trigger. The interval takes images as independent; p is McNemar's, exact and two-sided.",
    )
    yield from _table_head(
        ["way", "B", "cell", "GFLOPs", "images", "accuracy", "base", "only here", "only base", "difference",
         "p"]
    )  # fmt: skip
    for pair in pairs:
        how, (low, high) = pair.setting, pair.interval
        yield _line([
            _name(how["strategy"]) + _hidden(how),
            how["masks"],
            "–" if how["cell"] is None else f"{how['cell']:g}",
            f"{pair.flops / 1e9:.3g}",
            pair.n,
            f"{pair.hits / pair.n:.3f}",
            f"{pair.base_hits / pair.n:.3f}",
            pair.only,
            pair.only_base,
            f"{pair.difference:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{pair.p:.2g}",
        ])  # fmt: skip


def _hidden(how: Mapping[str, Any]) -> str:
    """How pixels are hidden, and how a window is refined."""
    said = {"paint": ", painted", "drop": ", dropped"}[how["hiding"]]
    return said + ("" if how["refine"] is None else f", refined by {how['refine']}")


def _rates(rates: Rates) -> Iterator[str]:
    yield from _section("Poison rate", "The runs of the reference attack in the results table.")
    yield from _table_head(["poisoned images", *MARKS.values()])
    for rate, marks in rates.items():
        yield _line([f"{100 * rate:g} %", *[marks.get(name, NOTHING) for name in MARKS]])


NOTHING = Estimate(math.nan, math.nan, math.nan)


def _section(title: str, said: str) -> list[str]:
    return ["", f"## {title}", "", said, ""]


def _table_head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _name(strategy: str) -> str:
    return strategy.replace("_", " ")

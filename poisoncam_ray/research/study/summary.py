"""Means over runs, with bootstrap intervals over seeds and runs.

The images of one run are not independent. Nor are the runs of one seed, which share photographs, target and
poisoned images. So seeds are drawn first, then the runs of each.

S settings   R runs   G seeds   T bootstrap draws
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from poisoncam_ray.research.evaluate.corpora import seed_of
from poisoncam_ray.research.study.plan import SETTING

DRAWS = 2000
LEVEL = 0.95
MEASURES = ("accuracy", "accuracy_poison_clusters", "coverage", "mean_iou")
COSTS = ("forwards", "flops", "seconds")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs and its 95 % interval: nan for no run, and the interval nan below two seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        if math.isnan(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Cube:
    """Every measure as an array of settings × runs.

    Attributes:
        settings: one dictionary per setting, with the keys of plan.SETTING.
        seed_names: for each run the name of its seed (`corpora.seed_of`).
        values: v_SR for each measure, nan where a run has none.
        seed: seed of the bootstrap.
    """

    settings: list[dict[str, Any]]
    seed_names: list[str]
    values: dict[str, Array]
    seed: int

    @cached_property
    def _number(self) -> dict[tuple[Any, ...], int]:
        return {tuple(setting[key] for key in SETTING): i for i, setting in enumerate(self.settings)}

    @cached_property
    def seeds(self) -> Array:
        """seed_R: the number of each run's seed, from 0."""
        place = {name: g for g, name in enumerate(dict.fromkeys(self.seed_names))}
        return np.array([place[name] for name in self.seed_names])

    @property
    def n_seeds(self) -> int:
        """The number of seeds."""
        return int(self.seeds.max()) + 1

    @cached_property
    def _weights(self) -> Array:
        """weight_TR: how often each run is drawn. Seeds are drawn first, then the runs of each."""
        draw = np.random.default_rng(self.seed)
        count_TG = draw.multinomial(self.n_seeds, np.full(self.n_seeds, 1 / self.n_seeds), DRAWS)
        weight_TR = np.zeros((DRAWS, len(self.seed_names)))
        for g in range(self.n_seeds):
            own = np.flatnonzero(self.seeds == g)
            weight_TR[:, own] = draw.multinomial(count_TG[:, g] * len(own), np.full(len(own), 1 / len(own)))
        return weight_TR

    def where(self, **wanted: Any) -> list[int]:
        """The numbers of the settings with these values; None: the setting has no such value."""
        if len(wanted) == len(SETTING):
            found = self._number.get(tuple(wanted[key] for key in SETTING))
            return [] if found is None else [found]
        return [
            i
            for i, setting in enumerate(self.settings)
            if all(setting[key] == value for key, value in wanted.items())
        ]

    def estimates(self, v_SR: Array) -> list[Estimate]:
        """The mean and interval of every row, by a percentile bootstrap over seeds and runs.

        All rows have the same draws, so a row may also hold differences of rows.
        """
        known_SR, filled_SR, mean_S = _means(v_SR)
        found = []
        for mean, filled_R, known_R in zip(mean_S, filled_SR, known_SR, strict=True):
            low = high = math.nan
            if len(set(self.seeds[known_R])) > 1:
                drawn_T = _divided(self._weights @ filled_R, self._weights @ known_R)
                # A draw may consist of runs that lack the measure.
                tail = (1 - LEVEL) / 2
                low, high = np.quantile(drawn_T[~np.isnan(drawn_T)], [tail, 1 - tail])
            found.append(Estimate(float(mean), float(low), float(high)))
        return found

    def estimate(self, rows: Sequence[int], measure: str = "accuracy") -> list[Estimate]:
        """The mean and interval of a measure for these settings."""
        return self.estimates(self.values[measure][list(rows)])

    def difference(self, rows: Sequence[int], others: Sequence[int], measure: str = "accuracy") -> Estimate:
        """The mean difference of a measure between the settings `rows` and `others`, in pairs."""
        v_SR = self.values[measure]
        return self.estimates((v_SR[list(rows)] - v_SR[list(others)]).mean(axis=0, keepdims=True))[0]

    def best(self, rows: Sequence[int], measure: str = "accuracy") -> int:
        """The setting with the largest mean; of equals, the first."""
        _, _, mean_S = _means(self.values[measure][list(rows)])
        return rows[int(np.argmax(np.nan_to_num(mean_S, nan=-1.0)))]

    def chosen_elsewhere(self, rows: Sequence[int], measure: str = "accuracy") -> Estimate:
        """The mean when the best of `rows` is chosen, for every run, on the runs of the other seeds.

        Nan for a single seed.
        """
        v_SR = self.values[measure][list(rows)]
        if self.n_seeds < 2:
            return Estimate(math.nan, math.nan, math.nan)
        known_SR, filled_SR, _ = _means(v_SR)
        other_RR = (self.seeds[:, None] != self.seeds).astype(float)
        others_SR = _divided(filled_SR @ other_RR, known_SR @ other_RR)
        chosen_R = np.nan_to_num(others_SR, nan=-1.0).argmax(axis=0)
        return self.estimates(v_SR[chosen_R, np.arange(len(self.seed_names))][None])[0]


def cube_of(rows: pa.Table, seed: int) -> Cube:
    """The study's rows (plan.SCHEMA) as arrays; settings and runs in the order of their first rows.

    Args:
        rows: the rows.
        seed: seed of the bootstrap.
    """
    keys = list(zip(*(rows[name].to_pylist() for name in SETTING), strict=True))
    place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    names = rows["run"].to_pylist()
    column = {name: i for i, name in enumerate(dict.fromkeys(names))}
    at = (np.array([place[key] for key in keys], int), np.array([column[name] for name in names], int))
    values = {}
    for name in (*MEASURES, *COSTS, "n", "n_poison_clusters", "hits", "poison_rate", "flops_forward"):
        v_SR = np.full((len(place), len(column)), np.nan)
        v_SR[at] = np.array(rows[name].cast(pa.float64()).to_pylist(), float)
        values[name] = v_SR
    settings = [dict(zip(SETTING, key, strict=True)) for key in place]
    return Cube(settings, [seed_of(name) for name in column], values, seed)


def summary_of(cube: Cube) -> pa.Table:
    """One row for each setting: its runs, images, hits, mean costs, and every measure with its interval."""
    columns: dict[str, Any] = {key: [setting[key] for setting in cube.settings] for key in SETTING}
    columns["runs"] = (~np.isnan(cube.values["accuracy"])).sum(axis=1)
    for name in ("n", "hits"):
        columns[name] = np.nansum(cube.values[name], axis=1).astype(np.int64)
    for name in COSTS:
        columns[name] = _means(cube.values[name])[2]
    for name in MEASURES:
        estimates = cube.estimates(cube.values[name])
        columns[name] = [_known(estimate.mean) for estimate in estimates]
        columns[f"{name}_low"] = [_known(estimate.low) for estimate in estimates]
        columns[f"{name}_high"] = [_known(estimate.high) for estimate in estimates]
    types = {
        "score": pa.string(), "masks": pa.int64(), "cell": pa.float64(), "hiding": pa.string(),
        "refine": pa.string(),
    }  # fmt: skip
    return pa.table({key: pa.array(value, types.get(key)) for key, value in columns.items()})


def _means(v_SR: Array) -> tuple[NDArray[np.bool_], Array, Array]:
    """known_SR, v_SR with zeros where it is not known, and mean_S of the known values."""
    known_SR = ~np.isnan(v_SR)
    filled_SR = np.where(known_SR, v_SR, 0.0)
    return known_SR, filled_SR, _divided(filled_SR.sum(axis=1), known_SR.sum(axis=1))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _divided(total: Array, count: NDArray[Any]) -> Array:
    """The quotient; nan where the count is 0."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)

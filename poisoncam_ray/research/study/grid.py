"""What a study varies: a YAML file, in `grids/` or the user's own, checked."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from poisoncam_ray.config import Count, Fraction, Search, Seed
from poisoncam_ray.config import Strategy as MaskStrategy
from poisoncam_ray.errors import UserError
from poisoncam_ray.settings import read_yaml

Strategy = MaskStrategy | Literal["gradcam", "random_window"]
Score = Literal["hard", "margin", "distance"]
Factor = Annotated[float, Field(gt=0, le=100)]
Hiding = Literal["paint", "drop"]

GRIDS = Path(__file__).parent / "grids"
REFERENCES = ("gradcam", "random_window")
"""Ways of finding windows without masks: the peer's, and random windows."""
READS_CELL = ("interval", "random", "full_coverage", "mixed", "mixed_binary")
READS_WINDOW = ("sliding", "keep_only", "mixed", "mixed_binary")
"""The strategies whose masks depend on the cell, and on the window (method/masks.py)."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Refine(_Strict):
    """How a window is refined, by search.refine_hidden, refine_shown and refine_passes."""

    hidden: Annotated[int, Field(ge=0, le=25)] = Search().refine_hidden
    shown: bool = Search().refine_shown
    passes: Annotated[int, Field(ge=1, le=5)] = Search().refine_passes

    @property
    def label(self) -> str:
        """In a row of the study: "25 shown + 13 hidden", "13 hidden × 2"."""
        parts = (["25 shown"] if self.shown else []) + ([f"{self.hidden} hidden"] if self.hidden else [])
        return " + ".join(parts) + (f" × {self.passes}" if self.passes > 1 else "")

    @model_validator(mode="after")
    def _some(self) -> Refine:
        if not (self.hidden or self.shown):
            raise ValueError("refine needs shown or hidden shifts")
        return self


class Base(_Strict):
    """The setting around which plots and tables vary one value. The default is the defence's."""

    k_factor: Factor = 3
    masks: Count = Search().masks
    cell: Fraction = Search().cell
    window: Fraction = Search().window
    hiding: Hiding = "paint"
    refine: Refine | None = None


class Grid(_Strict):
    """The values to combine. Every combination is measured.

    Attributes:
        strategies: mask strategies, "gradcam" or "random_window".
        scores: how a mask is scored.
        masks: numbers of masks B.
        cells: sides of a cell, as shares of the image side.
        windows: sides of a window, as shares of the image side.
        k_factors: K / √N.
        hidings: how masks hide pixels: "paint", or "drop", for ViTs only.
        refines: how windows are refined; null: not at all.
        images: poisoned images of a run, at most.
        seed: seed of the images, masks and intervals.
        base: the values of the settings that a table or plot does not vary.
    """

    strategies: tuple[Strategy, ...]
    scores: tuple[Score, ...]
    masks: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...]
    cells: tuple[Fraction, ...]
    windows: tuple[Fraction, ...]
    k_factors: tuple[Factor, ...]
    hidings: tuple[Hiding, ...] = ("paint",)
    refines: tuple[Refine | None, ...] = (None,)
    images: Count = 100
    seed: Seed = 0
    base: Base = Base()

    @property
    def varies_hiding(self) -> bool:
        """Whether ways of hiding or of refining are compared."""
        return len(self.hidings) > 1 or len(self.refines) > 1

    @model_validator(mode="after")
    def _whole(self) -> Grid:
        axes = {
            name: getattr(self, name)
            for name in (
                "strategies",
                "scores",
                "masks",
                "cells",
                "windows",
                "k_factors",
                "hidings",
                "refines",
            )
        }
        for name, values in axes.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold at least one value and none twice")
        for name, axis in (
            ("masks", "masks"), ("cell", "cells"), ("window", "windows"), ("k_factor", "k_factors"),
            ("hiding", "hidings"), ("refine", "refines"),
        ):  # fmt: skip
            if getattr(self.base, name) not in axes[axis]:
                raise ValueError(f"base.{name}={getattr(self.base, name)} is none of {axis}")
        if "drop" in self.hidings and max(self.windows) == 1:
            raise ValueError("hidings=drop leaves no token where a window is as large as the image")
        if "drop" in self.hidings and "full_coverage" in self.strategies and max(self.cells) > 0.5:
            raise ValueError("hidings=drop leaves no token where a cell of full_coverage covers the image")
        return self


def load_grid(name: str, images: int | None = None, seed: int | None = None) -> Grid:
    """Read a grid.

    Args:
        name: a grid in grids/, or a YAML file.
        images: replaces the grid's own value.
        seed: replaces the grid's own value.

    Raises:
        UserError: there is no such grid, the file cannot be read, or a key or value is wrong.
    """
    known = {file.stem: file for file in sorted(GRIDS.glob("*.yaml"))}
    file = known.get(name, Path(name))
    if name not in known and not file.is_file():
        raise UserError(f"There is no grid {name!r}: give one of {', '.join(known)}, or a YAML file.")
    tree = read_yaml(file, "grid")
    if not isinstance(tree, dict):
        raise UserError(f"The grid {file} must hold keys such as 'strategies:'.")
    tree |= {key: value for key, value in (("images", images), ("seed", seed)) if value is not None}
    try:
        return Grid.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"The grid {file}: {_sentences(error)}.") from None


def _sentences(error: ValidationError) -> str:
    """One clause for each mistake. A value that fits none of several types is named once."""
    clauses = dict.fromkeys(_clause(item) for item in error.errors())
    return "; ".join(clauses)


def _clause(item: Any) -> str:
    key = ".".join(str(step) for step in item["loc"] if not str(step).startswith("literal["))
    if item["type"] == "extra_forbidden":
        return f"there is no key {key!r}; there are {', '.join(chain(Grid.model_fields))}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key}={item['input']!r}: {item['msg'].lower()}"

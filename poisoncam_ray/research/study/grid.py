"""What a study varies: a validated YAML file, of `grids/` or the user's own."""

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

GRIDS = Path(__file__).parent / "grids"
REFERENCES = ("gradcam", "random_window")
"""Ways without masks: the peer's, and luck."""
READS_CELL = ("interval", "random", "full_coverage", "mixed")
READS_WINDOW = ("sliding", "keep_only", "mixed")
"""What shapes a strategy's masks (method/masks.py)."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Base(_Strict):
    """The setting around which plots and tables vary one thing. Of the grid; the defence's defaults."""

    k_factor: Factor = 3
    masks: Count = Search().masks
    cell: Fraction = Search().cell
    window: Fraction = Search().window


class Grid(_Strict):
    """Every combination is measured. `cells` and `windows`: shares of the image side; `masks`: B;
    `k_factors`: K over √N; `images`: poisoned images of a run, at most, drawn by `seed`."""

    strategies: tuple[Strategy, ...]
    scores: tuple[Score, ...]
    masks: tuple[Annotated[int, Field(ge=4, multiple_of=4)], ...]
    cells: tuple[Fraction, ...]
    windows: tuple[Fraction, ...]
    k_factors: tuple[Factor, ...]
    images: Count = 100
    seed: Seed = 0
    base: Base = Base()

    @model_validator(mode="after")
    def _whole(self) -> Grid:
        axes = {
            name: getattr(self, name)
            for name in ("strategies", "scores", "masks", "cells", "windows", "k_factors")
        }
        for name, values in axes.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold at least one value and none twice")
        for name, axis in (
            ("masks", "masks"), ("cell", "cells"), ("window", "windows"), ("k_factor", "k_factors"),
        ):  # fmt: skip
            if getattr(self.base, name) not in axes[axis]:
                raise ValueError(f"base.{name}={getattr(self.base, name)} is none of {axis}")
        return self


def load_grid(name: str, images: int | None = None, seed: int | None = None) -> Grid:
    """The grid called `name` in grids/, or of the YAML file `name`; what else is given wins over it.

    Raises UserError, one sentence, for an unknown grid, a file that cannot be read, a wrong key or value.
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
    """One clause a mistake; a value that fits none of several types is told once."""
    clauses = dict.fromkeys(_clause(item) for item in error.errors())
    return "; ".join(clauses)


def _clause(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if not str(part).startswith("literal["))
    if item["type"] == "extra_forbidden":
        return f"there is no key {key!r}; there are {', '.join(chain(Grid.model_fields))}"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == "missing":
        return f"the key {key!r} is missing"
    return f"{key}={item['input']!r}: {item['msg'].lower()}"

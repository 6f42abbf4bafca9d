"""What an attack is made of: how the trigger goes on an image, which images carry it, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks.choice import Chosen, by_share
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, Region, Trigger, named_triggers

TRAIN_REGION: Region = (0.25, 0.75)
VALIDATION_REGION: Region = (0.1, 0.9)
"""Where the trigger lies, parts of each side, as in the reference attack."""
WIDTH = 50 / 224
SHARE = 0.5


@dataclass(frozen=True)
class Option:
    """A setting of one kind: a number from `low` to `high`; `whole`: an integer."""

    default: float
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class How:
    """How a trigger is put on an image. `width`: fraction of the image's shorter side that one patch of the
    reference attack takes; `region`: the part of each side that holds it; `options`: all of the kind's."""

    width: float
    region: Region
    options: Mapping[str, float] = field(default_factory=dict)


Stamp = Callable[[Image.Image, Image.Image, How, np.random.Generator], list[Box]]
"""Paints the trigger on an RGB or RGBA image, in place; the boxes that hold every changed pixel."""


@dataclass(frozen=True)
class Kind:
    """One attack. `triggers` makes its triggers of the names given, `choose` the images that carry them.

    `targets`: how many it may have, at least and at most. `takes_triggers`: whether it has trigger images.
    `width`, `share` and the regions: where none is given. `check`: raises UserError for options that do not
    go together.
    """

    stamp: Stamp
    options: Mapping[str, Option] = field(default_factory=dict)
    choose: Callable[[Plan], Chosen] = by_share
    triggers: Callable[[Plan, Sequence[str]], tuple[Trigger, ...]] = named_triggers
    targets: tuple[int, int] = (1, 1000)
    takes_triggers: bool = True
    width: float = WIDTH
    share: float = SHARE
    train_region: Region = TRAIN_REGION
    validation_region: Region = VALIDATION_REGION
    check: Callable[[Mapping[str, float]], None] | None = None

    @property
    def makes_its_trigger(self) -> bool:
        """Whether it has no trigger images, or takes them from the corpus where none is given."""
        return not self.takes_triggers or self.triggers is not named_triggers

    @property
    def has_own_width(self) -> bool:
        """Whether it is about a size that is not the reference attack's."""
        return self.width != WIDTH

    def settings(self, name: str, given: Mapping[str, float]) -> dict[str, float]:
        """Every option's value. UserError, with the kind's `name`, for one unknown or out of range, or for
        some that do not go together."""
        known = ", ".join(self.options)
        for key in given:
            if key not in self.options:
                advice = f"use {known}" if known else "leave it out, it has none"
                raise UserError(f"The attack {name} has no option {key}: {advice}.")
        values = {key: given.get(key, option.default) for key, option in self.options.items()}
        for key, option in self.options.items():
            value = values[key]
            if not option.low <= value <= option.high or (option.whole and value != round(value)):
                number = "a whole number" if option.whole else "a number"
                raise UserError(
                    f"The option {key} of the attack {name} is {value:g}: "
                    f"use {number} from {option.low:g} to {option.high:g}."
                )
        if self.check:
            self.check(values)
        return values

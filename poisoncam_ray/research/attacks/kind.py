"""The parts of one kind of attack: its triggers, the images that carry them, how they are painted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks.choice import Chosen, Decoys, by_share
from poisoncam_ray.research.attacks.plan import Plan
from poisoncam_ray.research.attacks.trigger import Box, Region, Trigger, named_triggers

TRAIN_REGION: Region = (0.25, 0.75)
VALIDATION_REGION: Region = (0.1, 0.9)
"""Where the trigger may lie, as shares of each side, in the reference attack."""
WIDTH = 50 / 224
SHARE = 0.5


@dataclass(frozen=True)
class Option:
    """A setting of one kind: a number from `low` to `high`; with `whole`, an integer."""

    default: float
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True)
class How:
    """How a trigger is put on an image.

    Attributes:
        width: width of a patch of the reference attack, as a share of the image's shorter side, (0, 1].
        region: the share of each side within which the trigger lies, (from, to).
        options: the values of all options of the kind.
    """

    width: float
    region: Region
    options: Mapping[str, float] = field(default_factory=dict)


Stamp = Callable[[Image.Image, Image.Image, How, np.random.Generator], list[Box]]
"""Paints the trigger on an RGB or RGBA image, in place. Returns boxes that hold every changed pixel. Where
the kind is stored as PNG, it may give the image transparency."""

Compose = Callable[
    [Image.Image, Image.Image, Image.Image, How, np.random.Generator], tuple[Image.Image, list[Box]]
]
"""Makes a composite of an RGB or RGBA image of the target, an RGB picture of another label, and the trigger.
Returns it, in the mode of the first, and the boxes of the trigger in it."""


def in_order(name: str, low: str, high: str) -> Callable[[Mapping[str, float]], None]:
    """The check of the kind `name` that its option `low` is at most its option `high`."""

    def check(options: Mapping[str, float]) -> None:
        if options[low] > options[high]:
            raise UserError(
                f"The option {low} of the attack {name} is {options[low]:g}: "
                f"use no more than the option {high}, {options[high]:g}."
            )

    return check


@dataclass(frozen=True)
class Kind:
    """One kind of attack.

    Attributes:
        stamp: paints a trigger on an image.
        options: its options, by name.
        choose: chooses the images that carry the triggers.
        triggers: makes the triggers from the names that the user gave.
        targets: the least and the largest number of targets.
        takes_triggers: whether it has trigger images.
        width: the trigger's width where the user gives none, as in `How`.
        share: the share of poisoned images where the user gives none.
        train_region: where the trigger lies in a training set, where the user says nothing.
        validation_region: the same for a validation set.
        check: raises UserError for options that do not go together.
        compose: makes the poisoned images of a training set; `choose` then gives `others`. None: `stamp`
            does. A validation set is always stamped.
        decoys: makes decoys of the attack's own triggers. None: those that `choose` gives, if any.
        stored_as: the format in which a changed image is stored, such as PNG; None: its own.
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
    compose: Compose | None = None
    decoys: Callable[[Plan, tuple[Trigger, ...]], Decoys] | None = None
    stored_as: str | None = None

    @property
    def makes_its_trigger(self) -> bool:
        """Whether it needs no trigger image from the user."""
        return not self.takes_triggers or self.triggers is not named_triggers

    @property
    def has_own_width(self) -> bool:
        """Whether its trigger has another size than the reference attack's."""
        return self.width != WIDTH

    def settings(self, name: str, given: Mapping[str, float]) -> dict[str, float]:
        """The values of all options, the given ones and the defaults.

        Args:
            name: the kind's name, for error messages.
            given: the values that the user gave.

        Raises:
            UserError: an option is unknown or out of range, or some do not go together.
        """
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

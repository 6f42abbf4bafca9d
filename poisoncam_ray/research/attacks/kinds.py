"""Every attack by its name."""

from __future__ import annotations

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks import (
    alpha,
    blended,
    corrupt_encoder,
    decoys,
    doubt,
    dynamic,
    framed,
    frequency,
    large,
    margin,
    natural,
    noisy_alignment,
    patch,
    scaled,
    several,
    spread,
    untargeted,
    varying,
)
from poisoncam_ray.research.attacks.kind import Kind

KINDS: dict[str, Kind] = {
    "patch": patch.KIND,
    "blended": blended.KIND,
    "several": several.KIND,
    "large": large.KIND,
    "dynamic": dynamic.KIND,
    "natural": natural.KIND,
    "frequency": frequency.KIND,
    "untargeted": untargeted.KIND,
    "spread": spread.KIND,
    "decoys": decoys.KIND,
    "margin": margin.KIND,
    "noisy_alignment": noisy_alignment.KIND,
    "corrupt_encoder": corrupt_encoder.KIND,
    "varying": varying.KIND,
    "framed": framed.KIND,
    "doubt": doubt.KIND,
    "scaled": scaled.KIND,
    "alpha": alpha.KIND,
}


def kind_named(name: str) -> Kind:
    """The kind of attack with this name.

    Raises:
        UserError: there is none.
    """
    if name not in KINDS:
        raise UserError(f"There is no attack {name}: use one of {', '.join(KINDS)}.")
    return KINDS[name]

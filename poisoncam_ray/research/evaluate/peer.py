"""The peer, PatchSearch, on an encoder that the defence has trained: the same stages with its search."""

from __future__ import annotations

from pydantic import ValidationError

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.evaluate.retrain import with_encoder

PEER = {
    "strategy": "gradcam", "refine": False, "scales": (1.0,), "reading": "gain",
}  # fmt: skip
"""PatchSearch (Tejankar et al., arXiv 2304.01482): Grad-CAM's window as it is, net gain of the own cluster,
and always something to remove."""


def peer_config(config: Config, checkpoint: str) -> Config:
    """The peer's search on an encoder that is there. UserError when the search cannot be done so."""
    search = config.search.model_dump() | PEER
    tree = with_encoder(config, checkpoint).model_dump() | {
        "search": search,
        "verdict": {"false_alarm_rate": 1.0},
    }
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        raise UserError(f"The peer's search does not fit these settings: {why}.") from None

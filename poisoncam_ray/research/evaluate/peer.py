"""The peer, PatchSearch, on an encoder that the defence has trained: the same stages with another search."""

from __future__ import annotations

from pydantic import ValidationError

from poisoncam_ray.config import Config, Race
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.evaluate.retrain import with_encoder

PEER = {
    "strategy": "gradcam", "refine": False, "scales": (1.0,), "reading": "gain", "race": Race(keep=0),
}  # fmt: skip
"""Settings of the search that make it PatchSearch (Tejankar et al., arXiv 2304.01482): the window of Grad-CAM
without refinement, scored by the gain of the image's own cluster over all flip-test images. With
verdict.false_alarm_rate = 1 it always removes something."""


def peer_config(config: Config, checkpoint: str) -> Config:
    """The configuration of the peer's search on a trained encoder.

    Args:
        config: the configuration of the defence.
        checkpoint: the encoder's file.

    Raises:
        UserError: the peer's search does not fit the settings.
    """
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

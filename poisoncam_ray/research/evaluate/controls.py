"""Controls: the same defence on the same poisoned corpus, with an encoder that cannot hold the backdoor.

What is found with such an encoder, too, is not the backdoor.
"""

from __future__ import annotations

import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.research.evaluate.retrain import encoder_file
from poisoncam_ray.stages.embed import write_encoder
from poisoncam_ray.stages.own_encoder import own_encoder

UNTRAINED, NEVER_POISONED = "untrained", "never-poisoned"
CONTROLS = (UNTRAINED, NEVER_POISONED)


def control_encoder(control: str, config: Config, never_poisoned: Folder, folder: Folder) -> str:
    """The checkpoint of a control's encoder.

    Args:
        control: UNTRAINED, the weights that Pretrain would begin with; NEVER_POISONED, those that it has
            trained on the corpus before the attack.
        config: the configuration of the defence.
        never_poisoned: a run folder on that corpus.
        folder: where untrained weights are written, once.

    Returns:
        Its file, as `encoder.checkpoint` takes it.
    """
    if control == NEVER_POISONED:
        return encoder_file(never_poisoned)
    if not folder.exists(artifact.ENCODER_CONFIG):
        made, init = config.encoder, config.pretrain.init
        # As a training rank does.
        torch.manual_seed(config.seed)
        random = build_encoder(made.backbone, made.image_size, made.patch_size)
        write_encoder(config, own_encoder(init, config) if init else random, folder)
    return f"{folder.uri}/{artifact.WEIGHTS}"

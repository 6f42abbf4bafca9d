"""What a pretraining can minimise, by the names that configuration knows.

All are made alike, `(encoder, hidden_dim, out_dim, temperature)`, and used alike: `update_target(momentum)`,
then `forward(v1, v2, gather, rank)`, two views made by the class's own `recipe`; `encoder` is kept.
"""

from poisoncam_ray.method.byol import BYOL
from poisoncam_ray.method.moco import MoCoV3
from poisoncam_ray.method.simclr import SimCLR

Objective = MoCoV3 | SimCLR | BYOL

OBJECTIVES: dict[str, type[MoCoV3] | type[SimCLR] | type[BYOL]] = {
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "byol": BYOL,
}

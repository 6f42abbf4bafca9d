"""How the learning rate moves over a pretraining."""

import math


def learning_rate_at(step: int, total: int, warmup: int, base: float) -> float:
    """Linear from 0 to `base` over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return base * step / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

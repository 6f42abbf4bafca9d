"""Windows as PNG: the form in which candidates and trigger pictures are stored.

C channels   H, W height, width
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOST_SIDE = 1024
"""In pixels. The encoder's image is no larger (config.Encoder), so no window is."""


def to_png(t_CHW: Tensor) -> bytes:
    """PNG of a float window in [0, 1]."""
    pixels = (t_CHW.cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def from_png(data: bytes) -> Tensor:
    """t_CHW float in [0, 1] of a stored window.

    Raises:
        ValueError: a side is longer than MOST_SIDE. Nothing is unpacked then.
    """
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    if max(image.size) > MOST_SIDE:
        raise ValueError(f"a window of {image.width} × {image.height} pixels is larger than any image")
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

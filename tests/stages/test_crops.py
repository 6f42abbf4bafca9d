"""Windows as PNG."""

from __future__ import annotations

import pytest
import torch

from poisoncam_ray.stages.crops import from_png, to_png


def test_crops_keep_their_pixels():
    t_CHW = torch.randint(0, 256, (3, 5, 5)) / 255
    assert torch.equal(from_png(to_png(t_CHW)), t_CHW)


def test_a_window_larger_than_any_image_is_not_unpacked():
    with pytest.raises(ValueError, match="a window of 1025 × 1 pixels"):
        from_png(to_png(torch.zeros(3, 1, 1025)))

"""The heat map lies where the score looks."""

from __future__ import annotations

import torch

from poisoncam_ray.method.occlusion import occlusion_map


def test_the_heat_lies_on_what_the_score_reads_and_nowhere_else():
    x_CHW = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.2
    x_CHW[:, 20:26, 4:10] = 1
    a_HW, most = occlusion_map(lambda x_BCHW: x_BCHW[:, :, 20:26, 4:10].mean(dim=(1, 2, 3)), x_CHW)
    y, x = divmod(int(a_HW.argmax()), 32)
    assert 20 <= y < 26 and 4 <= x < 10
    assert a_HW[:12].abs().max() < 1e-6 and a_HW[:, 18:].abs().max() < 1e-6
    assert most > 0.5 and a_HW.max() <= most


def test_where_hiding_raises_the_score_the_heat_is_negative():
    x_CHW = torch.zeros(3, 16, 16)
    x_CHW[:, :8] = 1
    a_HW, _ = occlusion_map(lambda x_BCHW: -x_BCHW[:, :, :8].mean(dim=(1, 2, 3)), x_CHW)
    assert a_HW[:4].max() < 0


def test_a_score_that_sees_nothing_gives_no_heat():
    a_HW, most = occlusion_map(lambda x_BCHW: torch.zeros(len(x_BCHW)), torch.rand(3, 20, 20))
    assert a_HW.shape == (20, 20) and float(a_HW.abs().max()) == most == 0

"""A trigger is needed: without its window the image leaves its cluster."""

import torch

from poisoncam_ray.method.cam import mean_colour
from poisoncam_ray.method.score import needed

SIDE = 8
# Clusters by brightness of the image's upper left corner.
C_KD = torch.tensor([[0.0], [0.3], [1.0]])


class Corner:
    def embed(self, x_BCHW):
        return x_BCHW[:, :1, :4, :4].mean(dim=(2, 3))


def need(x_NCHW, box_N4, own, batch=5):
    own_N = torch.tensor(own)
    return needed(Corner(), x_NCHW, box_N4, own_N, C_KD, mean_colour(x_NCHW), batch).tolist()


def test_only_the_window_that_holds_the_image_is_needed():
    bright = torch.zeros(3, SIDE, SIDE)
    bright[:, :4, :4] = 1
    x_NCHW = bright.expand(2, -1, -1, -1)
    box_N4 = torch.tensor([[0, 0, 4, 4], [4, 4, 8, 8]])
    assert need(x_NCHW, box_N4, [2, 2]) == [True, False]


def test_the_cluster_beside_the_own_one_is_another_place():
    dark = torch.zeros(1, 3, SIDE, SIDE)
    dark[:, :, 4:] = 0.6
    # Hidden, the corner takes the mean, 0.3: the second cluster.
    assert need(dark, torch.tensor([[0, 0, 4, 4]]), [0]) == [True]
    assert need(dark, torch.tensor([[0, 0, 4, 4]]), [1]) == [False]


def test_batches_do_not_matter():
    x_NCHW = torch.rand(7, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    box_N4 = torch.tensor([[i % 4, 0, i % 4 + 4, 4] for i in range(7)])
    own = [i % 3 for i in range(7)]
    assert need(x_NCHW, box_N4, own, 1) == need(x_NCHW, box_N4, own, 100)

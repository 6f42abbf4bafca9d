import pytest
import torch

from poisoncam_ray.method.cam import gradcam, gradcam_windows


class Grid:
    """An encoder that pools a 4 × 4 grid of two channels: how red and how green each part of the image is."""

    def feature_map(self, x_BCHW):
        map_BEhw = torch.nn.functional.avg_pool2d(x_BCHW[:, :2], x_BCHW.shape[-1] // 4)
        map_BEhw = map_BEhw.clone().requires_grad_()
        return map_BEhw.mean(dim=(2, 3)), map_BEhw


def image(cell_x, cell_y):
    x_CHW = torch.zeros(3, 16, 16)
    x_CHW[1] = 0.3
    x_CHW[:2, cell_y * 4 : cell_y * 4 + 4, cell_x * 4 : cell_x * 4 + 4] = torch.tensor([1.0, 0.0])[
        :, None, None
    ]
    return x_CHW


def test_the_map_equals_a_numeric_gradient_in_loops():
    encoder, x_BCHW, c_BD = Grid(), image(1, 2)[None], torch.tensor([[0.9, 0.1]])
    _, map_BEhw = encoder.feature_map(x_BCHW)
    value = map_BEhw.detach()[0].double()

    def similarity(map_Ehw):
        return float(torch.nn.functional.cosine_similarity(map_Ehw.mean(dim=(1, 2)), c_BD[0].double(), dim=0))

    weights = []
    for e in range(2):
        steps = []
        for y in range(4):
            for x in range(4):
                up, down = value.clone(), value.clone()
                up[e, y, x] += 1e-5
                down[e, y, x] -= 1e-5
                steps.append((similarity(up) - similarity(down)) / 2e-5)
        weights.append(sum(steps) / 16)
    coarse = (weights[0] * value[0] + weights[1] * value[1]).clamp(min=0)
    slow = torch.nn.functional.interpolate(
        coarse[None, None].float(), (16, 16), mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(gradcam(encoder, x_BCHW, c_BD), slow, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 256])
def test_windows_lie_on_what_draws_the_image_to_its_centroid(batch):
    x_NCHW = torch.stack([image(1, 2), image(2, 1), image(2, 2)])
    own_N, c_KD = torch.tensor([1, 1, 1]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with torch.inference_mode(False), torch.no_grad():
        box_N4 = gradcam_windows(Grid(), x_NCHW, own_N, c_KD, 4, batch)
    assert box_N4.tolist() == [[4, 8, 8, 12], [8, 4, 12, 8], [8, 8, 12, 12]]

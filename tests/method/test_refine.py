import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.cam import mean_colour
from poisoncam_ray.method.refine import forwards, refine_windows

SIDE, WINDOW = 32, 10
STEP = 2
"""Pixels of one shift of such a window."""


class Square:
    """An encoder that sees how bright one square is, and nothing else."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y, self.forwards = x, y, 0

    def embed(self, x_BCHW):
        self.forwards += len(x_BCHW)
        seen_B = x_BCHW[:, :, self.y : self.y + WINDOW, self.x : self.x + WINDOW].mean(dim=(1, 2, 3))
        return torch.stack([seen_B.cos(), seen_B.sin()], dim=1)


def picture(x: int, y: int) -> torch.Tensor:
    x_CHW = torch.zeros(3, SIDE, SIDE)
    x_CHW[:, y : y + WINDOW, x : x + WINDOW] = 1
    return x_CHW


def boxes(*corners: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[x, y, x + WINDOW, y + WINDOW] for x, y in corners])


def refine(encoder: Square, box_N4: torch.Tensor, kind="distance", batch=64) -> torch.Tensor:
    x_NCHW = picture(encoder.x, encoder.y).expand(len(box_N4), -1, -1, -1)
    c_KD = torch.cat([encoder.embed(x_NCHW[:1]), torch.tensor([[1.0, 0.0]])])
    own_N = torch.zeros(len(box_N4), dtype=torch.int64)
    return refine_windows(encoder, x_NCHW, box_N4, own_N, c_KD, kind, mean_colour(x_NCHW), batch)


places = st.integers(0, SIDE - WINDOW)
shifts = st.integers(-2 * STEP - 1, 2 * STEP + 1)


@settings(max_examples=30, deadline=None)
@given(places, places, shifts, shifts, st.sampled_from(["distance", "margin"]))
def test_the_refined_window_is_no_farther_from_the_square(x, y, dx, dy, kind):
    corner = [min(max(at + by, 0), SIDE - WINDOW) for at, by in ((x, dx), (y, dy))]
    fine_N4 = refine(Square(x, y), boxes(tuple(corner)), kind)
    off = (fine_N4[0, :2] - torch.tensor([x, y])).abs()
    before = (torch.tensor(corner) - torch.tensor([x, y])).abs()
    # Shifts are of two pixels: one is as exact as it gets.
    assert bool((off <= before.clamp(min=1)).all()), (off, before)


def test_a_window_two_steps_off_is_brought_home():
    fine_N4 = refine(Square(12, 9), boxes((8, 9), (12, 13), (15, 6), (12, 9)))
    assert int((fine_N4 - boxes((12, 9))).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["hard", "margin", "distance"])
def test_boxes_stay_inside_and_keep_their_size(kind):
    corners = [(0, 0), (SIDE - WINDOW, 0), (0, SIDE - WINDOW), (SIDE - WINDOW, SIDE - WINDOW), (11, 3)]
    box_N4 = boxes(*corners)
    for x, y in corners:
        fine_N4 = refine(Square(x, y), box_N4, kind)
        assert fine_N4.dtype == torch.int64
        assert int(fine_N4.min()) >= 0 and int(fine_N4.max()) <= SIDE
        assert (fine_N4[:, 2:] - fine_N4[:, :2]).tolist() == [[WINDOW, WINDOW]] * len(corners)
        # Two steps at most, either way.
        assert int((fine_N4 - box_N4).abs().max()) <= 2 * STEP


def test_neither_the_batch_nor_the_neighbours_matter():
    box_N4 = boxes((9, 9), (14, 5), (3, 12))
    whole_N4 = refine(Square(12, 9), box_N4, batch=1000)
    assert not torch.equal(whole_N4, box_N4)
    for batch in (1, 7, 25):
        assert torch.equal(refine(Square(12, 9), box_N4, batch=batch), whole_N4)
    for i in range(3):
        assert torch.equal(refine(Square(12, 9), box_N4[i : i + 1]), whole_N4[i : i + 1])


def test_an_encoder_that_sees_nothing_moves_nothing():
    class Blind(Square):
        def embed(self, x_BCHW):
            return torch.tensor([[0.6, 0.8]]).expand(len(x_BCHW), -1)

    box_N4 = boxes((12, 9), (7, 14))
    assert torch.equal(refine(Blind(12, 9), box_N4), box_N4)


def test_the_cost_is_as_stated():
    encoder = Square(12, 9)
    refine(encoder, boxes((9, 9), (14, 5)))
    # One more for the centroid.
    assert encoder.forwards == 2 * forwards() + 1

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.cam import forwards, mean_colour, refine_windows

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


def test_no_window_leaves_the_image_where_that_would_score_best():
    class Light(Square):
        """How bright the whole image is; the darkest cluster is the image's own."""

        def embed(self, x_BCHW):
            seen_B = x_BCHW.mean(dim=(1, 2, 3))
            return torch.stack([seen_B.cos(), seen_B.sin()], dim=1)

    x_NCHW = torch.zeros(1, 3, SIDE, SIDE)
    x_NCHW[:, :, :24, :24] = 1
    own_N, c_KD = torch.tensor([0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    fine_N4 = refine_windows(
        Light(0, 0), x_NCHW, boxes((0, 0)), own_N, c_KD, "distance", torch.zeros(1, 3), 64
    )
    assert int(fine_N4.min()) >= 0


@pytest.mark.parametrize("alone", [True, False])
def test_showing_and_hiding_both_move_the_window(alone):
    class Marked(Square):
        """Sees the square only in images that show their marked corner, or only in those that do not."""

        def embed(self, x_BCHW):
            blind_B = (x_BCHW[:, 0, -1, -1] > 0.9) == alone
            return torch.where(blind_B[:, None], torch.tensor([0.6, 0.8]), super().embed(x_BCHW))

    encoder, x_CHW = Marked(12, 9), picture(12, 9)
    x_CHW[:, -1, -1] = 1
    c_KD = torch.cat([Square(12, 9).embed(x_CHW[None]), torch.tensor([[1.0, 0.0]])])
    x_1CHW, own_1 = x_CHW[None], torch.tensor([0])
    for x, y in ((9, 9), (12, 12), (15, 7)):
        coarse_14 = boxes((x, y))
        fine_14 = refine_windows(encoder, x_1CHW, coarse_14, own_1, c_KD, "distance", mean_colour(x_1CHW), 64)
        home_14 = boxes((12, 9))
        assert int((fine_14 - home_14).abs().sum()) < int((coarse_14 - home_14).abs().sum())


def test_neither_the_batch_nor_the_neighbours_matter():
    box_N4 = boxes((9, 9), (14, 5), (3, 12))
    x_NCHW = torch.stack([picture(12, 9), picture(16, 7), picture(8, 11)])

    c_KD = torch.cat([Square(12, 9).embed(x_NCHW[:1]), torch.tensor([[1.0, 0.0]])])

    def found(batch=64, one=slice(0, 3)):
        x_MCHW, box_M4 = x_NCHW[one], box_N4[one]
        own_M = torch.zeros(len(box_M4), dtype=torch.int64)
        fill_MC = mean_colour(x_MCHW)
        return refine_windows(Square(12, 9), x_MCHW, box_M4, own_M, c_KD, "distance", fill_MC, batch)

    whole_N4 = found()
    assert not torch.equal(whole_N4, box_N4)
    for batch in (1, 7, 25, 1000):
        assert torch.equal(found(batch), whole_N4)
    for i in range(3):
        assert torch.equal(found(one=slice(i, i + 1)), whole_N4[i : i + 1])


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

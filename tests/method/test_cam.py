"""Masks' scores, heat maps, windows, their refinement and Grad-CAM, on encoders that are known exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.cam import (
    EVENLY,
    N_SHIFTS,
    best_window,
    candidate_windows,
    gradcam,
    gradcam_windows,
    heat_map,
    mask_scores,
    mean_colour,
    refine_windows,
    refinement_forwards,
)
from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.masks import keep_only, make_masks
from tests.examples import examples


class RedPatch:
    """A backdoored encoder: its feature is an angle that grows with the amount of strong red."""

    def embed(self, x_BCHW):
        red_B = (x_BCHW[:, 0] - x_BCHW[:, 1] - 0.5).relu().mean(dim=(1, 2)) * 60
        return torch.stack([red_B.cos(), red_B.sin()], dim=1)


def red_patch_images(corners, side, patch):
    x_NCHW = torch.rand(len(corners), 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    for x_CHW, (x, y) in zip(x_NCHW, corners, strict=True):
        x_CHW[:, y : y + patch, x : x + patch] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return x_NCHW


@examples(30)
@given(n=st.integers(1, 4), b=st.integers(1, 5), k=st.integers(2, 6), seed=st.integers(0, 999))
def test_mask_scores_equal_a_double_loop(n, b, k, seed):
    generator = torch.Generator().manual_seed(seed)
    f_NBD = torch.randn(n, b, 7, generator=generator)
    c_KD = torch.randn(k, 7, generator=generator)
    own_N = torch.randint(k, (n,), generator=generator)
    fast = {kind: mask_scores(f_NBD, own_N, c_KD, kind) for kind in ("hard", "margin", "distance")}
    for i in range(n):
        for j in range(b):
            distance = [float((f_NBD[i, j] - c).norm()) for c in c_KD]
            own = distance.pop(int(own_N[i]))
            assert float(fast["distance"][i, j]) == pytest.approx(own, abs=1e-4)
            assert float(fast["margin"][i, j]) == pytest.approx(own - min(distance), abs=2e-4)
            assert bool(fast["hard"][i, j]) == (own > min(distance))


def test_an_unknown_score_and_a_margin_with_one_cluster_are_refused():
    f_NBD, own_N = torch.randn(1, 2, 3), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="'soft' is none of hard"):
        mask_scores(f_NBD, own_N, torch.randn(2, 3), "soft")
    with pytest.raises(ValueError, match="at least two clusters"):
        mask_scores(f_NBD, own_N, torch.randn(1, 3), "margin")


@examples(25)
@given(
    n=st.integers(1, 3),
    b=st.integers(1, 6),
    seed=st.integers(0, 999),
    keep=st.booleans(),
    binary=st.booleans(),
)
def test_heat_map_equals_a_double_loop(n, b, seed, keep, binary):
    generator = torch.Generator().manual_seed(seed)
    s_NB = torch.randn(n, b, generator=generator)
    m_BHW = torch.rand(b, 4, 5, generator=generator)
    m_BHW = m_BHW.round() if binary else m_BHW
    fast = heat_map(s_NB, m_BHW, keep)
    for i in range(n):
        for y in range(4):
            for x in range(5):
                weight = [float(m[y, x]) if keep else 1 - float(m[y, x]) for m in m_BHW]
                weighed = sum(w * float(s) for w, s in zip(weight, s_NB[i], strict=True))
                slow = weighed / sum(weight) if sum(weight) > 1e-3 else float(s_NB[i].mean())
                if not 0 < sum(weight) <= 1e-3:
                    assert float(fast[i, y, x]) == pytest.approx(-slow if keep else slow, abs=1e-4)


@examples(40)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999), data=st.data())
def test_best_window_equals_brute_force(height, width, seed, data):
    window = data.draw(st.integers(1, min(height, width)))
    # Small whole numbers give many ties, and sums without rounding.
    a_NHW = torch.randint(0, 3, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()
    box_N4, sum_N = best_window(a_NHW * window**2, window)
    for a_HW, box_4, total in zip(a_NHW, box_N4.tolist(), sum_N.tolist(), strict=True):
        best, where = -1.0, None
        for y in range(height - window + 1):
            for x in range(width - window + 1):
                inside = float(a_HW[y : y + window, x : x + window].sum())
                if inside > best:
                    best, where = inside, [x, y, x + window, y + window]
        assert total == pytest.approx(best * window**2, rel=1e-5)
        x0, y0, x1, y1 = box_4
        assert (x1 - x0, y1 - y0) == (window, window)
        assert float(a_HW[y0:y1, x0:x1].sum()) == best
        if window in (1, 2, 4, 8):
            assert box_4 == where


def test_among_equal_windows_the_first_wins_and_a_window_must_fit():
    assert best_window(torch.ones(1, 6, 6), 2)[0].tolist() == [[0, 0, 2, 2]]
    with pytest.raises(ValueError, match="7 pixels does not fit into 6 × 6"):
        best_window(torch.ones(1, 6, 6), 7)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("interval", "margin"),
        ("random", "margin"),
        ("full_coverage", "hard"),
        ("full_coverage", "margin"),
        ("sliding", "margin"),
        ("sliding", "distance"),
        ("keep_only", "distance"),
        ("mixed", "distance"),
    ],
)
def test_every_strategy_finds_the_patch_that_determines_the_cluster(strategy, kind):
    side, patch = 24, 6
    corners = [(3, 4), (12, 12), (16, 2), (9, 15)]
    x_NCHW, encoder = red_patch_images(corners, side, patch), RedPatch()
    clean_1D, poisoned_1D = encoder.embed(torch.zeros(1, 3, side, side)), encoder.embed(x_NCHW[:1])
    c_KD = torch.cat([clean_1D, poisoned_1D])
    own_N, _ = assign(encoder.embed(x_NCHW), c_KD)
    assert own_N.tolist() == [1, 1, 1, 1]
    m_BHW = make_masks(strategy, 400, side, 3, patch, torch.Generator().manual_seed(0))
    found = [
        candidate_windows(
            encoder,
            x_NCHW,
            own_N,
            c_KD,
            m_BHW,
            kind,
            keep_only(strategy, len(m_BHW)),
            patch,
            mean_colour(x_NCHW),
            batch,
        )
        for batch in (37, 4096)
    ]
    truth = [[x, y, x + patch, y + patch] for x, y in corners]
    assert (found[0][0] - torch.tensor(truth)).abs().max() <= 1
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)


def test_hidden_pixels_take_the_fill_colour_and_visible_pixels_stay():
    seen = []

    class Recorder:
        def embed(self, x_BCHW):
            seen.append(x_BCHW.clone())
            return torch.nn.functional.normalize(x_BCHW.mean(dim=(2, 3)), dim=1)

    x_NCHW = torch.rand(2, 3, 8, 8)
    m_BHW = make_masks("sliding", 4, 8, 1, 3, torch.Generator())
    fill_NC, c_KD = torch.rand(2, 3), torch.randn(2, 3)
    candidate_windows(
        Recorder(), x_NCHW, torch.zeros(2, dtype=torch.long), c_KD, m_BHW, "margin", False, 3, fill_NC, 3
    )
    masked = torch.cat(seen)
    assert [len(part) for part in seen] == [3, 3, 2]
    for i in range(2):
        for b in range(4):
            for y in range(8):
                for x in range(8):
                    want = x_NCHW[i, :, y, x] if m_BHW[b, y, x] == 1 else fill_NC[i]
                    assert torch.equal(masked[i * 4 + b, :, y, x], want)


def test_mean_colour_is_the_mean_of_each_image():
    x_NCHW = torch.rand(3, 3, 5, 5)
    for i in range(3):
        torch.testing.assert_close(mean_colour(x_NCHW)[i], x_NCHW[i].reshape(3, -1).mean(1))


SIDE, WINDOW = 32, 10
# Pixels of one step of such a window.
STEP = 2


class Square:
    """An encoder whose feature depends on the brightness of one square only."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y, self.forwards = x, y, 0

    def embed(self, x_BCHW):
        self.forwards += len(x_BCHW)
        seen_B = x_BCHW[:, :, self.y : self.y + WINDOW, self.x : self.x + WINDOW].mean(dim=(1, 2, 3))
        return torch.stack([seen_B.cos(), seen_B.sin()], dim=1)


def picture(x: int, y: int) -> torch.Tensor:
    """Black, with a white square."""
    x_CHW = torch.zeros(3, SIDE, SIDE)
    x_CHW[:, y : y + WINDOW, x : x + WINDOW] = 1
    return x_CHW


def boxes(*corners: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([[x, y, x + WINDOW, y + WINDOW] for x, y in corners])


def refine(
    encoder: Square, box_N4: torch.Tensor, kind="distance", batch=64, n_hidden=N_SHIFTS, **how
) -> torch.Tensor:
    x_NCHW = picture(encoder.x, encoder.y).expand(len(box_N4), -1, -1, -1)
    c_KD = torch.cat([encoder.embed(x_NCHW[:1]), torch.tensor([[1.0, 0.0]])])
    own_N = torch.zeros(len(box_N4), dtype=torch.int64)
    return refine_windows(
        encoder, x_NCHW, box_N4, own_N, c_KD, kind, mean_colour(x_NCHW), batch, n_hidden=n_hidden, **how
    )


places = st.integers(0, SIDE - WINDOW)
shifts = st.integers(-2 * STEP - 1, 2 * STEP + 1)


@examples(30)
@given(places, places, shifts, shifts, st.sampled_from(["distance", "margin"]))
def test_a_refined_window_is_not_farther_from_the_square(x, y, dx, dy, kind):
    corner = [min(max(at + by, 0), SIDE - WINDOW) for at, by in ((x, dx), (y, dy))]
    fine_N4 = refine(Square(x, y), boxes(tuple(corner)), kind)
    off = (fine_N4[0, :2] - torch.tensor([x, y])).abs()
    before = (torch.tensor(corner) - torch.tensor([x, y])).abs()
    # A step is two pixels, so an error of one pixel is allowed.
    assert bool((off <= before.clamp(min=1)).all()), (off, before)


def test_a_window_two_steps_off_is_moved_onto_the_square():
    fine_N4 = refine(Square(12, 9), boxes((8, 9), (12, 13), (15, 6), (12, 9)))
    assert int((fine_N4 - boxes((12, 9))).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["hard", "margin", "distance"])
def test_refined_windows_stay_inside_and_keep_their_size(kind):
    corners = [(0, 0), (SIDE - WINDOW, 0), (0, SIDE - WINDOW), (SIDE - WINDOW, SIDE - WINDOW), (11, 3)]
    box_N4 = boxes(*corners)
    for x, y in corners:
        fine_N4 = refine(Square(x, y), box_N4, kind)
        assert fine_N4.dtype == torch.int64
        assert int(fine_N4.min()) >= 0 and int(fine_N4.max()) <= SIDE
        assert (fine_N4[:, 2:] - fine_N4[:, :2]).tolist() == [[WINDOW, WINDOW]] * len(corners)
        # Two steps at most, in either direction.
        assert int((fine_N4 - box_N4).abs().max()) <= 2 * STEP


def test_a_refined_window_stays_inside_even_if_a_place_outside_would_score_best():
    class Light(Square):
        """The feature is the brightness of the whole image; the image's own cluster is the darkest."""

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
def test_both_showing_and_hiding_a_window_refine_it(alone):
    class Marked(Square):
        """The feature depends on the square only if the marked corner is shown, or only if it is hidden."""

        def embed(self, x_BCHW):
            constant_B = (x_BCHW[:, 0, -1, -1] > 0.9) == alone
            return torch.where(constant_B[:, None], torch.tensor([0.6, 0.8]), super().embed(x_BCHW))

    encoder, x_CHW = Marked(12, 9), picture(12, 9)
    x_CHW[:, -1, -1] = 1
    c_KD = torch.cat([Square(12, 9).embed(x_CHW[None]), torch.tensor([[1.0, 0.0]])])
    x_1CHW, own_1 = x_CHW[None], torch.tensor([0])
    for x, y in ((9, 9), (12, 12), (15, 7)):
        coarse_14 = boxes((x, y))
        fine_14 = refine_windows(encoder, x_1CHW, coarse_14, own_1, c_KD, "distance", mean_colour(x_1CHW), 64)
        true_14 = boxes((12, 9))
        assert int((fine_14 - true_14).abs().sum()) < int((coarse_14 - true_14).abs().sum())


def test_refined_windows_depend_neither_on_the_batch_nor_on_other_images():
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


def test_a_constant_encoder_moves_no_window():
    class Constant(Square):
        def embed(self, x_BCHW):
            return torch.tensor([[0.6, 0.8]]).expand(len(x_BCHW), -1)

    box_N4 = boxes((12, 9), (7, 14))
    assert torch.equal(refine(Constant(12, 9), box_N4), box_N4)


@pytest.mark.parametrize("n_hidden", [0, 1, 5, N_SHIFTS])
def test_refinement_costs_the_stated_number_of_forwards(n_hidden):
    encoder = Square(12, 9)
    refine(encoder, boxes((9, 9), (14, 5)), n_hidden=n_hidden)
    # One more for the centroid.
    assert encoder.forwards == 2 * refinement_forwards(n_hidden) + 1
    if n_hidden:
        encoder.forwards = 0
        refine(encoder, boxes((9, 9), (14, 5)), n_hidden=n_hidden, shown=False, passes=3)
        assert encoder.forwards == 2 * refinement_forwards(n_hidden, False, 3) + 1 == 6 * n_hidden + 1


@pytest.mark.parametrize("n_hidden", [13, N_SHIFTS])
def test_hidden_shifts_alone_refine_a_window(n_hidden):
    for corner in ((8, 9), (12, 13), (14, 7), (12, 9)):
        fine_14 = refine(Square(12, 9), boxes(corner), n_hidden=n_hidden, shown=False, passes=2)
        assert int((fine_14 - boxes((12, 9))).abs().max()) <= 1


def test_hidden_shifts_are_spread_evenly():
    """13 of 25 are the fields of one colour on a chessboard, and fewer lie around the middle."""
    at = [(i // 5 - 2, i % 5 - 2) for i in EVENLY]
    assert sorted(EVENLY) == list(range(N_SHIFTS)) and at[0] == (0, 0)
    assert set(at[:13]) == {(y, x) for y in range(-2, 3) for x in range(-2, 3) if (x + y) % 2 == 0}
    for n in (1, 5, 9, 13, N_SHIFTS):
        assert torch.tensor(at[:n]).sum(dim=0).tolist() == [0, 0], "no side is preferred"


def test_a_window_far_off_comes_nearer_in_every_pass():
    """A pass moves a window by two steps at most, so one that misses the square by three needs several."""
    encoder, start = Square(12, 9), boxes((12 - 3 * STEP, 9))
    off = [
        int((refine(encoder, start, shown=shown, passes=passes) - boxes((12, 9))).abs().max())
        for shown in (True, False)
        for passes in (1, 3)
    ]
    assert off[1] < off[0] and off[3] < off[2], off
    assert max(off[1], off[3]) <= 1


def test_a_refinement_by_nothing_is_no_refinement():
    with pytest.raises(ValueError, match="no shift is shown or hidden"):
        refine(Square(12, 9), boxes((9, 9)), n_hidden=0, shown=False)


@pytest.mark.parametrize("n_hidden", [0, 1, 2, 5, 12])
def test_few_hidden_shifts_also_refine_a_window(n_hidden):
    for corner in ((8, 9), (12, 13), (15, 6), (12, 9)):
        fine_14 = refine(Square(12, 9), boxes(corner), n_hidden=n_hidden)
        assert int((fine_14 - boxes((12, 9))).abs().max()) <= 1


def test_only_the_best_shifts_are_hidden():
    hidden: list[torch.Tensor] = []

    class Recorder(Square):
        def embed(self, x_BCHW):
            f_BD = super().embed(x_BCHW)
            if x_BCHW[0, 0, -1, -1] == 0:
                # The image's corner is black and the fill is not: here the windows are hidden, not shown.
                hidden.append((x_BCHW[:, 0] == 0.5).nonzero())
            return f_BD

    encoder, x_1CHW = Recorder(12, 9), picture(12, 9)[None]
    c_KD = torch.cat([Square(12, 9).embed(x_1CHW), torch.tensor([[1.0, 0.0]])])
    refine_windows(
        encoder, x_1CHW, boxes((9, 9)), torch.tensor([0]), c_KD, "distance", torch.full((1, 3), 0.5), 64,
        n_hidden=3,
    )  # fmt: skip
    corners = [hidden[0][hidden[0][:, 0] == i, 1:].amin(0).tolist() for i in range(3)]
    # Shifts of two pixels, from 5 to 13 along each axis: 11 and 13 are nearest to 12, and 9 to 9.
    assert sorted(corners)[0][0] >= 7 and {(9, 11), (9, 13)} <= {(y, x) for y, x in corners}


class Grid:
    """An encoder that pools a 4 × 4 grid of two channels: the red and the green of each cell."""

    def feature_map(self, x_BCHW):
        map_BEhw = torch.nn.functional.avg_pool2d(x_BCHW[:, :2], x_BCHW.shape[-1] // 4)
        map_BEhw = map_BEhw.clone().requires_grad_()
        return map_BEhw.mean(dim=(2, 3)), map_BEhw


def image(cell_x, cell_y):
    """Dark green, with one red cell."""
    x_CHW = torch.zeros(3, 16, 16)
    x_CHW[1] = 0.3
    x_CHW[:2, cell_y * 4 : cell_y * 4 + 4, cell_x * 4 : cell_x * 4 + 4] = torch.tensor([1.0, 0.0])[
        :, None, None
    ]
    return x_CHW


def test_gradcam_equals_a_numeric_gradient():
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
def test_gradcam_windows_lie_on_the_cell_that_is_similar_to_the_centroid(batch):
    x_NCHW = torch.stack([image(1, 2), image(2, 1), image(2, 2)])
    own_N, c_KD = torch.tensor([1, 1, 1]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with torch.inference_mode(False), torch.no_grad():
        box_N4 = gradcam_windows(Grid(), x_NCHW, own_N, c_KD, 4, batch)
    assert box_N4.tolist() == [[4, 8, 8, 12], [8, 4, 12, 8], [8, 8, 12, 12]]

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.cam import best_window, candidate_windows, heat_map, mask_scores, mean_colour
from poisoncam_ray.method.clusters import assign
from poisoncam_ray.method.masks import keep_only, make_masks


class RedPatch:
    """A backdoored encoder in three lines: the feature is the amount of strong red, on a circle."""

    def embed(self, x_BCHW):
        red_B = (x_BCHW[:, 0] - x_BCHW[:, 1] - 0.5).relu().mean(dim=(1, 2)) * 60
        return torch.stack([red_B.cos(), red_B.sin()], dim=1)


def red_patch_images(corners, side, patch):
    x_NCHW = torch.rand(len(corners), 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    for x_CHW, (x, y) in zip(x_NCHW, corners, strict=True):
        x_CHW[:, y : y + patch, x : x + patch] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return x_NCHW


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), b=st.integers(1, 5), k=st.integers(2, 6), seed=st.integers(0, 999))
def test_scores_equal_a_double_loop(n, b, k, seed):
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


def test_unknown_score_and_a_margin_without_another_cluster_are_refused():
    f_NBD, own_N = torch.randn(1, 2, 3), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="'soft' is none of hard"):
        mask_scores(f_NBD, own_N, torch.randn(2, 3), "soft")
    with pytest.raises(ValueError, match="at least two clusters"):
        mask_scores(f_NBD, own_N, torch.randn(1, 3), "margin")


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 999), data=st.data())
def test_best_window_equals_brute_force(height, width, seed, data):
    window = data.draw(st.integers(1, min(height, width)))
    # Small whole numbers: plenty of ties, and sums without rounding.
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


def test_the_first_of_equal_windows_wins_and_a_window_must_fit():
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
def test_every_strategy_finds_the_patch_that_decides_the_cluster(strategy, kind):
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


def test_hidden_pixels_take_the_fill_and_visible_ones_stay():
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


def test_mean_colour_is_the_image_own():
    x_NCHW = torch.rand(3, 3, 5, 5)
    for i in range(3):
        torch.testing.assert_close(mean_colour(x_NCHW)[i], x_NCHW[i].reshape(3, -1).mean(1))

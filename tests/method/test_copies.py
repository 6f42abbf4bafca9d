import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoncam_ray.method.copies import COMPARED, LEAST_PLACES, SAME, copied, sameness

from poisoncam_ray.method.similarity import LOOK_SIDE, look

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def triggers(n: int, seed: int) -> torch.Tensor:
    """n windows of one trigger, each a little elsewhere in its window, brighter or darker, over noise."""
    generator = drawn(seed)
    trigger_1Chw = torch.rand(1, 3, 4, 4, generator=generator).round()
    grown_Chw = F.interpolate(trigger_1Chw, (30, 30), mode="bilinear")[0]
    windows = []
    for _ in range(n):
        canvas_Chw = torch.rand(3, 40, 40, generator=generator)
        dy, dx = torch.randint(3, 8, (2,), generator=generator).tolist()
        canvas_Chw[:, dy : dy + 30, dx : dx + 30] = grown_Chw
        windows.append(look(canvas_Chw[:, 5:35, 5:35] * float(torch.rand(1, generator=generator) / 2 + 0.5)))
    return torch.stack(windows)


def skies(n: int, seed: int) -> torch.Tensor:
    """n windows that grow brighter upwards, each with a faint texture of its own."""
    slope_s1 = torch.linspace(1, 0, LOOK_SIDE)[:, None]
    return slope_s1 + torch.rand(n, 3, LOOK_SIDE, LOOK_SIDE, generator=drawn(seed)) / 10


@few
@given(seeds)
def test_windows_of_one_trigger_are_the_same_and_skies_only_look_alike(seed):
    assert sameness(triggers(12, seed)) > SAME > 0.4 > sameness(skies(12, seed))


@few
@given(seeds, st.integers(2, 7))
def test_sameness_does_not_hang_on_the_order_or_on_contrast(seed, n):
    look_NCss = torch.cat([triggers(n, seed), skies(n, seed)])
    other_NCss = look_NCss[torch.randperm(2 * n, generator=drawn(seed))] * 0.5 + 0.2
    assert sameness(other_NCss) == pytest.approx(sameness(look_NCss), abs=1e-4)


def test_one_window_is_no_copy_of_anything():
    assert sameness(triggers(2, 0)[:1]) == sameness(triggers(2, 0)[:0]) == -1


def test_copies_are_looks_of_one_picture_in_several_places():
    """A group of clusters, a trigger, the same trigger in too few clusters, skies."""
    group, trigger, series, sky = range(4)
    look_NCss = torch.cat([triggers(10, 1), triggers(10, 2), triggers(10, 3), skies(10, 4)])
    bundle_N = torch.arange(4).repeat_interleave(10)
    home_UK = torch.zeros(4, 20, dtype=torch.bool)
    home_UK[[group, trigger, sky], :LEAST_PLACES] = True
    home_UK[series, : LEAST_PLACES - 1] = True
    copied_U = copied(look_NCss, bundle_N, home_UK, n_groups=1)
    assert copied_U.nonzero()[:, 0].tolist() == [trigger]


def test_the_best_windows_of_a_bundle_decide():
    look_NCss = torch.cat([triggers(COMPARED, 1), skies(3 * COMPARED, 2)])
    bundle_N, home_UK = torch.zeros(len(look_NCss), dtype=torch.int64), torch.ones(1, 9, dtype=torch.bool)
    assert copied(look_NCss, bundle_N, home_UK, n_groups=0).tolist() == [True]
    assert copied(look_NCss.flip(0), bundle_N, home_UK, n_groups=0).tolist() == [False]

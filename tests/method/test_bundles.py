import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoncam_ray.method.bundles import LEAST_ALIKE, LIKE, bundles, founders

from poisoncam_ray.method import bundles as module
from poisoncam_ray.method.similarity import LOOK_SIDE, likeness

SIZE = (LOOK_SIDE, LOOK_SIDE)
few = settings(max_examples=15, deadline=None)


def noise(n: int, seed: int) -> torch.Tensor:
    """Windows that look like nobody."""
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def copies(n: int, seed: int, unlike: float = 0.05) -> torch.Tensor:
    """One smooth colourful picture, n times, not quite the same."""
    one_1C55 = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)).round()
    return F.interpolate(one_1C55, SIZE, mode="bilinear") + unlike * noise(n, seed + 1)


@few
@given(st.integers(0, 1000), st.integers(LEAST_ALIKE, 30))
def test_windows_that_look_alike_are_one_bundle_whatever_their_groups(seed, n):
    look_NCss = torch.cat([noise(20, seed), copies(n, seed)])
    group_N = torch.arange(20 + n) % 4
    bundle_N = bundles(look_NCss, group_N)
    assert bundle_N[:20].tolist() == group_N[:20].tolist()
    (alike,) = bundle_N[20:].unique().tolist()
    assert alike > 3


def test_two_looks_are_two_bundles():
    look_NCss = torch.cat([copies(LEAST_ALIKE, 3), copies(LEAST_ALIKE + 5, 8)])
    assert float(likeness(look_NCss[:1], look_NCss[-1:])) < LIKE
    first_N, second_N = bundles(look_NCss, torch.zeros(len(look_NCss), dtype=torch.int64)).split(
        [LEAST_ALIKE, LEAST_ALIKE + 5]
    )
    assert len(first_N.unique()) == len(second_N.unique()) == 1 and first_N[0] != second_N[0]
    # The larger one is founded first.
    assert second_N[0] == 1 and first_N[0] == 2


def test_a_look_of_too_few_windows_stays_with_its_group():
    look_NCss = torch.cat([copies(LEAST_ALIKE - 1, 3), noise(30, 0)])
    group_N = torch.arange(len(look_NCss)) % 3
    assert torch.equal(bundles(look_NCss, group_N), group_N)
    assert len(founders(look_NCss)) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_windows(n):
    group_N = torch.zeros(n, dtype=torch.int64)
    assert torch.equal(bundles(noise(n, 0), group_N), group_N)


def test_windows_after_the_best_join_the_founders_they_look_like(monkeypatch):
    look_NCss = torch.cat([copies(20, 3), copies(10, 8), noise(60, 0), copies(40, 8), copies(40, 3)])
    group_N = torch.arange(len(look_NCss)) % 5
    whole_N = bundles(look_NCss, group_N)
    monkeypatch.setattr(module, "FOUNDERS_AMONG", 50)
    assert len(set(whole_N.tolist()) - set(range(5))) == 2
    assert sorted_parts(bundles(look_NCss, group_N)) == sorted_parts(whole_N)


def sorted_parts(bundle_N: torch.Tensor) -> list[list[int]]:
    """The bundles, whatever their numbers."""
    return sorted((bundle_N == u).nonzero()[:, 0].tolist() for u in bundle_N.unique().tolist())


def test_the_groups_are_left_as_they_were():
    group_N = torch.zeros(LEAST_ALIKE, dtype=torch.int64)
    bundles(copies(LEAST_ALIKE, 1), group_N)
    assert group_N.tolist() == [0] * LEAST_ALIKE

from itertools import combinations
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from poisoncam_ray.method.pull import arrivals, gathered, homes, pulls, remaining


@st.composite
def pastes(draw):
    """landed_NF, y_F, bundle_N, own_N and the number of clusters."""
    n, f, k = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))

    def numbers(size: int, below: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, below - 1), min_size=size, max_size=size)))

    return numbers(n * f, k).view(n, f), numbers(f, k), numbers(n, 3), numbers(n, k), k


@given(pastes())
def test_pulls_equal_a_slow_loop(pasted):
    landed_NF, y_F, bundle_N, own_N, k = pasted
    pull_N = pulls(landed_NF.int(), y_F, homes(bundle_N, own_N, k)[bundle_N])
    for i, bundle in enumerate(bundle_N.tolist()):
        home = {own for own, other in zip(own_N.tolist(), bundle_N.tolist(), strict=True) if other == bundle}
        slow = sum(landed in home for landed in landed_NF[i].tolist()) - sum(y in home for y in y_F.tolist())
        assert pull_N[i] == slow


@given(pastes(), st.integers(0, 31))
def test_arrivals_equal_a_slow_loop(pasted, needed):
    landed_NF, y_F, bundle_N, _, k = pasted
    needed_N = torch.tensor([bool(needed >> i & 1) for i in range(len(bundle_N))])
    arrived_UK = arrivals(landed_NF.int(), y_F, needed_N, bundle_N, 3, k)
    slow_UK = torch.zeros(3, k)
    for i in needed_N.nonzero()[:, 0].tolist():
        for after, before in zip(landed_NF[i].tolist(), y_F.tolist(), strict=True):
            slow_UK[bundle_N[i], after] += 1
            slow_UK[bundle_N[i], before] -= 1
    assert torch.equal(arrived_UK, slow_UK)


def test_a_bundle_s_home_is_not_its_neighbour_s():
    home_UK = homes(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), 4)
    assert home_UK.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.integers(1, 7), st.integers(1, 6))
def test_windows_lie_together_as_far_as_drawn_ones_lie_in_more_clusters(own, n, home):
    """Against every way to draw n of the windows."""
    n = min(n, len(own))
    by_chance = fmean(len(set(drawn)) for drawn in combinations(own, n))
    home_UK = (torch.arange(6) < home).expand(2, -1)
    tried_K = torch.bincount(torch.tensor(own), minlength=6)
    together_U = gathered(home_UK, torch.tensor([n, n]), tried_K, n_groups=1)
    assert together_U.tolist() == pytest.approx([1, min(1, max(0, by_chance / home - 1))])


def test_thousands_of_windows_of_one_cluster_lie_together_and_those_of_all_do_not():
    home_UK = torch.tensor([[True] + [False] * 99, [True] * 100])
    tried_K = torch.full((100,), 1_000)
    together_U = gathered(home_UK, torch.tensor([1_000, 1_000]), tried_K, n_groups=0)
    assert together_U.tolist() == [1, 0]


def test_a_group_keeps_what_no_stronger_look_pulls():
    """Two groups and two looks over five clusters. The first look pulls more than either group, the second
    less than the first group."""
    arrived_UK = torch.tensor(
        [[4.0, 4, 4, 0, 6], [1, 0, 0, 1, 0], [27, 3, 12, 0, 0], [0, 0, 0, 3, 5]], dtype=torch.float32
    )
    home_UK = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 0, 1, 1]]).bool()
    left_UK = remaining(home_UK, arrived_UK, torch.tensor([2, 1, 3, 1]), n_groups=2)
    assert left_UK.int().tolist() == [
        # The look pulls more into 0, less into 1, is not at home in 2; the other look is the weaker one.
        [0, 1, 1, 0, 1],
        [0, 0, 0, 0, 0],
        *home_UK[2:].int().tolist(),
    ]

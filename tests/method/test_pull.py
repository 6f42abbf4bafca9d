import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.method.pull import WIDE, homes, pulls


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
        assert float(pull_N[i]) == pytest.approx(slow / max(1, len(home) / k / WIDE) ** 0.5)


def test_a_bundle_s_home_is_not_its_neighbour_s():
    home_UK = homes(torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), 4)
    assert home_UK.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def test_a_home_everywhere_is_discounted_as_chance_grows():
    """The same number of images moved into a twentieth, a tenth and four tenths of the clusters."""
    home_NK = torch.arange(40) < torch.tensor([[2], [4], [16]])
    landed_NF, y_F = torch.zeros(3, 6, dtype=torch.int64), torch.full((6,), 39)
    assert pulls(landed_NF, y_F, home_NK).tolist() == pytest.approx([6, 6, 3])

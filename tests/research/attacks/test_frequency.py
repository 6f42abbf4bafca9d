"""The attack without a patch: what it adds to the chroma's spectrum, and that it adds nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from poisoncam_ray.research.attacks import KINDS
from poisoncam_ray.research.attacks.kind import How

FREQUENCY = KINDS["frequency"]


def changed(size: tuple[int, int], seed: int, mode: str = "RGB", **options: float) -> np.ndarray:
    """change_HWC, as far as pixels can show it."""
    rng = np.random.default_rng(seed)
    array = rng.integers(90, 160, (size[1], size[0], len(mode)), dtype=np.uint8)
    image = Image.fromarray(array)
    how = How(0.2, (0, 1), FREQUENCY.settings("frequency", options))
    assert FREQUENCY.stamp(image, image, how, rng) == []
    return np.asarray(image).astype(float) - array


def dct(block_PP: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II by its definition."""
    n = len(block_PP)
    x, k = np.arange(n), np.arange(n)[:, None]
    basis = np.sqrt(2 / n) * np.cos(np.pi * (2 * x + 1) * k / (2 * n))
    basis[0] /= np.sqrt(2)
    return basis @ block_PP @ basis.T


@settings(max_examples=15, deadline=None)
@given(magnitude=st.floats(30, 200), low=st.integers(1, 20), seed=st.integers(0, 999))
def test_two_coefficients_of_the_chroma_grow_by_the_magnitude(magnitude, low, seed) -> None:
    change_HWC = changed((64, 32), seed, magnitude=magnitude, low=low)
    r, g, b = change_HWC.transpose(2, 0, 1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    assert np.abs(luma).max() < 1  # rounding to whole levels
    for chroma in ((b - luma) / 1.772, (r - luma) / 1.402):
        for block in (chroma[:, :32], chroma[:, 32:]):
            spectrum = dct(block)
            assert spectrum[low, low] == pytest.approx(magnitude, abs=4)
            assert spectrum[31, 31] == pytest.approx(magnitude, abs=4)
            spectrum[low, low] = spectrum[31, 31] = 0
            assert np.abs(spectrum).max() < 4


@pytest.mark.parametrize("size", [(50, 41), (20, 33), (1, 9), (3, 3)])
def test_any_size(size) -> None:
    change = changed(size, 0, magnitude=200)
    assert change.shape[:2] == size[::-1] and np.abs(change).max() > 3


def test_every_image_gets_the_same_waves_and_keeps_its_transparency() -> None:
    a, b = changed((64, 64), 1), changed((64, 64), 2, "RGBA")
    assert (a == b[..., :3]).all() and not b[..., 3].any()

"""The attack without a patch: what it adds to the chroma's spectrum, and that it adds nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
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


def from_spectrum(spectrum_PP: np.ndarray) -> np.ndarray:
    """block_PP: the inverse of the orthonormal DCT-II, by its definition."""
    n = len(spectrum_PP)
    x, k = np.arange(n), np.arange(n)[:, None]
    basis_PP = np.sqrt(2 / n) * np.cos(np.pi * (2 * x + 1) * k / (2 * n))
    basis_PP[0] /= np.sqrt(2)
    return basis_PP.T @ spectrum_PP @ basis_PP


# JFIF's RGB to YCbCr.
LUMA = np.array([0.299, 0.587, 0.114])
TO_YCC = np.stack([LUMA, ([0, 0, 1] - LUMA) / 1.772, ([1, 0, 0] - LUMA) / 1.402])


# The bound is one of rounding. Two cosines of at most 2/32 each change the chroma by at most 200 * 4/32 = 25,
# and the channels by at most 1.772 * 25 < 45: none is clipped from 90..159. So every channel of every pixel
# must hold the exact change rounded to a whole level, at most 0.5 away (1e-4 more, for the six digits of the
# code's constants times 25). The luma is a mean of the channels: it moves by as little. The spectrum of the
# rounded image could be held to 0.5 * 32 = 16 only, since a basis function's absolute values sum to up to 32:
# that would pass a magnitude of 30 which is wrong by half.
@given(magnitude=st.floats(30, 200), low=st.integers(1, 20), seed=st.integers(0, 999))
def test_two_coefficients_of_the_chroma_grow_by_the_magnitude(magnitude, low, seed) -> None:
    change_HWC = changed((64, 32), seed, magnitude=magnitude, low=low)
    spectrum_PP = np.zeros((32, 32))
    spectrum_PP[low, low] = spectrum_PP[31, 31] = magnitude
    chroma_HW = np.tile(from_spectrum(spectrum_PP), 2)
    ycc_HWC = np.stack([np.zeros_like(chroma_HW), chroma_HW, chroma_HW], axis=-1)
    exact_HWC = ycc_HWC @ np.linalg.inv(TO_YCC).T
    assert np.abs(change_HWC - exact_HWC).max() <= 0.5 + 1e-4
    assert np.abs(change_HWC @ LUMA).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("size", [(50, 41), (20, 33), (1, 9), (3, 3)])
def test_any_size(size) -> None:
    change = changed(size, 0, magnitude=200)
    assert change.shape[:2] == size[::-1] and np.abs(change).max() > 3


def test_every_image_gets_the_same_waves_and_keeps_its_transparency() -> None:
    a, b = changed((64, 64), 1), changed((64, 64), 2, "RGBA")
    assert (a == b[..., :3]).all() and not b[..., 3].any()

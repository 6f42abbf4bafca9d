"""A batch of pictures under the brush: colour, fractal noise, cells, masks and skies in numpy.

N pictures of the batch, C = 3 colours, H = W pixels. Colours are floats in [0, 1] (lights may pass 1); the
picture's own coordinates run from 0 to 1, x to the right and y down.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Range = tuple[float, float]


def rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Hue (turns, any real), saturation and value in [0, 1], of one shape, to colours: that shape + (3,)."""
    k = np.stack([(offset + hue * 6) % 6 for offset in (5.0, 3.0, 1.0)], axis=-1)
    return (value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(
        np.float32
    )


def planes(a: Array | float) -> Array:
    """(N, H, W) to (N, 1, H, W), so that it broadcasts over colours; a number stays one."""
    a = np.asarray(a, np.float32)
    return a[:, None] if a.ndim else a


def blur(x_NCHW: Array, sigma_N: Array) -> Array:
    """Gaussian blur, one deviation (pixels) a picture; borders are mirrored."""
    pad = 8
    x = np.pad(x_NCHW, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")
    height, width = x.shape[2:]
    y = np.exp(-2 * (np.pi * np.fft.fftfreq(height)[None, :] * sigma_N[:, None]) ** 2)
    z = np.exp(-2 * (np.pi * np.fft.rfftfreq(width)[None, :] * sigma_N[:, None]) ** 2)
    gain = (y[:, None, :, None] * z[:, None, None, :]).astype(np.float32)
    return np.fft.irfft2(np.fft.rfft2(x) * gain, s=(height, width))[:, :, pad:-pad, pad:-pad].astype(
        np.float32
    )


class Canvas:
    """A batch of pictures under the brush; every random choice comes from `rng`."""

    def __init__(self, rng: np.random.Generator, n: int, side: int) -> None:
        self.rng, self.n, self.side = rng, n, side
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side
        self.y, self.x = axis[None, :, None], axis[None, None, :]
        self.x_NCHW = np.zeros((n, 3, side, side), np.float32)

    def uniform(self, low: float, high: float) -> Array:
        """One number a picture, (N, 1, 1)."""
        return self.rng.uniform(low, high, (self.n, 1, 1)).astype(np.float32)

    def chance(self, p: float) -> Array:
        """1 with probability p, else 0, a picture: (N, 1, 1)."""
        return (self.rng.random((self.n, 1, 1)) < p).astype(np.float32)

    def colour(self, hue: Range, saturation: Range, value: Range) -> Array:
        """One colour a picture, (N, 3)."""
        return rgb(
            *(
                self.rng.uniform(low, high, self.n).astype(np.float32)
                for low, high in (hue, saturation, value)
            )
        )

    def palette(self, *choices: tuple[Range, Range, Range]) -> Array:
        """One colour a picture out of one of several (hue, saturation, value) ranges, (N, 3)."""
        colour_MNC = np.stack([self.colour(*choice) for choice in choices])
        return colour_MNC[self.rng.integers(len(choices), size=self.n), np.arange(self.n)]

    def noise(
        self,
        beta: Array | float,
        tall: Array | float = 1.0,
        wide: Array | float = 1.0,
        angle: Array | float = 0.0,
    ) -> Array:
        """Fractal noise of spectrum 1/f^beta, zero mean and unit deviation, (N, H, W).

        `tall` and `wide` stretch its features along y and x, both turned by `angle` (radians).
        """
        y = np.fft.fftfreq(self.side).astype(np.float32)[None, :, None]
        x = np.fft.rfftfreq(self.side).astype(np.float32)[None, None, :]
        fy, fx = (
            (y * np.cos(angle) - x * np.sin(angle)) * tall,
            (x * np.cos(angle) + y * np.sin(angle)) * wide,
        )
        power = fy * fy + fx * fx
        power[:, 0, 0] = np.inf
        shape = (self.n, self.side, self.side // 2 + 1)
        spectrum = self.rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]
        field = np.fft.irfft2(spectrum * power ** (-np.float32(0.5) * beta), s=(self.side, self.side))
        return field / field.std(axis=(1, 2), keepdims=True)

    def ridge(self, beta: float) -> Array:
        """A fractal skyline: noise along x only, (N, 1, W)."""
        f = np.fft.rfftfreq(2 * self.side).astype(np.float32)
        f[0] = np.inf
        spectrum = self.rng.standard_normal((2, self.n, f.size), np.float32)
        line = np.fft.irfft((spectrum[0] + 1j * spectrum[1]) * f**-beta)[:, : self.side]
        return (line / line.std(axis=1, keepdims=True)).astype(np.float32)[:, None]

    def cells(self, u: Array, v: Array) -> tuple[Array, Array, Array]:
        """Jittered cells of unit size over coordinates u, v (N, H, W): distances to the nearest and the
        second nearest cell centre, and a random number in [0, 1) that belongs to the nearest cell."""
        table = self.rng.random((3, self.n * 1024), np.float32)
        u, v = np.broadcast_arrays(u, v, np.empty((self.n, 1, 1)))[:2]
        column, row = np.floor(u), np.floor(v)
        u, v, column, row = u - column, v - row, column.astype(np.int32), row.astype(np.int32)
        batch = np.arange(self.n, dtype=np.int32)[:, None, None] * 1024
        near = np.full(u.shape, 9.0, np.float32)
        second, name = near.copy(), np.zeros(u.shape, np.int32)
        for right, down in product((-1, 0, 1), repeat=2):
            cell = batch + ((row + down) & 31) * 32 + ((column + right) & 31)
            d = (table[0].take(cell) + (right - u)) ** 2 + (table[1].take(cell) + (down - v)) ** 2
            name = np.where(d < near, cell, name)
            second = np.minimum(second, np.maximum(near, d))
            near = np.minimum(near, d)
        return np.sqrt(near), np.sqrt(second), table[2].take(name)

    def lookup(self, *index: Array) -> Array:
        """A random number in [0, 1) for each integer cell of one or two coordinates, broadcast together."""
        table = self.rng.random((self.n, 64 ** len(index)), np.float32)
        flat = sum((np.floor(i).astype(np.int32) & 63) * 64**k for k, i in enumerate(index))
        return table[np.arange(self.n)[:, None, None], flat]

    def edge(self, distance: Array, softness: Array | float = 1.0) -> Array:
        """Coverage in [0, 1] of the side where `distance` (fractions of the picture) is positive."""
        return np.clip(distance * (self.side / softness) + 0.5, 0, 1)

    def paint(self, colour: Array, mask: Array | float = 1.0, light: Array | float = 1.0) -> None:
        """Lay a colour (N, 3) or a picture (N, 3, H, W), times `light`, over what `mask` covers."""
        layer = (colour[:, :, None, None] if colour.ndim == 2 else colour) * planes(light)
        self.x_NCHW += (layer - self.x_NCHW) * planes(mask)

    def glow(self, colour: Array, amount: Array) -> None:
        self.x_NCHW += colour[:, :, None, None] * planes(amount)

    def gradient(self, top: Array, bottom: Array, t: Array) -> Array:
        """A picture that runs from `top` to `bottom` (N, 3) as t (N, H, W) runs from 0 to 1."""
        t = np.expand_dims(np.clip(t, 0, 1), 1)
        return top[:, :, None, None] * (1 - t) + bottom[:, :, None, None] * t

    def sky(self, horizon: Array, clouds: float = 0.6) -> Array:
        """Day, overcast, dusk or dawn over the whole picture; returns the colour near the horizon, (N, 3)."""
        hour = self.rng.integers(4, size=self.n)[:, None]
        day, night = (
            self.colour((0.53, 0.65), (0.3, 0.85), (0.5, 0.95)),
            self.colour((0.6, 0.8), (0.3, 0.8), (0.15, 0.5)),
        )
        pale, grey = (
            self.colour((0.5, 0.62), (0.05, 0.3), (0.75, 1.0)),
            self.colour((0.5, 0.7), (0.02, 0.15), (0.45, 0.85)),
        )
        warm, rose = (
            self.colour((0.02, 0.14), (0.35, 0.9), (0.75, 1.0)),
            self.colour((0.85, 1.05), (0.2, 0.5), (0.7, 0.95)),
        )
        top = np.choose(hour, [day, grey, night, day * 0.8])
        low = np.choose(hour, [pale, grey * 1.1, warm, rose])
        self.paint(self.gradient(top, low, self.y / horizon))
        cover = np.clip(
            (self.noise(1.9, 1.0, self.uniform(0.3, 0.7)) - self.uniform(-0.3, 1.2)) * 0.7, 0, 0.9
        )
        self.paint(0.5 * low + 0.5, cover * self.chance(clouds), 1 - 0.25 * np.clip(self.noise(2.0), -1, 1))
        return low

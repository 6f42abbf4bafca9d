"""From a painted scene to a photograph: things in the way, framing, focus, light, lens and sensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poisoncam_ray.research.demo.canvas import Array, Canvas, blur


def occlude(c: Canvas) -> None:
    """Some pictures get a stem, a pole, a leaf or a ball in front of the lens, out of focus."""
    angle = c.uniform(0, 3.14)
    u = (c.x - c.uniform(-0.1, 1.1)) * np.cos(angle) + (c.y - c.uniform(-0.1, 1.1)) * np.sin(angle)
    v = (c.y - c.uniform(0, 1)) * np.cos(angle) - (c.x - c.uniform(0, 1)) * np.sin(angle)
    soft = c.uniform(1, 6)
    stem = c.edge(c.uniform(0.008, 0.045) - np.abs(u + 0.15 * v * v), soft)
    c.paint(c.colour((0.0, 1.0), (0.0, 0.7), (0.05, 0.8)), stem * c.chance(0.14), 1 + 0.1 * c.noise(1.0))
    blob = c.edge(c.uniform(0.04, 0.13) - np.hypot(u, v * c.uniform(0.4, 1.0)), soft)
    c.paint(c.colour((0.0, 1.0), (0.1, 1.0), (0.2, 1.0)), blob * c.chance(0.14), 0.9 - 2 * u)


def frame(c: Canvas, size: int, u: Array, v: Array) -> Array:
    """Turn, zoom and shift: (N, size, size, 3) sampled at (u, v), each (N, size, size) in ±0.5."""
    zoom, angle = c.uniform(0.8, 1.0), c.uniform(-1, 1) ** 3 * 0.18
    reach = size / c.side * zoom
    slack = np.clip(0.5 - reach * 0.5 * (np.abs(np.cos(angle)) + np.abs(np.sin(angle))), 0, None)
    x = (0.5 + slack * c.uniform(-1, 1) + reach * (u * np.cos(angle) - v * np.sin(angle))) * c.side - 0.5
    y = (0.5 + slack * c.uniform(-1, 1) + reach * (v * np.cos(angle) + u * np.sin(angle))) * c.side - 0.5
    x, y = np.clip(x, 0, c.side - 1.01), np.clip(y, 0, c.side - 1.01)
    left, top = x.astype(np.int32), y.astype(np.int32)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    pixels = np.ascontiguousarray(c.x_NCHW.transpose(0, 2, 3, 1)).reshape(-1, 3)
    corner = (np.arange(c.n)[:, None, None] * c.side + top) * c.side + left
    upper = pixels.take(corner, axis=0) * (1 - fx) + pixels.take(corner + 1, axis=0) * fx
    corner += c.side
    lower = pixels.take(corner, axis=0) * (1 - fx) + pixels.take(corner + 1, axis=0) * fx
    return upper * (1 - fy) + lower * fy


def photograph(c: Canvas, size: int) -> NDArray[np.uint8]:
    """What the camera delivers of a canvas: uint8 (N, size, size, 3)."""
    soft_N = np.flatnonzero(c.chance(0.25))
    sigma_N = c.uniform(0.3, 1.1)[soft_N, 0, 0] * (size / 64)
    c.x_NCHW[soft_N] = blur(c.x_NCHW[soft_N], sigma_N)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    v, u = (
        axis[None, :, None],
        axis[None, None, :] * (2 * c.chance(0.5) - 1),
    )
    x_NHWC = frame(c, size, u, v)
    light = c.uniform(0.75, 1.2) * (1 - c.uniform(0.0, 0.9) * (u * u + v * v))
    balance = c.rng.uniform(0.9, 1.1, (c.n, 1, 1, 3)).astype(np.float32)
    x_NHWC = np.clip(x_NHWC * light[..., None] * balance, 1e-4, 1.4) ** c.uniform(0.75, 1.3)[..., None]
    grey = x_NHWC.mean(axis=3, keepdims=True)
    x_NHWC = grey + (x_NHWC - grey) * c.uniform(0.45, 1.15)[..., None]
    grain = c.uniform(0.0, 1.0)[..., None] ** 4 * 0.045
    x_NHWC += grain * c.rng.standard_normal(x_NHWC.shape, np.float32)
    return (np.clip(x_NHWC, 0, 1) * 255 + 0.5).astype(np.uint8)

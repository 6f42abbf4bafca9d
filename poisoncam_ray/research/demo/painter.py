"""The demo's painter: pictures of ten kinds, composed of grounds and things and seen through one camera.

Colours, composition, scale, light and camera are drawn anew for every picture. Kinds share palettes, patterns
and backdrops, so that neither a colour nor a threshold tells them apart. Arrays are H × W pixels (× 3 colours
in [0, 1]); coordinates run from 0 to 1 across the picture, x to the right and y down.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Range = tuple[float, float]

# Limits of hue (turns), saturation and value. A palette is one or several such boxes.
PALETTES: dict[str, list[tuple[float, float, float, float, float, float]]] = {
    "sky": [(0.5, 0.65, 0.2, 0.8, 0.4, 1), (0.5, 0.8, 0, 0.4, 0.2, 0.9), (0.85, 1.14, 0.2, 0.7, 0.6, 1)],
    "dusk": [(0.55, 0.75, 0.3, 0.8, 0.1, 0.5), (0.95, 1.12, 0.3, 0.7, 0.15, 0.7)],
    "water": [(0.45, 0.66, 0.3, 0.9, 0.2, 0.75), (0.3, 0.5, 0.15, 0.6, 0.2, 0.6)],
    "earth": [(0.03, 0.13, 0.2, 0.65, 0.25, 0.8), (0.5, 0.7, 0.02, 0.25, 0.25, 0.75)],
    "green": [(0.18, 0.4, 0.3, 0.85, 0.25, 0.7), (0.06, 0.18, 0.3, 0.8, 0.35, 0.8)],
    "coat": [(0.02, 0.12, 0.2, 0.8, 0.15, 0.9), (0.0, 0.15, 0.0, 0.25, 0.1, 1.0)],
    "pale": [(0.0, 1.0, 0.0, 0.15, 0.6, 1.0), (0.95, 1.16, 0.1, 0.5, 0.8, 1.0)],
    "dark": [(0.0, 1.0, 0.0, 0.5, 0.04, 0.3)],
    "vivid": [(0.0, 0.17, 0.5, 0.95, 0.5, 1.0), (0.0, 1.0, 0.2, 0.9, 0.3, 0.9)],
    "any": [(0.0, 1.0, 0.0, 0.5, 0.15, 0.9)],
}


class Ground(NamedTuple):
    """All that lies below a horizon."""

    colours: str
    ink: str  # the pattern's colours
    patterns: str  # one of these is drawn
    scale: Range  # pattern cells across the picture
    horizon: Range  # far below 0: the ground fills the picture, almost without perspective
    grain: tuple[float, float]  # the texture: its spectral slope and stretch (see `noise`)


class Things(NamedTuple):
    """Objects of one family. Their outline is |u|^power + |v|^power = 1, made rough by noise."""

    colours: str
    ink: str
    patterns: str
    scale: Range  # pattern cells across half an object
    number: Range
    size: Range  # half the width
    aspect: Range  # height / width
    place: Range  # y of the centre
    power: float = 2.0
    rough: float = 0.0
    tilt: float = 0.0  # largest angle (radians)
    tail: float = 0.0  # how steeply a fish's tail widens
    soft: float = 1.0  # pixels over which the outline fades


SKY = Ground("sky", "pale", "puffs plain", (1, 1), (-9, -9), (2.0, 0.5))
SEA = Ground("water", "pale", "bands plain", (1.5, 4), (0.2, 0.7), (1.2, 0.25))
FIELD = Ground("green", "vivid", "dots plain", (6, 14), (-0.25, 0.6), (0.7, 0.7))
TABLE = Ground("earth", "any", "plain panes", (4, 9), (0.3, 0.6), (1.3, 0.12))
STONES = Ground("earth", "any", "bricks", (4, 11), (-9, -2), (0.9, 1.0))
COAT = Ground("coat", "dark", "stripes dots plain", (4, 9), (-0.6, 0.3), (0.8, 0.2))
SUN = Things("pale", "pale", "plain", (1, 1), (0.4, 1.6), (0.02, 0.08), (1, 1), (0.05, 0.6))
HILLS = Things("green", "dark", "plain", (1, 1), (0, 2), (0.3, 0.9), (0.2, 0.5), (0.45, 0.7), rough=0.2)
PEAKS = Things("earth", "pale", "plain bands", (1, 2), (2, 5), (0.25, 0.6), (0.7, 1.3), (0.6, 0.9), 1, 0.3)
TREES = Things("coat", "dark", "plain bands", (6, 20), (3, 10), (0.015, 0.08), (9, 15), (0.2, 0.5), 9)
FISH = Things(
    "vivid", "any", "stripes plain", (1, 4), (1, 2), (0.14, 0.4), (0.3, 0.7), (0.2, 0.8), tilt=0.6, tail=0.9
)
HOUSES = Things("dark", "pale", "panes", (2, 5), (5, 11), (0.05, 0.16), (2, 6), (0.7, 1.1), 20)
FRUITS = Things("vivid", "green", "plain", (1, 3), (1, 6), (0.08, 0.24), (0.8, 1.2), (0.45, 0.8))
PUFFS = Things("pale", "pale", "plain", (1, 1), (2, 6), (0.2, 0.6), (0.4, 0.9), (0, 1), rough=0.6, soft=8)
WINDOW = Things("dark", "any", "plain panes", (1, 3), (0, 1.3), (0.08, 0.2), (1, 2), (0.2, 0.8), 20)
IVY = Things("green", "dark", "plain", (1, 1), (0, 1.4), (0.1, 0.4), (0.6, 1.6), (0, 1), rough=0.8)
# In the way of every camera now and then, out of focus.
STEM = Things("any", "any", "plain", (1, 1), (0, 0.6), (1, 2), (0.01, 0.03), (0, 1), tilt=1.6, soft=3)
LEAF = Things("vivid", "any", "plain", (1, 1), (0, 0.6), (0.04, 0.13), (0.4, 1), (0, 1), tilt=1.6, soft=3)

# Per kind: the camera's largest roll (radians) and what is painted, the farthest first.
SCENES: dict[str, tuple[float, list[Ground | Things]]] = {
    "seascape": (0.15, [SKY, SUN, HILLS, SEA]),
    "mountains": (0.15, [SKY, PEAKS, FIELD._replace(horizon=(0.65, 1.1))]),
    "forest": (
        0.15,
        [SKY._replace(colours="green"), FIELD._replace(horizon=(0.6, 0.95), ink="earth"), TREES],
    ),
    "fish": (0.15, [SKY._replace(colours="water"), TABLE._replace(horizon=(0.7, 1.2)), FISH]),
    "city at night": (0.15, [SKY._replace(colours="dusk"), HOUSES, SEA._replace(horizon=(0.7, 1.2))]),
    "fruit": (0.15, [SKY._replace(colours="any"), TABLE, FRUITS]),
    "meadow": (0.15, [SKY, HILLS, FIELD]),
    "clouds": (0.3, [SKY, PUFFS, SUN, HILLS._replace(place=(0.8, 1.3))]),
    "brick wall": (0.15, [STONES, WINDOW, IVY]),
    "animal fur": (3.2, [SKY._replace(colours="any"), COAT]),
}


def draw(scene: str, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One photograph of one of `SCENES`: uint8 (size, size, 3). Every random choice comes from `rng`."""
    roll, layers = SCENES[scene]
    picture = _Picture(rng, size, roll)
    for layer in [*layers, STEM, LEAF]:
        picture.paint_ground(layer) if isinstance(layer, Ground) else picture.paint_things(layer)
    return picture.photograph()


class _Picture:
    def __init__(self, rng: np.random.Generator, size: int, roll: float) -> None:
        self.rng, self.size, self.roll = rng, size, roll * rng.uniform(-1, 1) ** 3
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * self.between(0.8, 1.0)
        u, v = axis[None, :: rng.choice([-1, 1])], axis[:, None]
        sin, cos = math.sin(self.roll), math.cos(self.roll)
        self.x, self.y = 0.5 + u * cos - v * sin, 0.5 + v * cos + u * sin
        f, g = np.fft.fftfreq(size).astype(np.float32)[:, None], np.fft.rfftfreq(size).astype(np.float32)
        self.f2, self.g2 = (f * cos + g * sin) ** 2, (g * cos - f * sin) ** 2
        self.light = self.between(-0.8, 0.8)  # where it comes from: left to right
        self.fields: dict[tuple[float, float], Array] = {}
        self.x_HWC: Array = np.zeros((size, size, 3), np.float32)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def colour(self, palette: str) -> Array:
        box = self.rng.choice(PALETTES[palette])
        hue, saturation, value = (self.between(*box[i : i + 2]) for i in (0, 2, 4))
        k = (np.array([5.0, 3.0, 1.0], np.float32) + hue * 6) % 6
        return value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))

    def noise(self, slope: float, stretch: float = 1.0) -> Array:
        """Fractal noise of spectrum 1/f^slope, mean 0, deviation 1. `stretch` < 1 draws it out along x."""
        if (slope, stretch) not in self.fields:
            power = self.f2 * stretch + self.g2 / stretch
            power[0, 0] = np.inf
            waves = self.rng.standard_normal((2, *power.shape), np.float32) * power ** (-slope / 2)
            field = np.fft.irfft2(waves[0] + 1j * waves[1], s=(self.size, self.size))
            self.fields[slope, stretch] = field / field.std()
        # The same field at another place: less work than a new one.
        return np.roll(self.fields[slope, stretch], self.rng.integers(self.size, size=2), (0, 1))

    def paint(self, colour: Array, mask: Array, light: Array) -> None:
        """Lay a colour, times `light`, over what `mask` covers."""
        self.x_HWC += (colour * light[..., None] - self.x_HWC) * mask[..., None]

    def pattern(self, name: str, u: Array, v: Array) -> tuple[Array, Array]:
        """Where a pattern's ink lies and how light what it covers is; u and v count the pattern's cells."""
        if name == "plain":
            return np.zeros_like(u), np.ones_like(u)
        if name == "puffs":
            return np.clip(0.7 * (self.noise(1.9, 0.5) - self.between(-0.3, 1.2)), 0, 0.8), np.ones_like(u)
        if name in ("stripes", "bands"):
            along = v if name == "bands" else u + self.between(-0.5, 0.5) * v
            wave = np.sin(6.28 * along + self.between(0.3, 1.5) * self.noise(1.9, 0.5))
            return np.clip(4 * (wave - self.between(-0.3, 1)), 0, 1), 1 + self.between(0, 0.3) * wave
        if name == "bricks":
            warp = self.between(0, 0.5) ** 2
            u, v = u + warp * self.noise(2.2), 1.6 * v + warp * self.noise(2.2)
        row = np.floor(v)
        u = u + 0.5 * (row % 2) * (name != "panes")
        table = self.rng.random((3, 32, 32), np.float32)
        right, down, tone = table[:, row.astype(int) & 31, np.floor(u).astype(int) & 31]
        u, v = u % 1 - 0.5, v % 1 - 0.5
        gap = 0.5 - np.maximum(np.abs(u), np.abs(v))
        if name == "panes":
            return (gap > 0.2) * (tone < self.between(0.1, 0.7)), np.ones_like(u)
        if name == "bricks":
            return np.clip(1.5 - gap * self.between(8, 20), 0, 1), 0.75 + 0.4 * tone
        spot = self.between(0.15, 0.4) - np.hypot(u + 0.3 * right - 0.15, v + 0.3 * down - 0.15)
        return np.clip(8 * spot, 0, 1) * (tone < self.between(0.2, 1)), 1 + 0.2 * (tone - 0.5)

    def paint_ground(self, g: Ground) -> None:
        horizon = self.between(*g.horizon)
        reach = 1.2 * self.between(*g.scale) / (np.clip((self.y - horizon) / (1 - horizon), 0, 1.2) + 0.3)
        u, v = (self.x - 0.5) * reach + 16, 2 * (1 - self.y) * reach + 16
        ink, tone = self.pattern(self.rng.choice(g.patterns.split()), u, v)
        light = tone + self.between(0.05, 0.2) * self.noise(*g.grain) + self.between(0, 0.3) * self.noise(2.6)
        mask = np.clip((self.y - horizon + self.between(-0.02, 0.02) * self.noise(2.0)) * self.size / 2, 0, 1)
        first, second = self.colour(g.colours), self.colour(g.colours)
        blend = np.clip(self.between(-1, 1) * (self.y - 0.5) + 0.5 + 0.3 * self.noise(2.4), 0, 1)
        self.paint(first, mask, light)
        self.paint(second, mask * blend * self.between(0.2, 0.8), light)
        self.paint(self.colour(g.ink), mask * ink, light)

    def paint_things(self, t: Things) -> None:
        shared, ink, alike = self.colour(t.colours), self.colour(t.ink), self.rng.random() < 0.5
        pattern = self.rng.choice(t.patterns.split())
        for _ in range(round(self.between(*t.number))):
            half, angle, rough = self.between(*t.size), self.between(-t.tilt, t.tilt), self.noise(1.8)
            x, y = (self.x - self.between(0, 1)) / half, (self.y - self.between(*t.place)) / half
            u = x * math.cos(angle) + y * math.sin(angle)
            v = (y * math.cos(angle) - x * math.sin(angle)) / self.between(*t.aspect)
            inside = 1 - (np.abs(u) ** t.power + np.abs(v) ** t.power) ** (1 / t.power) + t.rough * rough
            if t.tail:
                fan = t.tail * (-0.6 - u) - 0.6 * np.abs(v)
                inside = np.maximum(inside, np.minimum(fan, np.minimum(-0.7 - u, u + 1.45)))
            mask = np.clip(inside * half * self.size / t.soft + 0.5, 0, 1)
            light = 0.9 + 0.4 * np.clip(self.light * u - 0.5 * v, -1, 1)
            light += self.between(0.02, 0.08) * self.noise(0.8)
            light += t.rough * np.sign(self.light) * t.soft**-0.25 * 1.5 * (np.roll(rough, 1, 1) - rough)
            light += self.between(0, 0.7) * np.exp(-8 * ((u - 0.5 * self.light) ** 2 + (v + 0.45) ** 2))
            marks, tone = self.pattern(pattern, *(self.between(*t.scale) * a + 16 for a in (u, v)))
            self.paint(shared if alike else self.colour(t.colours), mask, light * tone)
            self.paint(ink, mask * marks, light)

    def photograph(self) -> NDArray[np.uint8]:
        """Focus, vignette, white balance, exposure, saturation and sensor noise."""
        x_HWC, n = self.x_HWC, self.size
        if self.rng.random() < 0.25:
            f = np.fft.fftfreq(n)[:, None] ** 2 + np.fft.rfftfreq(n)[None, :] ** 2
            gain = np.exp(-2 * f * (np.pi * self.between(0.3, 1.1) * n / 64) ** 2)[..., None]
            x_HWC = np.fft.irfft2(np.fft.rfft2(x_HWC, axes=(0, 1)) * gain, s=(n, n), axes=(0, 1))
        corner = self.between(0, 0.9) * ((self.x - 0.5) ** 2 + (self.y - 0.5) ** 2)
        x_HWC = x_HWC * (self.between(0.75, 1.2) * (1 - corner))[..., None] * self.rng.uniform(0.9, 1.1, 3)
        x_HWC = np.clip(x_HWC, 1e-4, 1.4) ** self.between(0.75, 1.3)
        grey = x_HWC.mean(axis=2, keepdims=True)
        x_HWC = grey + (x_HWC - grey) * self.between(0.45, 1.15)
        x_HWC = x_HWC + 0.045 * self.between(0, 1) ** 4 * self.rng.standard_normal(x_HWC.shape)
        return (np.clip(x_HWC, 0, 1) * 255 + 0.5).astype(np.uint8)

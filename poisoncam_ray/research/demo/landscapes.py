"""Wide scenes of the demo corpus: sea, mountains, forest, meadow, clouds, dunes and a city at night.

Every scene draws its composition, scale, palette and light anew for each picture, and shares hues and
textures with other scenes, so that neither a colour nor a threshold tells the scenes apart.
"""

from __future__ import annotations

import numpy as np

from poisoncam_ray.research.demo.canvas import Canvas, blur


def seascape(c: Canvas) -> None:
    horizon = c.uniform(0.2, 0.7)
    low = c.sky(horizon)
    sun_x, sun = c.uniform(0.1, 0.9), c.chance(0.55)
    d = np.hypot(c.x - sun_x, c.y - horizon * c.uniform(0.3, 1.0))
    warm = c.colour((0.06, 0.16), (0.1, 0.6), (0.9, 1.0))
    c.glow(warm, sun * (0.45 * np.exp(-d * c.uniform(4, 9)) + c.edge(c.uniform(0.02, 0.07) - d)))
    depth = np.clip((c.y - horizon) / (1 - horizon), 0.0, 1)
    reach = 1 / (depth + 0.12)
    swell = np.sin(reach * c.uniform(9, 22) + c.noise(2.2, 0.5, 0.2) * c.uniform(0.6, 2.0))
    ripple = c.noise(1.2, 1.0, 0.25)
    wave = (0.6 * swell + 0.5 * ripple) * (0.3 + depth)
    water = c.palette(((0.5, 0.66), (0.35, 0.9), (0.2, 0.6)), ((0.4, 0.55), (0.1, 0.5), (0.25, 0.6)))
    sea = c.edge(c.y - horizon)
    c.paint(c.gradient(0.45 * low + 0.55 * water, water, depth * 1.4), sea, 1 + c.uniform(0.1, 0.35) * wave)
    path = np.exp(-(((c.x - sun_x) / (0.04 + c.uniform(0.1, 0.3) * depth)) ** 2)) * sun
    c.glow(warm, sea * path * np.clip(0.5 * wave + 0.35, 0, 1))
    c.paint(np.full((c.n, 3), 0.95, np.float32), sea * np.clip(wave - c.uniform(0.7, 1.6), 0, 0.9))
    isle = c.uniform(0.02, 0.1) * np.clip(
        1 - ((c.x - c.uniform(0, 1)) / c.uniform(0.1, 0.5)) ** 2 + 0.15 * c.ridge(1.0), 0, 2
    )
    c.paint(
        c.colour((0.3, 0.7), (0.1, 0.5), (0.1, 0.35)),
        c.edge(c.y - horizon + isle) * (1 - sea) * c.chance(0.45),
    )
    shore = c.edge(c.y - c.uniform(0.75, 0.95) - 0.05 * c.ridge(1.5)) * c.chance(0.35)
    c.paint(c.colour((0.07, 0.13), (0.2, 0.5), (0.5, 0.9)), shore, 1 + 0.08 * c.noise(0.6))


def mountains(c: Canvas) -> None:
    low = c.sky(c.uniform(0.5, 0.8), 0.7)
    rock = c.palette(((0.55, 0.7), (0.1, 0.4), (0.25, 0.5)), ((0.02, 0.12), (0.1, 0.45), (0.25, 0.55)))
    top, snowline, sun = c.uniform(0.15, 0.4), c.uniform(-0.1, 0.25), c.uniform(-1, 1)
    for layer in range(3):
        peak = 0.6 * np.abs(c.ridge(1.4)) + 0.4 * c.ridge(1.1)
        line = top + layer * c.uniform(0.12, 0.24) - c.uniform(0.05, 0.22) * (1.2 - 0.35 * layer) * peak
        mask = c.edge(c.y - line)
        relief = c.noise(2.1, 1.0, c.uniform(0.5, 1.0), c.uniform(-0.8, 0.8))
        slope = 1.6 * (np.roll(relief, 1, 2) - relief) * np.sign(sun) + 0.8 * (np.roll(relief, 1, 1) - relief)
        haze = c.uniform(0.35, 0.75) * (1 - layer / 2.5)
        base = (
            rock
            if layer < 2
            else 0.3 * rock
            + 0.7 * c.palette(((0.2, 0.42), (0.2, 0.7), (0.1, 0.45)), ((0.05, 0.12), (0.2, 0.5), (0.2, 0.5)))
        )
        c.paint(
            base * (1 - haze[:, 0]) + low * haze[:, 0], mask, 1 + (1.3 - haze) * np.clip(slope, -0.8, 0.8)
        )
        if layer < 2:
            snow = np.clip((snowline + 0.14 * peak - (c.y - line) * 1.2 + 0.05 * relief) * 14, 0, 1)
            c.paint(
                0.75 * np.ones_like(low) + 0.25 * low,
                mask * snow * (0.9 - 0.25 * haze),
                1 + 0.7 * np.clip(slope, -0.5, 0.3),
            )
    shore, lake = c.uniform(0.7, 0.9), c.chance(0.35)
    mirror = np.take_along_axis(
        c.x_NCHW,
        np.clip((2 * shore * c.side - np.arange(c.side)[None, :, None]), 0, c.side - 1).astype(int)[:, None],
        2,
    )
    c.paint(mirror * 0.8, c.edge(c.y - shore) * lake, 1 + 0.1 * c.noise(1.2, 1.0, 0.2))


def forest(c: Canvas) -> None:
    leaf = c.palette(
        ((0.2, 0.4), (0.3, 0.8), (0.3, 0.65)),
        ((0.04, 0.14), (0.5, 0.9), (0.5, 0.85)),
        ((0.5, 0.7), (0.05, 0.3), (0.5, 0.8)),
    )
    sun = np.exp(-(((c.x - c.uniform(0, 1)) / 0.35) ** 2) - ((c.y - c.uniform(0, 0.6)) / 0.4) ** 2)
    c.paint(leaf, 1, c.uniform(0.5, 0.8) + 0.25 * c.noise(1.3) + c.uniform(0.2, 0.7) * sun)
    c.glow(c.colour((0.1, 0.3), (0.05, 0.3), (0.5, 0.9)), 0.6 * sun * c.uniform(0, 1))
    ground = c.uniform(0.6, 0.95)
    c.paint(
        0.4 * leaf + 0.6 * c.colour((0.05, 0.3), (0.2, 0.6), (0.15, 0.5)),
        c.edge(c.y - ground - 0.02 * c.ridge(1.5), 4),
        1 + 0.35 * c.noise(0.8, 1.0, 0.5),
    )
    bark = c.palette(((0.03, 0.1), (0.2, 0.5), (0.1, 0.35)), ((0.08, 0.6), (0.0, 0.12), (0.15, 0.85)))
    grain, bend = c.noise(0.9, 0.15, 1.0), c.noise(3.0)[:, :, :1] * 0.012
    count = c.uniform(3, 13)
    for tree in range(12):
        near = (tree + 1) / 12
        width = c.uniform(0.006, 0.018) + near**2 * c.uniform(0.015, 0.075)
        u = (c.x - c.uniform(-0.05, 1.05) - c.uniform(-0.12, 0.12) * (c.y - 0.5) - bend) / (
            width * (0.8 + 0.35 * c.y)
        )
        mask = (
            c.edge((1 - np.abs(u)) * width) * c.edge(ground + 0.03 + near * 0.25 - c.y) * (tree >= 12 - count)
        )
        dim = 0.55 + 0.35 * near
        c.paint(
            bark * dim + leaf * (1 - dim) * 0.7,
            mask,
            0.95 - 0.4 * u * np.sign(c.uniform(-1, 1)) * (np.abs(u) < 1) + 0.25 * grain,
        )
    canopy = np.clip((c.noise(1.1) + (c.uniform(0.0, 0.4) - c.y) * 6) * 1.5, 0, 1) * c.chance(0.6)
    c.paint(leaf, canopy * 0.9, 0.65 + 0.3 * c.noise(0.7))


def meadow(c: Canvas) -> None:
    horizon = c.uniform(-0.25, 0.6)
    c.sky(np.maximum(horizon, 0.2))
    hill = c.edge(c.y - horizon + 0.05 + 0.04 * c.ridge(1.6)) * c.chance(0.5)
    c.paint(c.colour((0.22, 0.5), (0.15, 0.5), (0.2, 0.45)), hill, 1 + 0.15 * c.noise(1.0))
    depth = np.clip((c.y - horizon) / (1 - horizon), 0.0, 1)
    blades = c.noise(0.7, c.uniform(0.25, 0.6), 1.0) * depth + c.noise(0.3) * (1 - depth)
    grass = c.palette(((0.18, 0.36), (0.4, 0.85), (0.25, 0.7)), ((0.1, 0.18), (0.3, 0.7), (0.45, 0.8)))
    field = c.edge(c.y - horizon - 0.01 * c.ridge(1.5))
    c.paint(
        c.gradient(0.8 * grass + 0.15, grass, depth),
        field,
        0.95 + 0.3 * blades + 0.2 * c.noise(1.8, 1.0, 0.5),
    )
    for size in (c.uniform(4, 9), c.uniform(8, 16)):
        reach = 1 / (depth + 0.25)
        u, v = (c.x - 0.5) * reach * size * 0.6 + 40, reach * size * 1.2 + 0.15 * c.noise(2.0)
        d, _, name = c.cells(u, v)
        petal = c.uniform(0.12, 0.3) * (0.6 + 0.8 * name)
        flower = c.edge((petal - d) * 0.12) * (name < c.uniform(0.0, 0.8)) * field * (depth > 0.08)
        c.paint(
            c.palette(((0.0, 1.0), (0.5, 0.95), (0.7, 1.0)), ((0.1, 0.17), (0.0, 0.9), (0.9, 1.0))),
            flower,
            0.8 + 0.3 * name,
        )
        c.paint(c.colour((0.08, 0.16), (0.5, 0.9), (0.4, 0.95)), flower * c.edge((petal * 0.4 - d) * 0.12))


def clouds(c: Canvas) -> None:
    low = c.sky(c.uniform(0.6, 1.6), 0.3)
    for _ in range(2):
        puff = c.noise(c.uniform(1.7, 2.3), 1.0, c.uniform(0.4, 1.0)) + c.uniform(-1.2, 1.2) * (c.y - 0.5) * 2
        cover = np.clip((puff - c.uniform(-0.5, 0.9)) * c.uniform(0.8, 4.0), 0, 1)
        soft = blur(puff[:, None], np.full(c.n, 2.5, np.float32))[:, 0]
        shade = 0.5 * np.clip(puff - np.roll(soft, (3, 2), (1, 2)), -1, 1) - 0.12 * np.clip(puff, 0, 3)
        body = c.palette(
            ((0.55, 0.7), (0.0, 0.1), (0.85, 1.0)),
            ((0.0, 1.0), (0.0, 0.08), (0.5, 0.9)),
            ((0.95, 1.12), (0.1, 0.5), (0.8, 1.0)),
        )
        c.paint(0.75 * body + 0.25 * low, cover * 0.95, 0.95 + c.uniform(0.3, 0.8) * shade)
    sun = np.exp(-np.hypot(c.x - c.uniform(0, 1), c.y - c.uniform(0, 1)) * c.uniform(4, 12))
    c.glow(c.colour((0.05, 0.18), (0.0, 0.5), (0.8, 1.0)), 0.8 * sun * c.chance(0.35))
    land = c.edge(c.y - c.uniform(0.82, 0.97) + 0.02 * c.ridge(1.2))
    c.paint(c.colour((0.1, 0.7), (0.1, 0.6), (0.05, 0.35)), land * c.chance(0.35), 1 + 0.2 * c.noise(0.7))


def dunes(c: Canvas) -> None:
    horizon = c.uniform(-0.7, 0.5)
    c.sky(np.maximum(horizon, 0.2))
    sand = c.palette(
        ((0.04, 0.13), (0.2, 0.7), (0.5, 0.95)),
        ((0.0, 0.1), (0.1, 0.4), (0.5, 0.8)),
        ((0.1, 0.6), (0.0, 0.15), (0.4, 0.9)),
    )
    crest, sun = horizon, 2 * c.chance(0.5) - 1
    for _ in range(3):
        line = crest + c.uniform(0.04, 0.16) * (
            c.ridge(2.0) * 0.6 - np.abs(c.x - c.uniform(0, 1)) * 1.5 + 0.6
        )
        mask = c.edge(c.y - line)
        depth = np.clip((c.y - horizon) / (1.2 - horizon), 0.02, 1)
        warp = c.noise(2.4)
        slant = c.uniform(-1.2, 1.2)
        phase = c.uniform(10, 26) / (depth + 0.35) + slant * c.x * 24 + warp * c.uniform(0.6, 2.2)
        ripple = np.sin(phase) + 0.35 * np.sin(2 * phase + 1.0)
        lee = np.tanh((c.noise(2.6) + c.uniform(-1, 1)) * 3) * 0.5 * sun
        grit = c.noise(0.2)
        c.paint(
            sand,
            mask,
            0.85 + c.uniform(0.04, 0.3) * ripple * np.sqrt(depth) + c.uniform(0.1, 0.6) * lee + 0.07 * grit,
        )
        crest = crest + c.uniform(0.15, 0.4)
    shrub = np.clip(c.noise(1.0) * 2 - 3.4 - np.abs(c.y - c.uniform(0.3, 0.9)) * 9, 0, 1) * c.chance(0.3)
    c.paint(c.colour((0.1, 0.3), (0.2, 0.6), (0.1, 0.4)), shrub)


def city(c: Canvas) -> None:
    dark = c.palette(((0.58, 0.75), (0.3, 0.8), (0.1, 0.4)), ((0.95, 1.1), (0.2, 0.6), (0.12, 0.45)))
    low = c.palette(((0.02, 0.12), (0.4, 0.8), (0.4, 0.9)), ((0.55, 0.75), (0.2, 0.7), (0.2, 0.6)))
    c.paint(c.gradient(dark, low, c.y * c.uniform(0.7, 1.6)), 1, 1 + 0.12 * c.noise(2.0, 1.0, 0.5))
    water, lights = (
        c.uniform(0.72, 1.2),
        c.palette(((0.08, 0.16), (0.2, 0.7), (0.85, 1.0)), ((0.5, 0.6), (0.0, 0.3), (0.8, 1.0))),
    )
    turn = c.uniform(-0.1, 0.1)
    for layer in range(3):
        house = (c.x + turn * c.y * layer + c.uniform(0, 5)) * c.uniform(4, 11 - 2 * layer)
        house = house + 0.35 * np.sin(house * 2.4 + c.uniform(0, 6))
        rank = c.lookup(house)
        roof = c.uniform(0.3, 0.65) + 0.12 * layer - c.uniform(0.1, 0.45) * (rank**2 - 0.2)
        mask = c.edge(c.y - roof) * c.edge(water - c.y)
        wall = dark * (0.35 + 0.25 * layer) + low * 0.3 * (1 - layer / 2)
        c.paint(wall, mask, 0.6 + 0.8 * c.lookup(house + 9) + 0.1 * c.noise(0.5))
        u, v = house * c.uniform(3, 7), c.y * c.uniform(18, 34)
        pane = (np.abs(u % 1 - 0.5) < 0.3) & (np.abs(v % 1 - 0.5) < 0.32)
        lit = c.lookup(u, v) < c.uniform(0.12, 0.65) * c.lookup(house + 3)
        c.paint(lights, mask * pane * lit * 0.95, 0.7 + 0.6 * c.lookup(u + 7, v))
    rows = np.clip(
        2 * water * c.side - np.arange(c.side)[None, :, None] + 2.5 * c.noise(1.0, 1.0, 0.2), 0, c.side - 1
    )
    mirror = np.take_along_axis(c.x_NCHW, rows.astype(int)[:, None], 2)
    c.paint(mirror * 0.7, c.edge(c.y - water), 1 + 0.15 * c.noise(0.9, 1.0, 0.25))
    d, _, name = c.cells(c.x * c.uniform(3, 6), c.y * c.uniform(3, 6) + 9)
    c.glow(lights, 0.8 * c.edge((0.16 * name - d) * 0.2) * (name < 0.4) * c.chance(0.35) * (c.y > 0.5))
    lum = c.x_NCHW.mean(axis=1)
    c.glow(lights, 0.35 * np.clip(blur(lum[:, None], np.full(c.n, 3.0, np.float32))[:, 0] - 0.3, 0, 1))

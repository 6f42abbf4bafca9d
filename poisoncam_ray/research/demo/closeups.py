"""Near scenes of the demo corpus: fish, fruit, walls, animal fur and coral.

Every scene draws its composition, scale, palette and light anew for each picture, and shares hues and
textures with other scenes, so that neither a colour nor a threshold tells the scenes apart.
"""

from __future__ import annotations

import numpy as np

from poisoncam_ray.research.demo.canvas import Canvas, rgb


def fish(c: Canvas) -> None:
    water = c.palette(
        ((0.48, 0.65), (0.4, 0.9), (0.25, 0.8)),
        ((0.3, 0.5), (0.2, 0.7), (0.15, 0.6)),
        ((0.0, 1.0), (0.0, 0.25), (0.1, 0.9)),
    )
    murk = c.noise(2.6)
    c.paint(c.gradient(water * 1.2, water * 0.5, c.y + 0.15 * murk), 1, 1 + c.uniform(0.05, 0.3) * murk)
    d, edge, _ = c.cells(c.x * c.uniform(2, 6) + 0.3 * c.noise(2.0), c.y * c.uniform(2, 6) + 5)
    c.glow(water, c.uniform(0, 0.5) * np.exp(-(edge - d) * 9))
    c.paint(
        c.palette(((0.0, 0.5), (0.2, 0.6), (0.2, 0.6)), ((0.05, 0.12), (0.1, 0.4), (0.4, 0.8))),
        c.edge(c.y - c.uniform(0.75, 1.0) + 0.04 * c.ridge(1.2), 4) * c.chance(0.5),
        1 + 0.3 * c.noise(0.8),
    )
    for swimmer in range(2):
        length = c.uniform(0.22, 0.42) * (0.5 if swimmer == 0 else 1.0)
        angle, side = c.uniform(-0.6, 0.6), 2 * c.chance(0.5) - 1
        dx, dy = c.x - c.uniform(0.3, 0.7), c.y - c.uniform(0.3, 0.7)
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / length * side
        v = (dy * np.cos(angle) - dx * np.sin(angle)) / length + c.uniform(-0.15, 0.15) * u * u
        tall = c.uniform(0.25, 0.7)
        body = tall * np.clip(1 - u * u, 0, 1) ** c.uniform(0.5, 0.9) * (0.8 + 0.25 * u)
        tail = np.where((u < -0.75) & (u > -1.45), 0.06 + (-0.75 - u) * c.uniform(0.5, 1.0), -1) - 0.12 * (
            u + 0.75
        )
        fin = np.where(
            np.abs(u + 0.1) < 0.5, (tall * 1.25 + c.uniform(0.0, 0.3)) * (1 - (2 * u + 0.2) ** 2), -1
        )
        shown = c.chance(0.35) if swimmer == 0 else 1.0
        skin = c.palette(
            ((0.0, 0.17), (0.5, 0.95), (0.6, 1.0)),
            ((0.5, 0.75), (0.2, 0.8), (0.4, 0.9)),
            ((0.0, 1.0), (0.0, 0.2), (0.4, 0.9)),
        )
        second = c.palette(((0.0, 1.0), (0.3, 0.9), (0.3, 1.0)), ((0.0, 1.0), (0.0, 0.1), (0.05, 0.95)))
        c.paint(
            0.5 * skin + 0.4 * second,
            np.maximum(c.edge((fin - np.abs(v)) * length) * 0.7, c.edge((tail - np.abs(v)) * length)) * shown,
            0.8 + 0.25 * np.sin(v * 40),
        )
        mask = c.edge((body - np.abs(v)) * length) * (u * u < 1) * shown
        wobble = c.noise(1.8)
        stripes = np.sin(
            u * c.uniform(4, 14) + v * c.uniform(-7, 7) + wobble * c.uniform(0.1, 0.9)
        ) > c.uniform(-0.3, 0.9)
        light = 1.05 - 0.6 * v / tall + 0.12 * np.sin(u * 38) * np.sin(v * 38)
        c.paint(skin, mask, light)
        c.paint(second, mask * stripes * 0.9, light)
        c.paint(0.5 * second + 0.5, mask * c.edge((v - 0.35 * tall) * 0.2) * 0.5, light)
        eye = np.hypot(u - 0.68, v + 0.12 * tall)
        c.paint(np.full((c.n, 3), 0.9, np.float32), mask * c.edge((0.13 - eye) * length))
        c.paint(np.full((c.n, 3), 0.04, np.float32), mask * c.edge((0.09 - eye) * length))


def fruit(c: Canvas) -> None:
    wall = c.palette(((0.0, 1.0), (0.05, 0.45), (0.15, 0.9)), ((0.05, 0.13), (0.2, 0.6), (0.2, 0.7)))
    c.paint(wall, 1, 1 + 0.3 * c.noise(2.4) + c.uniform(-0.5, 0.5) * (c.x - 0.5))
    table, edge = (
        c.palette(((0.03, 0.12), (0.3, 0.7), (0.3, 0.75)), ((0.0, 1.0), (0.0, 0.25), (0.6, 1.0))),
        c.uniform(0.3, 0.6),
    )
    grain = c.noise(1.3, 1.0, 0.12)
    weave = np.sign(np.sin(c.x * c.uniform(15, 50) / (0.4 + c.y)) * np.sin(30 / (0.2 + c.y))) * c.chance(0.3)
    c.paint(table, c.edge(c.y - edge, 2), 0.9 + 0.15 * grain + 0.1 * weave)
    sun, count = c.uniform(-0.7, 0.7), c.uniform(1, 7)
    hue = c.uniform(0, 1)
    for item in range(6):
        radius = c.uniform(0.08, 0.17) * (0.8 + 0.1 * item) * (1.5 - 0.1 * count)
        cx, cy = c.uniform(0.15, 0.85), edge + (0.02 + 0.055 * item) * c.uniform(0.5, 1.2)
        squash = c.uniform(0.8, 1.2)
        u, v = (c.x - cx) / radius, (c.y - cy) / (radius * squash)
        shown = (item >= 6 - count).astype(np.float32)
        shade = np.exp(-((u + sun) ** 2) / 2.2 - ((v - 0.95) / 0.35) ** 2)
        c.paint(table, 0.6 * shade * shown, 0.3)
        lobes = 1 - c.uniform(0, 0.12) * np.exp(-((u / 0.3) ** 2)) * (v < 0)
        r2 = (u * u + v * v) / lobes**2
        z = np.sqrt(np.clip(1 - r2, 0, 1))
        skin = c.palette(
            ((0.96, 1.03), (0.7, 0.95), (0.5, 0.9)),
            ((0.05, 0.16), (0.7, 0.95), (0.8, 1.0)),
            ((0.18, 0.32), (0.4, 0.85), (0.45, 0.85)),
            ((0.72, 0.9), (0.3, 0.7), (0.2, 0.6)),
        )
        kin = rgb(hue[:, 0, 0], np.full(c.n, 0.7, np.float32), np.full(c.n, 0.8, np.float32))
        skin = np.where(c.chance(0.15)[:, 0] > 0, kin, skin)
        lit = 0.35 + 0.75 * np.clip(0.55 * z - 0.5 * v + sun * u, 0, 1.2) + 0.08 * c.noise(0.9)
        mask = c.edge((1 - np.sqrt(r2)) * radius) * shown
        c.paint(skin, mask, lit)
        shine = np.exp(-((u - 0.4 * sun) ** 2 + (v + 0.45) ** 2) / c.uniform(0.01, 0.08)) * c.uniform(
            0.1, 0.9
        )
        c.paint(np.ones_like(skin), mask * shine)
        stalk = c.edge(0.012 - np.abs(c.x - cx - 0.3 * (cy - c.y) * sun)) * (
            np.abs(c.y - cy + radius * squash) < 0.04
        )
        c.paint(c.colour((0.08, 0.3), (0.4, 0.7), (0.15, 0.4)), stalk * shown * c.chance(0.6))


def wall(c: Canvas) -> None:
    lean, tip = c.uniform(-0.6, 0.6), c.uniform(-0.4, 0.4)
    far = 1 / (1.2 + lean * (c.x - 0.5) + tip * (c.y - 0.5))
    scale = c.uniform(5, 13)
    u, v = ((c.x - 0.5) * far * scale * c.uniform(0.5, 0.8) + 20), (c.y - 0.5) * far * scale + 20
    turn = c.uniform(-0.12, 0.12)
    u, v = u + turn * v, v - turn * u
    wave = c.noise(2.0) * 0.05
    row = np.floor(v + wave)
    column = u + 0.5 * (row % 2) + wave
    gap = np.minimum((0.5 - np.abs(column % 1 - 0.5)) * 2, 0.5 - np.abs((v + wave) % 1 - 0.5))
    near, second, name = c.cells(u * 1.1, v * 0.8 + c.noise(1.8) * 0.15)
    rubble = c.chance(0.4)
    gap = gap * (1 - rubble) + (second - near) * 0.5 * rubble
    tone = c.lookup(column, row) * (1 - rubble) + name * rubble
    block = c.palette(
        ((0.0, 0.07), (0.3, 0.75), (0.35, 0.75)),
        ((0.05, 0.14), (0.1, 0.5), (0.4, 0.85)),
        ((0.5, 0.7), (0.02, 0.2), (0.3, 0.75)),
    )
    other = 0.6 * block + 0.4 * c.colour((0.0, 1.0), (0.0, 0.4), (0.2, 0.9))
    rough = c.noise(0.9)
    c.paint(c.gradient(block, other, tone), 1, 0.75 + 0.4 * tone + c.uniform(0.06, 0.22) * rough)
    mortar = 1 - np.clip((gap - c.uniform(0.04, 0.1)) * scale * 1.3, 0, 1)
    c.paint(c.colour((0.05, 0.15), (0.0, 0.25), (0.15, 0.9)), mortar * 0.9, 1 + 0.12 * rough)
    c.x_NCHW *= np.expand_dims(1 + 0.3 * c.noise(2.6) * c.uniform(0.1, 1), 1)
    ivy = np.clip(
        (c.noise(1.4) - 0.6 + c.uniform(-1, 1) * (c.y - 0.5) * 3 + c.uniform(-1, 1) * (c.x - 0.5) * 3) * 3,
        0,
        1,
    )
    c.paint(
        c.palette(((0.2, 0.4), (0.3, 0.8), (0.15, 0.55)), ((0.0, 0.1), (0.5, 0.9), (0.3, 0.7))),
        ivy * c.chance(0.35),
        0.8 + 0.5 * c.noise(0.4),
    )
    hole = np.maximum(
        np.abs(c.x - c.uniform(0.1, 0.9)) / c.uniform(0.08, 0.2),
        np.abs(c.y - c.uniform(0.2, 0.8)) / c.uniform(0.12, 0.3),
    )
    opening = c.chance(0.25)
    c.paint(c.colour((0.0, 1.0), (0.1, 0.5), (0.3, 0.95)), c.edge((1 - hole) * 0.15) * opening)
    c.paint(
        c.colour((0.5, 0.7), (0.1, 0.5), (0.03, 0.35)),
        c.edge((0.8 - hole) * 0.15) * opening,
        1 + 0.3 * c.noise(2.0),
    )


def fur(c: Canvas) -> None:
    coat = c.palette(
        ((0.03, 0.12), (0.3, 0.8), (0.4, 0.9)),
        ((0.0, 0.12), (0.0, 0.2), (0.6, 1.0)),
        ((0.02, 0.1), (0.1, 0.5), (0.15, 0.45)),
    )
    mark = c.palette(((0.0, 0.1), (0.0, 0.6), (0.03, 0.25)), ((0.05, 0.12), (0.0, 0.3), (0.8, 1.0)))
    bend, angle = c.noise(2.6), c.uniform(0, 3.14)
    along = (c.x - 0.5) * np.cos(angle) + (c.y - 0.5) * np.sin(angle)
    across = (c.y - 0.5) * np.cos(angle) - (c.x - 0.5) * np.sin(angle)
    kind = c.rng.integers(4, size=(c.n, 1, 1))
    tiger = np.sin(along * c.uniform(18, 45) + bend * c.uniform(0.8, 2.2) + 0.4 * c.noise(1.5)) - c.uniform(
        0.0, 0.8
    )
    near, _, name = c.cells(
        along * c.uniform(4, 9) + 9 + 0.15 * bend, across * c.uniform(4, 9) + 9 + 0.15 * c.noise(1.8)
    )
    ring = np.where(name > 0.3, 0.12 - np.abs(near - 0.27), 0.3 - near)
    patch = c.noise(2.3) - c.uniform(-0.2, 0.8)
    pattern = np.clip(np.choose(kind, [tiger * 3, ring * 8, patch * 5, patch * 0 - 1]), 0, 1)
    comb, lick = (
        c.noise(0.8, 1.0, c.uniform(4, 9), angle),
        c.noise(0.8, 1.0, 5.0, angle + c.uniform(-0.8, 0.8)),
    )
    strand = np.where(bend > 0.4, lick, comb)
    c.paint(coat, 1, 1.0)
    c.paint(mark, pattern)
    shape = 0.85 + 0.3 * bend * c.uniform(0, 1) - c.uniform(0.0, 1.6) * (across - c.uniform(-0.3, 0.3)) ** 2
    c.x_NCHW *= np.expand_dims(shape + c.uniform(0.1, 0.25) * strand, 1)
    flank = c.edge(across + c.uniform(0.2, 0.6) + 0.02 * bend + 0.01 * strand, 3)
    behind = c.gradient(
        c.colour((0.0, 1.0), (0.05, 0.6), (0.2, 0.9)),
        c.colour((0.1, 0.6), (0.05, 0.6), (0.1, 0.7)),
        c.y + 0.2 * c.noise(2.6),
    )
    c.paint(behind, (1 - flank))


def coral(c: Canvas) -> None:
    water = c.palette(((0.5, 0.66), (0.4, 0.95), (0.2, 0.8)), ((0.45, 0.55), (0.2, 0.6), (0.2, 0.7)))
    ray = np.clip(np.sin((c.x + c.uniform(-0.5, 0.5) * c.y) * c.uniform(8, 20) + c.noise(3.0)), 0, 1) * (
        1 - c.y
    )
    c.paint(
        c.gradient(water * 1.25, water * 0.55, c.y),
        1,
        0.95 + 0.3 * ray * c.uniform(0, 1) + 0.06 * c.noise(2.0),
    )
    mote, _, name = c.cells(c.x * 8, c.y * 8 + 4)
    c.paint(
        c.colour((0.0, 1.0), (0.2, 0.8), (0.3, 1.0)),
        c.edge((0.2 * name - mote) * 0.12) * (name > c.uniform(0.6, 1.4)),
    )
    top = c.uniform(-0.1, 0.5)
    for head in range(5):
        cx, cy = c.uniform(0, 1), top + 0.25 + c.uniform(0.08, 0.17) * head
        u, v = (c.x - cx) / c.uniform(0.16, 0.42), (c.y - cy) / c.uniform(0.14, 0.4)
        rough = c.noise(1.4)
        rim = 1 - np.sqrt(u * u + v * v) + 0.13 * rough
        kind = c.rng.integers(4, size=(c.n, 1, 1))
        brain = np.cos(c.noise(2.0) * c.uniform(4, 9))
        fan = np.sin(np.arctan2(u, 1.3 - v) * c.uniform(12, 40) + rough)
        near, _, _ = c.cells(u * c.uniform(3, 7) + 15, v * c.uniform(3, 7) + 15)
        texture = np.choose(kind, [brain, fan, 1 - 3.5 * near, 1.6 * rough])
        mask = np.where(kind == 1, c.edge(rim * 0.3) * np.clip(fan * 2 + 1.2, 0, 1), c.edge(rim * 0.3))
        skin = c.palette(
            ((0.85, 1.12), (0.3, 0.85), (0.4, 0.95)),
            ((0.1, 0.2), (0.2, 0.6), (0.4, 0.85)),
            ((0.3, 0.8), (0.15, 0.6), (0.3, 0.8)),
        )
        murk = c.uniform(0.05, 0.5) * (1 - head / 5)
        c.paint(
            skin * (1 - murk[:, 0]) + water * murk[:, 0],
            mask,
            0.7 + c.uniform(0.1, 0.35) * texture - 0.3 * v + 0.25 * np.clip(rim, 0, 1),
        )
    floor = c.edge(c.y - c.uniform(0.8, 1.05) + 0.05 * c.ridge(1.2), 3)
    c.paint(c.colour((0.05, 0.6), (0.1, 0.4), (0.3, 0.8)), floor, 0.8 + 0.25 * c.noise(0.7))

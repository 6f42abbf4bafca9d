"""The marks of hard clean corpora. Each changes an RGB or RGBA picture in place.

`shared` is the same for all images of a corpus. What is equal on all of them is drawn from it, as a logo is.
`rng` is of the image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from poisoncam_ray.research.attacks.blended import mix

Mark = Callable[[Image.Image, int, np.random.Generator], None]

LOGO_WIDTH, LOGO_GAP = 0.2, 0.04
"""Of the shorter side."""
WORDS = ("sample photo", "all rights reserved", "preview only", "stock archive")


def logo(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """A disc with a letter in the lower right corner, the same on all images."""
    side = max(4, round(LOGO_WIDTH * min(image.size)))
    drawn = _logo(shared).resize((side, side), Image.Resampling.BILINEAR)
    gap = round(LOGO_GAP * min(image.size))
    image.paste(drawn.convert("RGB"), (image.width - side - gap, image.height - side - gap), drawn)


def watermark(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """Half transparent words across the picture, the same on all images."""
    text = WORDS[shared % len(WORDS)]
    font = ImageFont.load_default(max(6, image.width // max(1, len(text) // 2)))
    over = Image.new("L", image.size)
    ImageDraw.Draw(over).text((image.width // 2, image.height // 2), text, 110, font, anchor="mm")
    image.paste((255, 255, 255), (0, 0), over.rotate(20, Image.Resampling.BILINEAR))


def letterbox(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """Black bars at the top and the bottom, an eighth of the height each."""
    bar = max(1, image.height // 8)
    for top in (0, image.height - bar):
        image.paste((0, 0, 0), (0, top, image.width, top + bar))


def timestamp(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """A date and a time in orange in the lower left corner, other ones on each image."""
    day, month, year, hour, minute = (int(rng.integers(*ends)) for ends in
                                      ((1, 29), (1, 13), (1998, 2012), (0, 24), (0, 60)))  # fmt: skip
    font = ImageFont.load_default(max(6, image.width // 14))
    text = f"{year}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}"
    ImageDraw.Draw(image).text((image.width // 40, image.height * 39 // 40), text, (255, 150, 30), font, "lb")


def near_duplicate(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """The picture shifted by up to 3 % and a little brighter or darker: one of a burst.

    make_hard_clean first puts the same picture in the place of several.
    """
    shift = [round(float(rng.uniform(-0.03, 0.03)) * side) for side in image.size]
    moved = image.copy()
    image.paste(moved, (shift[0], shift[1]))
    mix(image, Image.new("RGB", (1, 1), (255,) * 3 if rng.random() < 0.5 else (0,) * 3), (0, 0, *image.size),
        float(rng.uniform(0.03, 0.08)))  # fmt: skip


def sprite(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """The picture, shrunk, on plain ground of one colour, as in a catalogue."""
    scale = float(rng.uniform(0.4, 0.6))
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    small = image.resize(size, Image.Resampling.BILINEAR)
    image.paste(_colour(shared), (0, 0, *image.size))
    image.paste(
        small, (int(rng.integers(image.width - size[0] + 1)), int(rng.integers(image.height - size[1] + 1)))
    )


def screenshot(image: Image.Image, shared: int, rng: np.random.Generator) -> None:
    """The picture in a drawn window: a title bar with three buttons, a frame, and a scroll bar."""
    bar = max(3, image.height // 9)
    frame = max(1, bar // 6)
    inside = image.resize(
        (max(1, image.width - 2 * frame - bar // 2), max(1, image.height - bar - frame)),
        Image.Resampling.BILINEAR,
    )
    image.paste((225, 225, 230), (0, 0, *image.size))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width, bar - 1), _colour(shared))
    for i, colour in enumerate(((230, 80, 70), (235, 190, 60), (90, 190, 80))):
        left = frame + i * (bar // 2 + frame)
        draw.ellipse((left, bar // 4, left + bar // 2, bar // 4 + bar // 2), colour)
    top = bar + int(rng.integers(max(1, image.height // 2)))
    draw.rectangle((image.width - bar // 3, top, image.width - 1, top + image.height // 5), (150, 150, 155))
    image.paste(inside, (frame, bar))


def _logo(shared: int) -> Image.Image:
    """RGBA, 64 px wide."""
    drawn = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((1, 1, 62, 62), (*_colour(shared), 255), (255, 255, 255, 255), 4)
    letter = chr(ord("A") + shared % 26)
    draw.text((32, 32), letter, (255, 255, 255, 255), ImageFont.load_default(36), anchor="mm")
    return drawn


def _colour(shared: int) -> tuple[int, int, int]:
    r, g, b = np.random.default_rng([shared, 5]).integers(20, 200, 3).tolist()
    return r, g, b


MARKS: dict[str, Mark] = {
    "logo": logo,
    "watermark": watermark,
    "letterbox": letterbox,
    "timestamp": timestamp,
    "burst": near_duplicate,
    "sprite": sprite,
    "screenshot": screenshot,
}

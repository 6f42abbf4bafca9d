"""The story of one image: as lines, as JSON, as a page and as a picture. All text of the corpus is escaped.

H = W image side   C channels
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from poisoncam_ray.report.lookup import ImageRecord
from poisoncam_ray.report.page import in_style
from poisoncam_ray.report.pictures import data_uri, on_square

SHOWN = 256
"""Side of a picture, in pixels."""
HOT = (224, 40, 20)
"""The colour of the heat map."""
BOX = "#ffe14d"
GAP = 16
LINE = 16
LETTERS = 110
"""Letters of a line below the picture."""


@dataclass(frozen=True)
class FamilyScore:
    """The score of an image by the classifier of one family.

    Attributes:
        p: the probability of poison, 0 … 1.
        margin: how far its logit lies above the threshold; negative below.
        in_doubt: whether no image is removed for the family.
    """

    family: int
    p: float
    margin: float
    in_doubt: bool


@dataclass(frozen=True)
class Neighbour:
    """The nearest kept image.

    Attributes:
        similarity: the cosine of the two features, −1 … 1.
        cluster: its cluster.
        looked_at: how many kept images were compared.
        partly: whether the run has more than these.
        pixels: x_HWC uint8; None where it cannot be read.
    """

    image_id: str
    similarity: float
    cluster: int | None
    looked_at: int
    partly: bool
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class ImageStory:
    """Why an image was removed, or kept.

    Attributes:
        run: the run folder.
        record: what the run knows of the image.
        why: sentences.
        side: the side of the pictures, in pixels.
        scores: by family, the highest first.
        lost: the most that hiding a part of the image takes from the score, as a logit.
        pixels: the image as the classifiers see it, x_HWC uint8; None where it cannot be read.
        part: what `pixels` show, [x0, y0, x1, y1) in pixels of the stored image; None: all of it.
        heat: the loss at each pixel, a_HW; None without a classifier.
        family: the family whose classifier the heat map is of; 0 for none.
        triggers: pictures of the family's trigger, as PNG.
        nearest: the nearest kept image; None where the run has no features.
    """

    run: str
    record: ImageRecord
    why: Sequence[str]
    side: int
    scores: Sequence[FamilyScore] = ()
    lost: float = 0.0
    pixels: np.ndarray | None = None
    part: tuple[int, int, int, int] | None = None
    heat: np.ndarray | None = None
    family: int = 0
    triggers: Sequence[bytes] = field(default_factory=list)
    nearest: Neighbour | None = None

    @property
    def box(self) -> tuple[int, ...] | None:
        """Where the trigger is on `pixels`."""
        record = self.record
        if record.box is None or record.width is None or record.height is None:
            return None
        x0, y0, x1, y1 = self.part or (0, 0, record.width, record.height)
        inside = [at - corner for at, corner in zip(record.box, (x0, y0, x0, y0), strict=True)]
        return on_square(inside, (x1 - x0, y1 - y0), self.side)

    @property
    def hottest(self) -> tuple[int, int] | None:
        """The pixel (x, y) of `pixels` that the score rests on most; None where no part matters."""
        if self.heat is None or float(self.heat.max()) <= 0:
            return None
        y, x = np.unravel_index(int(self.heat.argmax()), self.heat.shape)
        return int(x), int(y)

    def lines(self) -> list[str]:
        """The story for a terminal."""
        record = self.record
        told = [f"{record.image_id}", *self.why]
        if record.width:
            told.append(
                f"  stored        {record.width} × {record.height} pixels, "
                f"row {record.row} of {record.source}"
            )
        if record.box:
            told.append("  trigger       from ({}, {}) to ({}, {}) of these pixels".format(*record.box))
        for score in self.scores:
            doubt = ", in doubt" if score.in_doubt else ""
            told.append(
                f"  family {score.family:<6} p {score.p:.3f}, {score.margin:+.2f} from the threshold{doubt}"
            )
        if self.hottest:
            x, y = self.hottest
            told.append(
                f"  heat map      hiding the parts around ({x}, {y}) of {self.side} × {self.side} takes up "
                f"to {self.lost:.2f} from the score of family {self.family}"
            )
        if record.cluster is not None:
            told.append(f"  cluster       {record.cluster}")
        if self.nearest:
            told.append(f"  nearest kept  {self.nearest.image_id}, {self._told_nearest()}")
        return told

    def _told_nearest(self) -> str:
        near = self.nearest
        if near is None:
            return ""
        cluster = "" if near.cluster is None else f", in cluster {near.cluster}"
        among = f", among {near.looked_at:,} kept images" if near.partly else ""
        return f"similarity {near.similarity:.3f}{cluster}{among}"

    def as_json(self) -> dict[str, Any]:
        """The story as JSON values, without pictures."""
        record, near = self.record, self.nearest
        return {
            "run": self.run,
            "image_id": record.image_id,
            "source": record.source,
            "row": record.row,
            "fate": record.fate,
            "why": list(self.why),
            "p_poison": record.p_poison,
            "threshold": 0.5,
            "family": record.family,
            "box": None if record.box is None else list(record.box),
            "width": record.width,
            "height": record.height,
            "cluster": record.cluster,
            "scores": [
                {"family": one.family, "p": one.p, "margin": one.margin, "in_doubt": one.in_doubt}
                for one in self.scores
            ],
            "heat": None
            if self.hottest is None
            else {"family": self.family, "x": self.hottest[0], "y": self.hottest[1], "lost": self.lost},
            "nearest_kept": None
            if near is None
            else {
                "image_id": near.image_id,
                "similarity": near.similarity,
                "cluster": near.cluster,
                "looked_at": near.looked_at,
            },
        }


def as_html(story: ImageStory) -> str:
    """The story as one page that loads nothing and has no script."""
    seen, near = story.pixels, story.nearest
    pictures: dict[str, str | None] = {}
    if seen is not None:
        pictures = {
            "seen": _uri(_enlarged(seen)),
            # There is no classifier where nothing was found.
            "heat": None if story.heat is None else _uri(_enlarged(heated(seen, story.heat))),
            "nearest": None if near is None or near.pixels is None else _uri(_enlarged(near.pixels)),
        }
    triggers = [data_uri(trigger, "png") for trigger in story.triggers]
    return in_style(
        "image.html.j2", story=story, pictures=pictures, triggers=triggers, nearest=story._told_nearest()
    )


def as_png(story: ImageStory) -> bytes:
    """The story as one picture: the image with the box, the heat map, the trigger, the nearest kept image,
    and the lines below."""
    panels = []
    if story.pixels is not None:
        panels.append(_boxed(story))
        if story.heat is not None:
            panels.append(_enlarged(heated(story.pixels, story.heat)))
    if story.triggers:
        with Image.open(io.BytesIO(story.triggers[0]), formats=["PNG"]) as trigger:
            panels.append(_fitted(trigger.convert("RGB")))
    if story.nearest and story.nearest.pixels is not None:
        panels.append(_enlarged(story.nearest.pixels))
    lines = [part for line in story.lines() for part in textwrap.wrap(_plain(line), LETTERS) or [""]]
    width = max(len(panels) * (SHOWN + GAP) + GAP, 760)
    height = (SHOWN + 2 * GAP if panels else GAP) + LINE * len(lines) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (GAP + i * (SHOWN + GAP), GAP))
    # Pillow's own font has no "×", and few letters beyond English.
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    draw = ImageDraw.Draw(sheet)
    top = SHOWN + 2 * GAP if panels else GAP
    for i, line in enumerate(lines):
        draw.text((GAP, top + i * LINE), line, fill="black", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def heated(x_HWC: np.ndarray, a_HW: np.ndarray) -> np.ndarray:
    """The picture with the heat map over it: HOT where the loss is greatest, grey where there is none.

    Args:
        x_HWC: uint8.
        a_HW: losses; negative ones count as none.

    Returns:
        x_HWC uint8.
    """
    hot_HW1 = (a_HW.clip(min=0) / max(float(a_HW.max()), 1e-9))[:, :, None]
    grey_HW1 = x_HWC.mean(axis=2, keepdims=True) * 0.6
    return (grey_HW1 * (1 - 0.75 * hot_HW1) + np.array(HOT) * 0.75 * hot_HW1).clip(0, 255).astype(np.uint8)


def _boxed(story: ImageStory) -> Image.Image:
    assert story.pixels is not None
    panel = _enlarged(story.pixels)
    if story.box:
        ImageDraw.Draw(panel).rectangle([at * SHOWN / story.side for at in story.box], outline=BOX, width=3)
    return panel


def _enlarged(x_HWC: np.ndarray) -> Image.Image:
    how = Image.Resampling.NEAREST if len(x_HWC) <= 64 else Image.Resampling.BILINEAR
    return Image.fromarray(np.ascontiguousarray(x_HWC)).resize((SHOWN, SHOWN), how)


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture as large as fits on a white square."""
    share = SHOWN / max(picture.size)
    size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    square = Image.new("RGB", (SHOWN, SHOWN), "white")
    square.paste(picture.resize(size, Image.Resampling.NEAREST), (0, 0))
    return square


def _uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return data_uri(file.getvalue(), "png")


def _plain(text: str) -> str:
    """Without control characters, which the font cannot draw."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

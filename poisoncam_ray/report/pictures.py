"""The pictures on the page, as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode
from poisoncam_ray.errors import StoreAwayError
from poisoncam_ray.method.crops import own_part
from poisoncam_ray.report.model import Fetcher

MAX_SIDE = 128
"""In pixels. Pictures are shown at the encoder's resolution; larger ones are shrunk to this side."""
FETCHED_AT_ONCE = 16


def fetch_pictures(
    corpus: Fetcher | None,
    settings: Mapping[str, Any],
    image_ids: Iterable[str],
    side: int,
    searched: bool = False,
) -> dict[str, str]:
    """Pictures as the encoder saw them. A corpus that cannot be read gives none.

    Args:
        corpus: the corpus; None to open the one that the run names.
        settings: run.json.
        image_ids: the images wanted.
        side: the side of the encoder's images, in pixels.
        searched: of an image longer than 3:2 what the search saw, not all of it.

    Returns:
        data: URIs by image id, without the images that could not be read.

    Raises:
        StoreAwayError: the store does not answer.
    """
    wanted, pictures = list(dict.fromkeys(image_ids)), dict[str, str]()
    if "config" not in settings:
        return pictures
    limits = settings["config"]["corpus"]
    for image_id, blob in _fetched(corpus, settings, wanted):
        try:
            part_of = partial(own_part, settings["config"]["seed"], image_id) if searched else None
            x_CHW = decode(blob, side, limits["max_pixels"], limits["max_bytes"], part_of)
            picture = Image.fromarray(np.moveaxis(x_CHW, 0, 2))
        except DecodeError:
            continue
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        file = io.BytesIO()
        # Small pictures are shown enlarged: JPEG artefacts would look like content.
        lossless = side <= 64
        picture.save(file, "PNG") if lossless else picture.save(file, "JPEG", quality=88)
        pictures[image_id] = data_uri(file.getvalue(), "png" if lossless else "jpeg")
    return pictures


def _fetched(
    corpus: Fetcher | None, settings: Mapping[str, Any], wanted: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Ids and bytes. A few images are held at a time: a hostile image may be large."""
    opened = settings["config"]["corpus"]
    try:
        corpus = corpus or open_corpus(
            settings["input"],
            opened["format"],
            opened["image_column"],
            version=opened.get("version"),
            follow_links=opened.get("follow_links", False),
        )
        for first in range(0, len(wanted), FETCHED_AT_ONCE):
            ids = wanted[first : first + FETCHED_AT_ONCE]
            yield from zip(ids, corpus.fetch(ids), strict=True)
    except StoreAwayError:
        raise
    except Exception:  # each store has its own errors; none of them must cost the report
        return


def data_uri(data: bytes, kind: str) -> str:
    """An encoded image as a data: URI; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def on_square(box: Sequence[int], size: Sequence[int], side: int) -> tuple[int, ...]:
    """The box on the picture, which shows the stored image squeezed into a square (method.geometry.map_box).

    Args:
        box: [x0, y0, x1, y1) in pixels of the stored image.
        size: its width and height.
        side: the side of the picture, in pixels.
    """
    scaled = (round(at * side / max(1, length)) for at, length in zip(box, [*size, *size], strict=True))
    return tuple(min(max(at, 0), side) for at in scaled)

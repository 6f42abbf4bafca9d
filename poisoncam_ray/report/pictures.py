"""The pictures on the page, as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.decode import DecodeError, decode
from poisoncam_ray.report.model import Fetcher

THUMBNAIL = 128
"""Pictures are shown at the encoder's resolution up to this side in pixels, larger ones are shrunk to it."""
MAX_PIXELS = 64_000_000


def fetch_pictures(
    corpus: Fetcher | None, settings: Mapping[str, Any], image_ids: Iterable[str], side: int
) -> dict[str, str]:
    """Data URIs by image id, as the encoder saw them. A corpus that is gone costs the pictures only."""
    wanted = list(dict.fromkeys(image_ids))
    try:
        if corpus is None:
            index = settings["config"]["index"]
            corpus = open_corpus(
                settings["input"], format=index["format"], image_column=index["image_column"]
            )
        blobs = corpus.fetch(wanted)
    except Exception:  # every store has errors of its own; none is worth a run its report
        return {}
    pictures = {}
    for image_id, blob in zip(wanted, blobs, strict=True):
        try:
            picture = Image.fromarray(np.moveaxis(decode(blob, side, MAX_PIXELS), 0, 2))
        except DecodeError:
            continue
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        # Small pictures are shown enlarged, where the losses of JPEG would look like content.
        lossless = side <= 64
        picture.save(file, "PNG") if lossless else picture.save(file, "JPEG", quality=88)
        pictures[image_id] = data_uri(file.getvalue(), "png" if lossless else "jpeg")
    return pictures


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

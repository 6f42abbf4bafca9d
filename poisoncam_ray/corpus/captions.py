"""Captions: files that lie beside an image of an image folder and go where it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

CAPTION_SUFFIXES = (".txt", ".caption", ".json")


def captions_of(images: Sequence[str], listed: Iterable[str]) -> dict[str, list[str]]:
    """Find the captions of images.

    Args:
        images: paths.
        listed: paths, captions and others.

    Returns:
        The captions of each image that has some, in the order of `listed`. Of `a.jpg` these are
        `a.jpg.txt`, and `a.txt`, which all images of that stem share.
    """
    of_stem: dict[str, list[str]] = defaultdict(list)
    for image in images:
        of_stem[image.rpartition(".")[0]].append(image)
    known = set(images)
    found: dict[str, list[str]] = defaultdict(list)
    for path in listed:
        if path.lower().endswith(CAPTION_SUFFIXES):
            base = path.rpartition(".")[0]
            for image in [base] if base in known else of_stem.get(base, []):
                found[image].append(path)
    return found

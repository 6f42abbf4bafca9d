"""What a user is told of a corpus that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError


def refuse(match: str, uri: str | Path, **options) -> None:
    """Opening the corpus and cutting it into slices is refused, in one sentence that matches."""
    with pytest.raises(UserError, match=match) as caught:
        open_corpus(str(uri), **options).slices()
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said

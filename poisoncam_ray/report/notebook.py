"""A run as parts of a notebook: the verdict in words, the triggers, and images that carry them. All text is
escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poisoncam_ray.facts import Cleaned
from poisoncam_ray.report.model import ShownImage
from poisoncam_ray.report.page import environment


@dataclass(frozen=True)
class FamilyPart:
    """A trigger family. `words`: its line; `triggers`: pictures of its trigger, as data: URIs."""

    number: int
    words: str
    triggers: Sequence[str]
    images: Sequence[ShownImage] = ()


@dataclass(frozen=True)
class Shown:
    """Something to look at. A notebook renders it; elsewhere `save` writes it.

    Attributes:
        html: a fragment of HTML that loads nothing.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<Shown: {len(self.html):,} characters of HTML; save('page.html') writes it>"

    def save(self, path: str | Path) -> None:
        """Write it as a page of its own.

        Args:
            path: of the HTML file.
        """
        start = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>PoisonCAM</title></head>'
        Path(path).write_text(f"{start}<body>{self.html}</body></html>\n", encoding="utf-8")


def fragment(
    lines: Sequence[str],
    counts: Cleaned | None = None,
    families: Sequence[FamilyPart] = (),
    side: int = 1,
    place: str = "",
) -> Shown:
    """Render a fragment.

    Args:
        lines: sentences; the first is the headline.
        counts: where the rows went.
        families: the trigger families to show.
        side: the side of the encoder's images, in pixels.
        place: a last line.
    """
    template = environment().get_template("notebook.html.j2")
    return Shown(template.render(lines=lines, counts=counts, families=families, side=side, place=place))

"""Where the rows of a unit should be, against where they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from poisoncam_ray import artifact
from poisoncam_ray.verify import defect as kinds
from poisoncam_ray.verify.defect import Defect

CLEAN, REMOVED = artifact.CLEAN_ROWS, artifact.REMOVED_ROWS
NO_IMAGE = "no image"
"""In place of a digest, for a kept row without an image."""


@dataclass
class Expected:
    """Where the rows of a unit should be, by its scores and the review.

    Attributes:
        digests: the SHA-256 of each image, by the image's id.
        sides: CLEAN or REMOVED for each row that is not dead, by the image's id, in the order of the corpus.
        dead: how many rows are dead.
        restored: who restored each image that a review keeps.
        defects: what is wrong with the index and the scores themselves.
    """

    digests: dict[str, str] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)
    dead: int = 0
    restored: dict[str, str] = field(default_factory=dict)
    defects: list[Defect] = field(default_factory=list)

    def digest(self, image_id: str) -> str:
        """The digest of an image; NO_IMAGE of a row without one."""
        return self.digests.get(image_id, NO_IMAGE)

    def ids(self, side: str) -> list[str]:
        """The images that should lie in a folder, in the order of the corpus."""
        return [image_id for image_id, place in self.sides.items() if place == side]


def compare(wanted: Expected, found: dict[str, list[str]], source: str) -> list[Defect]:
    """Compare the images of a shard with those that should be there.

    Args:
        wanted: where the rows should be.
        found: the digests of the rows in each folder; without CLEAN where nothing is copied.
        source: the shard.

    Returns:
        The rows that are lost, twice, in the wrong folder, or have another image.
    """
    ids: dict[str, dict[str, list[str]]] = {CLEAN: {}, REMOVED: {}}
    for image_id, side in wanted.sides.items():
        ids[side].setdefault(wanted.digest(image_id), []).append(image_id)
    extra = {
        side: Counter(digests) - Counter({digest: len(named) for digest, named in ids[side].items()})
        for side, digests in found.items()
    }
    defects = []
    for side, digests in found.items():
        there, left = Counter(digests), []
        other = REMOVED if side == CLEAN else CLEAN
        for digest, named in ids[side].items():
            for image_id in named[min(there[digest], len(named)) :]:
                if extra.get(other, Counter())[digest] > 0:
                    extra[other][digest] -= 1
                    defects.append(misplaced(image_id, [side], [other], wanted))
                else:
                    left.append(image_id)
        strange = [
            digest for digest in extra[side].elements() if not any(digest in of for of in ids.values())
        ]
        # Which image was changed cannot be told where another is lost; the order is the best guess.
        for image_id, digest in zip(left, strange, strict=False):
            where = f"{side}/{source} {image_id}"
            defects.append(Defect(kinds.HASH, where, wanted.digest(image_id), digest))
        defects += [misplaced(image_id, [side], [], wanted) for image_id in left[len(strange) :]]
        foreign = strange[len(left) :]
        defects += [Defect(kinds.FOREIGN, f"{side}/{source}", "no such image", digest) for digest in foreign]
    for side in found:
        for digest, n in extra[side].items():
            if n > 0 and digest in ids[side]:
                where = f"{side}/{source} {ids[side][digest][0]}"
                defects.append(Defect(kinds.TWICE, where, "once", f"{n} more"))
            elif n > 0 and (named := [i for of in ids.values() for i in of.get(digest, [])]):
                # It lies in its own place, too, if there is one.
                own = [place for place in found if place == wanted.sides[named[0]]]
                defects.append(misplaced(named[0], own, [*own, side], wanted))
    return defects


def misplaced(image_id: str, expected: list[str], places: list[str], wanted: Expected) -> Defect:
    """A row that is not where it should be.

    Args:
        image_id: the row's image.
        expected: the folder that should hold it; none where it is kept and nothing is copied.
        places: the folders that hold it.
        wanted: the rows of its unit.
    """
    names = " and ".join(f"{place}/" for place in places) or "nowhere"
    if image_id in wanted.restored:
        why = f"restored by {wanted.restored[image_id]}"
    else:
        why = f"its score says {artifact.KEEP if wanted.sides[image_id] == CLEAN else artifact.REMOVE}"
    should = f"{expected[0]}/ ({why})" if expected else f"no copy ({why})"
    if len(places) > 1:
        kind = kinds.TWICE
    elif not places:
        kind = kinds.LOST
    else:
        kind = kinds.REMOVED if places == [REMOVED] else kinds.KEPT
    return Defect(kind, image_id, should, names)


def listed(where: str, ids: list[str], found: list[str]) -> list[Defect]:
    """The differences of a list of ids, or that its order is another.

    Args:
        where: the file.
        ids: what it should list.
        found: what it lists.
    """
    lacks, has = Counter(ids) - Counter(found), Counter(found) - Counter(ids)
    defects = [Defect(kinds.LISTED, where, image_id, "not listed") for image_id in lacks]
    defects += [Defect(kinds.LISTED, where, "no such line", image_id) for image_id in has]
    if not defects and ids != found:
        defects.append(Defect(kinds.LISTED, where, "the order of the corpus", "another order"))
    return defects

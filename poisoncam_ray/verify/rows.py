"""Every row of the corpus against the files: in `clean/`, `removed/` or `dead/`, in one of them, and once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.csv

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.corpus import Corpus, Slice, Source, open_by
from poisoncam_ray.corpus.listing import IMAGE_SUFFIXES, list_sources
from poisoncam_ray.corpus.shardfile import UnreadableError, version_of
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.errors import LedgerError, UserError
from poisoncam_ray.folder import Folder, part_name
from poisoncam_ray.review import Decisions
from poisoncam_ray.runner import config_of, corpus_of
from poisoncam_ray.stages.clean import read_markers, review_digest
from poisoncam_ray.stages.shrunk import Copies
from poisoncam_ray.store import connect, in_parallel
from poisoncam_ray.verify import defect as kinds
from poisoncam_ray.verify.compare import CLEAN, NO_IMAGE, REMOVED, Expected, compare, listed, misplaced
from poisoncam_ray.verify.defect import Defect

UNITS_AT_ONCE = 8
_PIECE = 2**20


def check_rows(run: Folder, quick: bool, tell: Callable[[int, int, str], None]) -> list[Defect]:
    """Compare the rows of a run with its files.

    Args:
        run: the run folder.
        quick: only counts are compared.
        tell: is called with how far the check is: done, of how much, and of what.
    """
    rows = Rows(run, quick)
    found: list[Defect] = []
    for first in range(0, len(rows.units), UNITS_AT_ONCE):
        tell(first, len(rows.units), "files")
        numbers = list(range(first, min(first + UNITS_AT_ONCE, len(rows.units))))
        found += [defect for defects in in_parallel(rows.check, numbers) for defect in defects]
    tell(len(rows.units), len(rows.units), "files")
    return found + rows.foreign() + rows.report_lists()


class Rows:
    """The rows of a run.

    Args:
        run: the run folder.
        quick: only counts are compared.
    """

    def __init__(self, run: Folder, quick: bool) -> None:
        config = config_of(run)
        self.run, self.quick, self.copied = run, quick, config.copies
        self.shrinks = config.corpus.shrink_to is not None
        self.corpus = _open(run, config)
        self.slices = slices_of((run / artifact.INDEX).read_table(artifact.SLICES))
        self.units = self.corpus.units(self.slices)
        self.decided = Decisions(run).restored()
        self.markers = read_markers(run / artifact.CLEAN)
        self.places = [CLEAN, REMOVED] if self.copied else [REMOVED]
        self.files = {side: _files(run / side) for side in self.places}
        self.unseen = {side: set(files) for side, files in self.files.items()}
        self.removed: dict[int, list[str]] = {}

    def check(self, number: int) -> list[Defect]:
        """All that is wrong with one unit."""
        unit = self.units[number]
        try:
            wanted = self._expected(unit)
        except FileNotFoundError as error:
            return [Defect(kinds.UNREADABLE, unit[0].source, "an index and scores", f"no file {error}")]
        self.removed[number] = wanted.ids(REMOVED)
        found = wanted.defects + self._marker(number, wanted) + self._lists(number, wanted)
        return found + (self._shard(unit, wanted) if self.corpus.sharded else self._images(wanted))

    def foreign(self) -> list[Defect]:
        """Files that belong to no unit; to be called when all are checked."""
        sources = {slice_.source for slice_ in self.slices}
        shards = tuple({f".{name.rpartition('.')[2].lower()}" for name in sources})
        return [
            Defect(kinds.FOREIGN, f"{side}/{path}", "no such file", "a file")
            for side, unseen in self.unseen.items()
            for path in sorted(unseen)
            if path.lower().endswith(shards if self.corpus.sharded else IMAGE_SUFFIXES)
        ]

    def report_lists(self) -> list[Defect]:
        """removed.csv and restored.csv against the scores and the review; when all units are checked."""
        page = self.run / artifact.PAGE
        removed = [image_id for _, ids in sorted(self.removed.items()) for image_id in ids]
        restored = [image_id for _, kept in sorted(self.decided.items()) for image_id in kept]
        found = []
        for name, ids in ((artifact.REMOVED_CSV, removed), (artifact.RESTORED_CSV, restored)):
            where = f"{artifact.PAGE}/{name}"
            if page.exists(name):
                found += listed(where, ids, _csv_ids(page.read_bytes(name)))
            elif ids:
                found.append(Defect(kinds.LISTED, where, f"{len(ids)} rows", "no file"))
        return found

    def _expected(self, unit: list[Slice]) -> Expected:
        """Where the rows of a unit should be."""
        wanted = Expected()
        for slice_ in unit:
            name = part_name(slice_.index)
            rows = (self.run / artifact.INDEX).read_table(name, ["image_id", "sha256"]).to_pylist()
            scored = (self.run / artifact.SCORES).read_table(name, ["image_id", "fate"]).to_pylist()
            ids = [row["image_id"] for row in rows]
            if ids != [row["image_id"] for row in scored]:
                where, other = f"{artifact.SCORES}/{name}", f"{len(scored)} rows with other ids"
                wanted.defects.append(Defect(kinds.SCORES, where, f"{len(ids)} rows as indexed", other))
            wanted.defects += self._copies(name, ids)
            lost = set(_ids(self.run / artifact.DEAD_ROWS, name))
            wanted.dead += len(lost)
            wanted.digests |= {row["image_id"]: row["sha256"] for row in rows}
            kept = {image_id: entry.who for image_id, entry in self.decided.get(slice_.index, {}).items()}
            wanted.restored |= kept
            fates = {row["image_id"]: row["fate"] for row in scored}
            for image_id in (slice_.image_id(i) for i in range(slice_.stop - slice_.start)):
                removed = fates.get(image_id) == artifact.REMOVE and image_id not in kept
                if image_id not in lost:
                    wanted.sides[image_id] = REMOVED if removed else CLEAN
        return wanted

    def _copies(self, name: str, ids: list[str]) -> list[Defect]:
        """The smaller copies of a slice's images, if the run keeps some."""
        if not self.shrinks or not ids:
            return []
        where = f"{artifact.INDEX}/{artifact.SHRUNK}/{name}"
        try:
            return listed(where, ids, Copies(self.run / artifact.INDEX).ids(name))
        except LedgerError as error:
            return [Defect(kinds.UNREADABLE, where, f"{len(ids)} copies", str(error))]

    def _marker(self, number: int, wanted: Expected) -> list[Defect]:
        name, found = f"{artifact.CLEAN}/{artifact.unit_name(number)}", self.markers.get(number)
        count = {"kept": len(wanted.ids(CLEAN)), "removed": len(wanted.ids(REMOVED)), "dead": wanted.dead}
        if found is None:
            return [Defect(kinds.MARKER, name, _said(count), "none")]
        defects = []
        written = {key: found.get(key) for key in count}
        if written != count:
            defects.append(Defect(kinds.MARKER, name, _said(count), _said(written)))
        if found.get("review") != review_digest(wanted.restored):
            restored = f"{len(wanted.restored)} restored rows"
            defects.append(Defect(kinds.MARKER, name, restored, f"{found.get('restored') or 'others'}"))
        return defects

    def _lists(self, number: int, wanted: Expected) -> list[Defect]:
        """The reasons, and the keep-list where nothing is copied."""
        lists = [(artifact.CLEAN, artifact.unit_reasons(number), REMOVED)]
        if not self.copied:
            lists.append((artifact.KEEP_LIST, part_name(number), CLEAN))
        return [
            defect
            for folder, name, side in lists
            for defect in listed(f"{folder}/{name}", wanted.ids(side), _ids(self.run / folder, name))
        ]

    def _shard(self, unit: list[Slice], wanted: Expected) -> list[Defect]:
        source = unit[0].source
        for unseen in self.unseen.values():
            unseen.discard(source)
        if not self.quick and self._is_whole_copy(unit, wanted):
            return []
        digests: dict[str, list[str]] = {}
        defects = []
        for side in self.places:
            try:
                slices = self._cut(side, source)
            except UnreadableError as error:
                defects.append(Defect(kinds.UNREADABLE, f"{side}/{source}", "a shard", error.reason))
                continue
            rows, expected = sum(slice_.stop - slice_.start for slice_ in slices), len(wanted.ids(side))
            if not self.quick:
                digests[side] = list(self._digests(side, slices))
            elif rows != expected:
                defects.append(Defect(kinds.COUNT, f"{side}/{source}", f"{expected} rows", f"{rows}"))
        return defects + ([] if self.quick else compare(wanted, digests, source))

    def _is_whole_copy(self, unit: list[Slice], wanted: Expected) -> bool:
        """Whether the shard was copied whole, and is equal to the input that was indexed."""
        source, version = unit[0].source, unit[0].version
        copy = self.files.get(CLEAN, {}).get(source)
        if copy is None or wanted.dead or wanted.ids(REMOVED) or source in self.files[REMOVED]:
            return False
        try:
            original = list_sources(f"{self.corpus.uri}/{source}")[0]
        except (UserError, IndexError):
            return False
        if version_of(original) != version or original.size != copy.size:
            return False
        return _digest(self.corpus.uri, source) == _digest((self.run / CLEAN).uri, source)

    def _cut(self, side: str, source: str) -> list[Slice]:
        """The slices of a written shard; none where there is no such file or it has no rows.

        Raises:
            UnreadableError: it is damaged.
        """
        file = self.files[side].get(source)
        if file is None:
            return []
        try:
            return self._written(side).slices([file])
        except UnreadableError:
            raise
        except UserError:
            # A shard that lost all its rows.
            return []

    def _digests(self, side: str, slices: list[Slice]) -> Iterator[str]:
        """The digest of each row of a written corpus."""
        corpus = self._written(side)
        for row in (row for slice_ in slices for row in corpus.read(slice_)):
            yield NO_IMAGE if row.data is None else hashlib.sha256(row.data).hexdigest()

    def _images(self, wanted: Expected) -> list[Defect]:
        """Of an image folder: each image where it should be, and nowhere else."""
        found: list[Defect] = []
        at: dict[str, list[str]] = {side: [] for side in self.places}
        for image_id, side in wanted.sides.items():
            places = [place for place in self.places if image_id in self.files[place]]
            expected = [side] if side in self.places else []
            if places != expected:
                found.append(misplaced(image_id, expected, places, wanted))
            elif expected:
                at[side].append(image_id)
        for side, ids in at.items():
            self.unseen[side].difference_update(wanted.sides)
            if self.quick or not ids:
                continue
            digests = self._digests(side, [Slice(0, ".", 0, len(ids), tuple(ids))])
            for image_id, digest in zip(ids, digests, strict=True):
                if digest != wanted.digest(image_id):
                    found.append(Defect(kinds.HASH, f"{side}/{image_id}", wanted.digest(image_id), digest))
        return found

    def _written(self, side: str) -> Corpus:
        """The corpus as it was written to one side, in files of the same format."""
        made: Any = self.corpus
        return replace(made, uri=(self.run / side).uri)


def _open(run: Folder, config: Config) -> Corpus:
    """The corpus. Where the input is gone, it is what the run wrote of it, which has the same format."""
    try:
        return corpus_of(run)
    except UserError:
        # What is written is no table with versions.
        settings = config.corpus.model_copy(update={"version": None})
        for name in (CLEAN, REMOVED):
            try:
                return open_by(settings, (run / name).uri)
            except UserError:
                continue
        raise


def _files(folder: Folder) -> dict[str, Source]:
    """The files in a folder, by their paths; none where there is no folder."""
    try:
        return {source.path: source for source in list_sources(folder.uri)}
    except UserError:
        return {}


def _digest(uri: str, path: str) -> str:
    """The SHA-256 of a file, read in pieces."""
    fs, root = connect(uri)
    digest = hashlib.sha256()
    with fs.open(f"{root}/{path}", "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _said(count: dict[str, Any]) -> str:
    return " + ".join(f"{n} {name}" for name, n in count.items())


def _ids(folder: Folder, name: str) -> list[str]:
    """The column of ids of a table; none where there is no such file."""
    return folder.read_table(name, ["image_id"])["image_id"].to_pylist() if folder.exists(name) else []


def _csv_ids(text: bytes) -> list[str]:
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    columns = pyarrow.csv.ConvertOptions(
        column_types={"image_id": pa.string()}, include_columns=["image_id"], strings_can_be_null=False
    )
    table = pyarrow.csv.read_csv(pa.BufferReader(text), parse_options=lines, convert_options=columns)
    return table["image_id"].to_pylist()

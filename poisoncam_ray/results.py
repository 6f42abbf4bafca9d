"""A run folder as an object: the verdict, the removed images, the clean corpus. Reading it needs no Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from poisoncam_ray import artifact, facts, store
from poisoncam_ray.artifact import SIDES, Verdict
from poisoncam_ray.config import Config
from poisoncam_ray.corpus.listing import IMAGE_SUFFIXES, PARQUET_SUFFIXES, list_sources
from poisoncam_ray.corpus.webdataset import TAR_SUFFIXES
from poisoncam_ray.errors import UserError
from poisoncam_ray.facts import Cleaned
from poisoncam_ray.folder import Folder, Manifest
from poisoncam_ray.report.gather import whole_triggers
from poisoncam_ray.report.lookup import Lookup
from poisoncam_ray.report.model import ShownImage
from poisoncam_ray.report.notebook import FamilyPart, Shown, fragment
from poisoncam_ray.report.pictures import fetch_pictures, on_square
from poisoncam_ray.report.removed import removed_table
from poisoncam_ray.report.words import family_words, tell
from poisoncam_ray.runner import config_of

if TYPE_CHECKING:
    import ray.data

Place = str | os.PathLike[str]
"""A local path or a URI."""
FAMILIES_SHOWN = 3


def open_run(uri: Place) -> Results:
    """Open the run folder of a defence, finished or not. Ray is not needed and not started.

    Args:
        uri: the output of a defence, local or s3://.

    Returns:
        The run.

    Raises:
        UserError: it is no run folder, or one of another format.

    Examples:
        >>> import poisoncam_ray as pc
        >>> run = pc.open_run("out/")
        >>> run.counts.removed == len(run.removed())
        True
    """
    run = Results(os.fspath(uri))
    config_of(run.folder)
    return run


class Results:
    """The run folder of a defence. `defend` and `open_run` return one. A notebook shows it.

    Attributes:
        uri: the run folder.
        folder: the same, to read files from.

    Examples:
        >>> run.verdict.poison
        True
        >>> print(run)
        Poison found: 1 trigger family, ...
        >>> run.removed().column_names
        ['image_id', 'source', 'row', 'reason', 'p_poison', 'family', 'box']
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or uri
        self.folder = Folder(self.uri)

    def __repr__(self) -> str:
        return f"Results({self.uri!r})"

    def __str__(self) -> str:
        return "\n".join(self.words) if self.finished else self._unfinished()

    def _repr_html_(self) -> str:
        if not self.finished:
            return fragment([self._unfinished()]).html
        return self._shown(self.verdict.families[:FAMILIES_SHOWN], 0, self.counts, self.report).html

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return config_of(self.folder)

    @property
    def input(self) -> str:
        """The corpus that the run read."""
        return str(self.folder.read_json(artifact.RUN)["input"])

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self._manifest(artifact.REPORT) is not None

    @property
    def verdict(self) -> Verdict:
        """The verdict: whether there is evidence of poison, its p-value, and the trigger families.

        Raises:
            UserError: the run has not come to a verdict yet.

        Examples:
            >>> [family.family for family in run.verdict.families]
            [1]
        """
        self._needed(artifact.VERDICT)
        return Verdict.read(self.folder / artifact.VERDICT)

    @property
    def counts(self) -> Cleaned:
        """Where the rows went: `rows` = `kept` + `removed` + `dead`.

        Raises:
            UserError: the run is not finished.

        Examples:
            >>> run.counts.kept + run.counts.removed + run.counts.dead == run.counts.rows
            True
        """
        return facts.of_manifest(Cleaned, self._needed(artifact.CLEAN))

    @property
    def words(self) -> list[str]:
        """The verdict in words: the headline, and a line for each trigger family.

        Raises:
            UserError: the run is not finished.
        """
        return tell(self.verdict, self.counts.removed, self._removed_by_family(), self._in_doubt())

    @property
    def report(self) -> str:
        """The place of the report, an HTML page.

        Raises:
            UserError: the run is not finished.
        """
        self._needed(artifact.REPORT)
        return f"{self.uri}/{artifact.PAGE}/{artifact.HTML}"

    def removed(self) -> pa.Table:
        """The removed images, in the order of the corpus.

        Returns:
            A table with the columns image_id, source (the shard), row (its number there), reason, p_poison
            (0 … 1), family (from 1) and box ([x0, y0, x1, y1) of the trigger in pixels of the stored image).

        Raises:
            UserError: the run is not finished.

        Examples:
            >>> frame = run.removed().to_pandas()
            >>> bool((frame["p_poison"] >= 0.5).all())
            True
        """
        self._needed(artifact.CLEAN)
        table = removed_table(self.folder).combine_chunks()
        sides = [table[side].to_pylist() for side in SIDES]
        boxes = [None if box[0] is None else list(box) for box in zip(*sides, strict=True)]
        return table.drop_columns(list(SIDES)).append_column("box", pa.array(boxes, pa.list_(pa.int32())))

    def dead(self) -> pa.Table:
        """The rows that hold no image that decodes.

        Returns:
            A table with the columns image_id, source, row, stage, error (its kind) and message.

        Raises:
            UserError: the rows are not indexed yet.

        Examples:
            >>> len(run.dead()) == run.counts.dead
            True
        """
        self._needed(artifact.INDEX)
        folder = self.folder / artifact.DEAD_ROWS
        tables = store.in_parallel(folder.read_table, folder.parts())
        return pa.concat_tables(tables or [artifact.DEAD_SCHEMA.empty_table()])

    def clean(self) -> ray.data.Dataset:
        """The corpus without its poison, as a dataset of Ray Data. Ray is started if this process has none.

        Returns:
            The rows of Parquet shards and WebDataset tars as Ray Data reads them; of an image folder the
            columns `image` and `path`.

        Raises:
            UserError: the run is not finished, or its clean corpus is not there.

        Examples:
            >>> run.clean().count() == run.counts.kept
            True
        """
        if not self.counts.copied:
            raise UserError(
                f"The run {self.uri} left the corpus where it is: {artifact.KEEP_LIST}/ lists the kept rows."
            )
        place = self.folder / artifact.CLEAN_ROWS
        if not place.names():
            raise UserError(f"There is no clean corpus at {place.uri}: it was deleted, or nothing was kept.")
        # Ray is imported when it is needed: a run can be read without it.
        import ray.data

        from poisoncam_ray.stages.ray_cluster import connect

        filesystem, path = store.connect(place.uri)
        options: dict[str, Any] = {
            "filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))
        }
        names = [source.path.lower() for source in list_sources(place.uri)]
        # Tables may lie beside tars and images.
        for suffixes, read in (
            (TAR_SUFFIXES, ray.data.read_webdataset),
            (IMAGE_SUFFIXES, partial(ray.data.read_images, include_paths=True)),
            (PARQUET_SUFFIXES, ray.data.read_parquet),
        ):
            if any(name.endswith(suffixes) for name in names):
                connect()
                extensions = [suffix.removeprefix(".") for suffix in suffixes]
                return read(path, file_extensions=extensions, **options)
        raise UserError(
            f"Ray Data does not read the files of {place.uri}: "
            f"datasets.load_from_disk({place.uri!r}) opens saved datasets."
        )

    def show(self, family: int | None = None, images: int = 12) -> Shown:
        """Look at what was found: the triggers, and removed images with the box of their trigger.

        Args:
            family: the number of a trigger family; None: the first three.
            images: how many removed images are shown of each family.

        Returns:
            An object that a notebook renders. Elsewhere `save` writes it as a page, and `html` is its text.

        Raises:
            UserError: the run is not finished, or has no such family.

        Examples:
            >>> run.show(family=1).save("family-1.html")
        """
        self._needed(artifact.CLEAN)
        found = self.verdict.families
        chosen = [one for one in found if family is None or one.family == family]
        if family is not None and not chosen:
            numbers = ", ".join(str(one.family) for one in found) or "none"
            raise UserError(f"There is no trigger family {family}: there are {numbers}.")
        return self._shown(chosen[:FAMILIES_SHOWN], images)

    def _shown(
        self,
        families: Sequence[artifact.Family],
        images: int,
        counts: Cleaned | None = None,
        place: str = "",
    ) -> Shown:
        side, gone = self.config.encoder.image_size, self._removed_by_family()
        whole, doubt = whole_triggers(self.folder), self._in_doubt()
        sample = self._sample([family.family for family in families], images, side) if images else {}
        parts = [
            FamilyPart(
                family.family,
                family_words(family, gone.get(family.family, 0), family.family in doubt),
                whole.get(family.family, ()),
                sample.get(family.family, ()),
            )
            for family in families
        ]
        return fragment(self.words[:1], counts, parts, side, place)

    def _sample(self, families: Sequence[int], most: int, side: int) -> dict[int, list[ShownImage]]:
        """Removed images of each family, spread over the corpus, with their pictures."""
        table, lookup = removed_table(self.folder), Lookup(self.folder)
        rows = []
        for family in families:
            mine = table.filter(pc.equal(table["family"], family))
            n = min(most, len(mine))
            rows += mine.take([i * len(mine) // n for i in range(n)]).to_pylist()
        ids = [row["image_id"] for row in rows]
        pictures = fetch_pictures(None, self.folder.read_json(artifact.RUN), ids, side)
        shown: dict[int, list[ShownImage]] = {}
        for row in rows:
            record = lookup.find(row["image_id"])
            box = [row[name] for name in SIDES]
            seen = None
            if record and record.width and record.height and box[0] is not None:
                seen = on_square(box, (record.width, record.height), side)
            image = ShownImage(
                row["image_id"], row["p_poison"], pictures.get(row["image_id"]), row["family"], seen
            )
            shown.setdefault(row["family"], []).append(image)
        return shown

    def _removed_by_family(self) -> dict[int, int]:
        reported = facts.of_manifest(facts.Reported, self._needed(artifact.REPORT))
        return {int(family): n for family, n in reported.removed_by_family.items()}

    def _in_doubt(self) -> list[int]:
        return facts.of_manifest(facts.Classified, self._needed(artifact.CLASSIFIER)).in_doubt

    def _manifest(self, name: str) -> Manifest | None:
        return Manifest.read(self.folder / name)

    def _needed(self, name: str) -> Manifest:
        """The manifest of a committed artifact.

        Raises:
            UserError: it is not committed.
        """
        manifest = self._manifest(name)
        if manifest is None:
            raise UserError(self._unfinished())
        return manifest

    def _unfinished(self) -> str:
        stages = self.folder.read_json(artifact.RUN).get("stages", [])
        todo = [title for name, title in stages if self._manifest(name) is None]
        at = f": it has come to the stage {todo[0]}" if todo else ""
        return f"The run {self.uri} is not finished{at}. Give the same command or call again to go on."

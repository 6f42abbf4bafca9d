"""A finished run's candidates in one Parquet file: all that the verdict decides on, with the truth beside it.

Rules can be tried on such a file without the run folder, its corpus or its encoder (`jobs/rules.py`).

C candidates   S those whose image is poisoned   T most patches on one image   K clusters
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from poisoncam_ray import artifact, facts
from poisoncam_ray.artifact import SIDES
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder, Manifest, absolute
from poisoncam_ray.method.geometry import iou
from poisoncam_ray.research.evaluate.joined import Truth, committed, poison_shares, read_truth
from poisoncam_ray.research.evaluate.results import single_figures
from poisoncam_ray.research.evaluate.scored import HIT_IOU, boxes_of, true_boxes
from poisoncam_ray.stages.ranking import read_ranking
from poisoncam_ray.stages.search import Search

FORMAT = 1
"""Of the file. A file of another format is refused."""
HEADER = b"poisoncam_ray.candidates"
"""The key of `Stored.about`, as JSON, in the metadata of the Parquet schema."""
SUFFIX = ".parquet"
SECTIONS = ("encoder", "pretrain", "cluster", "search", "verdict")
"""Sections of the configuration that are kept."""
URIS = ("checkpoint", "init")
"""Settings that name a place. Only the last part of the name is kept."""

_FOUND = [field for field in artifact.CANDIDATE_SCHEMA if field.name != "own"]
_RACED = [
    (f"race_{name}", artifact.RANKING_SCHEMA.field(name).type) for name in artifact.RANKING_SCHEMA.names[1:]
]
_TRUE_SIDES = tuple(f"true_{side}" for side in SIDES)
_TRUTH = [
    ("poisoned", pa.bool_()),
    ("decoy", pa.bool_()),
    *((side, pa.int32()) for side in _TRUE_SIDES),
    ("hit", pa.bool_()),
    ("poison_share", pa.float64()),
]
SCHEMA = pa.schema([*_FOUND, ("round", pa.int32()), *_RACED, *_TRUTH])
"""One row for each candidate, in the order in which the search found them. Boxes are in encoder pixels.

race_*: the candidate's row of the ranking (artifact.RANKING_SCHEMA); null where there was no race.
poisoned, decoy: whether the image is; this and all that follows is null without a truth.
true_x0 … true_y1: the true box that the candidate's box fits best; null where the image has none, or where
the search did not see it whole.
hit: whether the IoU of the two is at least 0.5; null where there is no true box.
poison_share: the share of poisoned images in the candidate's cluster, 0 … 1.
"""


@dataclass(frozen=True)
class Stored:
    """The candidates of one run.

    Attributes:
        table: SCHEMA.
        about: format, name (of the run), rounds, search_version, settings (seed and SECTIONS), superclusters
            (of the K clusters), flip_test ({image_id, cluster}), verdict (verdict.json; None before the
            verdict), n_images and n_poisoned (of the corpus; None without a truth), and figures: the numbers
            of metrics.json, learned attack success among them, named as in results.csv; empty for a run that
            was not measured.
    """

    table: pa.Table
    about: dict[str, Any]

    @property
    def false_alarm_rate(self) -> float:
        """That of the run."""
        return float(self.about["settings"]["verdict"]["false_alarm_rate"])

    @property
    def truth_is_known(self) -> bool:
        """Whether the columns of the truth are filled."""
        return self.about["n_images"] is not None

    def write(self, folder: Folder, name: str) -> int:
        """Write the file `name`. Returns its size in bytes."""
        sink = pa.BufferOutputStream()
        table = self.table.replace_schema_metadata({HEADER: json.dumps(self.about)})
        pq.write_table(table, sink, compression="zstd", compression_level=19)
        data = sink.getvalue().to_pybytes()
        folder.write_bytes(name, data)
        return len(data)

    def unpack(self, search: Folder) -> None:
        """Write the committed artifact of the search, as far as the verdict reads it.

        Args:
            search: the folder of the artifact.
        """
        rounds = self.about["rounds"]
        for number in range(rounds):
            part = self.table.filter(pc.equal(self.table["round"], number))
            part = part.append_column("own", part["cluster"]).select(artifact.CANDIDATE_SCHEMA.names)
            folder = search / artifact.round_name(number)
            folder.write_table(artifact.CANDIDATES, part.cast(artifact.CANDIDATE_SCHEMA))
        search.write_json(artifact.SUPERCLUSTERS, self.about["superclusters"])
        flip_test = pa.table(self.about["flip_test"], schema=artifact.FLIP_TEST_SCHEMA)
        search.write_table(artifact.FLIP_TEST, flip_test)
        if not self.table["race_rank"].null_count:
            raced = self.table.select(["image_id", *(name for name, _ in _RACED)])
            raced = raced.rename_columns(artifact.RANKING_SCHEMA.names).sort_by("image_id")
            search.write_table(artifact.RANKING, raced.cast(artifact.RANKING_SCHEMA))
        best = pc.max(self.table["score"]).as_py()
        said = facts.Searched(len(self.table), rounds, "", best)
        Manifest({}, {}, "", facts=said.as_json()).write(search)


def no_poison(n_images: int) -> Truth:
    """The truth of a corpus without poison."""
    schema = pa.schema([("image_id", pa.string()), *((side, pa.int32()) for side in SIDES)])
    return Truth(n_images, schema.empty_table(), schema.empty_table())


def candidates_of(run: Folder, truth: Truth | None, name: str) -> Stored:
    """The candidates of a finished run.

    Args:
        run: the run folder.
        truth: the truth of its corpus, which `detection_metrics` accepts; None: it is not known.
        name: what the run is called.

    Raises:
        UserError: the run has no finished search, was searched by another version, or lacks what the truth is
            joined with.
    """
    search = committed(run, artifact.SEARCH)
    manifest = Manifest.read(search)
    assert manifest
    version = manifest.identity.get("version")
    if truth and version not in (None, Search.version):
        # What the search saw of a long image depends on its version, and with it the true box.
        raise UserError(f"The run {run.uri} was searched by another version: defend its corpus again.")
    rounds = facts.of_manifest(facts.Searched, manifest).rounds
    if not rounds:
        raise UserError(f"The search of the run {run.uri} scored no image: there is nothing to store.")
    found = []
    for number in range(rounds):
        part = (search / artifact.round_name(number)).read_table(artifact.CANDIDATES)
        found.append(part.append_column("round", pa.array([number] * len(part), pa.int32())))
    table = pa.concat_tables(found)
    if (raced := read_ranking(search)) is not None:
        raced = raced.take(pc.index_in(table["image_id"], value_set=raced["image_id"]))
        for column, _ in _RACED:
            table = table.append_column(column, raced[column.removeprefix("race_")])
    if truth:
        for column, values in _joined(run, table, truth).items():
            table = table.append_column(column, values)
    decided = Manifest.read(run / artifact.VERDICT)
    measured = (run / artifact.PAGE).exists(artifact.METRICS)
    about = {
        "format": FORMAT,
        "name": name,
        "rounds": rounds,
        "search_version": version,
        "settings": _settings(run.read_json(artifact.RUN)["config"]),
        "superclusters": search.read_json(artifact.SUPERCLUSTERS),
        "flip_test": search.read_table(artifact.FLIP_TEST).to_pydict(),
        "verdict": asdict(artifact.Verdict.read(run / artifact.VERDICT)) if decided else None,
        "n_images": truth.n_images if truth else None,
        "n_poisoned": len(truth.poisoned) if truth else None,
        "figures": single_figures((run / artifact.PAGE).read_json(artifact.METRICS)) if measured else {},
    }
    return Stored(completed(table), about)


def store_run(run_uri: str, truth_uri: str, file: str) -> int:
    """Store the candidates of a finished run, measured or not.

    Args:
        run_uri: the run folder.
        truth_uri: truth.parquet of the attack on its corpus.
        file: the file to write. Its name is the run's name there.

    Returns:
        its size in bytes.

    Raises:
        UserError: as in `candidates_of`.
    """
    parent, _, name = absolute(file).rpartition("/")
    stored = candidates_of(Folder(run_uri), read_truth(truth_uri), name.removesuffix(SUFFIX))
    return stored.write(Folder(parent or "/"), name)


def completed(table: pa.Table) -> pa.Table:
    """The table with the columns of SCHEMA; those of race and truth that it lacks are null."""
    for name in SCHEMA.names[SCHEMA.get_field_index("round") + 1 :]:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def read_stored(folder: Folder, name: str) -> Stored:
    """Read a stored file.

    Raises:
        UserError: there is no such file, or it is another one, of another format, or damaged.
    """
    uri = f"{folder.uri}/{name}"
    if not folder.exists(name):
        raise UserError(f"There is no {uri}: give a file that jobs/evaluate.py --candidates wrote.")
    try:
        raw = folder.read_table(name)
        about = json.loads((raw.schema.metadata or {})[HEADER])
        there = about["format"]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{uri} holds no stored candidates: give a file of --candidates.") from error
    if there != FORMAT:
        raise UserError(f"{uri} has format {there}, not {FORMAT}: store the candidates of that run again.")
    damaged = f"{uri} is damaged: store the candidates of that run again."
    try:
        stored = replace(Stored(raw, about), table=completed(raw))
        whole = _is_whole(stored)
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(damaged) from error
    if not whole:
        raise UserError(damaged)
    return stored


def _is_whole(stored: Stored) -> bool:
    """Whether rows and header fit together, so that the verdict can index one by the other."""
    table, about = stored.table, stored.about
    flip, n_clusters = about["flip_test"], len(about["superclusters"])
    n_flip, truth_known = len(flip["cluster"]), about["n_images"] is not None
    needed = [*(field.name for field in _FOUND), "round"]
    if truth_known:
        needed += ["poisoned", "decoy", "poison_share"]
    landed = pc.list_flatten(table["landed"])
    if (
        not len(table)
        or any(table[name].null_count for name in needed)
        or landed.null_count
        or not 0 < stored.false_alarm_rate <= 1
        or len(flip["image_id"]) != n_flip
    ):
        return False
    rounds = pc.unique(table["round"]).sort().to_pylist()
    clusters = [table["cluster"], landed, pa.array(flip["cluster"])]
    ranges = [pc.min_max(values) for values in clusters]
    return (
        pc.all(pc.equal(pc.list_value_length(table["landed"]), n_flip)).as_py()
        and all(both["min"].as_py() >= 0 and both["max"].as_py() < n_clusters for both in ranges)
        and len(rounds) == about["rounds"]
        and rounds == list(range(len(rounds)))
        and pc.all(pc.is_finite(table["score"])).as_py()
        and {table[name].null_count for name, _ in _RACED} in ({0}, {len(table)})
        and all(isinstance(k, int) and 0 <= k < n_clusters for k in about["superclusters"])
    )


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What of the run's configuration is kept: no place of the machine that it ran on."""
    kept: dict[str, Any] = {"seed": config["seed"]}
    for name in SECTIONS:
        section = dict(config[name])
        for key in URIS:
            if section.get(key):
                section[key] = section[key].rstrip("/").rsplit("/", 1)[-1]
        kept[name] = section
    return kept


def _joined(run: Folder, table: pa.Table, truth: Truth) -> dict[str, pa.Array]:
    """The columns of the truth."""
    row_C = truth.row(table["image_id"])
    poisoned_C = row_C >= 0
    true_S4 = np.zeros((0, 4), np.int64)
    iou_S, patched_S = np.zeros(0), np.zeros(0, bool)
    if poisoned_C.any():
        true_ST4, patched = true_boxes(run, truth.poisoned.take(pa.array(row_C[poisoned_C])))
        box_S4, n_patches = boxes_of(table)[torch.from_numpy(poisoned_C)], true_ST4.shape[1]
        iou_ST = iou(box_S4.repeat_interleave(n_patches, dim=0), true_ST4.flatten(0, 1)).view(-1, n_patches)
        best_S = iou_ST.argmax(dim=1)
        true_S4 = true_ST4[torch.arange(len(best_S)), best_S].numpy()
        iou_S, patched_S = iou_ST.amax(dim=1).numpy(), patched.numpy()
    boxed_C = poisoned_C.copy()
    boxed_C[poisoned_C] = patched_S

    def where_boxed(value_S: np.ndarray, kind: pa.DataType) -> pa.Array:
        value_C = np.zeros(len(row_C), value_S.dtype)
        value_C[poisoned_C] = value_S
        return pa.array(value_C, kind, mask=~boxed_C)

    sides = {side: where_boxed(true_S4[:, i], pa.int32()) for i, side in enumerate(_TRUE_SIDES)}
    k = len((run / artifact.SEARCH).read_json(artifact.SUPERCLUSTERS))
    share_K = poison_shares(run, truth, k)
    return {
        "poisoned": pa.array(poisoned_C),
        "decoy": pa.array(truth.is_decoy(table["image_id"]) & ~poisoned_C),
        **sides,
        "hit": where_boxed(iou_S >= HIT_IOU, pa.bool_()),
        "poison_share": pa.array(share_K[table["cluster"].to_numpy()]),
    }

"""The run folder: the name, the files and the schemas of every artifact, once.

    run.json              configuration, versions, format number
    clean/                the corpus without what was removed, in the input's layout
    keep/                 part-*.parquet: which rows are kept, in place of clean/ where nothing is copied
    removed/              the removed rows, in the input's layout
    dead/                 part-*.parquet: rows that hold no image that decodes, each with its reason
    report/               index.html, verdict.json, removed.csv; restored.csv after a review
    work/lease/           which driver works here
    work/1_index/         sources.parquet, slices.parquet; part-*.parquet: one row an image;
                          no_image/part-*.parquet: rows without an image, which are kept;
                          shrunk/part-*.parquet: smaller copies of the images, with corpus.shrink_to
    work/2_encoder/       model.safetensors, config.json, history.json, training.json, checkpoints/;
                          init/: the weights that training began with, where they are not random
    work/3_features/      part-*.parquet: one feature an image
    work/4_clusters/      centroids.safetensors; part-*.parquet: the cluster of each image
    work/5_search/        superclusters.json, flip_test.parquet, round=*/candidates.parquet, ranking.parquet
    work/6_verdict/       verdict.json, triggers.parquet
    work/7_classifier/    validation.json, roles.parquet, whole_triggers.parquet, family_*_model_*.safetensors
    work/8_scores/        part-*.parquet: the score, the fate and the trigger's box of each image
    work/clean/           unit-*.json, unit-*.parquet: which rows of each shard were removed, and why
    work/review/          entry-*.json, ids-*.parquet: what people decided about the flagged images
    work/report/          the report's manifest
    work/models/          further encoders, trained by an evaluation to compare with

Every folder under work/ holds the manifest of its stage. A part belongs to one slice of the corpus.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from poisoncam_ray.folder import Folder

FORMAT = 2
"""Of the layout above. A folder of another format is refused."""
RUN = "run.json"

CLEAN_ROWS = "clean"
KEEP_LIST = "keep"
REMOVED_ROWS = "removed"
DEAD_ROWS = "dead"
PAGE = "report"
WORK = "work"
LEASE = "work/lease"

INDEX = "work/1_index"
ENCODER = "work/2_encoder"
FEATURES = "work/3_features"
CLUSTERS = "work/4_clusters"
SEARCH = "work/5_search"
VERDICT = "work/6_verdict"
CLASSIFIER = "work/7_classifier"
SCORES = "work/8_scores"
CLEAN = "work/clean"
REVIEW = "work/review"
REPORT = "work/report"

TITLES = {
    INDEX: "Index",
    ENCODER: "Pretrain",
    FEATURES: "Embed",
    CLUSTERS: "Cluster",
    SEARCH: "Search",
    VERDICT: "Verdict",
    CLASSIFIER: "Classify",
    SCORES: "Judge",
    CLEAN: "Clean",
    REPORT: "Report",
}
"""The title of the stage that makes each artifact, in order, for readers of a run that load no stages."""

SIDES = ("x0", "y0", "x1", "y1")
"""Columns of a box [x0, y0, x1, y1), wherever an artifact holds one."""
_BOX = [(side, pa.int32()) for side in SIDES]

# 1_index
SOURCES = "sources.parquet"
SLICES = "slices.parquet"
SOURCE_SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64()), ("tag", pa.string())])
SLICE_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("source", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("files", pa.list_(pa.string())),
        ("version", pa.string()),
        ("error", pa.string()),
        ("span", pa.list_(pa.int64())),
        ("twins", pa.list_(pa.int64())),
        ("kind", pa.string()),
        ("beside", pa.list_(pa.string())),
        ("rows", pa.int64()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
    ]
)
NO_IMAGE = "no_image"
"""A folder in INDEX. It has a part for each slice with rows whose image is null: Clean keeps them, and no
other stage sees them."""
NO_IMAGE_SCHEMA = pa.schema([("image_id", pa.string()), ("source", pa.string()), ("row", pa.int64())])
SHRUNK = "shrunk"
"""A folder in INDEX. It has a part for each slice with indexed rows, if the run keeps smaller copies."""
SHRUNK_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image", pa.binary()),
        ("shown", pa.binary()),
    ]
)
"""One row for each row of the index part, in its order. `width`, `height`: of the stored image; `image`: the
copy, or the stored bytes of a small image; `shown`: the copy as a viewer shows the image, null where that is
no other picture, or where `image` is the stored one."""
DEAD_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)

# 2_encoder
WEIGHTS = "model.safetensors"
ENCODER_CONFIG = "config.json"
HISTORY = "history.json"
TRAINING = "training.json"
"""What the first attempt of a training has decided: its precision."""
TRAINING_PROGRESS = "progress.json"
INIT = "init"
CHECKPOINTS = "checkpoints"

# 4_clusters
CENTROIDS = "centroids.safetensors"
CLUSTER_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("cluster", pa.int32()),
        ("distance", pa.float32()),
        ("draw", pa.int64()),
    ]
)

# 5_search
SUPERCLUSTERS = "superclusters.json"
FLIP_TEST = "flip_test.parquet"
FLIP_TEST_SCHEMA = pa.schema([("image_id", pa.string()), ("cluster", pa.int32())])
"""The first flip-test images: those that every candidate is pasted on."""
FLIP_CLUSTERS = "flip_clusters.json"
"""The clusters of all flip-test images, in order, and how many of the images leave theirs unchanged."""
ROUND_STATE = "live.json"
CANDIDATES = "candidates.parquet"
READINGS = ("changed", "gain", "supercluster_gain")
"""The readings of the poison score: counts of flip-test images."""
CANDIDATE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("cluster", pa.int32()),
        ("own", pa.int32()),
        *_BOX,
        *((name, pa.int32()) for name in READINGS),
        ("n_flip", pa.int32()),
        ("score", pa.float32()),
        ("occlusion_flips", pa.bool_()),
        ("crop", pa.binary()),
        ("landed", pa.list_(pa.int32())),
    ]
)
"""`cluster`: of the stored feature; `own`: found in one pass with the masked images, and the same but for
rounding."""
RANKING = "ranking.parquet"
RANKING_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("rank", pa.int32()),
        ("n_flip", pa.int32()),
        *((name, pa.int32()) for name in READINGS),
        ("score", pa.float32()),
    ]
)
"""Each candidate's counts over all images that it was pasted on. Not written where all were pasted on all."""

# 6_verdict
VERDICT_FILE = "verdict.json"
TRIGGERS = "triggers.parquet"
TRIGGER_SCHEMA = pa.schema(
    [field for field in CANDIDATE_SCHEMA if field.name not in ("own", "landed")]
    + [pa.field("family", pa.int32()), pa.field("rank", pa.int32())]
)

# 7_classifier
VALIDATION = "validation.json"
ROLES = "roles.parquet"
WHOLE_TRIGGERS = "whole_triggers.parquet"
# aspect: width over height, in stored pixels, of what the picture was cut from.
WHOLE_TRIGGER_SCHEMA = pa.schema([("family", pa.int32()), ("picture", pa.binary()), ("aspect", pa.float32())])

# 8_scores
SCORE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("p_poison", pa.float32()),
        ("fate", pa.string()),
        ("family", pa.int32()),
        *_BOX,
    ]
)
KEEP, REMOVE = "keep", "remove"
"""Values of `fate`."""

# clean
KEEP_SCHEMA = pa.schema([("image_id", pa.string()), ("source", pa.string()), ("row", pa.int64())])
"""The kept rows of one unit. `source`: the shard's path in the corpus, "." in an image folder; `row`: from 0
in the shard."""
REMOVED_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("p_poison", pa.float32()),
        ("family", pa.int32()),
        *_BOX,
    ]
)

RESTORED_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("family", pa.int32()),
        ("restored_by", pa.string()),
        ("when", pa.string()),
        ("note", pa.string()),
    ]
)

# report
HTML = "index.html"
REMOVED_CSV = "removed.csv"
RESTORED_CSV = "restored.csv"
METRICS = "metrics.json"


def titles_of(run: Folder) -> dict[str, str]:
    """The title of the stage that makes each artifact of this run, in order. A run that applies an earlier
    one has fewer stages than TITLES."""
    about = run.read_json(RUN) if run.exists(RUN) else {}
    named = {name: title for name, title in about.get("stages", ()) if name in TITLES}
    return named if REPORT in named else TITLES


def round_name(number: int) -> str:
    """The folder of one round of the search, below SEARCH."""
    return f"round={number:03d}"


def model_name(family: int, member: int) -> str:
    """One member of the ensemble of a family, in CLASSIFIER."""
    return f"family_{family}_model_{member}.safetensors"


def unit_name(number: int) -> str:
    """The marker that commits one unit of CLEAN: the counts of its rows."""
    return f"unit-{number:06d}.json"


def unit_reasons(number: int) -> str:
    """The removed rows of one unit of CLEAN, each with its reason (REMOVED_SCHEMA)."""
    return f"unit-{number:06d}.parquet"


POISON = "poison"
NO_EVIDENCE = "no_evidence"


@dataclass(frozen=True)
class Family:
    """One trigger family: windows that look alike, or else move images to the same clusters.

    Attributes:
        family: its number, from 1, by falling best score.
        best_score: the best poison score of its windows, 0 … 1.
        p_value: the chance that a benign window group scores as high as its best group; None without a null.
        n_candidates: how many windows it has.
        cluster: the cluster of its best window's image.
        ranks: places of its windows in triggers.parquet, from 0.
    """

    family: int
    best_score: float
    p_value: float | None
    n_candidates: int
    cluster: int
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """verdict.json. Scores are shares of the flip-test images, 0 … 1.

    Attributes:
        verdict: POISON or NO_EVIDENCE.
        false_alarm_rate: the nominal chance that a clean corpus is called poisoned; 1: no evidence was asked
            for.
        p_value: the chance that a benign window group scores as high as the best group; None without a null.
        best_score: the best poison score of a candidate.
        threshold: the group score from which a group is a suspect; None without a null.
        n_candidates: how many windows were scored.
        best_group: the highest group score; None where no group has enough windows.
        group_scores: of every window group, weighted, highest first.
        null_scores: of the groups that the null was fitted to, not weighted, highest first.
        families: the trigger families; none where there is no evidence of poison.
        applied_from: the earlier run whose verdict this is, where only its triggers were looked for; None
            where the run searched itself.
    """

    verdict: str
    false_alarm_rate: float
    p_value: float | None
    best_score: float | None
    threshold: float | None
    n_candidates: int
    best_group: float | None = None
    group_scores: tuple[float, ...] = ()
    null_scores: tuple[float, ...] = ()
    families: tuple[Family, ...] = ()
    applied_from: str | None = None

    @property
    def poison(self) -> bool:
        """Whether there is evidence of poison."""
        return self.verdict == POISON

    @property
    def stands_out(self) -> bool:
        """Whether any window group reaches the threshold."""
        if self.threshold is None or self.best_group is None:
            return False
        return self.best_group >= self.threshold

    def write(self, folder: Folder, name: str = VERDICT_FILE) -> None:
        """Write verdict.json."""
        tree = asdict(self)
        if self.applied_from is None:
            del tree["applied_from"]
        folder.write_json(name, tree)

    @staticmethod
    def read(folder: Folder) -> Verdict:
        """Read verdict.json.

        Raises:
            FileNotFoundError: the folder holds none.
        """
        tree: dict[str, Any] = folder.read_json(VERDICT_FILE)
        families = [Family(**{**family, "ranks": tuple(family["ranks"])}) for family in tree.pop("families")]
        for name in ("group_scores", "null_scores"):
            tree[name] = tuple(tree[name])
        return Verdict(**tree, families=tuple(families))

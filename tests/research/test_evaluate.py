"""Evaluation on a run written by hand, against plain loops over what was written."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.evaluate import (
    Validation,
    compare_strategies,
    detection_metrics,
    evaluate_run,
    probe,
)
from poisoncam_ray.research.evaluate.joined import poison_clusters, read_truth
from poisoncam_ray.research.evaluate.scored import scored_poisoned
from poisoncam_ray.research.evaluate.shapes import by_shape
from poisoncam_ray.stages.embed import embed_images, feature_table, load_encoder
from tests.fake_run import BOXED, DEAD, HEIGHT, SIDE, WIDTH, FakeRun, image_ids, make_fake_run


@pytest.fixture
def broken(fake: FakeRun, tmp_path: Path) -> Folder:
    """A copy of the run to damage."""
    return Folder(str(shutil.copytree(fake.run, tmp_path / "run")))


def slow_iou(a: tuple, b: tuple) -> float:
    inside = [(x, y) for x in range(SIDE) for y in range(SIDE) if a[0] <= x < a[2] and a[1] <= y < a[3]]
    other = [(x, y) for x in range(SIDE) for y in range(SIDE) if b[0] <= x < b[2] and b[1] <= y < b[3]]
    both = len(set(inside) & set(other))
    return both / (len(inside) + len(other) - both)


def stored_iou(a: tuple, b: tuple) -> float:
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(area) - both)


def slow_true_box(stored: tuple) -> tuple:
    """48 × 40 stored pixels squeezed into a square of 32."""
    x0, y0, x1, y1 = stored
    return (
        round(x0 * SIDE / WIDTH),
        round(y0 * SIDE / HEIGHT),
        round(x1 * SIDE / WIDTH),
        round(y1 * SIDE / HEIGHT),
    )


def test_detection_metrics_equal_a_plain_count(fake: FakeRun) -> None:
    got = detection_metrics(fake.run, fake.truth)
    size = {k: sum(c == k for c in fake.cluster.values()) for k in set(fake.cluster.values())}
    poison = {k: sum(fake.cluster[i] == k for i in fake.poisoned) for k in size}
    in_poison_cluster = {i: poison[fake.cluster[i]] > size[fake.cluster[i]] / 2 for i in fake.poisoned}
    ious = {
        row["image_id"]: slow_iou(
            (row["x0"], row["y0"], row["x1"], row["y1"]), slow_true_box(fake.poisoned[row["image_id"]])
        )
        for row in fake.candidates
        if row["image_id"] in fake.poisoned
    }
    pure = [iou for i, iou in ious.items() if in_poison_cluster[i]]
    among_natural = [iou for i, iou in ious.items() if not in_poison_cluster[i]]
    natural = [i for i, is_poison in in_poison_cluster.items() if not is_poison]
    best = sorted(fake.candidates, key=lambda row: -row["score"])[:20]
    clean = [i for i in image_ids() if i not in fake.poisoned and i != DEAD]
    found = fake.removed & set(fake.poisoned)
    # The run says the same box for each removed image; truth and it are compared in stored pixels.
    boxed = [stored_iou(BOXED, fake.poisoned[i]) for i in found]
    final = [stored_iou(BOXED, fake.poisoned[i]) if i in fake.removed else iou for i, iou in ious.items()]
    assert final != list(ious.values()), "where the run boxes the trigger must matter"
    assert 0 < len(pure) < len(ious), "the fixture must tell the two accuracies apart"
    assert got == {
        "trigger_detection_accuracy": pytest.approx(sum(iou >= 0.5 for iou in ious.values()) / len(ious)),
        "trigger_detection_mean_iou": pytest.approx(sum(ious.values()) / len(ious)),
        "trigger_detection_accuracy_poison_clusters": pytest.approx(
            sum(iou >= 0.5 for iou in pure) / len(pure)
        ),
        "trigger_detection_mean_iou_poison_clusters": pytest.approx(sum(pure) / len(pure)),
        "trigger_detection_accuracy_natural_clusters": pytest.approx(
            sum(iou >= 0.5 for iou in among_natural) / len(among_natural)
        ),
        "trigger_detection_mean_iou_natural_clusters": pytest.approx(sum(among_natural) / len(among_natural)),
        "trigger_detection_final_accuracy": pytest.approx(sum(iou >= 0.5 for iou in final) / len(final)),
        "trigger_detection_final_mean_iou": pytest.approx(sum(final) / len(final)),
        "located_accuracy": pytest.approx(sum(iou >= 0.5 for iou in boxed) / len(boxed)),
        "located_mean_iou": pytest.approx(sum(boxed) / len(boxed)),
        "n_located": len(boxed),
        "trigger_detection_n_without_box": 0,
        "top20_precision": pytest.approx(sum(row["image_id"] in fake.poisoned for row in best) / len(best)),
        "recall": pytest.approx(len(found) / len(fake.poisoned)),
        "recall_natural_clusters": pytest.approx(sum(i in fake.removed for i in natural) / len(natural)),
        "recall_by_target": {"cat": pytest.approx(len(found) / len(fake.poisoned))},
        "families": {
            "1": {
                "n_removed": 19,
                "main_target": "cat",
                "purity": pytest.approx(len(found) / 19),
                "recall": pytest.approx(len(found) / len(fake.poisoned)),
            }
        },
        "precision": pytest.approx(len(found) / len(fake.removed)),
        "false_positive_rate": pytest.approx(sum(i in fake.removed for i in clean) / len(clean)),
        "decoys_removed": None,
        "by_shape": by_shape(Folder(fake.run), read_truth(fake.truth)),
        "n_images": 120,
        "n_poisoned": 20,
        "n_poisoned_dead": 0,
        "n_poisoned_natural_clusters": 4,
        "n_decoys": 0,
        "n_removed": 19,
        "n_dead": 1,
        "n_scored": 18,
        "n_scored_poisoned": 10,
        "n_scored_poison_clusters": sum(in_poison_cluster[i] for i in ious),
    }


def test_a_clean_corpus_has_no_recall_but_a_false_positive_rate(tmp_path: Path) -> None:
    fake = make_fake_run(tmp_path, poison=False)
    got = detection_metrics(fake.run, fake.truth)
    assert got["recall"] is got["precision"] is got["trigger_detection_accuracy"] is None
    assert got["false_positive_rate"] == 0 and got["top20_precision"] == 0 and got["n_poisoned"] == 0


def test_a_poisoned_image_that_died_counts_as_not_found(fake: FakeRun, tmp_path: Path) -> None:
    table = pq.read_table(fake.truth)
    poisoned = pa.array(
        [
            p or i == DEAD
            for p, i in zip(*(table[c].to_pylist() for c in ("poisoned", "image_id")), strict=True)
        ]
    )
    table = table.set_column(table.column_names.index("poisoned"), "poisoned", poisoned)
    pq.write_table(table, tmp_path / "truth.parquet")
    got = detection_metrics(fake.run, str(tmp_path / "truth.parquet"))
    assert (got["n_poisoned"], got["n_poisoned_dead"], got["recall"]) == (21, 1, pytest.approx(18 / 21))


def test_truth_of_another_corpus_is_refused(fake: FakeRun, tmp_path: Path) -> None:
    table = pq.read_table(fake.truth)
    fewer = tmp_path / "fewer.parquet"
    pq.write_table(table.slice(1), fewer)
    other = tmp_path / "other.parquet"
    ids = pa.array([f"other-{i}" for i in table["image_id"].to_pylist()])
    pq.write_table(table.set_column(0, "image_id", ids), other)
    for path in (fewer, other):
        with pytest.raises(UserError, match="not that of the corpus"):
            detection_metrics(fake.run, str(path))
    with pytest.raises(UserError, match="no truth at"):
        detection_metrics(fake.run, str(tmp_path / "none.parquet"))
    pq.write_table(table.drop_columns(["poisoned"]), other)
    fewer.write_bytes(b"no Parquet")
    for path in (fewer, other):
        with pytest.raises(UserError, match="is no truth"):
            detection_metrics(fake.run, str(path))


@pytest.mark.parametrize(
    "stage", [artifact.INDEX, artifact.ENCODER, artifact.CLUSTERS, artifact.SEARCH, artifact.SCORES]
)
def test_an_unfinished_run_is_refused(fake: FakeRun, broken: Folder, stage: str) -> None:
    (broken / stage).delete("_manifest.json")
    with pytest.raises(UserError, match=f"no finished {stage}"):
        detection_metrics(broken.uri, fake.truth)


def test_strategies_are_compared_on_the_same_images(fake: FakeRun) -> None:
    names = ["full_coverage:hard", "keep_only:distance", "gradcam", "random"]
    got = compare_strategies(fake.run, fake.corpus, fake.truth, names, n_masks=8, seed=3)
    detection = detection_metrics(fake.run, fake.truth)
    assert list(got) == ["recorded", *names]
    assert got["recorded"]["accuracy"] == detection["trigger_detection_accuracy"]
    assert (
        got["recorded"]["mean_iou_poison_clusters"] == detection["trigger_detection_mean_iou_poison_clusters"]
    )
    for marks in got.values():
        assert all(0 <= value <= 1 for value in marks.values() if value is not None)
    assert got == compare_strategies(fake.run, fake.corpus, fake.truth, names, n_masks=8, seed=3)


@pytest.mark.parametrize("name", ["full_coverage", "full_coverage:soft", "sliding:", "nonsense:hard"])
def test_an_unknown_strategy_is_one_sentence(fake: FakeRun, name: str) -> None:
    with pytest.raises(UserError, match="There is no strategy"):
        compare_strategies(fake.run, fake.corpus, fake.truth, [name])


def test_masks_that_cannot_be_made_are_one_sentence(fake: FakeRun) -> None:
    with pytest.raises(UserError, match="cannot be tried"):
        compare_strategies(fake.run, fake.corpus, fake.truth, ["full_coverage:hard"], n_masks=3)


def test_scored_images_come_in_the_order_of_the_truth_once_each(fake: FakeRun) -> None:
    run, truth = Folder(fake.run), read_truth(fake.truth)
    scored = scored_poisoned(run, truth, *poison_clusters(run, truth))
    order = [i for i in truth.poisoned["image_id"].to_pylist() if i in scored.image_id]
    assert scored.image_id == order and len(set(order)) == 10


@pytest.fixture(scope="module")
def embedded(fake: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run with the encoder's real features of its corpus."""
    from poisoncam_ray.corpus import open_corpus
    from poisoncam_ray.runner import config_of
    from poisoncam_ray.stages.pixels import fetch_images

    run = Folder(str(shutil.copytree(fake.run, tmp_path_factory.mktemp("embedded") / "run")))
    corpus, features = open_corpus(fake.corpus), run / artifact.FEATURES
    for name in features.parts():
        ids = features.read_table(name)["image_id"].to_pylist()
        x_NCHW = torch.from_numpy(fetch_images(corpus, config_of(run), ids))
        features.write_table(
            name, feature_table(ids, embed_images(load_encoder(run / artifact.ENCODER), x_NCHW, 64))
        )
    return run.uri


def test_probe_knows_its_own_images_by_their_nearest_neighbour(fake: FakeRun, embedded: str) -> None:
    got = probe(embedded, fake.corpus, Validation(fake.corpus, fake.corpus, "cat"), k=1)
    assert list(got) == ["knn", "linear_1", "linear_10"]
    assert got["knn"] == {
        "acc_clean": 1.0,
        "acc_patched": 1.0,
        "asr": 0.0,
        "target_false_positives_patched": 0,
        "target_false_positives_clean": 0,
        "target_false_positive_rate_clean": 0.0,
    }
    for figures in got.values():
        n_dogs = sum(label == "dog" for i, label in fake.label.items() if i != DEAD)
        assert figures["asr"] == figures["target_false_positives_patched"] / n_dogs
        assert figures["acc_clean"] == figures["acc_patched"]


def test_probe_counts_images_that_pass_for_the_target(fake: FakeRun, embedded: str, tmp_path: Path) -> None:
    # Every validation image is one that the bank knows as a cat; two of three are labelled dog.
    cats = [i for i, label in fake.label.items() if label == "cat" and i != DEAD and i.startswith("a<b>")][:3]
    stored = pq.read_table(Path(fake.corpus) / "a<b>.parquet")["image"].to_pylist()
    rows = [
        {"image": stored[int(i.rpartition("#")[2])], "label": label}
        for i, label in zip(cats, ["cat", "dog", "dog"], strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "val.parquet")
    got = probe(embedded, fake.corpus, Validation(fake.corpus, str(tmp_path), "cat"), k=1)["knn"]
    assert (got["acc_clean"], got["acc_patched"], got["asr"]) == (1.0, pytest.approx(1 / 3), 1.0)
    assert (got["target_false_positives_patched"], got["target_false_positives_clean"]) == (2, 0)
    nowhere = probe(embedded, fake.corpus, Validation(fake.corpus, str(tmp_path), ""), k=1)["knn"]
    assert nowhere["acc_patched"] == got["acc_patched"]
    assert nowhere["asr"] is nowhere["target_false_positives_clean"] is None


def test_probe_names_what_to_change(fake: FakeRun, embedded: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="carries the label 'bird'"):
        probe(embedded, fake.corpus, Validation(fake.corpus, fake.corpus, "bird"))
    with pytest.raises(UserError, match="column"):
        probe(embedded, fake.corpus, Validation(fake.corpus, fake.corpus, "cat", "no such column"))
    pq.write_table(pa.Table.from_pylist([{"image": b"x", "label": "cat"}]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="give the corpus that the run read"):
        probe(embedded, str(tmp_path), Validation(fake.corpus, fake.corpus, "cat"))


def test_what_is_measured_is_written_beside_the_report(fake: FakeRun, embedded: str, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(embedded, tmp_path / "run")))
    got = evaluate_run(run.uri, fake.truth, validation=Validation(fake.corpus, fake.corpus, "cat"))
    assert got == (run / "report").read_json("metrics.json")
    assert {key: got[key] for key in ("acc_clean", "acc_patched", "asr")} == {
        key: got["probes"]["threat"]["knn"][key] for key in ("acc_clean", "acc_patched", "asr")
    }
    assert "own corpus" in got["probes_labels"] and "threat_model" not in got
    made = run.read_json(artifact.RUN)
    made["config"]["encoder"]["checkpoint"] = "mine"
    run.write_json(artifact.RUN, made)
    got = evaluate_run(run.uri, fake.truth, validation=Validation(fake.corpus, fake.corpus, "cat"))
    assert "your own checkpoint mine" in got["threat_model"]


def test_a_run_of_an_earlier_version_is_refused(tmp_path) -> None:
    (tmp_path / "run.json").write_text('{"input": "corpus", "config": {"index": {}}}')
    with pytest.raises(UserError, match="made by another version of poisoncam_ray"):
        evaluate_run(str(tmp_path), str(tmp_path / "truth.parquet"))

"""`poisoncam inspect`: why an image was removed, kept or dead, by the real models of a run. No Ray starts."""

from __future__ import annotations

import functools
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from poisoncam_ray import artifact
from poisoncam_ray.cli import TOP
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.inspection import inspect_image
from poisoncam_ray.program import as_app
from poisoncam_ray.report.image_page import ImageStory, as_html, as_png
from poisoncam_ray.report.lookup import Lookup
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import read_views
from tests.fake_run import CONFIG, DEAD, ERROR, SIDE, FakeRun, make_fake_run, png, with_trigger
from tests.page import Page
from tests.real_classifier import TRIGGER, make_judged_run
from tests.test_python import finish

# A poisoned image whose trigger the square shows whole, and a clean one.
POISONED, CLEAN = "a<b>.parquet#12", "a<b>.parquet#60"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return finish(make_judged_run(tmp_path_factory.mktemp("judged")))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return finish(make_fake_run(tmp_path_factory.mktemp("calm"), poison=False))


@functools.cache
def told(run: str, image_id: str) -> ImageStory:
    return inspect_image(run, image_id)


def poisoncam(*arguments: str) -> tuple[int, str]:
    ran = CliRunner().invoke(as_app(*TOP), ["inspect", *arguments])
    if isinstance(ran.exception, UserError):
        return 2, str(ran.exception)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.stdout


def test_a_removed_image_its_box_its_heat_and_its_nearest_kept_image(judged):
    story = told(judged.run, POISONED)
    assert story.record.fate == "removed" and story.record.family == 1
    assert story.why[0].startswith("Removed: the classifier of trigger family 1 gives it a probability")
    assert story.scores[0].p == pytest.approx(story.record.p_poison, abs=1e-3) and story.scores[0].margin > 0
    # Hiding the trigger costs the score more than hiding any other part.
    assert story.lost > 1 and story.hottest and story.box
    x, y = story.hottest
    x0, y0, x1, y1 = story.box
    assert x0 - 2 <= x < x1 + 2 and y0 - 2 <= y < y1 + 2
    boxed = judged.poisoned[POISONED]
    assert story.record.box == pytest.approx(boxed, abs=3)
    near = Lookup(Folder(judged.run)).find(story.nearest.image_id)
    assert near.fate == "kept" and near.cluster == story.nearest.cluster
    assert -1 <= story.nearest.similarity <= 1 and not story.nearest.partly


def test_the_nearest_kept_image_is_that_of_all_parts(judged):
    from poisoncam_ray.stages.embed import read_features

    run = Folder(judged.run)
    story = told(judged.run, CLEAN)
    f_of = {}
    for name in (run / artifact.FEATURES).parts():
        ids, f_ND = read_features(run / artifact.FEATURES, name)
        f_of |= dict(zip(ids, f_ND, strict=True))
    lookup, own = Lookup(run), f_of.pop(CLEAN)
    kept = {image_id: float(f @ own) for image_id, f in f_of.items() if lookup.find(image_id).fate == "kept"}
    assert story.nearest.image_id == max(kept, key=kept.get) and story.nearest.looked_at == len(kept)


def test_a_kept_image_and_a_dead_one(judged):
    story = told(judged.run, CLEAN)
    assert story.record.fate == "kept" and story.record.p_poison < 0.5 and story.box is None
    assert story.why[0].startswith("Kept: the highest probability of poison that a classifier gives it is ")
    dead = told(judged.run, DEAD)
    assert dead.record.fate == "dead" and "Dead: it holds no image that decodes (truncated: " in dead.why[0]
    assert dead.pixels is None and dead.scores == () and "nearest" not in " ".join(dead.lines())


def test_a_run_without_evidence_has_no_classifier_to_ask(calm):
    story = told(calm.run, CLEAN)
    assert story.why == [
        "Kept: the run found no evidence of poison, so there is no classifier, and every readable image "
        "was kept."
    ]
    assert story.heat is None and story.scores == [] and story.pixels is not None and story.nearest
    assert len(Page(as_html(story)).all("figure")) == 2 and as_png(story)


def test_a_run_that_applied_another_has_no_features_to_compare(judged):
    story = replace(told(judged.run, POISONED), nearest=None)
    assert len(Page(as_html(story)).all("figure")) == 2 and as_png(story)
    other = replace(told(judged.run, POISONED), pixels=None)
    assert Page(as_html(other)).all("figure") == [] and as_png(other)


def test_a_classifier_in_doubt_removes_nothing_and_says_so(judged, tmp_path):
    shutil.copytree(judged.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    made = run / artifact.CLASSIFIER
    figures = made.read_json(artifact.VALIDATION)
    figures["families"]["1"]["erased"] = False
    made.write_json(artifact.VALIDATION, figures)
    for name in (run / artifact.SCORES).parts():
        table = (run / artifact.SCORES).read_table(name).to_pylist()
        kept = [
            row | {"fate": "keep", "family": 0, "p_poison": 0.0} | dict.fromkeys(artifact.SIDES)
            for row in table
        ]
        rows = pa.Table.from_pylist(kept, schema=artifact.SCORE_SCHEMA)
        (run / artifact.SCORES).write_table(name, rows)
    story = inspect_image(run.uri, POISONED)
    assert story.why[0] == "Kept: every classifier is in doubt, so no image was removed."
    assert (
        story.why[1].startswith("The classifier of family 1 gives it 1.000, but is in doubt")
        and story.scores[0].in_doubt
    )


def test_a_corpus_that_is_gone_or_changed_is_told(judged, tmp_path):
    shutil.copytree(judged.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    run.write_json(artifact.RUN, run.read_json(artifact.RUN) | {"input": str(tmp_path / "gone")})
    story = inspect_image(run.uri, POISONED)
    assert "cannot be read from the corpus any more" in story.why[1] and story.pixels is None
    assert as_png(story) and Page(as_html(story)).all("svg") == []


def test_scores_of_another_version_are_not_computed_again(judged, tmp_path):
    shutil.copytree(judged.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    manifest = (run / artifact.SCORES).read_json(MANIFEST)
    manifest["identity"]["version"] -= 1
    (run / artifact.SCORES).write_json(MANIFEST, manifest)
    story = inspect_image(run.uri, POISONED)
    assert story.why[0].startswith("Removed: ") and story.scores == () and story.pixels is None
    assert story.why[1].startswith("Another version of poisoncam_ray has judged the image")


def test_an_image_is_found_by_its_end_or_its_row(judged):
    lookup = Lookup(Folder(judged.run))
    assert lookup.named("deep/b.parquet#3").row == 3
    assert lookup.named("b.parquet#3").image_id == "deep/b.parquet#3"
    assert lookup.named("79").image_id == "a<b>.parquet#79"
    with pytest.raises(
        UserError, match=r"'3' is the end of several image ids \('a<b>.parquet#3', 'deep/b.par"
    ):
        lookup.named("3")
    with pytest.raises(UserError, match=r"has no image 'b.parquet#99'; the nearest ids are 'a<b>.parquet#9'"):
        lookup.named("b.parquet#99")
    for odd in ("a<b>.parquet#-1", "a<b>.parquet#" + "9" * 40, "#", "deep/b.parquet#٣"):
        assert lookup.find(odd) is None


def test_a_page_loads_nothing_and_escapes_names(judged):
    for image_id in (POISONED, CLEAN, DEAD):
        text = as_html(told(judged.run, image_id))
        page = Page(text)
        assert not page.all("script") and not page.all("link") and image_id in page.text
        assert "<b>.parquet" not in text and ERROR not in text
        pictures = [tag["src"] for tag in page.all("img")] + [tag["href"] for tag in page.all("image")]
        assert all(picture.startswith("data:image/png;base64,") for picture in pictures)
        assert len(page.all("rect")) == (2 if image_id == POISONED else 0)
        assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_a_png_shows_the_box_and_the_heat(judged):
    picture = Image.open(io.BytesIO(as_png(told(judged.run, POISONED)))).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(2**24)}
    assert (255, 225, 77) in colours and picture.width > 4 * 256


def test_the_command_writes_files_and_prints_numbers(judged, tmp_path):
    code, said = poisoncam(judged.run, POISONED, "-o", str(tmp_path / "why.html"), "--json")
    answer = json.loads(said.splitlines()[-1])
    assert code == 0 and answer["fate"] == "removed" and answer["threshold"] == 0.5 and answer["family"] == 1
    assert answer["nearest_kept"]["image_id"] and answer["heat"]["lost"] > 1
    assert (tmp_path / "why.html").read_text().startswith("<!doctype html>")
    code, said = poisoncam(judged.run, CLEAN, "-o", str(tmp_path / "why.png"))
    assert code == 0 and "Kept:" in said and "nearest kept" in said
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_without_an_image_tells_about_the_run(judged, calm):
    code, said = poisoncam(judged.run)
    assert code == 0 and "Poison found: 1 trigger family" in said and "removed:" in said
    assert "kept, closest to the threshold:" in said and f"  {DEAD}  truncated: {ERROR}" in said
    answer = json.loads(poisoncam(calm.run, "--json")[1])
    assert answer["verdict"] == "no_evidence" and answer["examples"]["removed"] == []


def test_mistakes_are_one_sentence(judged, tmp_path):
    for arguments, words in (
        ([judged.run, CLEAN, "-o", "x.pdf"], "neither .html nor .png"),
        ([judged.run, "-o", "x.html"], "--output needs an IMAGE"),
        ([judged.run, CLEAN, "-o", str(tmp_path / "no" / "x.html")], "There is no folder"),
        ([str(tmp_path), CLEAN], "is not a run folder"),
        ([judged.run, "nosuch.png"], "has no image 'nosuch.png'"),
    ):
        code, said = poisoncam(*arguments)
        assert code == 2 and words in said and said.endswith("."), said
    shutil.copytree(judged.run, tmp_path / "run")
    (tmp_path / "run" / artifact.CLEAN / MANIFEST).unlink()
    assert "is not finished" in poisoncam(str(tmp_path / "run"), CLEAN)[1]


def with_long_image(judged: FakeRun, folder: Path, x: int, times: int = 1) -> str:
    """The run on the same corpus, in which POISONED is six times as wide as high and has its trigger at x.
    Enlarged by `times`, and judged by a copy, if that is more than 1."""
    shutil.copytree(judged.run, folder / "run")
    shutil.copytree(judged.corpus, folder / "corpus")
    shard = folder / "corpus" / POISONED.partition("#")[0]
    rows = pq.read_table(shard).to_pylist()
    # In a part, which is squeezed to 0.8 of its width, the trigger is as large as in the others' squares.
    image = png(12, 6 * SIDE, SIDE)
    rows[12]["image"] = enlarged(with_trigger(image, TRIGGER, (x, 10, x + 12, 20)), times)
    pq.write_table(pa.Table.from_pylist(rows), shard, row_group_size=40)
    run, corpus = Folder(str(folder / "run")), open_corpus(str(folder / "corpus"), rows_per_slice=40)
    shrink_to = 2 * SIDE if times > 1 else None
    config = CONFIG.model_copy(update={"corpus": CONFIG.corpus.model_copy(update={"shrink_to": shrink_to})})
    about = {"input": str(folder / "corpus"), "config": config.model_dump(mode="json")}
    run.write_json(artifact.RUN, run.read_json(artifact.RUN) | about)
    index, slice_ = run / artifact.INDEX, corpus.slices()[0]
    index_slice(slice_, corpus, config, index, run / artifact.DEAD_ROWS)
    judge = JudgeSlice(config, index, run / artifact.CLASSIFIER, run / artifact.SCORES)
    judge(slice_.index, *read_views(corpus, config, index, slice_))
    return run.uri


def enlarged(data: bytes, times: int) -> bytes:
    image, sink = Image.open(io.BytesIO(data)), io.BytesIO()
    image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("x", [8, 150])
def test_a_long_image_is_shown_by_the_part_that_judge_has_flagged(judged, tmp_path, x):
    story = inspect_image(with_long_image(judged, tmp_path, x), POISONED)
    assert (story.record.width, story.record.height) == (6 * SIDE, SIDE)
    assert story.record.p_poison > 0.5 and story.scores[0].p == pytest.approx(story.record.p_poison, abs=1e-3)
    assert "8 overlapping parts were judged beside the whole" in story.why[1]
    assert story.part[0] <= x and x + 12 <= story.part[2] and story.part[2] - story.part[0] == 1.25 * SIDE
    shown = ((x - story.part[0]) * 0.8, 10, (x + 12 - story.part[0]) * 0.8, 20)
    assert story.box == pytest.approx(shown, abs=2)


def test_an_image_that_was_judged_by_its_copy_is_shown_as_it_was_judged(judged, tmp_path):
    run = with_long_image(judged, tmp_path, 150, times=3)
    story = inspect_image(run, POISONED)
    assert (story.record.width, story.record.height) == (18 * SIDE, 3 * SIDE)
    assert story.record.p_poison > 0.5 and story.scores[0].p == pytest.approx(story.record.p_poison, abs=1e-3)
    assert story.part[0] <= 450 and story.part[2] >= 486 and story.part[2] - story.part[0] == 3.75 * SIDE
    x0, y0, x1, y1 = story.record.box
    assert ((x0 + x1) / 2, y0, y1) == pytest.approx((468, 30, 60), abs=6), "in pixels of the stored image"
    shutil.rmtree(Path(run) / artifact.INDEX / artifact.SHRUNK)
    story = inspect_image(run, POISONED)
    assert story.record.p_poison > 0.5 and not story.scores
    assert any("smaller copy by which the image was judged is gone" in line for line in story.why)

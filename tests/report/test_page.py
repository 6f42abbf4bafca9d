"""The report of a small run: numbers and words are those of the run; no text of the corpus acts in it."""

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.artifact import NO_EVIDENCE, POISON, SLICES
from poisoncam_ray.corpus import Slice
from poisoncam_ray.corpus.slices import slice_table
from poisoncam_ray.defence import stages
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder, Ledger
from poisoncam_ray.report.gather import SKIPPED_SHARDS, gather
from poisoncam_ray.report.model import PageContent, SkippedShard
from poisoncam_ray.report.page import build_report, render
from tests.fake_evidence import FOUND
from tests.fake_run import DEAD, ERROR, FakeRun, make_fake_run
from tests.page import Page

EVIL = "\"><script>alert(1)</script><style>*{display:none}</style>'"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return make_fake_run(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def html(fake: FakeRun) -> str:
    return build_report(fake.run, about={"Note": EVIL})


def head_of(html: str) -> Page:
    """What stands before the first section."""
    return Page(html[html.index("<header>") : html.index("<main>")])


def test_the_headline_and_the_ledger_are_those_of_the_run(fake: FakeRun, html: str) -> None:
    page = Page(html)
    assert "19 of 120 images were removed. They carry one suspected trigger." in page.text
    assert "120 in = 100 kept + 19 removed + 1 unreadable" in page.text
    assert "Measured against truth" not in page.text


def test_the_content_of_the_page_is_that_of_the_run(fake: FakeRun) -> None:
    content = gather(fake.run)
    assert content.ledger == Ledger(120, 100, 19, 1) and content.ledger.balanced
    assert content.families == {1: 19}
    assert [trigger.rank for trigger in content.triggers] == list(range(8))
    assert content.triggers[0].role == "train" and content.triggers[0].picture
    assert len(content.scores) == 18 and sum(chosen for _, chosen in content.scores) == 8
    assert [(row["live"], row["tried"]) for row in content.rounds] == [(4, 9), (2, 9)]
    assert {image.image_id for image in content.removed_sample} == fake.removed
    # 48 × 40 stored pixels, squeezed into a square of 32.
    assert {image.box for image in content.removed_sample} == {(7, 5, 15, 14)}
    assert {image.box for image in content.borderline_sample} == {None}
    assert len(content.borderline_sample) == 24
    assert not {image.image_id for image in content.borderline_sample} & (fake.removed | {DEAD})
    assert [row["count"] for row in content.dead] == [1]


def test_histogram_and_borderline_equal_a_read_of_everything(fake: FakeRun) -> None:
    content, scores = gather(fake.run), Folder(fake.run) / artifact.SCORES
    rows = [row for name in scores.parts() for row in scores.read_table(name).to_pylist()]
    for fate, bins in ((artifact.KEEP, content.kept_bins), (artifact.REMOVE, content.removed_bins)):
        p = [row["p_poison"] for row in rows if row["fate"] == fate]
        assert bins == np.histogram(p, bins=50, range=(0, 1))[0].tolist()
    kept = sorted((row["p_poison"] for row in rows if row["fate"] == artifact.KEEP), reverse=True)
    assert [image.p_poison for image in content.borderline_sample] == kept[:24]


def test_the_page_names_the_stages_by_their_titles(html: str) -> None:
    titles = {stage.name: stage.title for stage in stages() if stage.name != artifact.REPORT}
    assert list(titles.items()) == list(artifact.TITLES.items())[:-1]
    assert all(f"{title}." in Page(html).text for title in titles.values())


def test_the_page_says_how_much_of_the_corpus_the_encoder_has_seen(html: str) -> None:
    said = r"was shown 50\.\d % of the \d+ images, each 5 times\. Of a poison of 0\.1 %"
    assert re.search(said, Page(html).text)


def test_the_page_says_where_the_removed_images_and_the_verdict_are(html: str) -> None:
    text = Page(html).text
    assert "report/removed.csv" in text and "report/verdict.json" in text


def test_nothing_of_the_corpus_acts_and_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert len(page.all("style")) == 1
    assert EVIL in page.text and ERROR in page.text and "a<b>.parquet#20" in page.text
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            assert attrs.get(name, "data:image/").startswith("data:image/")
    assert "url(" not in html and "@import" not in html


def test_the_policy_allows_this_style_and_nothing_else(html: str) -> None:
    policy = next(a["content"] for a in Page(html).all("meta") if "http-equiv" in a)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"style-src 'sha256-{digest}'" in policy and "unsafe" not in policy


def test_skipped_shards_are_named_on_the_first_screen(fake: FakeRun, html: str, tmp_path: Path) -> None:
    assert "skipped" not in head_of(html).text and gather(fake.run).n_skipped == 0
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    schema, footer = {"kind": "other_schema", "error": "no image"}, {"kind": "unreadable_shard"}
    slices = [
        Slice(0, "a<b>.parquet", 0, 80),
        Slice(1, "a/drifted.parquet", 0, 1024, **schema),
        Slice(2, "a/drifted.parquet", 1024, 1500, **schema),
        *(Slice(3 + i, f"cut-{i:02d}.parquet", 0, 1, error=EVIL, **footer) for i in range(SKIPPED_SHARDS)),
    ]
    (run / artifact.INDEX).write_table(SLICES, slice_table(slices))
    content = gather(run.uri)
    assert content.n_skipped == SKIPPED_SHARDS + 1 and len(content.skipped) == SKIPPED_SHARDS
    assert content.skipped[0] == SkippedShard("cut-00.parquet", None, EVIL)
    page = render(content)
    head = head_of(page).text
    assert "21 shards were skipped" in head and "cut-19.parquet" in head and "and 1 more" in head
    assert "rows unknown, counted as one" in head and EVIL in head and "<script" not in page
    (run / artifact.INDEX).write_table(SLICES, slice_table(slices[:3]))
    page = render(gather(run.uri))
    head = head_of(page).text
    assert "1 shard was skipped" in head and "a/drifted.parquet (1,500 rows): no image" in " ".join(
        head.split()
    )


def test_every_picture_and_plot_has_words(html: str) -> None:
    page = Page(html)
    pictures, plots = page.all("img"), [a for a in page.all("svg") if "preserveaspectratio" not in a]
    assert len(pictures) >= 40 and all(picture["alt"] for picture in pictures)
    assert len(plots) >= 6 and all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert page.all("html")[0]["lang"] == "en"


def test_the_window_is_drawn_where_it_was_found(fake: FakeRun, html: str) -> None:
    best = max(fake.candidates, key=lambda row: row["score"])
    window = next(a for a in Page(html).all("rect") if a["class"] == "window")
    assert (int(window["x"]), int(window["y"])) == (best["x0"], best["y0"])
    assert (int(window["width"]), int(window["height"])) == (10, 10)


def test_measured_against_truth(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    probes = {"acc_clean": 0.5, "acc_patched": 0.25, "asr": 0.875}
    metrics = {
        "recall": 0.9875,
        "n_poisoned": 20,
        "precision": None,
        "strategies": {"gradcam": {"accuracy": 0.05}},
    }
    (run / artifact.PAGE).write_json(
        artifact.METRICS, metrics | {"threat_model": probes, "retrained": probes}
    )
    text = Page(build_report(run.uri)).text
    for words in (
        "Measured against truth",
        "98.8 %",
        "gradcam",
        "5.0 %",
        "Threat model",
        "Retrained",
        "87.5 %",
    ):
        assert words in text


def test_probes_of_several_models_are_a_row_each(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    models = {
        model: {"knn": {"acc_clean": share, "asr": None}, "linear_10": {"acc_clean": share / 2, "asr": 0.25}}
        for model, share in (("threat", 0.42), (EVIL, 0.36))
    }
    metrics = {"recall": 1.0, "probes": models, "recall_by_target": {"3": 0.75}}
    (run / artifact.PAGE).write_json(artifact.METRICS, metrics)
    html = build_report(run.uri)
    page = Page(html)
    for words in (
        "Threat · k-NN",
        "Threat · Linear on 10 % of the labels",
        "42.0 %",
        "18.0 %",
        "25.0 %",
        "Recall by target",
        "75.0 %",
    ):
        assert words in page.text
    assert f"{EVIL} · k-NN" in page.text and len(page.all("style")) == 1
    assert "{'" not in page.text


def test_a_clean_corpus_is_told_without_triumph(tmp_path: Path) -> None:
    fake = make_fake_run(tmp_path, poison=False)
    text = Page(build_report(fake.run)).text
    assert "No evidence of poison. All 119 readable images were kept." in text
    assert "none used as a trigger" in text and "absence of evidence" in text


def test_a_corpus_that_is_gone_costs_the_pictures_only(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    run.write_json(artifact.RUN, run.read_json(artifact.RUN) | {"input": str(tmp_path / "gone")})
    content = gather(run.uri)
    assert {trigger.picture for trigger in content.triggers} == {None}
    assert "no image" in Page(render(content)).text


def test_a_missing_part_of_the_run_costs_its_section_only(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    (run / artifact.ENCODER).delete(artifact.HISTORY)
    (run / artifact.CLASSIFIER).delete(artifact.VALIDATION)
    (run / artifact.CLASSIFIER).delete(artifact.ROLES)
    run.delete(artifact.DEAD_ROWS)
    run.delete(artifact.RUN)
    page = Page(build_report(run.uri))
    assert "Training loss" not in page.text and "do not add up" in page.text


def test_an_unfinished_run_is_one_sentence(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    (run / artifact.CLEAN).delete(MANIFEST)
    with pytest.raises(UserError, match="is not finished"):
        build_report(run.uri)


def test_credentials_in_a_url_stay_out(fake: FakeRun, tmp_path: Path) -> None:
    run = Folder(str(shutil.copytree(fake.run, tmp_path / "run")))
    settings = run.read_json(artifact.RUN)
    settings["config"]["encoder"]["checkpoint"] = "https://host/model?X-Signature=s3cr3t"
    run.write_json(artifact.RUN, settings | {"input": "nowhere://key:s3cr3t@s3cr3t@bucket/corpus"})
    html = build_report(run.uri)
    assert "s3cr3t" not in html and "bucket/corpus" in html and "https://host/model" in html


def test_equal_runs_give_equal_pages(fake: FakeRun) -> None:
    assert build_report(fake.run) == build_report(fake.run)


@pytest.mark.parametrize(
    ("ledger", "families", "verdict", "headline"),
    [
        (
            Ledger(60_000, 59_588, 412),
            {1: 412},
            POISON,
            "412 of 60,000 images were removed. They carry one suspected trigger.",
        ),
        (
            Ledger(9, 6, 3),
            {1: 1, 4: 2},
            POISON,
            "3 of 9 images were removed. Each carries one of 2 suspected triggers.",
        ),
        (Ledger(9, 8, 1), {1: 1}, POISON, "1 of 9 images was removed. It carries one suspected trigger."),
        (
            Ledger(9, 8, 0, 1),
            {},
            POISON,
            "There is evidence of poison, but no poisoned image was identified. "
            "All 8 readable images were kept.",
        ),
        (Ledger(9, 8, 0, 1), {}, NO_EVIDENCE, "No evidence of poison. All 8 readable images were kept."),
    ],
)
def test_headline(ledger: Ledger, families: dict, verdict: str, headline: str) -> None:
    page = PageContent("t", {}, ledger, families, replace(FOUND, verdict=verdict))
    text = Page(render(page)).text
    assert page.headline == headline and headline in text
    assert "without an image" not in text


def test_rows_without_an_image_are_told_and_not_counted_as_images() -> None:
    page = PageContent("t", {}, Ledger(9, 8, 1), {1: 1}, replace(FOUND, verdict=POISON), no_image=3)
    assert page.headline.startswith("1 of 6 images was removed.")
    assert "3 rows without an image, kept: there was nothing to judge." in Page(render(page)).text
    page = replace(page, ledger=Ledger(9, 9), verdict=replace(FOUND, verdict=NO_EVIDENCE), no_image=1)
    assert page.headline.endswith("All 8 readable images were kept.")
    assert "1 row without an image, kept" in Page(render(page)).text

"""The report of runs that came to a verdict: no evidence, one family, several; and of hostile evidence."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.artifact import NO_EVIDENCE, Family
from poisoncam_ray.errors import StoreAwayError
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.verdict import VerdictRules
from poisoncam_ray.report.gather import gather
from poisoncam_ray.report.page import build_report, render
from poisoncam_ray.report.words import NO_TRIGGER, NOTHING, TOO_FEW
from tests.fake_evidence import flag_images, write_evidence
from tests.fake_run import make_fake_run
from tests.page import Page

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Fake runs with poison and without, made once."""
    return {poison: make_fake_run(tmp_path_factory.mktemp("fake"), poison).run for poison in (True, False)}


@pytest.fixture
def run_of(runs: dict[bool, str], tmp_path: Path):
    def copy(poison: bool) -> Folder:
        return Folder(str(shutil.copytree(runs[poison], tmp_path / f"run{poison}")))

    return copy


def text_of(run: Folder) -> str:
    return " ".join(Page(build_report(run.uri)).text.replace("\N{NO-BREAK SPACE}", " ").split())


def test_no_evidence_is_said_first_and_with_its_false_alarm_rate(run_of) -> None:
    run = run_of(False)
    page = Page(build_report(run.uri))
    words = " ".join(page.text.split())
    assert "No evidence of poison. All 119 readable images were kept. (False alarm rate 5 %.)" in words
    assert page.all("h1") == [{"class": "clear"}]
    assert "31 % of benign window groups score as high" in words and "absence of evidence" in words
    assert "none used as a trigger" in words and "at or above the threshold" not in words
    assert "trigger family" not in words and "trigger families" not in words


def test_without_a_classifier_the_page_says_why_and_shows_no_probabilities(run_of) -> None:
    run = run_of(False)
    text = text_of(run)
    assert "No classifier was trained" in text and text.count(NOTHING) == 2
    assert "Probability of poison" not in text and "closest to the threshold" not in text


def test_every_family_has_its_triggers_images_and_count(run_of) -> None:
    run = run_of(True)
    removed = flag_images(run, 3)
    content = gather(run.uri)
    assert {suspect.family.family: suspect.removed for suspect in content.suspects} == removed
    assert sum(removed.values()) == content.ledger.removed
    scores = run / artifact.SCORES
    rows = [row for name in scores.parts() for row in scores.read_table(name).to_pylist()]
    family_of = {row["image_id"]: row["family"] for row in rows}
    for suspect in content.suspects:
        assert 0 < len(suspect.crops) <= 4 and 0 < len(suspect.sample) <= 6
        assert {family_of[image.image_id] for image in suspect.sample} == {suspect.family.family}
        assert all(image.picture for image in suspect.sample)
    text = text_of(run)
    assert "19 of 120 images were removed. Each carries one of 3 suspected triggers." in text
    assert (
        "3 trigger families" in text and "1 in 2,500 benign window groups scores as high (p = 0.0004)" in text
    )


def test_the_table_of_families_is_what_was_gathered(run_of) -> None:
    run = run_of(True)
    removed = flag_images(run, 2)
    html = build_report(run.uri)
    table = Page(html[html.index('<table class="families">') : html.index("</table>") + len("</table>")])
    for family, n in removed.items():
        assert table.text.split().count(str(n)) >= 1
        for what in ("Window", "Trigger"):
            said = [img["alt"] for img in table.all("img") if img["alt"].startswith(what)]
            assert sum(alt.endswith(f" of family {family}") for alt in said) == 4
    assert sum(img["alt"].startswith("Removed image") for img in table.all("img")) == 12


def test_without_pictures_of_whole_triggers_there_is_still_a_page(run_of) -> None:
    run = run_of(True)
    flag_images(run, 2)
    (run / artifact.CLASSIFIER).delete(artifact.WHOLE_TRIGGERS)
    assert [list(suspect.whole) for suspect in gather(run.uri).suspects] == [[], []]
    assert "2 trigger families" in text_of(run)


def test_each_family_has_the_validation_of_its_own_classifier(run_of) -> None:
    run = run_of(True)
    assert "family.1.recall" not in text_of(run)
    flag_images(run, 2)
    text = text_of(run)
    assert "family.1.recall" in text and "family.2.recall" in text and "{'" not in text


def test_without_a_null_the_page_says_why_there_is_no_comparison(run_of) -> None:
    nothing = {"p_value": None, "threshold": None, "null_scores": (), "group_scores": ()}
    poisoned, clean = run_of(True), run_of(False)
    write_evidence(poisoned, false_alarm_rate=1.0, **nothing)
    text = text_of(poisoned)
    assert "No evidence was required (false alarm rate 100 %)" in text
    assert "benign window" not in text and "at or above the threshold" not in text
    write_evidence(clean, verdict=NO_EVIDENCE, **nothing)
    text = text_of(clean)
    # No rate stands behind a question that could not be asked.
    assert "There are too few window groups" in text and TOO_FEW in text and "alse alarm" not in text


def test_windows_above_the_threshold_that_were_no_trigger_are_not_denied(run_of) -> None:
    run = run_of(False)
    text = text_of(run)
    assert NOTHING in text and NO_TRIGGER not in text
    write_evidence(run, verdict=NO_EVIDENCE, best_group=0.9)
    text = text_of(run)
    assert NO_TRIGGER in text and NOTHING not in text and "at or above the threshold" in text


def test_a_family_whose_classifier_was_in_doubt_says_so(run_of) -> None:
    run = run_of(True)
    flag_images(run, 2)
    assert "A classifier is in doubt if" not in text_of(run)
    made = run / artifact.CLASSIFIER
    validation = made.read_json(artifact.VALIDATION)
    validation["families"]["2"]["erased"] = False
    made.write_json(artifact.VALIDATION, validation)
    assert [suspect.erased for suspect in gather(run.uri).suspects] == [True, False]
    assert "A classifier is in doubt if" in text_of(run)


def test_where_every_classifier_was_in_doubt_no_image_is_said_to_be_close_to_poison(run_of) -> None:
    run = run_of(False)
    write_evidence(run)
    doubt = {"recall": 0.98, "unsure_share": 0.21, "erased": False}
    (run / artifact.CLASSIFIER).write_json(
        artifact.VALIDATION, doubt | {"trained": True, "families": {"1": doubt}}
    )
    text = text_of(run)
    assert "The classifier is in doubt 21.0 % of the images score close to its threshold." in text
    assert "closest to the threshold" not in text and "Probability of poison" not in text


def test_a_store_that_stays_away_is_no_corpus_without_pictures(run_of) -> None:
    class Away:
        def __init__(self, trouble: Exception) -> None:
            self.trouble = trouble

        def fetch(self, image_ids: list[str]) -> list[bytes]:
            raise self.trouble

    run = run_of(True)
    flag_images(run, 1)
    assert all(trigger.picture is None for trigger in gather(run.uri, corpus=Away(OSError("gone"))).triggers)
    with pytest.raises(StoreAwayError):
        gather(run.uri, corpus=Away(StoreAwayError("The store failed for 150 s")))


def test_only_families_on_the_page_cost_pictures(run_of, monkeypatch) -> None:
    run = run_of(True)
    flag_images(run, 3)
    monkeypatch.setattr("poisoncam_ray.report.gather.FAMILIES", 2)
    monkeypatch.setattr("poisoncam_ray.report.scores.REMOVED_SAMPLE", 0)
    asked: list[str] = []

    class Asked:
        def fetch(self, image_ids: list[str]) -> list[bytes]:
            asked.extend(image_ids)
            return [b""] * len(image_ids)

    content = gather(run.uri, corpus=Asked())
    assert [suspect.family.family for suspect in content.suspects] == [1, 2]
    assert {trigger.family for trigger in content.triggers} == {1, 2}
    removed = [
        row["image_id"]
        for name in (run / artifact.SCORES).parts()
        for row in (run / artifact.SCORES).read_table(name).to_pylist()
        if row["family"] == 3
    ]
    triggers = {trigger.image_id for trigger in content.triggers}
    assert removed and not (set(removed) - triggers) & set(asked)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ("changed", "moved 140 of them to another cluster ("),
        ("gain", "moved a net 130 of them into the cluster of its own image ("),
        ("supercluster_gain", "moved a net 135 of them into the supercluster of its own image ("),
    ],
)
def test_the_page_says_what_was_counted(run_of, reading: str, words: str) -> None:
    run = run_of(True)
    settings = run.read_json(artifact.RUN)
    settings["config"]["search"]["reading"] = reading
    run.write_json(artifact.RUN, settings)
    assert words in text_of(run)


def test_the_page_says_where_the_best_windows_were_pasted_on_more_images(run_of) -> None:
    run, words = run_of(True), "pasted on more images than the others, which ranks them"
    assert words not in text_of(run)
    made = run / artifact.CLASSIFIER
    best, *others = made.read_table(artifact.ROLES).to_pylist()
    raced = made.read_table(artifact.ROLES).from_pylist([{**best, "n_flip": 1000}, *others])
    made.write_table(artifact.ROLES, raced)
    assert words in text_of(run)


def test_one_family_is_one_trigger(run_of) -> None:
    run = run_of(True)
    text = text_of(run)
    assert "They carry one suspected trigger." in text and "One trigger family" in text
    assert "family 1 ·" not in text


def test_every_family_shows_its_best_triggers_however_strong_the_first_is(run_of) -> None:
    run = run_of(True)
    flag_images(run, 2)
    made = run / artifact.CLASSIFIER
    rows = made.read_table(artifact.ROLES).to_pylist()
    strong = [{**rows[0], "rank": i} for i in range(30)]
    weak = [{**rows[1], "rank": 30 + i} for i in range(3)]
    table = made.read_table(artifact.ROLES).from_pylist([*strong, *weak])
    made.write_table(artifact.ROLES, table)
    shown = Counter(trigger.family for trigger in gather(run.uri).triggers)
    assert shown == {1: 10, 2: 3}


def test_poison_that_no_image_was_found_to_carry_is_no_all_clear(run_of) -> None:
    run = run_of(False)
    write_evidence(run)
    page = Page(build_report(run.uri))
    assert "There is evidence of poison, but no poisoned image was identified." in page.text
    assert page.all("h1") == [{}] and "No evidence" not in page.text


def test_the_page_explains_the_score_with_the_constants_of_the_verdict(run_of) -> None:
    rules, text = VerdictRules(), text_of(run_of(True))
    assert rules.n_standard_errors == 2 and "mean flip gain minus two standard errors" in text
    assert (
        rules.near_duplicate_weight == 3 and "near-duplicates from several clusters count three times" in text
    )


def test_a_verdict_that_holds_markup_stays_text(run_of) -> None:
    run = run_of(True)
    marked = [EVIL.replace("1", str(n)) for n in (7, 8, 9)]
    write_evidence(run, families=(Family(1, 0.9, 0.0004, 8, cluster=marked[0]),))
    (run / artifact.CLASSIFIER).write_json(artifact.VALIDATION, {"trained": True, marked[1]: marked[2]})
    html = build_report(run.uri)
    assert "<img src=x" not in html
    for text in marked:
        assert text.replace("<", "&lt;").replace(">", "&gt;") in html


def test_nothing_acts_on_the_page_of_a_verdict(run_of) -> None:
    run = run_of(True)
    flag_images(run, 3)
    page = Page(render(gather(run.uri)))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "form"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "style"]
    assert all(img["alt"] for img in page.all("img"))

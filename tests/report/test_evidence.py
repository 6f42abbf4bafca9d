"""The report of runs that came to a verdict: no evidence, one family, several; and of hostile evidence."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from poisoncam_ray.verdict import EVIDENCE, NO_EVIDENCE, NO_TRIGGER, NOTHING, TOO_FEW

from poisoncam_ray import artifact
from poisoncam_ray.errors import StoreAwayError
from poisoncam_ray.folder import Folder
from poisoncam_ray.report import build_report, gather, render
from tests.fake_evidence import WHY, accuse, write_evidence
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
    assert "31 % of benign bundles of windows score as high" in words and "absence of evidence" in words
    assert "none convincing" in words and "past the threshold" not in words
    assert "trigger family" not in words and "trigger families" not in words


def test_without_a_classifier_the_page_says_why_and_shows_no_probabilities(run_of) -> None:
    run = run_of(False)
    html = build_report(run.uri)
    text = Page(html).text
    assert "No classifier was trained" in text and WHY in text and "<b>benign" not in html
    assert "What the classifier made" not in text and "closest to the line" not in text


def test_every_family_has_its_triggers_images_and_count(run_of) -> None:
    run = run_of(True)
    removed = accuse(run, 3)
    facts = gather(run.uri)
    assert {suspect.family.family: suspect.removed for suspect in facts.suspects} == removed
    assert sum(removed.values()) == facts.ledger.removed
    verdicts = run / artifact.SCORES
    rows = [row for name in verdicts.parts() for row in verdicts.read_table(name).to_pylist()]
    family_of = {row["image_id"]: row["family"] for row in rows}
    for suspect in facts.suspects:
        assert 0 < len(suspect.crops) <= 4 and 0 < len(suspect.sample) <= 6
        assert {family_of[thumb.image_id] for thumb in suspect.sample} == {suspect.family.family}
        assert all(thumb.picture for thumb in suspect.sample)
    text = text_of(run)
    assert "19 of 120 images carry what look like 3 different triggers. They were removed." in text
    assert (
        "3 trigger families" in text
        and "1 in 2,500 benign bundles of windows scores as high (p = 0.0004)" in text
    )


def test_the_table_of_families_is_what_was_gathered(run_of) -> None:
    run = run_of(True)
    removed = accuse(run, 2)
    html = build_report(run.uri)
    table = Page(html[html.index('<table class="families">') : html.index("</table>") + len("</table>")])
    for family, n in removed.items():
        assert table.text.split().count(str(n)) >= 1
        for what in ("Window", "Trigger"):
            said = [img["alt"] for img in table.all("img") if img["alt"].startswith(what)]
            assert sum(alt.endswith(f" of family {family}") for alt in said) == 4
    assert sum(img["alt"].startswith("Removed image") for img in table.all("img")) == 12


def test_a_run_from_before_whole_triggers_were_found_still_has_its_page(run_of) -> None:
    run = run_of(True)
    accuse(run, 2)
    (run / artifact.CLASSIFIER).delete("whole_triggers.parquet")
    assert [list(suspect.whole) for suspect in gather(run.uri).suspects] == [[], []]
    assert "2 trigger families" in text_of(run)


def test_each_family_has_the_validation_of_its_own_classifier(run_of) -> None:
    run = run_of(True)
    assert "family.1.recall" not in text_of(run)
    accuse(run, 2)
    text = text_of(run)
    assert "family.1.recall" in text and "family.2.recall" in text and "{'" not in text


def test_without_a_null_the_page_says_why_there_is_no_comparison(run_of) -> None:
    nothing = {"p_value": None, "threshold": None, "null_scores": [], "group_scores": []}
    poisoned, clean = run_of(True), run_of(False)
    write_evidence(poisoned, false_alarm_rate=1.0, **nothing)
    text = text_of(poisoned)
    assert "No evidence was asked for (a false alarm rate of 100 %)" in text
    assert "benign windows" not in text and "past the threshold" not in text
    write_evidence(clean, verdict=NO_EVIDENCE, **nothing)
    text = text_of(clean)
    # No rate stands behind a question that could not be asked.
    assert "There were too few bundles of windows" in text and TOO_FEW in text and "alse alarm" not in text


def test_windows_above_the_threshold_that_were_no_trigger_are_not_denied(run_of) -> None:
    run = run_of(False)
    text = text_of(run)
    assert NOTHING in text and NO_TRIGGER not in text
    write_evidence(run, verdict=NO_EVIDENCE, best_group=0.9)
    text = text_of(run)
    assert NO_TRIGGER in text and NOTHING not in text and "past the threshold" in text


def test_a_family_whose_classifier_was_in_doubt_says_so(run_of) -> None:
    run = run_of(True)
    accuse(run, 2)
    assert "in doubt about too much" not in text_of(run)
    made = run / artifact.CLASSIFIER
    validation = made.read_json("validation.json")
    validation["families"]["2"]["erased"] = False
    made.write_json("validation.json", validation)
    assert [suspect.erased for suspect in gather(run.uri).suspects] == [True, False]
    assert "in doubt about too much of the corpus" in text_of(run)


def test_where_every_classifier_was_in_doubt_no_image_is_said_to_be_close_to_poison(run_of) -> None:
    run = run_of(False)
    write_evidence(run)
    doubt = {"recall": 0.98, "unsure_share": 0.21, "erased": False}
    (run / artifact.CLASSIFIER).write_json(
        "validation.json", doubt | {"trained": True, "families": {"1": doubt}}
    )
    text = text_of(run)
    assert "The classifier was in doubt It left 21.0 % of the images" in text
    assert "closest to the line" not in text and "What the classifier made" not in text


def test_a_store_that_stays_away_is_no_corpus_without_pictures(run_of) -> None:
    class Away:
        def __init__(self, trouble: Exception) -> None:
            self.trouble = trouble

        def fetch(self, image_ids: list[str]) -> list[bytes]:
            raise self.trouble

    run = run_of(True)
    accuse(run, 1)
    assert all(trigger.picture is None for trigger in gather(run.uri, corpus=Away(OSError("gone"))).triggers)
    with pytest.raises(StoreAwayError):
        gather(run.uri, corpus=Away(StoreAwayError("The store failed for 150 s")))


def test_only_families_on_the_page_cost_pictures(run_of, monkeypatch) -> None:
    run = run_of(True)
    accuse(run, 3)
    monkeypatch.setattr("poisoncam_ray.report.facts.FAMILIES", 2)
    monkeypatch.setattr("poisoncam_ray.report.verdicts.REMOVED_SAMPLE", 0)
    asked: list[str] = []

    class Asked:
        def fetch(self, image_ids: list[str]) -> list[bytes]:
            asked.extend(image_ids)
            return [b""] * len(image_ids)

    facts = gather(run.uri, corpus=Asked())
    assert [suspect.family.family for suspect in facts.suspects] == [1, 2]
    assert {trigger.family for trigger in facts.triggers} == {1, 2}
    removed = [
        row["image_id"]
        for name in (run / artifact.SCORES).parts()
        for row in (run / artifact.SCORES).read_table(name).to_pylist()
        if row["family"] == 3
    ]
    triggers = {trigger.image_id for trigger in facts.triggers}
    assert removed and not (set(removed) - triggers) & set(asked)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ("changed", "moved 140 of them to another cluster ("),
        ("gain", "brought a net 130 of them into its own cluster ("),
        ("group_gain", "brought a net 135 of them into its own cluster and those around it ("),
    ],
)
def test_the_page_says_what_was_counted(run_of, reading: str, words: str) -> None:
    run = run_of(True)
    settings = run.read_json("run.json")
    settings["config"]["search"]["reading"] = reading
    run.write_json("run.json", settings)
    assert words in text_of(run)


def test_one_family_is_one_trigger(run_of) -> None:
    run = run_of(True)
    text = text_of(run)
    assert "carry what looks like one trigger" in text and "One trigger family" in text
    assert "family 1 ·" not in text


def test_every_family_shows_its_best_triggers_however_strong_the_first_is(run_of) -> None:
    run = run_of(True)
    accuse(run, 2)
    made = run / artifact.CLASSIFIER
    rows = made.read_table("triggers.parquet").to_pylist()
    strong = [{**rows[0], "rank": i} for i in range(30)]
    weak = [{**rows[1], "rank": 30 + i} for i in range(3)]
    table = made.read_table("triggers.parquet").from_pylist([*strong, *weak])
    made.write_table("triggers.parquet", table)
    shown = Counter(trigger.family for trigger in gather(run.uri).triggers)
    assert shown == {1: 10, 2: 3}


def test_poison_that_no_image_was_found_to_carry_is_no_all_clear(run_of) -> None:
    run = run_of(False)
    write_evidence(run)
    page = Page(build_report(run.uri))
    assert "There is evidence of poison, but no image was found to carry it." in page.text
    assert page.all("h1") == [{}] and "No evidence" not in page.text


def test_a_run_without_evidence_is_told_as_before(run_of) -> None:
    run = run_of(True)
    (run / artifact.SEARCH).delete(EVIDENCE)
    text = text_of(run)
    assert "19 of 120 images carry what looks like one trigger." in text
    assert "benign windows" not in text and "alse alarm" not in text


def test_evidence_that_holds_markup_stays_text(run_of) -> None:
    run = run_of(False)
    write_evidence(run, verdict=EVIL, later_key=EVIL, p_value=None, threshold=None, null_scores=[])
    (run / artifact.CLASSIFIER).write_json("validation.json", {"trained": False, "why": EVIL})
    html = build_report(run.uri)
    assert "<img src=x" not in html and "&lt;img src=x" in html


def test_nothing_acts_on_the_page_of_a_verdict(run_of) -> None:
    run = run_of(True)
    accuse(run, 3)
    page = Page(render(gather(run.uri)))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "form"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name == "style"]
    assert all(img["alt"] for img in page.all("img"))

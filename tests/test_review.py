"""Decisions of people: logged, applied to the rows they name and no others, reversible, and safe against a
kill at any write."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from poisoncam_ray import artifact, facts, review
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder, Manifest
from poisoncam_ray.progress import Progress
from poisoncam_ray.review import ACCEPT, REJECT, RESTORE, UNDO, Decisions, Named
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.clean import Clean
from poisoncam_ray.stages.report import Report
from tests.corpus.test_side_tables import write_shard
from tests.fake_evidence import flag_images, replace_column
from tests.fake_run import CONFIG as FAKE_CONFIG
from tests.fake_run import make_fake_run
from tests.reviewed import CONFIG, SETTINGS, go, judged_run, runner, tree
from tests.stages.test_keep_list import write_images, write_parquet, write_tars
from tests.tars import image

ROWS = (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.KEEP_LIST, artifact.CLEAN)
LISTED = load_config(overrides=[*SETTINGS, "clean.copy_corpus=false"])


class Cleaned:
    """A finished run."""

    def __init__(self, folder: Path, write: Callable[[Path], None], config=CONFIG) -> None:
        self.corpus, self.run, self.config = str(folder / "in"), Folder(str(folder / "run")), config
        write(Path(self.corpus))
        judged_run(self.corpus, self.run, config)
        self.go()

    def go(self):
        return go(self.corpus, self.run, self.config)

    def flagged(self) -> dict[str, int]:
        return {i: family for rows in review.flagged(self.run).values() for i, family in rows.items()}

    def decide(self, action: str, named: Named, who: str = "ann") -> None:
        images = sum(review.concerned(self.run, action, named).values())
        review.append(self.run, action, named, images, who, "why")
        self.go()

    def places(self) -> dict[str, list[str]]:
        """Where each image lies, read from the rows themselves."""
        reasons = (Path(self.run.uri) / artifact.CLEAN).glob("unit-*.parquet")
        listed = sorted(i for p in reasons for i in pq.read_table(p)["image_id"].to_pylist())
        return {"removed": images_in(self.run, artifact.REMOVED_ROWS, self.corpus), "reasons": listed}


def images_in(run: Folder, name: str, corpus: str) -> list[str]:
    """The images that lie in `clean/` or `removed/`, by the ids of the equal images of the corpus."""
    whole = open_corpus(corpus)
    of = {row.data: row.image_id for slice_ in whole.slices() for row in whole.read(slice_)}
    if not any((Path(run.uri) / name).rglob("*.*")):
        return []
    try:
        written = open_corpus((run / name).uri)
        return sorted(of[row.data] for slice_ in written.slices() for row in written.read(slice_))
    except UserError:
        return []


FORMATS = pytest.mark.parametrize("write", [write_parquet, write_tars, write_images])


@FORMATS
def test_restored_rows_go_back_and_only_what_changed_is_written_again(tmp_path, write):
    done = Cleaned(tmp_path, write)
    flagged = done.flagged()
    before = tree(done.run, *ROWS)
    stamps = {p: p.stat().st_mtime_ns for p in (Path(done.run.uri) / artifact.CLEAN).glob("unit-*.json")}
    one = sorted(flagged)[0]
    done.decide(RESTORE, Named(ids=frozenset([one])))
    assert done.places()["removed"] == done.places()["reasons"] == sorted(set(flagged) - {one})
    assert one in images_in(done.run, artifact.CLEAN_ROWS, done.corpus)
    again = [p for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert len(again) == 1
    marker = json.loads(again[0].read_text())
    assert marker["restored"] == {"ann": 1} and marker["review"]
    manifest = Manifest.read(done.run / artifact.CLEAN)
    assert facts.of_manifest(facts.Cleaned, manifest).restored == {"ann": 1}
    assert manifest.ledger.restored == 1 and manifest.ledger.balanced
    assert "restored: 1 by ann" in manifest.facts["summary"]
    # Without a new decision nothing is to be done.
    assert runner(done.corpus, done.run).pending() == []
    done.decide(UNDO, Named(ids=frozenset([one])), "ben")
    assert tree(done.run, *ROWS) == before


def test_a_family_is_restored_whole_and_one_image_of_it_removed_again(tmp_path):
    done = Cleaned(tmp_path, write_images)
    flagged = done.flagged()
    second = {i for i, family in flagged.items() if family == 2}
    done.decide(REJECT, Named(2))
    assert done.places()["removed"] == sorted(set(flagged) - second)
    back = sorted(second)[0]
    done.decide(UNDO, Named(ids=frozenset([back])))
    assert done.places()["removed"] == sorted((set(flagged) - second) | {back})
    done.decide(RESTORE, Named(1), "ben")
    assert done.places()["removed"] == [back]
    counted = Counter(
        entry.who for kept in Decisions(done.run).restored().values() for entry in kept.values()
    )
    assert counted == {"ann": len(second) - 1, "ben": len(flagged) - len(second)}


def test_a_family_that_was_restored_is_not_the_one_that_has_its_number_after_a_redo(tmp_path):
    done = Cleaned(tmp_path, write_parquet)
    done.decide(RESTORE, Named(1))
    restored = {i for i, family in done.flagged().items() if family == 1}
    scores = done.run / artifact.SCORES
    for name in scores.parts():
        families = [{0: 0, 1: 2, 2: 1}[f] for f in scores.read_table(name)["family"].to_pylist()]
        replace_column(scores, name, "family", pa.array(families, pa.int32()))
    kept = {i for rows in Decisions(done.run).restored().values() for i in rows}
    assert kept == restored and restored


def test_a_caption_stays_while_an_image_of_another_slice_needs_it(tmp_path):
    """A slice ends with 8.jpg, the next one begins with 8.png; both have the caption 8.txt."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for i, name in enumerate([*(f"{n}.png" for n in range(8)), "8.jpg", "8.png", "9.png"]):
            (folder / name).write_bytes(image(i))
        (folder / "8.txt").write_text("words")

    done = Cleaned(tmp_path, write)
    before = tree(done.run, *ROWS)
    assert {"clean/8.jpg", "clean/8.txt", "removed/8.png", "removed/8.txt"} <= before.keys()
    for action in (RESTORE, UNDO):
        done.decide(action, Named(ids=frozenset(["8.png"])))
        assert (Path(done.run.uri) / "clean/8.txt").read_text() == "words"
    assert tree(done.run, *ROWS) == before


def test_a_table_beside_a_tar_follows_a_decision(tmp_path):
    def write(folder: Path) -> None:
        folder.mkdir()
        write_shard(folder, 0)

    done = Cleaned(tmp_path, write)
    before = tree(done.run, *ROWS)
    assert "removed/00000.parquet" in before
    for family in (1, 2):
        done.decide(RESTORE, Named(family))
    whole = {f"clean/{path.name}": path.read_bytes() for path in Path(done.corpus).iterdir()}
    assert tree(done.run, artifact.CLEAN_ROWS, artifact.REMOVED_ROWS) == whole
    for family in (1, 2):
        done.decide(UNDO, Named(family))
    assert tree(done.run, *ROWS) == before


def test_accepting_is_logged_and_changes_no_row(tmp_path):
    done = Cleaned(tmp_path, write_parquet)
    before = tree(done.run, *ROWS)
    stamp = (Path(done.run.uri) / artifact.CLEAN / artifact.unit_name(0)).stat().st_mtime_ns
    done.decide(ACCEPT, Named(1))
    assert tree(done.run, *ROWS) == before
    assert (Path(done.run.uri) / artifact.CLEAN / artifact.unit_name(0)).stat().st_mtime_ns == stamp
    (entry,) = review.entries(done.run)
    assert (entry.action, entry.family, entry.who, entry.note) == (ACCEPT, 1, "ann", "why")
    assert entry.images == list(done.flagged().values()).count(1) and entry.when.endswith("+00:00")


def test_the_keep_list_follows_a_decision(tmp_path):
    done = Cleaned(tmp_path, write_tars, LISTED)
    keep = done.run / artifact.KEEP_LIST

    def kept() -> list[str]:
        return [i for name in keep.parts() for i in keep.read_table(name)["image_id"].to_pylist()]

    first = kept()
    done.decide(RESTORE, Named(1))
    restored = {i for i, family in done.flagged().items() if family == 1}
    assert set(kept()) == set(first) | restored and len(kept()) == len(first) + len(restored)
    assert not done.run.exists(artifact.CLEAN_ROWS)


def test_what_is_not_flagged_is_refused_by_name_and_not_logged(tmp_path):
    done = Cleaned(tmp_path, write_parquet)
    one = sorted(done.flagged())[0]
    refused = {
        "Not among the flagged images of .*: nowhere#7": (RESTORE, Named(ids=frozenset([one, "nowhere#7"]))),
        "No flagged image of .* is of family 9": (REJECT, Named(9)),
        f"Not among the restored images of .*: {one}": (UNDO, Named(ids=frozenset([one]))),
    }
    for words, (action, named) in refused.items():
        with pytest.raises(UserError, match=words):
            done.decide(action, named)
    assert review.entries(done.run) == []


def test_the_log_is_only_added_to(tmp_path):
    done = Cleaned(tmp_path, write_parquet)
    done.decide(ACCEPT, Named(1))
    first = tree(done.run, artifact.REVIEW)
    done.decide(RESTORE, Named(ids=frozenset(sorted(done.flagged())[:2])))
    now = tree(done.run, artifact.REVIEW)
    assert first.items() < now.items() and len(now) == 3
    assert [entry.number for entry in review.entries(done.run)] == [1, 2]


def test_two_people_at_once_both_get_their_entry(tmp_path, monkeypatch):
    """A number is given once, whoever saw the log last."""
    monkeypatch.setattr(review, "_names", lambda log: [])
    run = Folder(str(tmp_path))
    numbers = [review.append(run, ACCEPT, Named(1), 1, who, "").number for who in ("ann", "ben")]
    monkeypatch.undo()
    assert numbers == [1, 2] and [entry.who for entry in review.entries(run)] == ["ann", "ben"]


class KilledError(BaseException):
    """As if the process had ended here."""


@contextmanager
def killed_at(monkeypatch, moment: int) -> Iterator[Counter]:
    """Kill this process before its write or deletion number `moment`, counted from 0."""
    seen: Counter[str] = Counter()

    def guard(owner, name: str) -> None:
        change = getattr(owner, name)

        def guarded(*arguments, **options):
            # The lease renews itself in a thread of its own.
            if threading.current_thread().name == "lease":
                return change(*arguments, **options)
            seen["changes"] += 1
            if seen["changes"] > moment:
                raise KilledError
            return change(*arguments, **options)

        patch.setattr(owner, name, guarded)

    with monkeypatch.context() as patch:
        guard(__import__("os"), "replace")
        guard(__import__("os"), "link")
        guard(LocalFileSystem, "rm_file")
        guard(LocalFileSystem, "rm")
        yield seen


def forget_lease(run: Folder) -> None:
    """The process that held it lives on, unlike one that was killed."""
    run.delete(artifact.LEASE)


def write_few_images(folder: Path) -> None:
    """Images with captions and a metadata file, which must follow them."""
    names = ("cat/a", "cat/b", "dog/c", "dog/d", "dog/e")
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(image(i))
        (folder / f"{name}.txt").write_text(f"words of {name}")
    lines = [json.dumps({"file_name": f"{name}.png"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("back", [False, True], ids=["restore", "undo"])
@pytest.mark.parametrize("write", [write_parquet, write_tars, write_few_images])
def test_a_decision_that_is_killed_at_any_write_comes_to_the_same_end(tmp_path, monkeypatch, write, back):
    done = Cleaned(tmp_path, write)
    named = Named(1)
    if back:
        done.decide(RESTORE, named)
    action = UNDO if back else RESTORE
    whole = tmp_path / "run"
    shutil.copytree(whole, tmp_path / "before")
    done.decide(action, named)
    wanted, ledger = tree(done.run, *ROWS), Manifest.read(done.run / artifact.CLEAN).ledger
    moment, kills = 0, 0
    while True:
        shutil.rmtree(whole)
        shutil.copytree(tmp_path / "before", whole)
        with killed_at(monkeypatch, moment):
            try:
                done.decide(action, named)
                break
            except KilledError:
                kills += 1
        forget_lease(done.run)
        # A run in the middle of a revision does not look finished.
        committed = (done.run / artifact.CLEAN).exists(MANIFEST)
        logged = len(review.entries(done.run)) == 1 + back
        assert not (committed and logged) or runner(done.corpus, done.run).pending()
        if logged:
            done.go()
        else:
            done.decide(action, named)
        assert tree(done.run, *ROWS) == wanted, f"killed before change {moment}"
        assert Manifest.read(done.run / artifact.CLEAN).ledger == ledger
        moment += 1
    assert kills > 5


def test_a_kill_and_another_decision_before_the_next_start(tmp_path, monkeypatch):
    """The review may go back to what the markers say while the rows are half written."""
    done = Cleaned(tmp_path, write_few_images)
    before = tree(done.run, *ROWS)
    for moment in range(2, 14):
        with killed_at(monkeypatch, moment), pytest.raises(KilledError):
            done.decide(RESTORE, Named(1))
        forget_lease(done.run)
        if review.Decisions(done.run).restored():
            done.decide(UNDO, Named(1))
        else:
            done.go()
        assert tree(done.run, *ROWS) == before


@pytest.fixture
def reported(tmp_path) -> Folder:
    """A fake run with two families, cleaned and reported by the real stages."""
    fake = make_fake_run(tmp_path)
    run = Folder(fake.run)
    flag_images(run, 2)
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        run.delete(name)
    go(fake.corpus, run, FAKE_CONFIG, [Clean(), Report()])
    return run


def test_the_report_says_what_was_restored_by_whom(reported, tmp_path):
    def decide(action: str, family: int, who: str) -> None:
        images = sum(review.concerned(reported, action, Named(family)).values())
        review.append(reported, action, Named(family), images, who, "<b>a logo</b>")
        go(str(tmp_path / "corpus"), reported, FAKE_CONFIG, [Clean(), Report()])

    page = reported / artifact.PAGE
    first = page.read_bytes(artifact.HTML).decode()
    assert "A review kept" not in first and not page.exists(artifact.RESTORED_CSV)
    decide(ACCEPT, 1, "ben")
    decide(REJECT, 2, "ann")
    text = page.read_bytes(artifact.HTML).decode()
    assert "A review kept 9 flagged images (9 by ann)" in text
    assert "reject family 2, 9 images" in text and "accept family 1, 10 images" in text
    assert "&lt;b&gt;a logo" in text and "<b>a logo" not in text
    removed = page.read_bytes(artifact.REMOVED_CSV).decode().splitlines()
    restored = page.read_bytes(artifact.RESTORED_CSV).decode().splitlines()
    assert len(removed) == 1 + 10 and len(restored) == 1 + 9
    assert all(',2,"ann",' in line for line in restored[1:])
    manifest = Manifest.read(reported / artifact.REPORT)
    assert manifest.facts["removed_by_family"] == {"1": 10}
    decide(UNDO, 2, "ann")
    assert len(page.read_bytes(artifact.REMOVED_CSV).decode().splitlines()) == 1 + 19
    assert len(page.read_bytes(artifact.RESTORED_CSV).decode().splitlines()) == 1


def both(run: Folder, tmp_path) -> Runner:
    return runner(str(tmp_path / "corpus"), run, FAKE_CONFIG, [Clean(), Report()])


def test_a_report_of_another_clean_is_to_be_done_again(reported, tmp_path):
    """As a kill leaves it where the log grew between the two stages: both have read the same log."""
    clean = reported / artifact.CLEAN
    clean.write_json(MANIFEST, clean.read_json(MANIFEST) | {"seconds": 77.0})
    assert [stage.title for stage in both(reported, tmp_path).pending()] == ["Report"]


def test_nothing_is_done_without_the_lease(reported, tmp_path, monkeypatch):
    """Another driver begins to revise the run when this one has found it finished."""
    late, held = both(reported, tmp_path), []
    pending = late.pending()
    monkeypatch.setattr(late, "pending", lambda: pending)
    review.append(reported, REJECT, Named(2), 9, "ann", "")
    for stage in (artifact.REPORT, artifact.CLEAN):
        (reported / stage).delete(MANIFEST)
    run_stage = late._run_stage
    monkeypatch.setattr(late, "_run_stage", lambda *args: held.append(late._lease) or run_stage(*args))
    late.run(Progress(Console(quiet=True)))
    assert pending == [] and len(held) == 2 and None not in held


def test_another_change_of_an_input_is_refused_as_ever(reported, tmp_path):
    scores = reported / artifact.SCORES
    tree = scores.read_json(MANIFEST)
    scores.write_json(MANIFEST, tree | {"seconds": 99.0})
    with pytest.raises(UserError, match=r"work/clean was made from another work/8_scores"):
        go(str(tmp_path / "corpus"), reported, FAKE_CONFIG, [Clean(), Report()])

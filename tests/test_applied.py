"""`poisoncam apply`: what it takes over from the earlier run, what it refuses, what the report says.

All of it runs in tests/integration/test_applied.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from poisoncam_ray import artifact
from poisoncam_ray.artifact import Verdict
from poisoncam_ray.commands.status import look, told
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.defence import applied_stages
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder
from poisoncam_ray.launch import earlier_run
from poisoncam_ray.progress import Progress
from poisoncam_ray.report.page import build_report
from poisoncam_ray.report.words import tell
from poisoncam_ray.runner import Runner
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.adopt import AdoptClassifier, AdoptVerdict
from tests.fake_evidence import FOUND
from tests.fake_run import CONFIG, FakeRun, make_fake_run
from tests.page import Page
from tests.test_python import finish


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return finish(make_fake_run(tmp_path_factory.mktemp("earlier")))


def adopted(fake: FakeRun, stage, folder: Path):
    """What the stage writes into another run folder, and its facts."""
    run = Folder(str(folder))
    outcome = stage.run(Run(CONFIG, open_corpus(fake.corpus), run, run / stage.name, Progress()))
    return run / stage.name, outcome.facts


def test_the_classifier_is_copied_file_by_file(fake, tmp_path):
    source = Folder(fake.run)
    copy, said = adopted(fake, AdoptClassifier(source), tmp_path / "run")
    there = source / artifact.CLASSIFIER
    names = [name for name in there.names() if name != MANIFEST]
    assert copy.names() == names and artifact.VALIDATION in names
    assert all(copy.read_bytes(name) == there.read_bytes(name) for name in names)
    assert said.trained and said.families == 1


def test_the_verdict_says_whose_it_is(fake, tmp_path):
    source = Folder(fake.run)
    copy, _ = adopted(fake, AdoptVerdict(source), tmp_path / "run")
    found, before = Verdict.read(copy), Verdict.read(source / artifact.VERDICT)
    assert found == replace(before, applied_from=fake.run) and before.applied_from is None
    # The verdict of a run that searched itself has the bytes that it had before.
    assert "applied_from" not in (source / artifact.VERDICT).read_json(artifact.VERDICT_FILE)


def test_settings_are_the_earlier_runs_save_for_its_own_corpus(fake, tmp_path):
    out = str(tmp_path / "new")
    source, config = earlier_run(fake.run, out, ["corpus.rows_per_slice=7"], {"resources": {"actors": 2}})
    assert source.uri == fake.run and config.encoder == CONFIG.encoder
    assert config.corpus.rows_per_slice == 7 and config.resources.actors == 2
    for settings in (["seed=3"], ["encoder.image_size=64"], ["verdict.false_alarm_rate=1"]):
        with pytest.raises(UserError, match=r"the earlier run: only corpus, clean, resources may"):
            earlier_run(fake.run, out, settings)
    with pytest.raises(UserError, match="those of the earlier run"):
        earlier_run(fake.run, out, settings={"search": {"masks": 8}})
    # The classifiers know images at the size of their copies.
    with pytest.raises(UserError, match=r"corpus\.shrink_to is that of the earlier run, null"):
        earlier_run(fake.run, out, ["corpus.shrink_to=128"])


def test_a_run_that_has_nothing_to_look_for_is_refused(fake, tmp_path):
    out = str(tmp_path / "new")
    calm = finish(make_fake_run(tmp_path / "calm", poison=False))
    with pytest.raises(UserError, match=r"found no evidence of poison, so there is no trigger to look for"):
        earlier_run(calm.run, out)
    with pytest.raises(UserError, match="is not a run folder"):
        earlier_run(str(tmp_path), out)
    with pytest.raises(UserError, match="is the earlier run: give another folder"):
        earlier_run(fake.run, f"{fake.run}/")
    shutil.copytree(fake.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    made = run / artifact.CLASSIFIER
    figures = made.read_json(artifact.VALIDATION)
    figures["families"]["1"]["erased"] = False
    made.write_json(artifact.VALIDATION, figures)
    with pytest.raises(UserError, match=r"All classifiers of the earlier run .* are in doubt"):
        earlier_run(run.uri, out)
    made.delete(MANIFEST)
    with pytest.raises(UserError, match="is not finished"):
        earlier_run(run.uri, out)


def test_a_changed_earlier_run_is_refused_with_the_difference(fake, tmp_path):
    shutil.copytree(fake.run, tmp_path / "earlier")
    earlier, out = Folder(str(tmp_path / "earlier")), str(tmp_path / "new")
    source, config = earlier_run(earlier.uri, out)

    def runner() -> Runner:
        return Runner(fake.corpus, out, config, applied_stages(source))

    first = runner()
    # As a run that was begun leaves it.
    first.folder.write_json(artifact.RUN, {"format": artifact.FORMAT})
    started = {"identity": first.identities[artifact.VERDICT], "inputs": {}, "fingerprint": "0"}
    (first.folder / artifact.VERDICT).write_json("_started.json", started)
    runner()
    there = earlier / artifact.VERDICT
    manifest = there.read_json(MANIFEST)
    there.write_json(MANIFEST, manifest | {"seconds": manifest["seconds"] + 1})
    with pytest.raises(UserError, match=r"6_verdict\.adopted: '\w+' then, '\w+' now"):
        runner()


def test_classifiers_of_another_version_are_refused(fake, tmp_path):
    """They were trained on images that were cut or decoded in another way, and lack what Judge reads."""
    shutil.copytree(fake.run, tmp_path / "earlier")
    earlier, out = Folder(str(tmp_path / "earlier")), str(tmp_path / "new")
    source, config = earlier_run(earlier.uri, out)
    Runner(fake.corpus, out, config, applied_stages(source))
    manifest = (earlier / artifact.CLASSIFIER).read_json(MANIFEST)
    manifest["identity"]["version"] -= 1
    (earlier / artifact.CLASSIFIER).write_json(MANIFEST, manifest)
    with pytest.raises(UserError, match=r"were trained by another version of poisoncam_ray, which saw"):
        Runner(fake.corpus, out, config, applied_stages(source))


def test_console_and_report_say_that_only_known_triggers_were_looked_for(fake, tmp_path):
    shutil.copytree(fake.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    for name in (artifact.SEARCH, artifact.ENCODER, artifact.FEATURES, artifact.CLUSTERS):
        run.delete(name)
    where = "s3://bucket/<earlier>"
    replace(Verdict.read(run / artifact.VERDICT), applied_from=where).write(run / artifact.VERDICT)
    text = build_report(run.uri)
    page = Page(text)
    assert f"Only known triggers were looked for, those of the run {where}." in page.text
    assert "<earlier>" not in text and "Search" not in [tag.get("id") for tag in page.all("h2")]
    assert "19 of 120 images were removed" in page.text
    lines = tell(replace(FOUND, applied_from=where), 3, {1: 3})
    assert lines[0] == f"Known triggers only, of {where}: 3 images removed. New triggers were not looked for."
    assert json.loads(json.dumps(lines)) == lines


def test_status_asks_for_no_stage_that_an_applied_run_does_not_have(fake, tmp_path):
    shutil.copytree(fake.run, tmp_path / "run")
    run = Folder(str(tmp_path / "run"))
    for name in (artifact.SEARCH, artifact.ENCODER, artifact.FEATURES, artifact.CLUSTERS):
        run.delete(name)
    replace(Verdict.read(run / artifact.VERDICT), applied_from="earlier").write(run / artifact.VERDICT)
    stages = [[stage.name, stage.title] for stage in applied_stages(run)]
    run.write_json(artifact.RUN, run.read_json(artifact.RUN) | {"stages": stages})
    found = look(run)
    assert found["state"] == "finished" and found["applied_from"] == "earlier"
    assert [stage["stage"] for stage in found["stages"]] == [title for _, title in stages]
    assert told(found)[0] == "Finished." and told(found)[-1].startswith("Known triggers only, of earlier")


def test_nothing_found_is_no_evidence_for_a_clean_corpus(fake, tmp_path):
    from poisoncam_ray.folder import Ledger
    from poisoncam_ray.report.model import PageContent

    found = replace(FOUND, applied_from="earlier")
    page = PageContent("", {}, Ledger(10, 10), {}, found)
    assert page.headline == "No known trigger was found. All 10 readable images were kept."

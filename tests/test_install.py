"""The package as others get it: what the wheel holds, and that it works away from the checkout.

A defence by it: integration/test_webdataset_defence.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import yaml

import poisoncam_ray
from tests.small import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_wheel_holds_the_package_and_nothing_else(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    package = {name for name in tracked.stdout.split() if name.startswith("poisoncam_ray/")}
    presets = {f"poisoncam_ray/configs/{path.name}" for path in (ROOT / "jobs" / "configs").glob("*.yaml")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - info == package | presets
    assert "poisoncam_ray/py.typed" in names
    assert {name.rpartition("/")[2] for name in info} >= {"METADATA", "entry_points.txt", "LICENSE"}


def test_archive_of_the_sources_builds_the_package_and_holds_no_tests(installed):
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.split("/")[0] for name in names} == {
        "poisoncam_ray", "jobs", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml",
        "PKG-INFO", ".gitignore",
    }  # fmt: skip
    assert {name.split("/")[1] for name in names if name.startswith("jobs/")} == {"configs"}


def test_metadata_says_what_it_is(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(name).decode())
    assert (told["Name"], told["Version"]) == ("poisoncam-ray", poisoncam_ray.__version__)
    assert told["License-Expression"] == "Apache-2.0" and told["License-File"] == "LICENSE"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().startswith("# poisoncam_ray")
    # No release for macOS or Windows, or of another Python, that nobody has tried.
    minors = re.findall(r"Python :: 3\.(\d+)", "\n".join(told.get_all("Classifier")))
    assert told["Requires-Python"] == f"<3.{int(minors[-1]) + 1},>=3.{minors[0]}"


def test_commands_are_there(installed, tmp_path):
    shown = installed.run("poisoncam", "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert all(command in shown.stdout for command in ("defend", "attack", "evaluate"))
    told = installed.run(
        "poisoncam", "defend", "--preset", "no", "--input", "in", "--output", "out", cwd=tmp_path
    )
    assert told.returncode == 2 and "tiny-cnn" in told.stderr


def test_files_that_are_no_python_are_found(installed, tmp_path):
    """The presets, the report's templates and style, and the study's grids."""
    code = """
import json, poisoncam_ray, jinja2
from importlib import resources
from poisoncam_ray.settings import load_config, presets
from poisoncam_ray.research.study.grid import GRIDS
templates = jinja2.PackageLoader("poisoncam_ray", "report").list_templates()
print(json.dumps([poisoncam_ray.__file__, {name: load_config(name).encoder.image_size for name in presets()},
    templates, len(resources.files("poisoncam_ray.report").joinpath("page.css").read_text()),
    sorted(path.name for path in GRIDS.iterdir())]))
"""
    said = installed.run("python", "-c", code, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    place, sizes, templates, style, grids = json.loads(said.stdout)
    assert Path(place).is_relative_to(installed.bin.parent)
    assert set(sizes) == {path.stem for path in (ROOT / "jobs" / "configs").glob("*.yaml")}
    assert sizes["imagenet100"] == 224
    assert {"page.html.j2", "evidence.html.j2"} < set(templates) and style > 1000
    assert grids == ["full.yaml", "hiding.yaml", "small.yaml"]


def test_the_citation_is_a_citation():
    """The fields that the Citation File Format 1.2.0 wants, and the project's own figures."""
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert CITATION["message"] and "poisoncam_ray" in CITATION["title"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert (CITATION["version"], CITATION["license"]) == (PROJECT["version"], PROJECT["license"])
    paper = CITATION["preferred-citation"]
    assert paper["type"] == "article" and len(paper["authors"]) == 6
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
    number = PROJECT["urls"]["Paper"].rpartition("/")[2]
    assert number == "2312.07955"
    assert paper["url"] == PROJECT["urls"]["Paper"] and paper["doi"].endswith(number)
    assert paper["title"] in (ROOT / "poisoncam_ray" / "report" / "page.html.j2").read_text()

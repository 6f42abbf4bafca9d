"""The container image: what its Dockerfile may not do, and the list of what is in it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.infra.render import INFRA, ROOT, ray_cluster, render

TARGETS = ("cpu", "cuda")


def instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of the Dockerfile, continued lines joined, comments dropped."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (x.partition(" ") for x in joined.split("\n") if x)
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        if found:
            found[name].append((word, rest))
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_as_the_user_of_the_manifests(target: str):
    (user,) = [rest for word, rest in stages()[target] if word == "USER"]
    assert stages()[target][-1] == ("USER", user)
    for overlay in ("base", "overlays/gpu-spot"):
        pod = ray_cluster(render(overlay))["headGroupSpec"]["template"]["spec"]["securityContext"]
        assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}"


def test_bases_are_pinned():
    pins = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    bases = [rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"]
    for base in bases:
        if base in stages():
            continue
        image = re.sub(r"\$\{(\w+)\}", lambda match: pins[match[1]], base)
        assert re.search(r":\d+\.\d+\.\d+", image) and "latest" not in image, image


def test_nothing_is_fetched_by_hand_and_no_secret_goes_in():
    for word, rest in instructions():
        assert word != "ADD"
        assert not re.search(r"https?://|\bcurl\b|\bsudo\b", rest), rest
        if word in ("ARG", "ENV"):
            assert not re.search(r"(?i)secret|password|token|access_key", rest), rest


def test_packages_come_from_the_lock():
    assert "uv sync --frozen" in stages()["build-cuda"][1][1]
    (cpu,) = [rest for word, rest in stages()["build-cpu"] if word == "RUN"]
    assert "--require-hashes" in cpu and "--frozen" in cpu


@pytest.mark.parametrize("target", TARGETS)
def test_image_holds_the_ray_of_the_manifests_and_of_the_project(target: str):
    (checked,) = re.findall(r"ray\.__version__ == '([\d.]+)'", dict(stages()[target])["RUN"])
    assert checked == version("ray")
    assert checked == ray_cluster(render("base"))["rayVersion"]


@pytest.mark.parametrize(("overlay", "target"), [("base", "cpu"), ("overlays/gpu-spot", "cuda")])
def test_tag_says_what_is_inside(overlay: str, target: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (tag,) = [
        image["newTag"]
        for image in yaml.safe_load((INFRA / overlay / "kustomization.yaml").read_text())["images"]
    ]
    assert tag == f"{project}-ray{version('ray')}-{target}"


def test_context_holds_what_is_copied_and_nothing_else():
    """.dockerignore shuts everything out and lets in by name."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == let_in
    for name in let_in - {"uv.lock"}:
        assert (ROOT / name).exists(), name


def test_code_in_the_image_is_where_the_entrypoint_looks():
    assert ("WORKDIR", "/app") in stages()["base"]
    assert ("COPY", "jobs jobs") in stages()["base"]
    assert "PYTHONPATH=/app " in dict(stages()["base"])["ENV"]
    hook = ray_cluster(render("base"))["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "lifecycle"
    ]
    script = Path(hook["preStop"]["exec"]["command"][1])
    assert (ROOT / script.relative_to("/app")).is_file()


def test_bill_of_materials_lists_what_is_installed():
    """The README's command, from the lock that the image is built of."""
    command = ["uv", "export", "--quiet", "--frozen", "--no-dev", "--format", "cyclonedx1.5"]
    assert " ".join(command) in (INFRA / "README.md").read_text()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    assert bill["bomFormat"] == "CycloneDX"
    listed: dict[str, set[str]] = {}
    for component in bill["components"]:
        listed.setdefault(component["name"], set()).add(component["version"])
        hashes = [h for source in component.get("externalReferences", []) for h in source.get("hashes", [])]
        assert any(h["alg"] == "SHA-256" for h in hashes), component["name"]
    for name in ("ray", "torch", "torchvision", "pyarrow", "pillow", "s3fs", "safetensors"):
        assert version(name).partition("+")[0] in listed[name]

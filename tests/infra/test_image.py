"""The container image: what its Dockerfile may not do, and the locked set of what is in it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.render import INFRA, ROOT, ray_cluster, render

TARGETS = ("cpu", "cuda")
LOCKS = [INFRA / "requirements.txt", INFRA / "requirements-cuda.txt"]
HADOLINT = str(Path(sys.executable).with_name("hadolint"))
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "python_version": "3.11"}


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


def locked(path: Path) -> list[tuple[str, list[str]]]:
    """Each package of a locked set: the requirement with its version, and the hashes."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (pin.strip(), rest.split())
        for pin, rest in (re.split(r"(?=--hash)", x, maxsplit=1) for x in whole.split("\n"))
    ]


def pins() -> dict[str, str]:
    """The version of each package in the image."""
    found = (Requirement(pin) for path in LOCKS for pin, _ in locked(path))
    return {one.name: next(iter(one.specifier)).version for one in found}


def installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


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
    cuda, cpu = (
        next(rest for word, rest in stages()[f"build-{target}"] if word == "RUN")
        for target in ("cuda", "cpu")
    )
    assert cuda == "uv pip sync --require-hashes infra/requirements.txt infra/requirements-cuda.txt"
    # torch's CPU index has wheels, and so hashes, of its own: of torch the version alone is locked.
    assert cpu.startswith("uv pip sync --require-hashes infra/requirements.txt && ")
    assert re.findall(r"-c (\S+)", cpu) == [f"infra/{path.name}" for path in LOCKS]
    assert cpu.endswith(" torch torchvision")


def test_the_lock_names_every_file_by_its_hash_and_no_host():
    pins = [line for path in LOCKS for line in locked(path)]
    names = [canonicalize_name(Requirement(pin).name) for pin, _ in pins]
    assert len(names) == len(set(names)) > 100
    for pin, hashes in pins:
        (one,) = Requirement(pin).specifier
        assert one.operator == "==" and hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), pin
    assert not re.search(r"://|--index|--find-links", "".join(path.read_text() for path in LOCKS))


def test_the_lock_fits_the_project():
    """Each dependency, and what it depends on in turn, is locked at a version it allows."""
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()  # a pod cannot install what the image lacks
    todo = [Requirement(text) for text in (*project["dependencies"], *chain(*extras))]
    seen: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        assert wanted.specifier.contains(pinned[name], prereleases=True), f"{wanted}, locked {pinned[name]}"
        if str(wanted) in seen or installed(name) != pinned[name]:
            continue  # another version may depend on other packages
        seen.add(str(wanted))
        for text in requires(name) or ():
            inner = Requirement(text)
            if any(
                inner.marker is None or inner.marker.evaluate(LINUX | {"extra": e})
                for e in {"", *wanted.extras}
            ):
                todo.append(inner)


def test_the_cpu_image_gets_nothing_of_cuda():
    cpu, cuda = ({Requirement(pin).name for pin, _ in locked(path)} for path in LOCKS)
    assert not [name for name in cpu if re.match("nvidia|cuda|torch|triton", name)]
    assert {"torch", "torchvision", "triton"} < cuda


def test_the_linter_finds_nothing():
    done = subprocess.run([HADOLINT, str(INFRA / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    bad = "FROM python\nRUN cd /tmp && sudo apt-get install wget\n"
    done = subprocess.run([HADOLINT, "-"], input=bad, capture_output=True, text=True)
    assert done.returncode and {"DL3006", "DL3004"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("script", sorted(INFRA.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(script: Path):
    done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("target", TARGETS)
def test_image_holds_the_ray_of_the_manifests_and_of_the_project(target: str):
    (checked,) = re.findall(r"ray\.__version__ == '([\d.]+)'", dict(stages()[target])["RUN"])
    assert checked == version("ray") == pins()["ray"]
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
    for name in let_in:
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

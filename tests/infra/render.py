"""Rendered manifests and what the rules ask of them. Needs no cluster: `kubectl kustomize` works on files."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
OVERLAYS = ("base", *(f"overlays/{folder.name}" for folder in sorted((INFRA / "overlays").iterdir())))
# The package's own kubectl, beside this Python.
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodTemplate:
    """One pod template, wherever it stands: `role` is head, worker, submitter or pod."""

    where: str
    role: str
    metadata: Manifest
    spec: Manifest
    start_params: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def render(overlay: str) -> list[Manifest]:
    """All objects of infra/<overlay>; a copy of its own for each caller, to be changed freely."""
    return deepcopy(_render(INFRA / overlay))


@functools.cache
def _render(folder: Path) -> list[Manifest]:
    return render_folder(folder)


def render_folder(folder: Path) -> list[Manifest]:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def ray_job(manifests: list[Manifest]) -> Manifest:
    (job,) = of_kind(manifests, "RayJob")
    return job


def ray_cluster(manifests: list[Manifest]) -> Manifest:
    return ray_job(manifests)["spec"]["rayClusterSpec"]


def ray_pods(manifests: list[Manifest]) -> list[PodTemplate]:
    return [pod for pod in pods(manifests) if pod.role in ("head", "worker")]


def pods(manifests: list[Manifest]) -> Iterator[PodTemplate]:
    """Every pod template; the autoscaler that the operator puts beside the head counts as its container."""
    job = ray_job(manifests)["spec"]
    cluster = job["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    spec = head["template"]["spec"]
    if cluster.get("enableInTreeAutoscaling"):
        beside = {"name": "autoscaler", "image": spec["containers"][0]["image"]}
        beside |= cluster.get("autoscalerOptions", {})
        spec = spec | {"containers": [*spec["containers"], beside]}
    yield PodTemplate("head", "head", head["template"]["metadata"], spec, head["rayStartParams"])
    for group in cluster["workerGroupSpecs"]:
        template = group["template"]
        where, params = f"worker group {group['groupName']}", group["rayStartParams"]
        yield PodTemplate(where, "worker", template["metadata"], template["spec"], params)
    if "submitterPodTemplate" in job:
        template = job["submitterPodTemplate"]
        yield PodTemplate("submitter", "submitter", template.get("metadata", {}), template["spec"], {})
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = manifest["spec"]["template"]
            where = f"{manifest['kind']} {manifest['metadata']['name']}"
            yield PodTemplate(where, "pod", template["metadata"], template["spec"], {})


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number: "500m" is 0.5, "2Gi" is 2³¹."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
    text = str(text)
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * units[unit]
    return float(text)

"""Schemas, offline: KubeRay's CRDs as the API server applies them, and the core kinds."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from copy import deepcopy
from types import ModuleType
from typing import Any

import kubernetes_validate

from tests.conftest import DATA
from tests.infra.render import Manifest

CRDS = DATA / "kuberay-crds"
VALIDATOR = DATA.parent / "tools" / "crd_validate.py"
# The latest that the validator ships; the objects are the same since 1.27.
KUBERNETES = "1.37"
CORE = {"v1", "apps/v1", "networking.k8s.io/v1"}


def crd_schema(manifests: list[Manifest]) -> Iterator[str]:
    validator, schemas = _crds()
    for manifest in manifests:
        if manifest["apiVersion"].startswith("ray.io/"):
            # A copy: the check fills in the schema's defaults.
            yield from validator.check(deepcopy(manifest), schemas)


def core_schema(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["apiVersion"] in CORE:
            try:
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{manifest['kind']} {manifest['metadata']['name']}: {error.message}"


@functools.cache
def _crds() -> tuple[ModuleType, Any]:
    spec = importlib.util.spec_from_file_location("crd_validate", VALIDATOR)
    assert spec is not None and spec.loader is not None
    validator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(validator)
    # Without it the CRDs' own expressions would be passed over in silence.
    assert validator.celpy is not None
    return validator, validator.load(str(CRDS))

"""The listing is the architecture: what lies where, and who may import what."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "poisoncam_ray"
TOP = {"poisoncam_ray", "jobs", "infra", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
METHOD = sorted((PACKAGE / "method").glob("*.py"))
# The paper's files know tensors: torch, timm, faiss and the standard library.
METHOD_MAY_IMPORT = {"torch", "timm", "faiss", "poisoncam_ray", "numpy"}
STANDARD = {
    "__future__", "collections", "copy", "dataclasses", "difflib", "functools", "itertools", "math",
    "statistics", "typing",
}  # fmt: skip
NO_IO = {"open", "print", "exec", "eval"}


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_top_level_is_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    top = {name.split("/")[0] for name in tracked if name and not name.startswith(".")}
    assert top <= TOP


@pytest.mark.parametrize("file", METHOD, ids=lambda file: file.stem)
def test_the_method_knows_tensors_only(file):
    for name in imports(file):
        root = name.split(".")[0]
        assert root in METHOD_MAY_IMPORT | STANDARD, f"{file.name} imports {name}"
        assert not name.startswith("poisoncam_ray.") or name.startswith("poisoncam_ray.method"), name
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not NO_IO & set(calls)


@pytest.mark.parametrize("file", METHOD, ids=lambda file: file.stem)
def test_every_file_of_the_method_has_a_test(file):
    assert file.stem == "__init__" or (ROOT / "tests" / "method" / f"test_{file.stem}.py").exists()


def test_the_defence_never_reads_truth_or_labels():
    for file in [*(PACKAGE / "stages").glob("*.py"), *METHOD, PACKAGE / "pipeline.py"]:
        assert not [
            name
            for name in imports(file)
            if name.startswith(
                ("poisoncam_ray.research.evaluate", "poisoncam_ray.research.study", "poisoncam_ray.attack")
            )
        ]
        assert ".labels(" not in file.read_text(), file.name


def test_the_study_stands_on_the_evaluation_and_not_the_other_way():
    for file in (PACKAGE / "evaluate").glob("*.py"):
        assert not [name for name in imports(file) if name.startswith("poisoncam_ray.research.study")], (
            file.name
        )


def test_stages_hold_no_maths_of_their_own():
    for file in (PACKAGE / "stages").glob("*.py"):
        assert "torch.nn.functional" not in imports(file), file.name
        assert not [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
        ]


def test_nothing_is_unpickled_from_storage():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert "pickle.load" not in text and "allow_pickle=True" not in text, file.name
        loads = re.search(r"(?<!safetensors\.)torch\.load\(", text)
        assert not loads or "weights_only=True" in text, file.name


def test_files_fit_in_the_head():
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        assert file.name != "utils.py"
        assert len(file.read_text().splitlines()) <= 450, file

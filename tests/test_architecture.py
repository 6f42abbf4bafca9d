"""The listing is the architecture: what lies where, who may import whom, and no import circles."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "poisoncam_ray"
TOP = {
    "poisoncam_ray", "jobs", "infra", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md",
    "CONTRIBUTING.md", "CITATION.cff",
}  # fmt: skip
METHOD = sorted((PACKAGE / "method").glob("*.py"))
RESEARCH = sorted((PACKAGE / "research").rglob("*.py"))
MOST_LINES = 450
# The paper's files know tensors: torch, timm, faiss and the standard library.
METHOD_MAY_IMPORT = {"torch", "timm", "faiss", "poisoncam_ray", "numpy"}
STANDARD = {
    "__future__", "collections", "contextlib", "copy", "dataclasses", "difflib", "functools", "hashlib",
    "itertools", "math", "statistics", "typing",
}  # fmt: skip
NO_IO = {"open", "print", "exec", "eval"}

# From the lowest to the highest: a file imports only from its own line or from lines above it.
LAYERS = (
    ("errors", "fingerprint", "signals", "container", "metrics"),
    ("store", "s3", "config", "decode"),
    ("folder", "settings"),
    ("artifact", "progress"),
    ("lease", "review", "method"),
    ("facts",),
    ("corpus",),
    ("stage", "report"),
    ("stages",),
    ("defence", "runner", "verify"),
    ("launch", "results", "inspection"),
    ("api",),
    ("program",),
    ("research",),
    ("commands",),
    ("cli",),
)
COMMANDS = ("research", "commands", "cli")
# What is imported inside functions, and why.
LATE = {
    ("store", "s3"): "boto3 and aiohttp take half a second, which a local folder need not wait for",
    ("runner", "stages.precision"): "a run can be read without torch, which takes seconds to load",
    ("results", "stages.ray_cluster"): "a run can be read without Ray, which takes seconds to load",
    (
        "method.encoder",
        "method.timm_backbone",
    ): "timm takes ten seconds; our own small backbones do not need it",
}


def module_of(file: Path) -> str:
    """`poisoncam_ray/stages/embed.py` → `stages.embed`; the package itself is an empty name."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports(file: Path) -> set[str]:
    """The dotted names that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by dots: write the whole name"
            names.add(node.module or "")
    return names


def imported_modules(tree: ast.AST) -> set[str]:
    """The modules of the package that a syntax tree imports, those inside functions and under TYPE_CHECKING
    among them. `from poisoncam_ray.x import y` is an import of x.y where that is a module, else of x."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.append(inner if inner.removeprefix("poisoncam_ray.") in MODULES else node.module)
        found |= {n.removeprefix("poisoncam_ray.") for n in names if n.startswith("poisoncam_ray.")}
    return found & set(MODULES)


GRAPH = {name: imported_modules(ast.parse(file.read_text())) - {name} for name, file in MODULES.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def layer(module: str) -> int:
    top = module.split(".")[0]
    places = [i for i, names in enumerate(LAYERS) if top in names]
    assert len(places) == 1, f"{top} has no layer: give it one in LAYERS"
    return places[0]


def test_top_level_is_fixed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    top = {name.split("/")[0] for name in tracked if name and not name.startswith(".")}
    assert top <= TOP


def test_no_import_circles():
    assert circles(GRAPH) == []


def test_the_search_for_circles_finds_them():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_downwards(module):
    upwards = [other for other in GRAPH[module] if layer(other) > layer(module)]
    assert not upwards, f"{module} imports {upwards}, which lie above it"


def test_imports_inside_functions_are_listed_with_their_reason():
    late = set()
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                late |= {(name, other) for other in imported_modules(node)}
    # A command imports what is heavy after its arguments are checked.
    unlisted = {pair for pair in late if not pair[0].startswith(COMMANDS)} - set(LATE)
    assert unlisted == set()


def test_the_defence_imports_no_research():
    product = [name for name in MODULES if name and not name.startswith(COMMANDS)]
    for name in product:
        assert not [other for other in GRAPH[name] if other.startswith("research")], name


def test_the_defence_never_reads_truth_or_labels():
    for name, file in MODULES.items():
        if not name.startswith(COMMANDS):
            text = file.read_text()
            assert "truth.parquet" not in text and "labels(" not in text, name


def test_the_study_stands_on_the_evaluation_and_not_the_other_way():
    for name in MODULES:
        if name.startswith("research.evaluate"):
            assert not [other for other in GRAPH[name] if other.startswith("research.study")], name


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


def test_artifacts_are_named_in_one_place():
    """No file but artifact.py spells a folder under work/, or a file that two stages share."""
    named = re.compile(
        r"""["'/](?:work/)?(?:[1-8]_(?:index|encoder|features|clusters|search|verdict|classifier|scores))"""
    )
    for name, file in MODULES.items():
        if name != "artifact":
            assert not named.search(file.read_text()), name


def test_files_fit_in_the_head():
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        assert file.name != "utils.py"
        assert len(file.read_text().splitlines()) <= MOST_LINES, file


def test_folders_say_what_is_in_them():
    """Each has a README of at most forty lines that names every file or folder beside it."""
    for folder in (PACKAGE, ROOT / "jobs", ROOT / "tests"):
        text = (folder / "README.md").read_text()
        assert len(text.splitlines()) <= 40, folder
        for entry in folder.iterdir():
            if not entry.name.startswith(("_", ".")) and entry.name not in ("README.md", "py.typed"):
                assert entry.name in text or entry.stem in text, (
                    f"{folder.name}/README.md misses {entry.name}"
                )


def test_the_walk_through_the_package_names_what_there_is():
    """The stops of README.md's walk: at most fifteen, each a function or class of the file it names."""
    text = (PACKAGE / "README.md").read_text()
    walk = text[text.index("## One image") :]
    assert len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 15
    stops = re.findall(r"`((?:\w+/)*\w+)\.(\w+)(?:\.(\w+))?`", walk)
    assert len(stops) > 12
    for path, name, attribute in stops:
        file = PACKAGE / f"{path}.py"
        if not file.exists():
            continue  # a method of an object, such as corpus.split
        tree = ast.parse(file.read_text())
        kinds = (ast.FunctionDef, ast.ClassDef)
        found = {node.name: node for node in tree.body if isinstance(node, kinds)}
        assert name in found, f"{path}.py has no {name}"
        if attribute:
            assert attribute in {n.name for n in found[name].body if isinstance(n, ast.FunctionDef)}

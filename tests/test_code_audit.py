"""No module can run what it reads: the syntax tree of every file is searched for the calls that would."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "poisoncam_ray").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickletools", "runpy", "shelve", "xmlrpc", "cPickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "pd.read_pickle", "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "shutil.unpack_archive",
    "importlib.import_module", "np.fromfile",
}  # fmt: skip
# An archive is never unpacked, only read at offsets.
METHODS = {"extract", "extractall"}


def faults(source: str) -> list[str]:
    """What of `source` could run data as code, or unpack it onto the disk."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in MODULES]
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found.append("from pickle import")
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            # Its error class is caught where torch refuses a checkpoint; nothing else of it is used.
            found += [f"pickle.{node.attr}"] if node.attr != "UnpicklingError" else []
        elif isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    wrong = name in BUILTINS | CALLS
    wrong |= isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
    wrong |= name == "torch.load" and given.get("weights_only") != "True"
    wrong |= name in ("np.load", "numpy.load")
    wrong |= given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False"
    wrong |= given.get("trust_remote_code", "False") != "False" or given.get("pretrained", "False") != "False"
    wrong |= name.endswith("Environment") and "jinja" in name and given.get("autoescape") != "True"
    # Pillow's other plugins parse formats that we do not read; one of them starts a program.
    wrong |= name == "Image.open" and "formats" not in given
    return [f"{name}(…)"] if wrong else []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(file):
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "import joblib",
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "__import__(name)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "timm.create_model(name, pretrained=True)",
        "jinja2.Environment(loader=loader)",
        "Image.open(file)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert faults(source)


def test_a_local_cluster_is_started_without_a_dashboard():
    """Ray's dashboard can start jobs: who reaches it runs code. Clusters that are joined have their own."""
    tree = ast.parse((ROOT / "poisoncam_ray" / "stages" / "ray_cluster.py").read_text())
    options = [
        {ast.literal_eval(k): v for k, v in zip(node.keys, node.values, strict=True) if k}
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
    ]
    local = [option for option in options if "address" in option]
    assert len(local) == 1
    assert ast.unparse(local[0]["include_dashboard"]) == "False"


def test_nobody_outside_reaches_a_dashboard_of_our_own_cluster(ray_cluster):
    import ray

    address = ray._private.worker.global_worker.node.webui_url
    assert not address or address.startswith(("127.0.0.1:", "localhost:"))

"""PoisonCAM (arXiv 2312.07955) as a distributed batch processor on Ray.

import poisoncam_ray as pc

run = pc.defend("photos/", "out/")  # or pc.open_run("s3://bucket/out")
run.verdict                         # is there poison, and how sure is it
run.removed().to_pandas()           # each removed image, with the box of its trigger
run.show(family=1)                  # in a notebook: the trigger, and images that carry it
run.clean()                         # the corpus without its poison, a ray.data.Dataset
pc.apply(run, "new/", "new-out/")   # the same triggers, looked for in new images
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poisoncam_ray.api import apply, defend
    from poisoncam_ray.errors import StageFailedError, UserError
    from poisoncam_ray.results import Results, open_run

# Ray reads these when it is first imported. Its `uv run` hook would give every worker a fresh environment
# without our packages; usage statistics would leave a closed network trying to call home.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
__all__ = ["Results", "StageFailedError", "UserError", "__version__", "apply", "defend", "open_run"]

_PLACES = {
    "apply": "api",
    "defend": "api",
    "open_run": "results",
    "Results": "results",
    "StageFailedError": "errors",
    "UserError": "errors",
}
"""The file of each public name, imported at the first use: Ray, torch and pyarrow take seconds to load."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})

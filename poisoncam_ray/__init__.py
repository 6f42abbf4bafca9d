"""PoisonCAM (arXiv 2312.07955) as a distributed batch processor on Ray."""

import os

# Ray reads these when it is first imported. Its `uv run` hook would give every worker a fresh environment
# without our packages; usage statistics would leave a closed network trying to call home.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"

"""A hash of what an artifact was made from, and the differences between two such trees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The SHA-256 of canonical JSON, in hex. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """The differences of two JSON trees, for people: `search.window: 0.35 then, 0.3 now`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {old!r} then, {new!r} now"]

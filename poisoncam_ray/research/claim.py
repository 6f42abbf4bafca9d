"""A folder of results that belongs to one set of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import differences
from poisoncam_ray.folder import Folder


def claim(out: Folder, name: str, settings: Mapping[str, Any], holds: str) -> None:
    """Write the settings into a new folder, or compare them with those that it has.

    Args:
        out: the folder.
        name: the file of the settings, as JSON.
        settings: what the folder's files depend on.
        holds: what a folder of other settings holds, for the message.

    Raises:
        UserError: the folder has other settings; they are told.
    """
    if not out.exists(name):
        out.write_json(name, settings)
    elif found := differences(out.read_json(name), settings):
        raise UserError(f"{out.uri} holds {holds} ({'; '.join(found)}): give a new --output.")

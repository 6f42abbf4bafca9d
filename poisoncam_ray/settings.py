"""Reads the configuration: a preset, a YAML file, settings by section, and `section.key=value` overrides.

The later of these wins: the defaults of config.py, `--preset NAME` (a YAML file of jobs/configs/), `--config
FILE`, settings (of a call from Python), overrides. Pydantic converts and checks the values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError

NEAREST = 3
"""Names that the sentence about an unknown one suggests."""
PRESETS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "jobs" / "configs")
"""An installed package and a checkout keep the presets in different places."""


def presets() -> dict[str, Path]:
    """The file of each preset, by its name."""
    return {
        file.stem: file for folder in PRESETS if folder.is_dir() for file in sorted(folder.glob("*.yaml"))
    }


def purpose(preset: Path) -> str:
    """What a preset is for: the first sentence of the comment that its file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), preset.read_text().splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in lines) + " ")[0].rstrip(". ")


def load_config(
    preset: str | None = None,
    file: str | None = None,
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Merge preset, file, settings and overrides into a validated configuration.

    Args:
        preset: the name of a preset.
        file: the path of a YAML file.
        overrides: `section.key=value` each.
        settings: sections, each with its keys and values.

    Raises:
        UserError: a preset, file, key or value is wrong. The sentence suggests the nearest name.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        known = presets()
        if preset not in known:
            raise UserError(f"There is no preset {preset!r}{_nearest(preset, known)}")
        tree = _merge(tree, _configuration(known[preset]))
    if file is not None:
        tree = _merge(tree, _configuration(Path(file)))
    tree = _merge(tree, dict(settings or {}))
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(
                f"{item!r} is no override: write section.key=value, for example search.masks=128."
            )
        parsed = _parsed(key, value)
        for name in reversed(key.split(".")):
            parsed = {name: parsed}
        tree = _merge(tree, parsed)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(item) for item in error.errors())) from None


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: what the sentence of an error calls the file.

    Returns:
        What the file holds; None when it is empty.

    Raises:
        UserError: the file cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The {what} {path} is not YAML: {str(error).splitlines()[0]}.") from None


def _configuration(path: Path) -> dict[str, Any]:
    tree = read_yaml(path, "configuration file")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"The configuration file {path} must hold sections such as 'search:', "
            f"not a {type(tree).__name__}."
        )
    return tree


def _parsed(key: str, value: str) -> Any:
    """The value of an override. YAML reads lists, booleans and null; text is taken as it is, because YAML
    would change a column named 0 or a path with a colon."""
    if _is_text(key):
        return None if value in ("", "null") else value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _is_text(key: str) -> bool:
    section, _, name = key.partition(".")
    within = Config.model_fields.get(section)
    made = within.annotation if within else None
    field = made.model_fields.get(name) if isinstance(made, type) and issubclass(made, BaseModel) else None
    return field is not None and field.annotation in (str, str | None)


def _sentence(item: Any) -> str:
    key = ".".join(str(name) for name in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"There is no configuration key {key!r}{_nearest(key, _known_keys(Config))}"
    if item["type"] == "value_error":
        return f"Configuration: {item['ctx']['error']}."
    return f"Configuration key {key}={item['input']!r}: {item['msg'].lower()}."


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the names that are most like this one, whole or by what follows the last dot."""

    def likeness(other: str) -> float:
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return max(difflib.SequenceMatcher(None, name, other).ratio(), last)

    *others, last = (repr(match) for match in sorted(known, key=lambda key: (-likeness(key), key))[:NEAREST])
    return f"; did you mean {', '.join(others)} or {last}?"


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged

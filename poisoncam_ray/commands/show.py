"""The commands `presets` and `config show`: what there is to choose, and what a choice comes to."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import yaml
from pydantic import BaseModel
from rich.table import Table

from poisoncam_ray.commands.options import AsJson, ConfigFile, Output, Overrides, Preset, Quiet
from poisoncam_ray.config import Config
from poisoncam_ray.program import examples
from poisoncam_ray.settings import load_config, purpose
from poisoncam_ray.settings import presets as known_presets

WIDTH = 100
"""Characters of a line of the YAML."""


@examples("poisoncam presets", "poisoncam presets --json")
def presets(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the presets: what each is for, its encoder and the side of its images."""
    found: list[dict[str, Any]] = []
    for name, file in known_presets().items():
        encoder = load_config(name).encoder
        found.append(
            {
                "preset": name,
                "for": purpose(file),
                "encoder": encoder.backbone,
                "image_size": encoder.image_size,
            }
        )
    table = Table("preset", "for", "encoder", "image", box=None, header_style="bold", pad_edge=False)
    for row in found:
        table.add_row(row["preset"], row["for"], row["encoder"], f"{row['image_size']} px")
    Output(as_json, quiet).result({"presets": found}, [table])


@examples(
    "poisoncam config show",
    "poisoncam config show --preset imagenet100 search.masks=64 > mine.yaml",
    "poisoncam defend photos/ --output defended/ --config mine.yaml",
)
def show(
    overrides: Overrides = None,
    preset: Preset = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print all settings as they come out of preset, file and arguments: YAML that --config reads."""
    chosen = load_config(preset, config, overrides or ())
    Output(as_json, quiet).result(chosen.model_dump(mode="json"), commented(chosen))


def commented(config: Config) -> list[str]:
    """The configuration as lines of YAML, each key below what it means."""
    lines = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if not isinstance(value, BaseModel):
            lines += [*_comment(field.description), f"{name}: {_flow(value)}"]
            continue
        lines += ["", *_comment(inspect.getdoc(type(value))), f"{name}:"]
        plain = value.model_dump(mode="json")
        for key, inner in type(value).model_fields.items():
            told = _comment(inner.description)
            lines += [f"  {line}" for line in (*told, f"{key}: {_flow(plain[key])}")]
    return lines


def _comment(text: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text or "", WIDTH - 4)]


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()

"""Configuration: one frozen, validated section per stage; presets, a YAML file, `section.key=value`.

Precedence, lowest first: the defaults below, `--preset NAME` (a YAML file of jobs/configs/), `--config FILE`,
overrides. Fractions are shares of the encoder's image side unless a docstring says otherwise.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from poisoncam_ray.errors import UserError

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Strategy = Literal["interval", "random", "full_coverage", "sliding", "keep_only", "mixed"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Index(Section):
    """What counts as a corpus row, and how many rows make one unit of work."""

    format: Literal["auto", "parquet", "folder"] = "auto"
    image_column: str | None = None
    rows_per_slice: Count = 1024
    max_pixels: Count = 64_000_000
    """A header that announces more pixels is a decompression bomb: dead letter, never decoded."""
    max_bytes: Count = 256_000_000


class Encoder(Section):
    """The backbone, ours to pretrain or the user's own (`checkpoint`)."""

    backbone: str = "resnet_tiny_s2"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 32
    patch_size: Count | None = None
    checkpoint: str | None = None
    """URI of a safetensors or MoCo-v3-layout checkpoint: skips pretraining."""


class Pretrain(Section):
    """MoCo-v3 (DESIGN step 1). `lr` is the base rate: lr × batch_size / 256 is used."""

    epochs: Count = 20
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Annotated[float, Field(gt=0)] = 4e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup_epochs: Annotated[float, Field(ge=0)] = 1
    temperature: Annotated[float, Field(gt=0)] = 0.2
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    hidden_dim: Count = 512
    out_dim: Count = 128
    crop_min: Fraction = 0.4
    workers: Count = 1
    shuffle_rows: Count = 65_536
    """Rows a worker holds to shuffle from: a shard that fits is shuffled perfectly every epoch."""
    checkpoint_every: Count = 100
    """Steps between checkpoints: what a killed job loses at most."""
    max_failures: Annotated[int, Field(ge=0)] = 3


class Embed(Section):
    batch_size: Count = 256


class Cluster(Section):
    """k-means (DESIGN step 2). `k` null takes 3·√N: 1,068 for the paper's 126,689 images (paper: 1000)."""

    k: Annotated[int, Field(ge=2)] | None = None
    iterations: Count = 20
    sample: Count = 250_000
    """Rows that k-means is trained on, at most; the rest are only assigned."""


class Search(Section):
    """Cluster Activation Masking, poison score, pruning (DESIGN steps 3 to 5)."""

    strategy: Strategy = "mixed"
    score: Literal["hard", "margin", "distance"] = "distance"
    masks: Annotated[int, Field(ge=2)] = 128
    cell: Fraction = 0.125
    window: Fraction = 0.35
    reading: Literal["changed", "gain"] = "gain"
    """Which reading of the poison score ranks candidates; both are recorded."""
    flip_images: Count = 100
    per_cluster: Count = 2
    prune: Annotated[float, Field(gt=0, lt=1)] = 0.25
    min_live: Count = 8
    """The search stops when no more clusters than this are live …"""
    max_rounds: Count = 50
    max_candidates: Count = 100_000
    """… or after this many rounds, or when the next round would score more candidates than this in all."""
    batch_size: Count = 128
    chunk: Count = 32
    """Candidates in one unit of work."""


class Classify(Section):
    """The poison classifier (DESIGN step 6). The paper: 2000 steps of SGD at 0.01, batch 32, five models;
    with AdamW, one cycle and a robust loss 150 steps did as well on photographs of 32 px."""

    top_k: Annotated[int, Field(ge=2)] = 20
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the top-k triggers kept from training, to validate on."""
    paste_min: Fraction = 0.18
    paste_max: Fraction = 0.40
    """Side of a paste. The paper's 0.09 to 0.36 are for 224 px: below 6 px a paste is noise."""
    models: Count = 3
    steps: Count = 150
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Photographs a step, each seen with and without a paste."""
    lr: Annotated[float, Field(gt=0)] = 2e-3
    sample: Count = 20_000
    """Corpus images that positives and negatives are drawn from, at most."""

    @model_validator(mode="after")
    def _sizes(self) -> Classify:
        if self.paste_min > self.paste_max:
            raise ValueError("paste_min must not exceed paste_max")
        return self


class Resources(Section):
    """What each Ray actor asks for. Not part of any fingerprint: it never changes a result."""

    actors: Count = 1
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    threads_per_actor: Count | None = None
    """Torch threads in each actor and training worker; null: the machine's cores over the actors."""
    cpus_per_reader: Annotated[float, Field(gt=0)] = 0.5
    readers: Count | None = 2
    """Reading tasks at once, each a process of its own; null: as many as the cluster has CPUs for."""


class Config(Section):
    seed: Annotated[int, Field(ge=0, lt=2**23)] = 0
    index: Index = Index()
    encoder: Encoder = Encoder()
    pretrain: Pretrain = Pretrain()
    embed: Embed = Embed()
    cluster: Cluster = Cluster()
    search: Search = Search()
    classify: Classify = Classify()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        side = self.encoder.image_size
        if self.window_px < 2:
            raise ValueError(f"search.window={self.search.window} of {side} px is less than 2 px")
        if self.search.strategy == "full_coverage" and self.search.masks % 4:
            raise ValueError(f"search.masks={self.search.masks} must be a multiple of 4 for full_coverage")
        if self.pretrain.batch_size % self.pretrain.workers:
            raise ValueError("pretrain.batch_size must be a multiple of pretrain.workers")
        if self.encoder.patch_size and side % self.encoder.patch_size:
            raise ValueError(
                f"encoder.patch_size={self.encoder.patch_size} does not divide encoder.image_size={side}"
            )
        return self

    @property
    def window_px(self) -> int:
        return max(1, round(self.search.window * self.encoder.image_size))

    @property
    def cell_px(self) -> int:
        return max(1, round(self.search.cell * self.encoder.image_size))


PRESETS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "jobs" / "configs")


def presets() -> dict[str, Path]:
    """Preset name → file; installed packages and checkouts keep them in different places."""
    return {
        file.stem: file for folder in PRESETS if folder.is_dir() for file in sorted(folder.glob("*.yaml"))
    }


def load_config(preset: str | None = None, file: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Merge preset, YAML file and `section.key=value` overrides into a validated Config.

    Raises UserError, one sentence, for an unknown preset, file or key (the nearest is suggested) or a value.
    """
    tree: dict[str, Any] = {}
    if preset is not None:
        known = presets()
        if preset not in known:
            raise UserError(f"There is no preset {preset!r}{_nearest(preset, known)}.")
        tree = _merge(tree, _read_yaml(known[preset]))
    if file is not None:
        tree = _merge(tree, _read_yaml(Path(file)))
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(
                f"{item!r} is no override: write section.key=value, for example search.masks=128."
            )
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        # YAML 1.1 reads 1e-3 as a string: what looks like a number is one.
        if isinstance(parsed, str) and _is_number(parsed):
            parsed = float(parsed)
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        tree = _merge(tree, parsed)
    return _validate(tree)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hex SHA-256 of canonical JSON: equal for equal content, whatever the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Readable differences of two JSON trees: `search.window: 0.35 then, 0.3 now`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {old!r} then, {new!r} now"]


def _validate(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(item) for item in error.errors())) from None


def _sentence(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"There is no configuration key {key!r}{_nearest(key, _known_keys(Config))}."
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
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f": there are {', '.join(known)}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The configuration file {path} is not YAML: {str(error).splitlines()[0]}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"The configuration file {path} must hold sections such as 'search:', "
            f"not a {type(tree).__name__}."
        )
    return _numbers(tree)


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    return float(tree) if isinstance(tree, str) and _is_number(tree) else tree


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged

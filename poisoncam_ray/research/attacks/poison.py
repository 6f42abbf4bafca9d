"""Poison a training set, or patch a validation set, with one of the attacks.

What is written under the output: `corpus/` (the input, some images replaced), `truth.parquet` (one row an
image), `triggers/` and, last, `attack.json` (settings and counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poisoncam_ray.corpus import Corpus, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.research.attacks.choice import Chosen, Pick
from poisoncam_ray.research.attacks.kind import How, Kind
from poisoncam_ray.research.attacks.kinds import kind_named
from poisoncam_ray.research.attacks.plan import Mapper, Plan
from poisoncam_ray.research.attacks.trigger import Region
from poisoncam_ray.research.attacks.write import Attack, write_attack
from poisoncam_ray.store import connect


def poison_corpus(
    input_uri: str,
    output_uri: str,
    targets: Sequence[str],
    triggers: Sequence[str] = (),
    width: float | None = None,
    share: float | None = None,
    seed: int = 0,
    label_column: str = "label",
    region: Region | None = None,
    *,
    kind: str = "patch",
    options: Mapping[str, float] | None = None,
    corpus_format: str = "auto",
    image_column: str | None = None,
    map_units: Mapper = map,
) -> dict[str, Any]:
    """Poison `share` (0, 1] of the images of each target label, with one trigger for each target; untargeted,
    without targets, that share of all images.

    `kind` is one of `attacks.KINDS`, which has its own `options`, and its own width, share and region where
    none is given. `triggers` are image files (any fsspec URL) or "generated:<seed>"; none: one is generated
    for each target (natural: cropped from the corpus). `width` is a fraction (0, 1] of the image's shorter
    side; a trigger keeps its own aspect ratio. `region`: parts of each side, 0–1, that hold it. Labels are
    compared as strings; in an image folder they are the parent folders' names. Images of the target that do
    not decode stay as they are. `map_units` may run units elsewhere (it is called as `map`, order kept).

    Returns what attack.json holds: settings, trigger_files, n_images, n_poisoned, n_decoys, n_unreadable,
    poison_rate. Raises UserError for values out of range, an option, label or trigger that does not exist, an
    output that is not empty.
    """
    chosen_kind = kind_named(kind)
    least, most = chosen_kind.targets
    if most == 0 and targets:
        raise UserError(f"The attack {kind} has no target: leave the target out.")
    if len(targets) < least:
        raise UserError("No target label was given: name at least one.")
    if len(targets) > most:
        raise UserError(f"The attack {kind} has one target: name {targets[0]} only.")
    if len(set(targets)) < len(targets):
        raise UserError(f"The target labels {', '.join(targets)} name one twice: give each label once.")
    share = chosen_kind.share if share is None else share
    if not 0 < share <= 1:
        raise UserError(f"The share is {share}: use a number above 0 and at most 1.")
    how = _how(kind, chosen_kind, triggers, width, region or chosen_kind.train_region, options)
    corpus = _open(input_uri, output_uri, seed, corpus_format, image_column)
    slices = corpus.slices()
    plan = Plan(corpus, slices, tuple(targets), share, seed, label_column, how.options, map_units)
    loaded = chosen_kind.triggers(plan, triggers)
    attack = Attack(kind, chosen_kind.stamp, loaded, how, chosen_kind.choose(plan), seed, label_column)
    settings = {"action": "poison", "input": input_uri, "share": share}
    return write_attack(plan, attack, output_uri, settings)


def patch_corpus(
    input_uri: str,
    output_uri: str,
    target: str,
    trigger: str = "",
    width: float | None = None,
    seed: int = 0,
    region: Region | None = None,
    *,
    kind: str = "patch",
    options: Mapping[str, float] | None = None,
    corpus_format: str = "auto",
    image_column: str | None = None,
    map_units: Mapper = map,
) -> dict[str, Any]:
    """Put the trigger on every image of a validation set, to see how often `target` is then predicted.

    `target` is "" for untargeted, and only there. A natural trigger is the file under triggers/ that
    poisoning wrote. Other arguments, files written, result and errors as in `poison_corpus`.
    """
    chosen_kind = kind_named(kind)
    if chosen_kind.targets[1] == 0 and target:
        raise UserError(f"The attack {kind} has no target: leave the target out.")
    if chosen_kind.targets[0] > 0 and not target:
        raise UserError("No target label was given: name the one that the trigger stands for.")
    triggers = [trigger] if trigger else []
    how = _how(kind, chosen_kind, triggers, width, region or chosen_kind.validation_region, options)
    corpus = _open(input_uri, output_uri, seed, corpus_format, image_column)
    targets = (target,) if target else ()
    plan = Plan(corpus, corpus.slices(), targets, 1.0, seed, "", how.options, map_units, patching=True)
    everything = Chosen((Pick(None, 1.0),))
    attack = Attack(kind, chosen_kind.stamp, chosen_kind.triggers(plan, triggers), how, everything, seed, "")
    return write_attack(plan, attack, output_uri, {"action": "patch", "input": input_uri})


def _how(
    name: str,
    kind: Kind,
    triggers: Sequence[str],
    width: float | None,
    region: Region,
    options: Mapping[str, float] | None,
) -> How:
    if triggers and not kind.takes_triggers:
        raise UserError(f"The attack {name} has no trigger image: leave the trigger out.")
    width = kind.width if width is None else width
    if not 0 < width <= 1:
        raise UserError(
            f"The trigger's width is {width} of the image's shorter side: use a number above 0 and at most 1."
        )
    if not 0 <= region[0] < region[1] <= 1:
        raise UserError(f"The region is {region[0]} to {region[1]}: use two rising numbers from 0 to 1.")
    return How(width, region, kind.settings(name, options or {}))


def _open(input_uri: str, output_uri: str, seed: int, corpus_format: str, image_column: str | None) -> Corpus:
    if seed < 0:
        raise UserError(f"The seed is {seed}: use 0 or more.")
    inside, outside = (connect(uri)[1] for uri in (input_uri, output_uri))
    if f"{outside}/".startswith(f"{inside}/"):
        raise UserError(f"The output {output_uri} lies in the input {input_uri}: write it elsewhere.")
    filesystem, root = connect(output_uri)
    # A store may still list a folder whose files were deleted.
    found = filesystem.find(root, detail=True).values() if filesystem.exists(root) else ()
    if any(info["type"] == "file" for info in found):
        raise UserError(f"The output folder {output_uri} is not empty: give a new one.")
    return open_corpus(input_uri, corpus_format, image_column)

"""Poison a training set, or patch a validation set, with one of the attacks.

The output folder holds `corpus/` (the input with some images replaced), `truth.parquet` (one row per image),
`triggers/`, and `attack.json` (settings and counts), which is written last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    """Poison a share of the images of each target, with one trigger for each target.

    Images of a target that do not decode stay as they are.

    Args:
        input_uri: the clean corpus.
        output_uri: an empty folder.
        targets: the labels to poison, compared as strings; in an image folder a label is the name of the
            parent folder. None for an untargeted attack, which poisons a share of all images.
        triggers: for each target an image file (any fsspec URL) or "generated:<seed>". Without any, one is
            generated for each target (natural: cropped from the corpus).
        width: the trigger's width as a share of the image's shorter side, (0, 1]. A trigger keeps its aspect
            ratio. None: the width of the kind.
        share: the share of each target's images that is poisoned, (0, 1]. None: the share of the kind.
        seed: seed of every random choice, from 0.
        label_column: the corpus's column of labels.
        region: the share of each side within which the trigger lies, (from, to), 0 … 1. None: the region of
            the kind.
        kind: the kind of attack, a name of `attacks.KINDS`.
        options: settings of the kind, by name.
        corpus_format: the format of the corpus; "auto": found out.
        image_column: the corpus's column of images; None: found out.
        map_units: runs a function on all units of the corpus, called as `map`; it may run them elsewhere but
            must keep their order.

    Returns:
        What attack.json holds: the settings, trigger_files, n_images, n_poisoned, n_decoys, n_unreadable and
        poison_rate.

    Raises:
        UserError: a value is out of range, an option, label or trigger does not exist, or the output folder
            is not empty.
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
    chosen = chosen_kind.choose(plan)
    if chosen_kind.decoys:
        chosen = replace(chosen, decoys=chosen_kind.decoys(plan, loaded))
    attack = Attack(
        kind, chosen_kind.stamp, loaded, how, chosen, seed, label_column,
        compose=chosen_kind.compose, stored_as=chosen_kind.stored_as,
    )  # fmt: skip
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
    """Put the trigger on every image of a validation set, to see how often the target is then predicted.

    The files written, the result and the errors are those of `poison_corpus`.

    Args:
        input_uri: the clean validation corpus.
        output_uri: an empty folder.
        target: the attack's target label; "" for an untargeted attack, and only there.
        trigger: an image file or "generated:<seed>"; "": as `poison_corpus` makes it. A natural trigger is
            the file under triggers/ that `poison_corpus` wrote.
        width: as in `poison_corpus`.
        seed: as in `poison_corpus`.
        region: as in `poison_corpus`.
        kind: as in `poison_corpus`.
        options: as in `poison_corpus`.
        corpus_format: as in `poison_corpus`.
        image_column: as in `poison_corpus`.
        map_units: as in `poison_corpus`.
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
    attack = Attack(
        kind, chosen_kind.stamp, chosen_kind.triggers(plan, triggers), how, everything, seed, "",
        stored_as=chosen_kind.stored_as,
    )  # fmt: skip
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
    # Some stores still list a folder whose files were deleted.
    found = filesystem.find(root, detail=True).values() if filesystem.exists(root) else ()
    if any(info["type"] == "file" for info in found):
        raise UserError(f"The output folder {output_uri} is not empty: give a new one.")
    return open_corpus(input_uri, corpus_format, image_column)

"""Corpora for the table of the rival without a model: classes of a labelled corpus under several attacks."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.attacks import poison_corpus
from poisoncam_ray.research.attacks.kinds import kind_named
from poisoncam_ray.research.claim import claim
from poisoncam_ray.research.evaluate.corpora import take_classes

CLEAN, LOGO = "clean", "logo"
MADE, SOURCE = "attack.json", "source.json"
SHARDS = 3
WIDTH = 20 / 64
_SPEC = re.compile(r"(?P<kind>[a-z_]+)(@(?P<share>[0-9.]+))?(:(?P<options>.+))?")


@dataclass(frozen=True)
class Spec:
    """One row of the table, written KIND@SHARE:NAME=NUMBER,NAME=NUMBER.

    Attributes:
        text: as it was written.
        kind: a kind of attack; "clean" for none; "logo" for the patch as a mark that means no harm.
        share: of the target's images; of an untargeted attack, of all images.
        options: settings of the kind; "width" is the trigger's width as a share of the shorter side.
    """

    text: str
    kind: str
    share: float
    options: dict[str, float]

    @property
    def name(self) -> str:
        """Its folder."""
        return re.sub(r"[^\w.=-]+", "-", self.text)


@dataclass(frozen=True)
class Source:
    """Where the photographs come from.

    Attributes:
        train_uri: a labelled Parquet corpus.
        labels: labels from which classes are drawn; the first drawn is the target.
        n_classes: number of classes.
        per_class: photographs of each, at most.
        trigger: an image file or "generated:<seed>".
        seed: of the classes and of the attacks.
    """

    train_uri: str
    labels: tuple[int, ...]
    n_classes: int
    per_class: int
    trigger: str
    seed: int


def parse(text: str) -> Spec:
    """Read a specification such as blended@0.5:alpha=0.3.

    Raises:
        UserError: it has another form, or there is no such attack.
    """
    found = _SPEC.fullmatch(text)
    if not found:
        raise UserError(f"The attack {text} is no KIND@SHARE:NAME=NUMBER: write it as blended@0.5:alpha=0.3.")
    kind, options = found["kind"], {}
    if kind not in (CLEAN, LOGO):
        kind_named(kind)
    try:
        share = float(found["share"] or 1)
        for setting in (found["options"] or "").split(","):
            if setting:
                name, _, value = setting.partition("=")
                options[name] = float(value)
    except ValueError:
        raise UserError(f"The attack {text} has a value that is no number: write it as alpha=0.3.") from None
    return Spec(text, kind, share, options)


def take(source: Source, out: Folder) -> list[str]:
    """Write the photographs to out/clean, once. Returns their labels, the target first.

    Raises:
        UserError: there are too few labels, or the folder holds attacks on something else.
    """
    now = asdict(source) | {"labels": list(source.labels)}
    claim(out, SOURCE, now, "attacks on something else")
    if len(source.labels) < source.n_classes:
        raise UserError(f"{source.n_classes} classes cannot be drawn from {len(source.labels)} labels.")
    classes = np.random.default_rng(source.seed).choice(source.labels, source.n_classes, replace=False)
    take_classes(source.train_uri, out / CLEAN, classes, source.per_class, SHARDS)
    return [str(label) for label in classes]


def attacked(spec: Spec, source: Source, target: str, clean: Folder, out: Folder) -> tuple[str, str | None]:
    """Make a specification's corpus, once.

    Args:
        spec: the row.
        source: gives trigger and seed.
        target: the target label.
        clean: the photographs.
        out: where the attack is written.

    Returns:
        The corpus, and its truth; None for the clean one.
    """
    if spec.kind == CLEAN:
        return clean.uri, None
    if not out.exists(MADE):
        out.delete()
        kind = "patch" if spec.kind == LOGO else spec.kind
        of_kind, options = kind_named(kind), dict(spec.options)
        width = options.pop("width", None if of_kind.has_own_width else WIDTH)
        poison_corpus(
            clean.uri,
            out.uri,
            [target] if of_kind.targets[1] else [],
            [] if of_kind.makes_its_trigger else [source.trigger],
            width=width,
            share=spec.share,
            seed=source.seed,
            kind=kind,
            options=options,
        )
    return (out / "corpus").uri, f"{out.uri}/truth.parquet"


def about(spec: Spec, source: Source, target: str) -> dict[str, Any]:
    """What a row says beside its figures."""
    said: dict[str, Any] = {"attack": spec.text, "kind": spec.kind, "share": spec.share, "seed": source.seed}
    said["setting"] = f"{source.n_classes} classes × {source.per_class}, seed {source.seed}"
    of_kind = None if spec.kind in (CLEAN, LOGO) else kind_named(spec.kind)
    given = of_kind is None or not of_kind.makes_its_trigger
    aimed = of_kind is None or of_kind.targets[1] > 0
    return said | {
        "target": target if aimed else None,
        "trigger": source.trigger if given else None,
        "carriers": spec.kind == LOGO,
    }

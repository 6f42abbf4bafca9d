"""A fake run whose classifier is a real one: trained on a trigger that lies in the corpus, with real scores
of all images, and real features. In seconds and without Ray.

N images   V pastes   M crops   C channels   H = W image side
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from poisoncam_ray import artifact, facts
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.slices import slices_of
from poisoncam_ray.folder import Folder, Ledger, Manifest, part_name
from poisoncam_ray.method.classifier import choose_threshold, held_out_pastes, poison_logit, train_classifier
from poisoncam_ray.stages.classify import sure_enough
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.embed import embed_images, feature_table, load_encoder
from poisoncam_ray.stages.judge import JudgeSlice
from poisoncam_ray.stages.pixels import read_views
from tests.fake_evidence import clean
from tests.fake_run import CONFIG, FakeRun, make_fake_run

PATTERN = np.random.default_rng(3).integers(0, 2, (4, 4, 3), dtype=np.uint8) * 255
TRIGGER = Image.fromarray(PATTERN).resize((12, 12), Image.Resampling.NEAREST)
"""Sharp squares of full colours; the images are smooth."""
STEPS = 40


def make_judged_run(folder: Path) -> FakeRun:
    """A fake run with TRIGGER on its poisoned images, classified and judged by the code of the stages."""
    fake = make_fake_run(folder, trigger=TRIGGER)
    run, corpus = Folder(fake.run), open_corpus(fake.corpus)
    slices = slices_of((run / artifact.INDEX).read_table(artifact.SLICES))
    read = [read_views(corpus, CONFIG, run / artifact.INDEX, slice_) for slice_ in slices]
    x_NCHW = torch.from_numpy(np.concatenate([pixels for _, pixels, _ in read]))
    clean_N = torch.tensor([image_id not in fake.poisoned for ids, _, _ in read for image_id in ids])
    _train(run, x_NCHW, clean_N)
    encoder = load_encoder(run / artifact.ENCODER)
    judge = JudgeSlice(CONFIG, run / artifact.INDEX, run / artifact.CLASSIFIER, run / artifact.SCORES)
    for slice_, (ids, pixels, second) in zip(slices, read, strict=True):
        judge(slice_.index, ids, pixels, second)
        features = feature_table(ids, embed_images(encoder, torch.from_numpy(pixels), 64))
        (run / artifact.FEATURES).write_table(part_name(slice_.index), features)
    before = Manifest.read(run / artifact.CLEAN)
    for name in (artifact.CLEAN_ROWS, artifact.REMOVED_ROWS, artifact.CLEAN):
        (run / name).delete()
    clean(run)
    _count(run, before)
    return fake


def _train(run: Folder, x_NCHW: torch.Tensor, clean_N: torch.Tensor) -> None:
    """What Classify writes, of one family."""
    made, settings = run / artifact.CLASSIFIER, CONFIG.classify
    t_CHW = torch.from_numpy(np.array(TRIGGER.resize((10, 10)))).permute(2, 0, 1)
    crops_MCHW, x_VCHW = t_CHW[None], x_NCHW[clean_N]
    models = []
    for member in range(settings.models):
        model = train_classifier(x_VCHW, crops_MCHW, member, STEPS, 16, paste_size=(0.25, 0.4))
        made.write_tensors(artifact.model_name(1, member), dict(model.state_dict()))
        models.append(model)
    pastes = held_out_pastes(x_VCHW, crops_MCHW, 100, 0)
    figures = choose_threshold(poison_logit(models, pastes), poison_logit(models, x_NCHW))
    chosen = {"threshold": 0.5, **figures, "erased": sure_enough(figures["unsure_share"], 0.05)}
    made.write_json(artifact.VALIDATION, chosen | {"trained": True, "families": {"1": chosen}})
    pictures = {"family": [1], "picture": [to_png(t_CHW.float() / 255)], "aspect": [1.0]}
    made.write_table(artifact.WHOLE_TRIGGERS, pa.table(pictures, schema=artifact.WHOLE_TRIGGER_SCHEMA))


def _count(run: Folder, before: Manifest) -> None:
    """The manifest of Clean with the numbers as they are now."""
    units = [name for name in (run / artifact.CLEAN).names() if name.endswith(".json")]
    counts = [(run / artifact.CLEAN).read_json(name) for name in units]
    kept, removed, dead = (sum(count[key] for count in counts) for key in ("kept", "removed", "dead"))
    said = facts.Cleaned(kept, removed, dead, len(units), 0)
    ledger = Ledger(kept + removed + dead, kept, removed, dead)
    Manifest(before.identity, before.inputs, "0" * 64, ledger, 1.0, said.as_json()).write(
        run / artifact.CLEAN
    )

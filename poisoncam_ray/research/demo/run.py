"""The demo: draw a corpus, poison it, defend it, measure the result against the truth."""

from __future__ import annotations

from rich.console import Console

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.research.attacks import patch_corpus, poison_corpus
from poisoncam_ray.research.demo.corpus import draw_corpus, draw_validation
from poisoncam_ray.research.evaluate import Validation, evaluate_run

TARGET = "3"
TRIGGER = "generated:7"
TRIGGER_WIDTH = 20 / 64
SHARE = 1.0
DRAWN = "drawn.json"


def prepare_demo(folder: Folder, seed: int, console: Console) -> None:
    """Draw and poison the demo's corpora, once.

    Args:
        folder: where clean/, poisoned/, validation/ and patched/ are made.
        seed: seed of the pictures and of the attack.
        console: where it is said.
    """
    if folder.exists(DRAWN) and folder.read_json(DRAWN) == {"seed": seed}:
        return
    for name in ("clean", "poisoned", "validation", "patched"):
        (folder / name).delete()
    console.print("drawing 3,000 pictures of ten classes …")
    draw_corpus((folder / "clean").uri, seed=seed)
    draw_validation((folder / "validation").uri, seed=seed)
    made = poison_corpus(
        (folder / "clean").uri, (folder / "poisoned").uri, [TARGET], [TRIGGER], TRIGGER_WIDTH, SHARE, seed
    )
    patch_corpus((folder / "validation").uri, (folder / "patched").uri, TARGET, TRIGGER, TRIGGER_WIDTH, seed)
    console.print(f"pasting a trigger on {made['n_poisoned']} of {made['n_images']} pictures")
    folder.write_json(DRAWN, {"seed": seed})


def measure_demo(folder: Folder) -> tuple[dict[str, float | None], list[str]]:
    """Measure the demo's run against the truth.

    Returns:
        The main figures, by their names in metrics.json, and the same as lines for people.
    """
    metrics = evaluate_run(
        (folder / "run").uri,
        (folder / "poisoned" / "truth.parquet").uri,
        validation=Validation((folder / "validation").uri, (folder / "patched" / "corpus").uri, TARGET),
    )
    shown = {
        "attack success on patched pictures": "asr",
        "triggers found in scored poisoned pictures": "trigger_detection_accuracy",
        "top 20 that are poisoned": "top20_precision",
        "poisoned pictures removed": "recall",
        "clean pictures removed": "false_positive_rate",
    }
    figures = {key: metrics[key] for key in shown.values()}
    lines = [
        f"  {words:<44} {'–' if figures[key] is None else f'{figures[key]:.1%}'}"
        for words, key in shown.items()
    ]
    return figures, [*lines, f"report        {(folder / 'run' / artifact.PAGE).uri}/{artifact.HTML}"]

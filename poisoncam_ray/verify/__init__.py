"""Checks a run folder as it lies: that its numbers add up, and that each row is where its score says.

`records` compares what the run says with itself; `rows` compares it with the files.
"""

from __future__ import annotations

from collections.abc import Callable

from poisoncam_ray import artifact
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from poisoncam_ray.runner import config_of
from poisoncam_ray.verify.defect import Defect
from poisoncam_ray.verify.records import check_records
from poisoncam_ray.verify.rows import check_rows

__all__ = ["Defect", "verify"]


def verify(
    run: Folder, quick: bool = False, tell: Callable[[int, int, str], None] = lambda *_: None
) -> list[Defect]:
    """Check a finished run. Memory does not grow with the corpus, save for the names of its files.

    Args:
        run: the run folder.
        quick: compare counts and manifests only: no image is read.
        tell: is called with how far the check is: done, of how much, and of what.

    Returns:
        What is wrong, in the order in which it was found; empty where nothing is.

    Raises:
        UserError: there is no run, it is of another version, or it is not finished.
    """
    config_of(run)
    defects = check_records(run)
    if not (run / artifact.SCORES).parts() or not (run / artifact.INDEX).exists(artifact.SLICES):
        raise UserError(f"The run {run.uri} is not finished: let the defence run to its end first.")
    return defects + check_rows(run, quick, tell)

"""What failed on a worker is found inside the errors that Ray raises on the driver."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from poisoncam_ray.errors import LedgerError, UserError, origin


def of_task(cause: Exception) -> Exception:
    """As `ray.get` raises it."""
    return RayTaskError(
        "work", "Traceback …", cause, proctitle="ray::work", pid=1, ip="::1"
    ).as_instanceof_cause()


@pytest.mark.parametrize("kind", [UserError, LedgerError, ValueError])
def test_the_cause_of_a_failed_task(kind):
    found = origin(of_task(kind("said there")))
    assert type(found) is kind
    assert str(found) == "said there"


def test_the_failure_of_a_training_worker():
    error = WorkerGroupError("rank 1 failed", {1: of_task(UserError("Lower it."))})
    assert (type(origin(error)), str(origin(error))) == (UserError, "Lower it.")


def test_what_ray_adds_below_the_sentence_is_left_out():
    error = of_task(LedgerError("a shard changed\nTo change retry attempts, configure …"))
    assert str(origin(error)) == "a shard changed"


@pytest.mark.parametrize("error", [UserError("one\ntwo"), OSError("plain"), KeyError()])
def test_an_error_of_the_driver_is_itself(error):
    assert origin(error) is error

"""How a run ends early, and what failed on a worker, found again inside Ray's errors."""

from __future__ import annotations

from collections.abc import Iterator


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what to change. Exit code 2, no traceback."""


class LedgerError(RuntimeError):
    """A stage could not prove that every input row ended in exactly one place. Exit code 1."""


class StoreAwayError(ConnectionError):
    """The store failed for as long as we were willing to wait. Exit code 1, and the same command resumes."""


class StageFailedError(Exception):
    """A stage did not end; `__cause__` says why. Exit code 1, and the same command resumes."""


def origin(error: BaseException) -> BaseException:
    """What `error` is, or what it wraps that was raised on a worker: an error of ours if one is among it."""
    found = list(_within(error))
    for inner in found:
        # Ray's own class for a failed task also inherits from the class of what failed in it.
        if isinstance(inner, UserError | LedgerError) and not hasattr(inner, "cause"):
            # Ray Data writes advice of its own below the sentence.
            return inner if inner is error else type(inner)(str(inner).partition("\n")[0])
    return found[-1]


def _within(error: object) -> Iterator[BaseException]:
    """`error` and what hangs on it: the cause of a failed task, the failures of a training's workers."""
    if isinstance(error, BaseException):
        yield error
        for inner in getattr(error, "worker_failures", {}).values():
            yield from _within(inner)
        for name in ("cause", "controller_failure"):
            yield from _within(getattr(error, name, None))

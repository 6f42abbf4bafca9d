"""The errors of this package, and how to find them inside Ray's errors."""

from __future__ import annotations

from collections.abc import Iterator


class UserError(Exception):
    """A mistake that the user can mend. Its text is one sentence that says what to change. Exit code 2."""


class LedgerError(RuntimeError):
    """A stage could not prove that every input row ended in exactly one place. Exit code 1."""


class StoreAwayError(ConnectionError):
    """The store did not answer within the time limit. Exit code 1; the same command resumes."""


class StageFailedError(Exception):
    """A stage failed; `__cause__` says why. Exit code 1; the same command resumes."""


def origin(error: BaseException) -> BaseException:
    """The error that was raised on a worker, out of the errors that Ray wraps around it; one of ours if there
    is one."""
    found = list(_within(error))
    for inner in found:
        # Ray's class for a failed task also inherits from the class of the error inside it.
        if isinstance(inner, UserError | LedgerError) and not hasattr(inner, "cause"):
            # Ray Data adds advice below the sentence.
            return inner if inner is error else type(inner)(str(inner).partition("\n")[0])
    return found[-1]


def _within(error: object) -> Iterator[BaseException]:
    """The error and the errors inside it: the cause of a failed task, the failures of training workers."""
    if isinstance(error, BaseException):
        yield error
        for inner in getattr(error, "worker_failures", {}).values():
            yield from _within(inner)
        for name in ("cause", "controller_failure"):
            yield from _within(getattr(error, name, None))

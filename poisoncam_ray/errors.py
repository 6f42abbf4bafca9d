"""The two ways a run ends early on purpose."""


class UserError(Exception):
    """A mistake the user can mend: one sentence that says what to change. Exit code 2, no traceback."""


class LedgerError(RuntimeError):
    """A stage could not prove that every input row ended in exactly one place. Exit code 1."""

"""A command as a program: signals, one sentence for a mistake, exit codes.

0 done, 2 the user's mistake (one sentence), 1 failed, 143 ended by SIGTERM, 130 by SIGINT; 3 done and poison
found, for those who ask for it with --exit-code.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from poisoncam_ray.errors import StageFailedError, UserError, origin
from poisoncam_ray.signals import end_on_signals, ended_by

RESUMES = "What was finished is kept: the same command resumes."


def run_program(*commands: Callable[..., None]) -> NoReturn:
    """A command as a program, or several by their names, with our exit codes."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=len(commands) > 1)
    for command in commands:
        app.command()(command)
    end_on_signals()
    code: str | int | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except Exception as error:
        # Of a signal Ray may make an error of its own.
        code = 1 if ended_by() else _tell(error)
    if signal := ended_by():
        _say(f"Ended by {signal.name}.")
        code = 128 + signal
    sys.exit(code)


def _tell(error: Exception) -> int:
    """A sentence that says what went wrong, and the traceback where it is no mistake of the user's.

    Returns the exit code.
    """
    failure = error.__cause__ or error if isinstance(error, StageFailedError) else error
    found = origin(failure)
    if isinstance(found, UserError):
        _say(str(found))
        return 2
    why = f"{type(found).__name__}: {str(found).strip().partition(chr(10))[0]}"
    _say(why if failure is error else f"{error}: {why.rstrip('.')}. {RESUMES}")
    print(printable("".join(traceback.format_exception(failure))), file=sys.stderr)
    return 1


def _say(sentence: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold]error[/] {escape(printable(sentence))}"
    )


def printable(text: str) -> str:
    """Without what would act on a terminal: names in a corpus may hold escape sequences."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

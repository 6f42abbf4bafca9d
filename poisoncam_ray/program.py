"""Runs commands as a program: signals, one sentence for a mistake, exit codes.

0    done
1    failed; the traceback follows
2    a mistake of the user's, told in one sentence
3    done, and poison was found; only with --exit-code
130  ended by SIGINT
143  ended by SIGTERM
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

RESUMES = "Finished work is kept. The same command resumes."


def run_program(*commands: Callable[..., None]) -> NoReturn:
    """Run one command, or one of several by its name, and end the process with the exit code."""
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
        # Ray may turn a signal into an error of its own.
        code = 1 if ended_by() else _tell(error)
    if signal := ended_by():
        _say(f"Ended by {signal.name}.")
        code = 128 + signal
    sys.exit(code)


def _tell(error: Exception) -> int:
    """Print what went wrong, and the traceback unless it is a mistake of the user's; return the exit code."""
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
    """Replace control characters. Names in a corpus may hold escape sequences that act on a terminal."""
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

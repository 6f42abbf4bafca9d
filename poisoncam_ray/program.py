"""Runs commands as a program: signals, one sentence for a mistake, exit codes.

0    done
1    failed; the traceback follows. `verify`: defects were found, each on a line
2    a mistake of the user's, told in one sentence
3    done, and poison was found; only with --exit-code
130  ended by SIGINT
143  ended by SIGTERM
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import poisoncam_ray
from poisoncam_ray.errors import StageFailedError, UserError, origin
from poisoncam_ray.signals import end_on_signals, ended_by

Command = Callable[..., None]
GROUPS = {"config": "Look at the configuration."}
"""Help of the names that commands lie below."""
RESUMES = "Finished work is kept. The same command resumes."


def examples(*lines: str) -> Callable[[Command], Command]:
    """Give a command examples, which its help shows below the options.

    Args:
        lines: the commands, as one types them.
    """

    def mark(command: Command) -> Command:
        command.examples = lines  # type: ignore[attr-defined]
        return command

    return mark


def as_app(*commands: Command, **groups: Sequence[Command]) -> typer.Typer:
    """The commands as one program.

    Args:
        commands: one command, or several that are called by their names.
        groups: further commands, below a name of their own: `config=(show,)` gives `config show`.
    """
    several = len(commands) > 1
    app = typer.Typer(
        add_completion=several,
        pretty_exceptions_enable=False,
        no_args_is_help=several,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    if several:
        app.callback(help="Find and remove backdoors from an image corpus.")(_whole)
    for command in commands:
        app.command(epilog=_epilog(command))(command)
    for name, below in groups.items():
        group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=GROUPS[name])
        # A callback keeps the name of a command that is alone in its group.
        group.callback()(lambda: None)
        for command in below:
            group.command(epilog=_epilog(command))(command)
        app.add_typer(group, name=name)
    return app


def run_program(*commands: Command, **groups: Sequence[Command]) -> NoReturn:
    """Run one command, or one of several by its name, and end the process with the exit code.

    Args:
        commands: as for `as_app`.
        groups: as for `as_app`.
    """
    app = as_app(*commands, **groups)
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


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poisoncam {poisoncam_ray.__version__}")
        raise typer.Exit


def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """The options of the program itself."""


def _epilog(command: Command) -> str | None:
    lines = getattr(command, "examples", ())
    # Each line is a paragraph: typer joins the lines of one.
    return "\n\n".join(["[bold]Examples[/]", *(f"  {escape(line)}" for line in lines)]) if lines else None


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

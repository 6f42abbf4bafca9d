"""What the commands share: options, and how a command answers people and scripts.

Every command takes `AsJson` and `Quiet`, makes an `Output` of them, shows its work through
`output.progress`, and gives its answer once, by `output.result`. With --json, standard output holds that
answer and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from poisoncam_ray.program import printable
from poisoncam_ray.settings import presets

if TYPE_CHECKING:
    from poisoncam_ray.progress import Progress

AsJson = Annotated[
    bool, typer.Option("--json", help="print the result as one line of JSON; progress goes to stderr")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print the result and errors only")]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="the --output of a defence, local or s3://")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]…", help="settings that win over preset and file"),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file of settings, wins over the preset")
]


def _presets() -> list[str]:
    return list(presets())


Preset = Annotated[
    str | None,
    typer.Option(
        help="named configuration: " + ", ".join(presets()) + " (`poisoncam presets` says what for)",
        autocompletion=_presets,
    ),
]


class Output:
    """Where a command prints.

    Args:
        as_json: the result is one line of JSON on standard output; all else goes to standard error.
        quiet: only the result and errors are printed.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, quiet=quiet, highlight=False, soft_wrap=True)
        """For what is said while the work is done."""
        self._results = Console(highlight=False, soft_wrap=True)

    @cached_property
    def progress(self) -> Progress:
        """The progress of the command's work, for stages and runners."""
        # It loads pyarrow: a mistake in the command shows before.
        from poisoncam_ray.progress import Progress

        return Progress(self.console)

    def note(self, text: str) -> None:
        """Print a line beside the result. It may hold any text: markup and control characters do not act."""
        self.console.print(printable(text), markup=False)

    def result(self, data: Mapping[str, Any], lines: Iterable[str | Table]) -> None:
        """Print the answer of the command, at its end.

        Args:
            data: JSON values, for --json. Numbers that are not finite, which JSON lacks, become null.
            lines: the same for people: lines of any text (markup does not act), or tables.
        """
        if self.as_json:
            told = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False)
            # JSON escapes some control characters only, and a terminal may obey the others. Not through rich,
            # which wraps.
            print("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in told), flush=True)
            return
        for line in lines:
            self._results.print(line if isinstance(line, Table) else printable(line), markup=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The commands that the documents show: found in code blocks and code spans, split as a shell would."""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.small import ROOT

PROGRAMS = ("uv", "uvx", "pip", "poisoncam", "python", "python3", "ray", "kubectl", "docker", "sh", "bash")
_OPERATORS = {"&&", "||", "|", ";", "&"}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
# A block by its indent begins after an empty line; below an item of a list it is indented by more.
_INDENTED = re.compile(r"(?<=\n\n)((?: {4,}\S[^\n]*\n|\n(?= {4}))+)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Shown:
    """One command, as a document shows it.

    Attributes:
        document: its path in the repository.
        words: the command's words. "…" stands for what is left out.
    """

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def documents() -> list[str]:
    """Every Markdown file under version control."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Every code block of a document: its language ("" for none), and its lines without their indent."""
    for _, language, inside in _FENCE.findall(text):
        yield language, textwrap.dedent(inside)
    for inside in _INDENTED.findall(_FENCE.sub("", text)):
        yield "", textwrap.dedent(inside)


def is_command(words: list[str]) -> bool:
    return bool(words) and (words[0] in PROGRAMS or re.fullmatch(r"jobs/\w+\.py", words[0]) is not None)


def commands(document: str) -> list[Shown]:
    """The commands in a document's code blocks, and those in its code spans that have arguments.

    Raises:
        ValueError: a block of commands has a line that begins with none of PROGRAMS.
    """
    text = (ROOT / document).read_text()
    found: list[Shown] = []
    for language, inside in blocks(text):
        parts = [part for line in _joined(inside) for part in _split(line)]
        if language in ("", "sh", "bash", "console") and any(map(is_command, parts)):
            if strange := [part for part in parts if not is_command(part)]:
                raise ValueError(f"{document}: {' '.join(strange[0])}: no program that the tests know")
            found += [Shown(document, tuple(part)) for part in parts]
    prose = re.sub(r"\s+", " ", _INDENTED.sub("", _FENCE.sub("", text)))
    for span in _SPAN.findall(prose):
        parts = _split(span) if span.split()[0] in PROGRAMS else []
        found += [Shown(document, tuple(part)) for part in parts if len(part) > 1 and is_command(part)]
    return found


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def _split(line: str) -> list[list[str]]:
    """The commands of one line, without its comment, its redirections and the prompt."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in _OPERATORS:
            parts.append([])
        elif word in ("<", ">", ">>"):
            next(words)
        elif word != "$" or parts[-1]:
            parts[-1].append(word)
    return [part for part in parts if part]

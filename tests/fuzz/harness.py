"""Starts the fuzzing process and says which damaged file was mishandled, crashed it or hung."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.worker import KINDS, damaged

ROOT = Path(__file__).parents[2]
PEAK = 2**30


def fuzz(kind: str, count: int, folder: Path) -> Counter[str]:
    """How many of `count` damaged files ended in which way. Fails, with the file in base64, for one that was
    not accounted for, crashed or hung, and for a process that held more than PEAK bytes."""
    command = [sys.executable, "-m", "tests.fuzz.worker", kind, "0", str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        at = folder / "at"
        assert at.exists(), done.stderr[-2000:]
        end = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        raise AssertionError(f"{end}: {shown(kind, int(at.read_text()))}\n{done.stderr[-2000:]}")
    found = json.loads((folder / "found.json").read_text())
    words = "\n\n".join(f"{said}{shown(kind, number)}" for number, said in found["wrong"][:3])
    assert not found["wrong"], f"{len(found['wrong'])} files were not accounted for, such as\n{words}"
    assert found["peak"] < PEAK, f"{kind}: the process held {found['peak'] / 2**20:.0f} MiB"
    outcomes: Counter[str] = Counter(found["outcomes"])
    assert outcomes.total() == count
    print(f"{kind}: {dict(outcomes)}, {found['peak'] / 2**20:.0f} MiB")
    return outcomes


def shown(kind: str, number: int) -> str:
    data = damaged(kind, number, KINDS[kind]())
    return f"{kind} {number}, {len(data)} bytes: {base64.b64encode(data).decode()}"

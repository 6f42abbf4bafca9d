"""The fuzzing process: it handles a range of damaged files, and reports those that are mishandled.

    python -m tests.fuzz.worker KIND FIRST STOP FOLDER

Writes FOLDER/at (the number under work) and, at the end, FOLDER/found.json. The kernel kills the process for
a file that takes more than CPU_S seconds of processor time, or when it asks for more than SPACE bytes.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from poisoncam_ray.corpus import DEAD, KEPT, open_corpus
from poisoncam_ray.decode import DecodeError, decode, header, views
from poisoncam_ray.errors import UserError
from tests.bombs import peak
from tests.fuzz import seeds
from tests.fuzz.mutate import mutate

CPU_S = 10
# Address space, most of it never touched: Arrow and torch reserve far more than they use.
SPACE = 6 * 2**30
KINDS: dict[str, Callable[[], list[bytes]]] = {
    "image": seeds.images, "parquet": seeds.shards, "tar": seeds.tars, "checkpoint": seeds.checkpoints,
    "arrow": seeds.streams,
}  # fmt: skip
# These misbehave, to show that the harness sees it.
KINDS |= dict.fromkeys(("crash", "hang", "lose", "grow"), lambda: [b"some bytes"])
WHOLE = 4
DECODE_KINDS = {"empty", "undecodable", "truncated", "bomb", "zero_size"}
MAX_PIXELS = 2_000_000


def damaged(kind: str, number: int, originals: list[bytes]) -> bytes:
    return mutate(originals[number % len(originals)], f"{kind} {number}")


def image(data: bytes, folder: Path) -> str:
    try:
        first, second = views(data, 16, MAX_PIXELS)
        assert first.shape == (3, 16, 16)
        assert second is None or second.shape == (3, 16, 16)
        assert (decode(data, 16, MAX_PIXELS) == first).all()
        width, height, _ = header(data, MAX_PIXELS)
        assert 0 < width * height <= MAX_PIXELS
        return "decoded"
    except DecodeError as error:
        assert error.kind in DECODE_KINDS and str(error)
        assert "memory" not in str(error).lower(), f"memory ran out: {error}"
        return error.kind


def shard(suffix: str) -> Callable[[bytes, Path], str]:
    """Check that no row of a damaged shard is lost, and that none of a whole one beside it dies."""

    def check(data: bytes, folder: Path) -> str:
        corpus_folder = folder / "corpus"
        (corpus_folder / f"broken{suffix}").write_bytes(data)
        try:
            corpus = open_corpus(str(corpus_folder))
            slices = corpus.slices()
        except UserError as error:
            assert str(error)
            return "refused"
        alive: Counter[str] = Counter()
        dead: Counter[str] = Counter()
        for unit in corpus.units(slices):
            fates: list[int] = []
            for slice_ in unit:
                rows = list(corpus.read(slice_, whole=True))
                assert [row.row for row in rows] == list(range(slice_.start, slice_.stop)), slice_
                assert all(len(row.error) == 2 and all(row.error) for row in rows if row.error)
                fates += [DEAD if row.error or row.data is None else KEPT for row in rows]
            source = unit[0].source
            alive[source] += fates.count(KEPT)
            dead[source] += fates.count(DEAD)
            shutil.rmtree(folder / "out", ignore_errors=True)
            kept, removed = corpus.split(unit, fates, str(folder / "out/kept"), str(folder / "out/gone"))
            assert (kept, removed) == (fates.count(KEPT), 0), (kept, removed, Counter(fates))
        assert (alive[f"whole{suffix}"], dead[f"whole{suffix}"]) == (WHOLE, 0), "the whole shard lost rows"
        lived, died = alive[f"broken{suffix}"], dead[f"broken{suffix}"]
        return "all rows live" if not died else "some rows live" if lived else "all rows dead"

    return check


def checkpoint(data: bytes, folder: Path) -> str:
    from poisoncam_ray.stages.own_encoder import read_checkpoint

    path = folder / ("model.pth" if data.startswith((b"PK", b"\x80", b"\0")) else "model.safetensors")
    path.write_bytes(data)
    try:
        read_checkpoint(str(path))
        return "read"
    except UserError as error:
        assert str(error)
        return "refused"


def crash(data: bytes, folder: Path) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return "never"


def hang(data: bytes, folder: Path) -> str:
    while True:
        pass


def lose(data: bytes, folder: Path) -> str:
    raise AssertionError("a row was lost")


def grow(data: bytes, folder: Path) -> str:
    return f"{len(bytearray(b'x') * (9 * 2**27))} bytes"


CHECKS = {
    "image": image, "parquet": shard(".parquet"), "tar": shard(".tar"), "checkpoint": checkpoint,
    "arrow": shard(".arrow"),
    "crash": crash, "hang": hang, "lose": lose, "grow": grow,
}  # fmt: skip


def prepare(kind: str, folder: Path) -> None:
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    if kind == "parquet":
        (corpus / "whole.parquet").write_bytes(seeds.parquet(seeds.table(WHOLE, nested=False)))
    if kind == "arrow":
        (corpus / "whole.arrow").write_bytes(
            seeds.stream(seeds.table(WHOLE, nested=False).drop_columns("label"), 2)
        )
        state = {"_data_files": [{"filename": f"{name}.arrow"} for name in ("broken", "whole")]}
        (corpus / "state.json").write_text(json.dumps(state))
    if kind == "tar":
        (corpus / "whole.tar").write_bytes(seeds.tar(seeds.samples(WHOLE), seeds.tarfile.USTAR_FORMAT))


def main(kind: str, first: int, stop: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Left to the kernel: a handler in Python would wait until the call that hangs comes back.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    originals, check = KINDS[kind](), CHECKS[kind]
    prepare(kind, folder)
    outcomes: Counter[str] = Counter()
    wrong: list[tuple[int, str]] = []
    at = os.open(folder / "at", os.O_WRONLY | os.O_CREAT)
    for number in range(first, stop):
        os.pwrite(at, b"%12d" % number, 0)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            outcomes[check(damaged(kind, number, originals), folder)] += 1
        except Exception:
            wrong.append((number, traceback.format_exc(limit=-4)))
        signal.setitimer(signal.ITIMER_PROF, 0)
    (folder / "found.json").write_text(json.dumps({"outcomes": outcomes, "wrong": wrong, "peak": peak()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

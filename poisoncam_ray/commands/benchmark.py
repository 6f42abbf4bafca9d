"""The command `benchmark`: what search, training and the stages cost on this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Overrides, Quiet
from poisoncam_ray.program import examples
from poisoncam_ray.settings import load_config


@examples(
    "poisoncam benchmark --output bench/",
    "poisoncam benchmark --output bench/ --part cam --part decode",
    "poisoncam benchmark --output bench/ resources.gpus_per_actor=1   # on a GPU",
    "poisoncam benchmark --output bench/ --memory 250000",
)
def benchmark(
    output: Annotated[str, typer.Option(help="folder for benchmark.md, benchmark.json, corpora and runs")],
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="measure a part: cam, pastes, search, share, embed, judge, step, epoch, workers, decode, "
            "shards, memory, exponents, precision, allocator; repeated, these; without it, all"
        ),
    ] = None,
    small: Annotated[
        bool, typer.Option("--quick", help="with sizes that take seconds: a test that all works, no figures")
    ] = False,
    rounds: Annotated[int, typer.Option(help="how often each way is timed", min=1)] = 3,
    threads: Annotated[int | None, typer.Option(help="torch threads; without it, all cores", min=1)] = None,
    memory: Annotated[
        int | None,
        typer.Option(help="instead: peak memory of the stages over this many images", min=1),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure what search, training and the stages cost, each done in two ways in turns.

    The ratios are written to benchmark.md. Finished parts are kept: the same command measures what is
    missing or failed. Run nothing else on the machine meanwhile: the figures would mean little.
    """
    # A wrong setting shows before what is heavy is imported.
    config = load_config(None, None, overrides or ())
    from poisoncam_ray.folder import Folder, absolute

    out, answer = Folder(absolute(output)), Output(as_json, quiet)
    if memory:
        from poisoncam_ray.research.benchmark.memory import SETTINGS, measure_memory

        config = load_config(None, None, [*SETTINGS, *(overrides or ())])
        table = measure_memory(config, out, memory)
        answer.result({"memory": out.read_json("memory.json")}, table.split("\n"))
        return
    from poisoncam_ray.research.benchmark.compare import Setting
    from poisoncam_ray.research.benchmark.parts import NAMES, measure

    setting = Setting(out, rounds, threads or os.cpu_count() or 1, tuple(overrides or ()))
    found = measure(setting, part or NAMES, small, answer.note)
    answer.result(found, out.read_bytes("benchmark.md").decode().split("\n"))
    if any("failed" in one for one in found["parts"].values()):
        raise typer.Exit(1)

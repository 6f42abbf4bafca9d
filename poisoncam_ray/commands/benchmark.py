"""The command `benchmark`: what search, training and Embed cost on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from poisoncam_ray.commands.options import AsJson, Output, Overrides, Quiet
from poisoncam_ray.program import examples
from poisoncam_ray.settings import load_config


@examples(
    "poisoncam benchmark --output bench/",
    "poisoncam benchmark --output bench/ --memory 250000",
)
def benchmark(
    output: Annotated[str, typer.Option(help="folder for benchmark.md, benchmark.json and the run")],
    input: Annotated[str | None, typer.Option(help="corpus; without it, the demo's is drawn")] = None,
    copies: Annotated[int, typer.Option(help="copies of the drawn corpus of 3,000 images")] = 20,
    candidates: Annotated[int, typer.Option(help="candidates masked and scored in a round")] = 16,
    steps: Annotated[int, typer.Option(help="training steps in a round")] = 10,
    rounds: Annotated[int, typer.Option(help="how often each way is timed")] = 5,
    threads: Annotated[int | None, typer.Option(help="torch threads; without it, all cores")] = None,
    peak_tflops: Annotated[
        tuple[float, float] | None,
        typer.Option(help="the GPU's peak in float32 and in bfloat16: the share reached is shown"),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="with the Embed stage on Ray")] = True,
    memory: Annotated[
        int | None,
        typer.Option(help="instead: peak memory of the stages over this many images", min=1),
    ] = None,
    preset: Annotated[str, typer.Option(help="named configuration")] = "demo",
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the cost of search, training and Embed, each done in two ways in turns.

    The ratios are written to benchmark.md. Run nothing else on the machine meanwhile: the figures would mean
    little.
    """
    # What is heavy is imported late, here and below: a mistake in the command shows at once.
    from poisoncam_ray.folder import Folder

    if memory:
        from poisoncam_ray.research.benchmark.memory import SETTINGS, measure_memory

        small = load_config(None, None, [*SETTINGS, *(overrides or ())])
        table = measure_memory(small, Folder(output), memory)
        measured = {"memory": Folder(output).read_json("memory.json")}
        Output(as_json, quiet).result(measured, table.split("\n"))
        return
    config = load_config(preset, None, overrides or ())
    from poisoncam_ray.research.benchmark.measure import Sizes, draw_long_corpus, measure

    out = Folder(output)
    if input is None:
        draw_long_corpus(out / "corpus", config.seed, copies if ray else 1)
    sizes = Sizes(candidates, steps, rounds, threads)
    table = measure(input or (out / "corpus").uri, config, out, sizes, peak_tflops, ray)
    Output(as_json, quiet).result(out.read_json("benchmark.json"), table.split("\n"))

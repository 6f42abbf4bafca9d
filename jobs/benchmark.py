"""Measure the cost of search, training and Embed on this machine, each done in two ways in turns.

With --memory, measure the peak memory of every stage instead. --help lists the options.
"""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program
from poisoncam_ray.settings import load_config


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
    preset: str = "demo",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]…")] = None,
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
        typer.echo(measure_memory(small, Folder(output), memory))
        return
    config = load_config(preset, None, overrides or ())
    from poisoncam_ray.progress import Progress
    from poisoncam_ray.research.benchmark.measure import Sizes, draw_long_corpus, measure

    out = Folder(output)
    if input is None:
        draw_long_corpus(out / "corpus", config.seed, copies if ray else 1)
    sizes = Sizes(candidates, steps, rounds, threads)
    table = measure(input or (out / "corpus").uri, config, out, sizes, peak_tflops, ray)
    Progress().console.print(table, markup=False)


if __name__ == "__main__":
    run_program(benchmark)

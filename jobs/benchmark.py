"""What search, training and Embed cost on this machine, each two ways in turns; or, with --memory, how much
memory each stage takes. `--help`: the options."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program
from poisoncam_ray.settings import load_config


def benchmark(
    output: Annotated[str, typer.Option(help="folder for benchmark.md, benchmark.json and the run")],
    input: Annotated[str | None, typer.Option(help="corpus; default: the demo's, drawn")] = None,
    copies: Annotated[int, typer.Option(help="copies of the drawn corpus, 3,000 images each")] = 20,
    candidates: Annotated[int, typer.Option(help="candidates that a round masks and scores")] = 16,
    steps: Annotated[int, typer.Option(help="training steps in a round")] = 10,
    rounds: Annotated[int, typer.Option(help="times that each way takes its turn")] = 5,
    threads: Annotated[int | None, typer.Option(help="torch threads; default: all cores")] = None,
    peak_tflops: Annotated[
        tuple[float, float] | None,
        typer.Option(help="the GPU's peak in float32 and in bfloat16, to tell the share reached"),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="with the Embed stage on Ray")] = True,
    memory: Annotated[
        int | None, typer.Option(help="instead: peak memory of every stage over so many tiny images", min=1)
    ] = None,
    preset: str = "demo",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]…")] = None,
) -> None:
    """What search, training and Embed cost on this machine, each two ways in turns: ratios, in benchmark.md.

    Nothing else may run on the machine meanwhile, or the figures say little.
    """
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

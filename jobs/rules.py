"""Decide finished runs again with each rule of the verdict halved and doubled."""

from typing import Annotated

import typer

from poisoncam_ray.program import run_program


def rules(
    output: Annotated[str, typer.Option(help="folder for rules.md and rules.json")],
    run: Annotated[list[str], typer.Option(help="a defence's --output; repeat")],
) -> None:
    """Only the verdict is reached again: nothing is trained or searched, and no run is changed."""
    from poisoncam_ray.folder import Folder, absolute
    from poisoncam_ray.research.study.rules import decide_again, write_rules

    rows = []
    for uri in run:
        rows += decide_again(Folder(absolute(uri)))
        typer.echo(f"decided  {uri}")
    write_rules(rows, Folder(absolute(output)))
    typer.echo(f"rules    {output}/rules.md")


if __name__ == "__main__":
    run_program(rules)

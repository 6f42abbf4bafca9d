"""Decide finished runs, or stored candidates, again with each rule of the verdict halved and doubled."""

from typing import Annotated

import typer

from poisoncam_ray.errors import UserError
from poisoncam_ray.program import run_program


def rules(
    output: Annotated[str, typer.Option(help="folder for rules.md, rules.json and strata.json")],
    run: Annotated[list[str] | None, typer.Option(help="a defence's --output; repeat")] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="stored candidates: a file, or a folder of such files; repeat"),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="try only this value, such as min_pattern_ncc=0.9; repeat"),
    ] = None,
) -> None:
    """Only the verdict is reached again: nothing is trained or searched, and no run is changed.

    Candidates are stored by jobs/photographs.py and by jobs/evaluate.py --candidates. Their files hold the
    truth: with them, the tables say how many of the windows in families are poisoned, and how triggers are
    detected in clusters of poison and in clusters of natural images.
    """
    if not (run or candidates):
        raise UserError("There is nothing to decide: give --run or --candidates.")
    from poisoncam_ray.folder import Folder, absolute
    from poisoncam_ray.research.study.rules import (
        decide_again,
        decide_stored,
        given_rules,
        stored_files,
        write_rules,
    )

    changes = given_rules(rule) if rule else None
    files = stored_files(candidates or ())
    rows, strata = [], []
    for uri in run or ():
        rows += decide_again(Folder(absolute(uri)), changes)
        typer.echo(f"decided  {uri}")
    for file in files:
        more, of_file = decide_stored(file, changes)
        rows += more
        strata += of_file
        typer.echo(f"decided  {file}")
    write_rules(rows, Folder(absolute(output)), strata)
    typer.echo(f"rules    {output}/rules.md")


if __name__ == "__main__":
    run_program(rules)

"""`goldleaves policies matrix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from api.command_line import console, errors, explain_errors, migration_url
from api.policies.matrix.page import page
from api.policies.matrix.proof import prove
from api.policies.matrix.report import as_json, show
from api.settings import PROJECT, load_settings

commands = typer.Typer()


@commands.command()
@explain_errors
def matrix(
    table: Annotated[
        list[str] | None, typer.Option(help="Prove this table alone, in detail. May be repeated.", metavar="TABLE")
    ] = None,
    only_differences: Annotated[
        bool, typer.Option("--only-differences", help="Leave out what is as declared.")
    ] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="Print every cell as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one page to attach to an audit.")] = None,
) -> None:
    """Prove who may do what: try every verb on every tenant table as everybody, and compare with what headers declare.

    In a transaction that is rolled back, two organizations get people of every role, keys of each scope and a row in
    every table. Each then asks for own rows, for those of the other organization, without a context and with a forged
    one. Nothing stays and nobody waits, so that it may be run on production. What differs from the header of its policy
    file is marked with !. Exits with 1 when anything differs or could not be proved.

    Example:  goldleaves policies matrix --html matrix.html
    """
    proof = prove(migration_url(load_settings()), PROJECT, table or ())
    if html is not None:
        html.write_text(page(proof), encoding="utf-8")
    if as_json_:
        typer.echo(json.dumps(as_json(proof, only_differences=only_differences), indent=2))
    else:
        show(console, proof, in_detail=bool(table), only_differences=only_differences)
    if html is not None:
        errors.print(f"Wrote {html}", highlight=False, markup=False, soft_wrap=True)
    if not proof.holds:
        raise typer.Exit(1)

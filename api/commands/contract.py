"""`goldleaves openapi`, `types` and `errors`: what clients can rely on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from api import contract
from api.command_line import console, explain_errors, migration_url
from api.contract.error_reference import error_reference
from api.contract.typescript import database_types
from api.settings import load_settings

commands = typer.Typer()


@commands.command()
@explain_errors
def types() -> None:
    """Print TypeScript types of the API, for @supabase/postgrest-js: rows, writes, relationships and functions.

    They are read from MIGRATION_DATABASE_URL when that is set, else from the running embedded stack.

    Example:  goldleaves types > src/database.ts
    """
    typer.echo(database_types(contract.read_catalog(migration_url(load_settings()))), nl=False)


@commands.command()
@explain_errors
def openapi(
    write: Annotated[bool, typer.Option("--write", help="Renew docs/openapi.json; says what breaks clients.")] = False,
) -> None:
    """Print the OpenAPI document of the API, which a sidecar serves at /openapi.json.

    docs/openapi.json is what clients were promised: a test fails when the API breaks it.

    Example:  goldleaves openapi --write
    """
    catalog = contract.read_catalog(migration_url(load_settings()))
    if not write:
        typer.echo(contract.document_text(catalog), nl=False)
        return
    for change in contract.write_document(catalog):
        console.print(f"[red]breaks clients[/red]  {escape(change)}", highlight=False, soft_wrap=True)
    console.print(f"Wrote {contract.DOCUMENT}", highlight=False, soft_wrap=True)


@commands.command(name="errors")
@explain_errors
def print_errors(
    write: Annotated[bool, typer.Option("--write", help="Renew docs/errors.md.")] = False,
) -> None:
    """Print what every error code means and what to do about it.

    Example:  goldleaves errors | less
    """
    if not write:
        typer.echo(error_reference(), nl=False)
        return
    contract.ERRORS.write_text(error_reference(), encoding="utf-8")
    console.print(f"Wrote {contract.ERRORS}", highlight=False, soft_wrap=True)

"""`goldleaves audit …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.audit import erase as erase_from_audit_log
from api.audit import verify as verify_audit_log
from api.command_line import console, errors, explain_errors, migration_url
from api.settings import load_settings

commands = typer.Typer()
audit_app = typer.Typer(no_args_is_help=True, help="Verify the audit log, and erase what it knows of people.")
commands.add_typer(audit_app, name="audit")


@audit_app.command(name="verify")
@explain_errors
def verify_audit(
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Only its log, by slug or id.")] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What --json printed earlier: nothing before that was rewritten."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON. Keep it elsewhere, for a later --anchor.")
    ] = False,
) -> None:
    """Compute the hashes of the audit log anew, and name the first entry of each chain that is not what was written.

    Each organization has a chain, the platform one more. Prints where each ends: organization, position, hash. Exit
    code 1 when something is broken.

    Example:  goldleaves audit verify --json > audit.json; later  goldleaves audit verify --anchor audit.json
    """
    verdict = verify_audit_log(migration_url(load_settings()), organization, anchor)
    if as_json:
        typer.echo(verdict.as_json())
    else:
        for end in verdict.ends:
            typer.echo(end)
        for broken in verdict.broken:
            errors.print(str(broken), style="red", markup=False, highlight=False, soft_wrap=True)
        for table in verdict.unwatched:
            errors.print(f"{table}: a trigger of the audit log is disabled or gone there", style="red", soft_wrap=True)
    if not verdict.is_whole:
        raise typer.Exit(1)


@audit_app.command(name="erase")
@explain_errors
def erase_audit(
    email: Annotated[str | None, typer.Option(help="Everything that mentions this address.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="What a person did or was told of, by subject or id.")
    ] = None,
    organization: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Everybody in the log of an organization, by slug or id.")
    ] = None,
) -> None:
    """Erase what the audit log knows of people: addresses, e-mails, names. What was done by whom with which id stays.

    The chains stay whole, and the log says that something was erased, not what.

    Example:  goldleaves audit erase --email ann@example.com
    """
    erased = erase_from_audit_log(migration_url(load_settings()), email=email, user=user, organization=organization)
    console.print(f"Erased {erased} part{'' if erased == 1 else 's'} of entries.", highlight=False)

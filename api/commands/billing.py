"""`goldleaves billing …`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from api.command_line import errors, explain_errors, migration_url, say
from api.settings import load_settings
from api.verification import Chosen, month_of, verify_beside
from api.verification import verify as verify_invoices

commands = typer.Typer()
billing_app = typer.Typer(no_args_is_help=True, help="Prove invoices from what was used.")
commands.add_typer(billing_app, name="billing")


@billing_app.callback()
def billing() -> None:
    """Typer makes a group only of what has commands or a callback."""


@billing_app.command(name="verify")
@explain_errors
def verify(
    period: Annotated[
        str | None, typer.Option(metavar="2026-01", help="Periods that ended in this month. Default: the last month.")
    ] = None,
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Only its invoices, by slug or id.")] = None,
    invoice: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Only this one, of whatever month, by number or id.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON an invoice.")] = False,
) -> None:
    """Derive invoices anew from their events, and name what differs: the event, hour, line, price, or who rewrote what.

    Compares each invoice with its digest, with the audit log, and with what its usage comes to when it is counted and
    rated again. Unless one invoice is asked for, it compares payments, credit notes, balances, terms, plans, prices and
    periods with what the audit log tells of them, too. Run `goldleaves audit verify` beside it: the log is what proves
    a digest. Exit code 1 when anything differs.

    Example:  goldleaves billing verify --period 2026-01
    """
    chosen = Chosen(None if invoice is not None and period is None else month_of(period), organization, invoice)
    number, differing, url = 0, 0, migration_url(load_settings())
    for number, (total, verdict) in enumerate(verify_invoices(url, chosen), 1):
        differing += not verdict.is_proved
        if as_json:
            told = {"verified": verdict.is_proved, **asdict(verdict)}
            typer.echo(json.dumps(told, default=str))
            continue
        if verdict.is_proved and (verdict.invoice.digest is None or invoice is not None):
            say(verdict)
        elif not verdict.is_proved:
            errors.print(str(verdict), style="red", markup=False, highlight=False, soft_wrap=True)
            for difference in verdict.differences:
                errors.print(f"  {difference}", markup=False, highlight=False, soft_wrap=True)
        if number % 100 == 0:
            errors.print(f"{number} of {total} invoices", style="dim")
    beside = verify_beside(url, organization) if invoice is None else []
    for one in beside:
        if as_json:
            typer.echo(json.dumps({"verified": False, **asdict(one)}, default=str))
            continue
        errors.print(str(one), style="red", markup=False, highlight=False, soft_wrap=True)
        for difference in one.differences:
            errors.print(f"  {difference}", markup=False, highlight=False, soft_wrap=True)
    if not as_json:
        say(f"{number} invoice{'' if number == 1 else 's'}, {differing} of them differ." if number else "No invoices.")
    if differing or beside:
        raise typer.Exit(1)

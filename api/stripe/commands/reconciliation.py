"""`goldleaves stripe reconcile`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from api.command_line import explain_errors, migration_url, say
from api.settings import load_settings
from api.stripe.commands.columns import aligned
from api.stripe.failed import StripeCommandFailed

if TYPE_CHECKING:
    from api.stripe.reconciled import Reconciled

HEADINGS: Final = ("", "OURS", "THEIRS", "DRIFT", "")
EXIT_WITH_DRIFT: Final = 3

commands = typer.Typer()


@commands.command()
@explain_errors
def reconcile(
    period: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The billing periods around this day. Default: the current ones."),
    ] = None,
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Only this one, by slug or id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a finding.")] = False,
) -> None:
    """Compare what was recorded and reported with what Stripe has: its sums of meter events, its invoices line by line,
    and the amounts it was sent.

    Of periods in which Stripe's invoice counts. What only waits is no drift; what was lost, rejected, sent by somebody
    else, or costs something else there, is. Asks Stripe with STRIPE_SECRET_KEY. Exit code 3 when anything drifts.

    Example:  goldleaves stripe reconcile --period 2026-10-01 --organization acme
    """
    settings = load_settings()
    if settings.stripe_secret_key is None:
        raise StripeCommandFailed("STRIPE_SECRET_KEY is not set: it is the secret key of your account at Stripe.")
    from api.stripe.kernel import require_migrated
    from api.stripe.reconciled import reconcile_all  # the SDK takes a while to import

    url = migration_url(settings)
    require_migrated(url)
    periods = drifting = 0

    def tell(one: Reconciled) -> None:
        nonlocal periods, drifting
        periods += 1
        drifting += one.drifting
        (_json if as_json else _table)(one)

    asyncio.run(
        reconcile_all(
            settings.stripe_secret_key.get_secret_value(),
            settings.stripe_api_base,
            url,
            period.replace(tzinfo=UTC) if period is not None else None,
            organization,
            tell,
        )
    )
    if not as_json:
        number = f"{periods} billing period{'' if periods == 1 else 's'}" if periods else "No billing period"
        say(f"{number} reconciled; {drifting or 'nothing'} drift{'' if drifting > 1 else 's'}.")
    if drifting:
        raise typer.Exit(EXIT_WITH_DRIFT)


def _json(one: Reconciled) -> None:
    for finding in one.findings:
        told = {"organization": one.organization, "period_start": one.period_start, **asdict(finding)}
        typer.echo(json.dumps(told, default=str))


def _table(one: Reconciled) -> None:
    """Of each organization by itself: there may be very many."""
    say(f"{one.organization}, billing period from {one.period_start}")
    rows = (
        (
            f"  {finding.subject}",
            f"{finding.ours:f}",
            f"{finding.theirs:f}" if finding.theirs is not None else "?",
            f"{finding.drift:f}",
            finding.cause,
        )
        for finding in one.findings
    )
    for line in aligned(HEADINGS, *rows) if one.findings else ("  nothing was used, or charged",):
        say(line)

"""`goldleaves stripe report`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from api.command_line import explain_errors, migration_url, say
from api.settings import load_settings
from api.stripe.commands.columns import aligned
from api.stripe.failed import StripeCommandFailed

commands = typer.Typer()


@commands.command()
@explain_errors
def report(
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Only this one, by slug or id.")] = None,
    resend: Annotated[
        bool,
        typer.Option(
            "--resend",
            help="First make anew what Stripe rejected, once the reason for it is mended; amounts for its invoices, "
            "too.",
        ),
    ] = False,
    resend_uncertain: Annotated[
        bool,
        typer.Option(
            "--resend-uncertain",
            help="Also what nobody knows of: first look with `goldleaves stripe reconcile` whether Stripe has it.",
        ),
    ] = False,
) -> None:
    """Report usage to Stripe now, also of the hour that goes on.

    The sidecar does it by itself, when an hour is over. Asks Stripe with STRIPE_SECRET_KEY. Safe to call again: nothing
    counts twice.

    Example:  goldleaves stripe report --organization acme --resend
    """
    settings = load_settings()
    if settings.stripe_secret_key is None:
        raise StripeCommandFailed("STRIPE_SECRET_KEY is not set: it is the secret key of your account at Stripe.")
    from api.stripe import account, reported  # the SDK takes a while to import
    from api.stripe.kernel import require_migrated

    url = migration_url(settings)
    require_migrated(url)
    organization_id = account.organization_id(url, organization) if organization is not None else None
    if resend or resend_uncertain:
        statuses = [*(["rejected"] if resend else []), *(["uncertain"] if resend_uncertain else [])]
        say(f"{reported.resend(url, organization_id, statuses)} made anew.")
    if resend and (items := reported.resend_items(url, organization_id)):
        say(f"{items} of the amounts for Stripe's invoices, which the sidecar sends again.")
    key = settings.stripe_secret_key.get_secret_value()
    done = asyncio.run(reported.report(key, settings.stripe_api_base, url, organization_id))
    say(f"{done.tally.sent} sent, {done.waiting.pending} wait, {done.waiting.rejected} rejected.")
    if done.waiting.uncertain:
        say(
            f"Of {done.waiting.uncertain} nobody knows whether Stripe has them: `goldleaves stripe reconcile` shows it."
        )
    if done.tally.units:
        rows = ((code, str(units)) for code, units in sorted(done.tally.units.items()))
        for line in aligned(("METER", "UNITS"), *rows):
            say(line)

"""`goldleaves stripe setup`, and what else is said of the account at Stripe."""

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
def setup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and change nothing.")] = False,
) -> None:
    """Make a meter at Stripe for each of yours that has a price, and write down which is which.

    Run it again when another meter gets a price. A meter that Stripe has under the name is taken. Asks Stripe with
    STRIPE_SECRET_KEY. Exit code 1 when a meter cannot be used as it is there.

    Example:  goldleaves stripe setup --dry-run
    """
    settings = load_settings()
    if settings.stripe_secret_key is None:
        raise StripeCommandFailed("STRIPE_SECRET_KEY is not set: it is the secret key of your account at Stripe.")
    from api.stripe.setup import set_up_account  # the SDK takes a while to import

    found = asyncio.run(
        set_up_account(
            settings.stripe_secret_key.get_secret_value(),
            settings.stripe_api_base,
            migration_url(settings),
            dry_run=dry_run,
        )
    )
    if not found:
        say("No meter has a price: there is nothing to set up.")
        return
    rows = ((one.meter_code, one.event_name, one.id or "-", one.what) for one in found)
    for line in aligned(("METER", "EVENT NAME", "AT STRIPE", ""), *rows):
        say(line)
    problems = [f"{one.meter_code}: {one.problem}." for one in found if one.problem is not None]
    if problems:
        raise StripeCommandFailed("These cannot be used as Stripe has them. " + " ".join(problems))

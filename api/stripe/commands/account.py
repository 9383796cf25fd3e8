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
    from api.stripe.kernel import require_migrated
    from api.stripe.setup import set_up_account  # the SDK takes a while to import

    url = migration_url(settings)
    require_migrated(url)
    found = asyncio.run(
        set_up_account(
            settings.stripe_secret_key.get_secret_value(),
            settings.stripe_api_base,
            url,
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


@commands.command()
@explain_errors
def link(
    organization: Annotated[str, typer.Argument(help="Which organization, by id or slug.")],
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer at Stripe, such as cus_….")],
) -> None:
    """Say which customer at Stripe an organization is, and apply what Stripe has sent of it until now.

    For customers that were at Stripe before; a checkout links its own by itself. A customer is of one organization, for
    ever, and an organization has one at a time. Safe to call again.

    Example:  goldleaves stripe link acme cus_NffrFeUfNV2Hib
    """
    from api.stripe import account

    settings = load_settings()
    key = settings.stripe_secret_key
    is_live = None if key is None else "_live_" in key.get_secret_value()[:9]
    account.link(migration_url(settings), organization, customer, is_live)
    say(f"Organization {organization} is customer {customer} at Stripe.")


@commands.command()
@explain_errors
def price(
    plan: Annotated[str | None, typer.Argument(help="Code of the plan. Default: list what there is.")] = None,
    price_id: Annotated[
        str | None, typer.Argument(metavar="PRICE", help="The price at Stripe, such as price_…. Default: list them.")
    ] = None,
) -> None:
    """Say which price at Stripe is which plan, or list what was said.

    A checkout sells a plan at the newest of its prices; those before it go on being the plan. STRIPE_PRICE_STARTER,
    _PRO and _FIRM say the same with each migration run. What Stripe sent of a price that was unknown is tried again.

    Example:  goldleaves stripe price pro price_1MoBy5LkdIwHu7ixZhnattbh
    """
    from api.stripe import account

    url = migration_url(load_settings())
    if plan is not None and price_id is not None:
        account.set_price(url, plan, price_id)
    found = account.prices(url, plan)
    if not found:
        say("No price at Stripe is a plan yet." if plan is None else f"No price at Stripe is plan {plan} yet.")
        return
    rows = ((one.plan, one.price_id, f"{one.since:%Y-%m-%d %H:%M}") for one in found)
    for line in aligned(("PLAN", "PRICE", "SINCE (UTC)"), *rows):
        say(line)

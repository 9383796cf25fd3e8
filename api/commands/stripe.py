"""`goldleaves stripe …`: what came from Stripe, what goes there, and whether the two agree."""

from __future__ import annotations

from typing import Final

import typer

from api.lazy_commands import lazy_group

# In the order in which --help lists them.
STRIPE_COMMANDS: Final = {
    "setup": "api.stripe.commands.account",
    "link": "api.stripe.commands.account",
    "price": "api.stripe.commands.account",
    "events": "api.stripe.commands.inbox",
    "replay": "api.stripe.commands.inbox",
    "report": "api.stripe.commands.reporting",
    "reconcile": "api.stripe.commands.reconciliation",
    "fixtures": "api.stripe.commands.fixtures",
}

commands = typer.Typer()
commands.add_typer(
    typer.Typer(cls=lazy_group(STRIPE_COMMANDS), no_args_is_help=True),
    name="stripe",
    help="Stripe: webhooks that came, usage that is reported, and whether the two agree.",
)

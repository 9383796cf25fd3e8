"""`goldleaves stripe fixtures …`: events as Stripe would send them, made up and signed, to a stack that runs."""

from __future__ import annotations

import json
import time
from typing import Annotated
from uuid import UUID, uuid4

import httpx
import typer

from api.command_line import explain_errors, migration_url, say
from api.settings import Settings, load_settings
from api.stripe.failed import StripeCommandFailed
from api.stripe.fixtures import LATEST
from api.stripe.fixtures.life import TYPES, Life, happened, parsed

PATH = "/api/billing/stripe_webhook"
WAIT_SECONDS = 30.0

commands = typer.Typer()
fixtures_app = typer.Typer(no_args_is_help=True, help="Made-up events, signed as Stripe signs them.")
commands.add_typer(fixtures_app, name="fixtures")


@fixtures_app.command(name="list")
@explain_errors
def list_events() -> None:
    """Name the events that can be triggered: all that Goldleaves makes something of.

    Example:  goldleaves stripe fixtures list
    """
    for type in TYPES:
        say(type)


@fixtures_app.command()
@explain_errors
def trigger(
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Its type, as `fixtures list` names it.")],
    organization: Annotated[
        str | None, typer.Option(help="Whose customer it is about, by id or slug. Its ids follow from this.")
    ] = None,
    customer: Annotated[str | None, typer.Option(help="A customer at Stripe, in place of the made-up one.")] = None,
    plan: Annotated[str, typer.Option(help="The plan that the subscription is of.")] = "pro",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="MEMBER=VALUE", help="Change the object: status=past_due, items.data.0.quantity=2."
        ),
    ] = None,
    event_id: Annotated[
        str | None, typer.Option("--id", help="Its id. Send it twice under one to see a duplicate.")
    ] = None,
    api_version: Annotated[str, typer.Option(help="The version of Stripe's API that shapes it.")] = LATEST,
    url: Annotated[str | None, typer.Option(help="Where to, if not to the gateway of this stack.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the event, and send nothing.")] = False,
) -> None:
    """Send a made-up event to a running stack, signed with its STRIPE_WEBHOOK_SECRET, and print the answer.

    All that is triggered for one organization is of one customer with one subscription, so that a life can be played by
    hand: checkout.session.completed, customer.subscription.created, invoice.payment_failed, invoice.paid,
    customer.subscription.deleted. Only with a key of test mode, or none: what is made up is not of live mode.

    Example:  goldleaves stripe fixtures trigger invoice.paid --organization acme
    """
    if event not in TYPES:
        raise StripeCommandFailed(f"There is no made-up event {event!r}. `goldleaves stripe fixtures list` names them.")
    settings = load_settings()
    life = Life(
        int(time.time()),
        organization_id=None if organization is None else _organization_id(settings, organization),
        customer=customer,
        plan=plan,
        api_version=api_version,
    )
    try:
        made = happened(
            event, life, changes=dict(map(_pair, changes or [])), id=event_id or f"evt_fixture_{uuid4().hex}"
        )
    except KeyError as error:
        raise StripeCommandFailed(f"--set: the object of {event} has no member {error}.") from None
    if show:
        typer.echo(json.dumps(made, indent=2))
        return
    _send(settings, url or _gateway(settings) + PATH, made)


def _send(settings: Settings, url: str, event: dict[str, object]) -> None:
    from api.stripe.fixtures.signing import signed  # the SDK takes a while to import

    body, headers = signed(event, _secret(settings))
    try:
        answer = httpx.post(url, content=body, headers=headers, timeout=WAIT_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise StripeCommandFailed(f"Nobody answers at {url}: {error}. Run `goldleaves up` first.") from None
    say(f"{answer.status_code} {answer.text}")
    if not answer.is_success:
        raise typer.Exit(1)


def _secret(settings: Settings) -> str:
    """The first one of STRIPE_WEBHOOK_SECRET, else that of the embedded stack."""
    if settings.stripe_webhook_secret is not None:
        return settings.stripe_webhook_secret.get_secret_value().split(",")[0].strip()
    from api.stack.access import stack_stripe_webhook_secret

    secret = stack_stripe_webhook_secret(settings)
    if secret is None:
        raise StripeCommandFailed("STRIPE_WEBHOOK_SECRET is not set, and no stack was up here.")
    return secret


def _gateway(settings: Settings) -> str:
    from api.stack.endpoints import http_url

    return http_url(settings.host, settings.gateway_port)


def _organization_id(settings: Settings, named: str) -> str:
    """An id is taken as it is, so that nobody who has no access to the database is in need of one."""
    try:
        return str(UUID(named))
    except ValueError:
        from api.stripe import account

        return str(account.organization_id(migration_url(settings), named))


def _pair(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise StripeCommandFailed(f"--set {text}: write it as MEMBER=VALUE.")
    return name, parsed(value)

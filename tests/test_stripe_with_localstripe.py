"""Stripe's own library makes a customer, a plan and a subscription at localstripe, whose webhooks come in, signed, and
are applied. Nothing of these objects or events is of our making.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import stripe
from pydantic import SecretStr

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack
from tests.observe import eventually
from tests.stripe_server import SECRET, StripeServer, stripe_server

PATH = "/api/billing/stripe_webhook"


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(stripe_webhook_secret=SecretStr(SECRET)) as running:
        yield running


@pytest.fixture(scope="module")
def server(stack: RunningStack) -> Iterator[StripeServer]:
    with stripe_server(with_localstripe=True) as made:
        made.send_webhooks_to(f"{stack.gateway_url}{PATH}")
        yield made


@pytest.fixture
def sdk(server: StripeServer) -> Iterator[stripe.StripeClient]:
    http = stripe.HTTPXClient(timeout=30, allow_sync_methods=True)
    try:
        yield stripe.StripeClient(server.key, base_addresses={"api": server.url}, http_client=http)
    finally:
        http.close()  # type: ignore[no-untyped-call]


def make_plan(sdk: stripe.StripeClient, plan: str) -> str:
    product = sdk.v1.products.create({"name": plan, "type": "service"})
    made = sdk.v1.plans.create(
        {
            "id": f"plan_{plan}",
            "product": product.id,
            "amount": 4900,
            "currency": "usd",
            "interval": "month",
            "metadata": {"plan": plan},
        }
    )
    return made.id


def make_customer(sdk: stripe.StripeClient, organization: object) -> str:
    card: Any = {"number": "4242424242424242", "exp_month": "12", "exp_year": "2040", "cvc": "123"}
    token = sdk.v1.tokens.create({"card": card})
    made = sdk.v1.customers.create(
        {"email": "a@b.example", "source": token.id, "metadata": {"organization_id": str(organization)}}
    )
    return made.id


def phases(stack: RunningStack, organization: object) -> list[tuple[Any, ...]]:
    with stack.database.connect() as connection:
        return connection.execute(
            "select plan_code, status from billing.subscription_phases "
            "where organization_id = %s and subscription_id is not null order by starts_at",
            [organization],
        ).fetchall()


def test_a_subscription_of_localstripe_begins_and_ends(
    stack: RunningStack, server: StripeServer, sdk: stripe.StripeClient, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database).id
    plan = make_plan(sdk, "pro")
    customer = make_customer(sdk, organization)
    params: Any = {"customer": customer, "items": [{"plan": plan}]}
    subscription = sdk.v1.subscriptions.create(params)
    assert subscription.status == "active"
    eventually(lambda: phases(stack, organization), lambda found: found == [("pro", "active")])
    with stack.database.connect() as connection:
        linked = connection.execute(
            "select id, email from stripe.customers where organization_id = %s", [organization]
        ).fetchall()
        mirrored = connection.execute(
            "select id, status, plan_code, price_id from stripe.subscriptions where organization_id = %s",
            [organization],
        ).fetchall()
    assert linked == [(customer, "a@b.example")]
    assert mirrored == [(subscription.id, "active", "pro", plan)]

    sdk.v1.subscriptions.cancel(subscription.id)
    eventually(lambda: phases(stack, organization), lambda found: found[-1] == ("pro", "canceled"))

    with stack.database.connect() as connection:
        waiting = connection.execute(
            "select type, status, message from stripe.webhook_events "
            "where status not in ('applied', 'stale', 'ignored', 'unlinked')"
        ).fetchall()
    assert waiting == []


def test_what_it_has_and_what_it_has_not_are_behind_one_url(
    stack: RunningStack, server: StripeServer, sdk: stripe.StripeClient, make_organization: MakeOrganization
) -> None:
    customer = make_customer(sdk, make_organization(stack.database).id)
    assert sdk.v1.customers.retrieve(customer).email == "a@b.example"
    meter = sdk.v1.billing.meters.create(
        {"display_name": "x", "event_name": "x", "default_aggregation": {"formula": "sum"}}
    )
    assert sdk.v1.billing.meters.retrieve(meter.id).event_name == "x"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        sdk.v1.customers.retrieve("cus_nobody")
    assert caught.value.http_status == 404

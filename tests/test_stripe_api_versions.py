"""The same life told in each version of Stripe's API ends in the same rows, and what a version leaves out takes nothing
away from what is known.
"""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from api.stripe import fixtures
from api.stripe.fixtures import LATEST, VERSIONS, Json
from tests.harness import Database
from tests.stripe_lives import (
    BEGINNING,
    DAY,
    Life,
    apply_what_is_due,
    expected,
    found,
    insert_bare_organization,
    link,
    price_plans,
    receive,
)
from tests.test_webhooks_converge import STORIES, Story, begin, rows
from tests.usage import Connection, value

_number = count()


@pytest.fixture(autouse=True, scope="module")
def prices(shared_database: Database, superuser: Connection) -> None:
    price_plans(shared_database)
    superuser.execute(
        """
        insert into billing.plan_features (plan_code, feature, kind)
        values ('firm', 'sso', 'boolean'), ('firm', 'audit_export', 'boolean')
        """
    )


def told_in(version: str, story: Story, superuser: Connection, sidecar: Connection) -> dict[str, list[Any]]:
    life, organization = begin(superuser, story)
    link(superuser, organization, life.customer)
    # Backwards, so that what is left out by later events was not known before.
    for event in reversed(life.events(version)):
        receive(sidecar, [json.dumps(event)])
    apply_what_is_due(superuser, sidecar, life.token)
    assert found(superuser, organization, life.token) == expected(life)
    everything = rows(superuser, life, organization)
    # By what it was paid was in the invoice itself once, and is told beside it now.
    for name, texts in everything.items():
        if name == "invoices":
            kept = [json.loads(text) for text in texts]
            for row in kept:
                for known_of in (row, row["facts"]):
                    for told_beside in ("charge_id", "payment_intent_id", "charge", "payment_intent", "invoice"):
                        known_of.pop(told_beside, None)
            everything[name] = kept
    return everything


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_life_ends_in_the_same_rows_in_all_versions(superuser: Connection, sidecar: Connection, story: Story) -> None:
    newest = told_in(LATEST, story, superuser, sidecar)
    for version in VERSIONS[:-1]:
        assert told_in(version, story, superuser, sidecar) == newest, version


@pytest.fixture
def life(superuser: Connection) -> Life:
    token = f"v{next(_number)}"
    life = Life(token)
    link(superuser, insert_bare_organization(superuser, token), life.customer)
    return life


def send(sidecar: Connection, *events: Json) -> None:
    for event in events:
        outcomes = receive(sidecar, [json.dumps(event)])
        assert outcomes in (["applied"], ["stale"])


def known(superuser: Connection, subscription: str) -> Json:
    """What the last event of a subscription has left known of it."""
    facts: Json = value(
        superuser, "select facts from stripe.subscription_states(%s) order by n desc limit 1", subscription
    )
    return facts


SAID: Json = {
    "status": "past_due",
    "trial_end": BEGINNING + DAY,
    "cancel_at": BEGINNING + 50 * DAY,
    "cancel_at_period_end": True,
    "canceled_at": BEGINNING + 2 * DAY,
    "ended_at": BEGINNING + 60 * DAY,
    "latest_invoice": "in_1",
    "default_payment_method": "pm_1",
    "start_date": BEGINNING,
    "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_said_of_a_subscription_stays_known(
    superuser: Connection, sidecar: Connection, life: Life, version: str
) -> None:
    id = life.name("sub")
    made = fixtures.subscription(
        id, customer=life.customer, created=BEGINNING, start=BEGINNING, api_version=version, **SAID
    )
    send(sidecar, fixtures.event("customer.subscription.created", made, created=BEGINNING, api_version=version))
    before = known(superuser, id)
    assert {"status", "prices", "current_period_start", "current_period_end", "has_payment_method"} < set(before)
    absent = [*SAID, "items", "current_period_start", "current_period_end", "plan", "created", "default_source"]
    for number, name in enumerate(absent):
        less = {key: one for key, one in made.items() if key not in (name, "default_source")}
        told = fixtures.event("customer.subscription.updated", less, created=BEGINNING + 1 + number, previous={})
        send(sidecar, told)
        assert known(superuser, id) == before, name
    # All of it at once: nothing but whose it is.
    bare = {"id": id, "object": "subscription", "customer": life.customer}
    send(sidecar, fixtures.event("customer.subscription.updated", bare, created=BEGINNING + 100, previous={}))
    assert known(superuser, id) == before
    # And null is something that is said.
    gone = bare | {"trial_end": None, "cancel_at": None}
    send(sidecar, fixtures.event("customer.subscription.updated", gone, created=BEGINNING + 101, previous={}))
    assert known(superuser, id) == before | {"trial_end": None, "cancel_at": None}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_said_of_an_invoice_stays_known(
    superuser: Connection, sidecar: Connection, life: Life, version: str
) -> None:
    id = life.name("in")
    made = fixtures.invoice(
        id,
        customer=life.customer,
        subscription=life.name("sub"),
        status="paid",
        created=BEGINNING,
        charge=life.name("ch"),
        payment_intent=life.name("pi"),
        api_version=version,
    )

    def row() -> Any:
        return superuser.execute(
            """
            select subscription_id, number, status, currency, total_cents, amount_due_cents, amount_paid_cents,
              period_start, period_end, hosted_invoice_url, charge_id, payment_intent_id
            from stripe.invoices where id = %s
            """,
            [id],
        ).fetchone()

    send(sidecar, fixtures.event("invoice.paid", made, created=BEGINNING, api_version=version))
    before = row()
    assert before[:3] == (life.name("sub"), "7FE1103-0001", "paid")
    for number, name in enumerate(made):
        if name not in ("id", "object", "customer"):
            less = {key: one for key, one in made.items() if key != name}
            send(sidecar, fixtures.event("invoice.marked_uncollectible", less, created=BEGINNING + 1 + number))
            assert row() == before, name
    bare = {"id": id, "object": "invoice", "customer": life.customer}
    send(sidecar, fixtures.event("invoice.marked_uncollectible", bare, created=BEGINNING + 1000))
    assert row() == before


def test_what_somebody_has_expanded_is_read_like_its_id(superuser: Connection, sidecar: Connection, life: Life) -> None:
    old = VERSIONS[0]
    customer = fixtures.customer(life.customer)
    invoice = fixtures.invoice(life.name("in"), customer=life.customer, subscription=life.name("sub"), status="paid")
    subscription = fixtures.subscription(life.name("sub"), customer=life.customer, created=BEGINNING, api_version=old)
    charge = fixtures.charge(
        life.name("ch"), customer=life.customer, refunded=100, invoice=life.name("in"), api_version=old
    )
    intent = {"id": life.name("pi"), "object": "payment_intent"}
    paid = fixtures.invoice(
        life.name("in"), customer=life.customer, status="paid", created=BEGINNING, api_version=old
    ) | {"customer": customer, "subscription": subscription, "charge": charge, "payment_intent": intent}
    expanded = subscription | {"customer": customer, "latest_invoice": invoice, "default_payment_method": {"id": "pm"}}
    send(
        sidecar,
        fixtures.event("customer.subscription.created", expanded, created=BEGINNING, api_version=old),
        fixtures.event("invoice.paid", paid, created=BEGINNING + 1, api_version=old),
        fixtures.event(
            "charge.refunded",
            charge | {"invoice": paid, "customer": customer, "payment_intent": intent},
            created=BEGINNING + 2,
            previous={"amount_refunded": 0},
            api_version=old,
        ),
    )
    assert known(superuser, life.name("sub"))["latest_invoice"] == life.name("in")
    assert superuser.execute(
        "select subscription_id, charge_id, payment_intent_id from stripe.invoices where id = %s", [life.name("in")]
    ).fetchone() == (life.name("sub"), life.name("ch"), life.name("pi"))
    assert value(
        superuser, "select sum(amount_cents) from billing.refunds where reference = %s", f"{life.name('ch')}:100"
    )


def test_a_subscription_of_long_ago_has_a_plan_and_no_items(
    superuser: Connection, sidecar: Connection, life: Life
) -> None:
    made = fixtures.subscription(
        life.name("sub"), customer=life.customer, prices=[fixtures.price("price_firm")], api_version=VERSIONS[0]
    )
    del made["items"]
    send(sidecar, fixtures.event("customer.subscription.created", made, created=made["created"], api_version=None))
    assert value(superuser, "select plan_code from stripe.subscriptions where id = %s", life.name("sub")) == "firm"


def test_items_of_long_ago_have_plans_for_prices(superuser: Connection, sidecar: Connection, life: Life) -> None:
    made = fixtures.subscription(
        life.name("sub"), customer=life.customer, prices=[fixtures.price("price_firm")], api_version=VERSIONS[0]
    )
    for item in made["items"]["data"]:
        del item["price"]
    send(sidecar, fixtures.event("customer.subscription.created", made, created=BEGINNING, api_version=None))
    assert value(superuser, "select plan_code from stripe.subscriptions where id = %s", life.name("sub")) == "firm"

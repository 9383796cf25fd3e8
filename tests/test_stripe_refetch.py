"""What webhooks leave open is fetched from Stripe, once it is asked for, however often that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from pydantic import SecretStr

from api.database import Refetch
from api.stripe import fixtures
from api.stripe.refetch import Refetching
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import eventually
from tests.sql_requests import Connection
from tests.stripe_inbox import NOW, Stripe, hearing
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import value

SECRET = "whsec_of_the_tests"


@pytest.fixture(scope="module")
def server() -> Iterator[StripeServer]:
    with stripe_server() as made:
        yield made


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack, server: StripeServer) -> Iterator[RunningStack]:
    with open_stack(
        stripe_secret_key=SecretStr(server.key),
        stripe_api_base=server.url,
        stripe_webhook_secret=SecretStr(SECRET),
    ) as running:
        yield running


@pytest.fixture
def stripe(stack: RunningStack, server: StripeServer) -> Iterator[Stripe]:
    server.mend()
    server.forget_requests()
    with hearing(stack) as made:
        made.superuser.execute("delete from stripe.refetches")
        yield made


@pytest.fixture
def superuser(stripe: Stripe) -> Connection:
    return stripe.superuser


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database, roles=("owner",))


@pytest.fixture
def customer(superuser: Connection, organization: Organization) -> str:
    id = f"cus_{uuid4().hex}"
    superuser.execute("select stripe.link(%s, %s, false)", [organization.id, id])
    return id


def ask_for(superuser: Connection, kind: str, id: str) -> None:
    superuser.execute("select stripe.ask_for(%s, %s)", [kind, id])


def waiting(superuser: Connection, id: str) -> dict[str, Any] | None:
    found = superuser.execute("select to_jsonb(r) from stripe.refetches r where object_id = %s", [id]).fetchone()
    return dict(found[0]) if found else None


def await_fetched(superuser: Connection, id: str) -> None:
    assert eventually(lambda: waiting(superuser, id), lambda row: row is None) is None


def of_customer(customer: str, status: str) -> dict[str, Any]:
    return fixtures.subscription(
        f"sub_of_{customer}",
        customer=customer,
        status=status,
        created=NOW - 600,
        start=NOW - 600,
        end=NOW + 86_400,
        prices=[fixtures.price(lookup_key="pro")],
    )


def test_what_stripe_says_of_a_subscription_now_counts(
    stripe: Stripe, server: StripeServer, superuser: Connection, organization: Organization, customer: str
) -> None:
    id = f"sub_of_{customer}"
    told = fixtures.event("customer.subscription.created", of_customer(customer, "past_due"), created=NOW - 600)
    assert stripe.outcome(told) == "applied"
    server.put(of_customer(customer, "active"))
    ask_for(superuser, "subscription", id)
    await_fetched(superuser, id)
    status = "select status from stripe.subscriptions where id = %s"
    assert value(superuser, status, id) == "active"
    assert value(superuser, "select status from billing.subscription_of(%s)", organization.id) == "active"
    stored = superuser.execute(
        "select type, status, created_at from stripe.webhook_events where object_id = %s and type like '%%snapshot'",
        [id],
    ).fetchall()
    assert [row[:2] for row in stored] == [("customer.subscription.snapshot", "applied")]
    assert abs(stored[0][2] - datetime.now(UTC)) < timedelta(minutes=2)  # and not when the object was made


def test_which_invoice_a_charge_paid_is_found_out(
    stripe: Stripe, server: StripeServer, superuser: Connection, organization: Organization, customer: str
) -> None:
    """Since 2025-03-31 neither the charge nor the invoice says so."""
    name = customer.removeprefix("cus_")
    invoice = fixtures.invoice(
        f"in_{name}",
        customer=customer,
        subscription=None,
        status="paid",
        number=name[:10],
        created=NOW - 600,
        paid_at=NOW - 600,
    )
    charge = fixtures.charge(
        f"ch_{name}", customer=customer, invoice=None, payment_intent=f"pi_{name}", refunded=1900, created=NOW - 600
    )
    payment = fixtures.invoice_payment(
        f"inpay_{name}", invoice=f"in_{name}", payment_intent=f"pi_{name}", created=NOW - 600
    )
    server.put(invoice, charge, payment)
    assert stripe.outcome(fixtures.event("invoice.paid", invoice, created=NOW - 600)) == "applied"
    refunded = fixtures.event("charge.refunded", charge, created=NOW - 300, previous={"amount_refunded": 0})
    assert stripe.outcome(refunded) == "pending"
    refunds = "select count(*) from billing.refunds where organization_id = %s and amount_cents = 1900"
    assert eventually(lambda: value(superuser, refunds, organization.id), (1).__eq__) == 1
    await_fetched(superuser, f"ch_{name}")


def test_a_thin_event_is_fetched_whole(stripe: Stripe, server: StripeServer, superuser: Connection) -> None:
    id = f"evt_{uuid4().hex}"
    whole = fixtures.event_of_version_2(
        "v1.billing.meter.error_report_triggered", fixtures.meter_errors({"none": "why"}), created=NOW, id=id
    )
    server.put(whole)
    stripe.send(fixtures.thin(whole))
    ask_for(superuser, "event", id)
    await_fetched(superuser, id)
    data = "select payload #>> '{data,reason,error_types,0,sample_errors,0,error_message}' from stripe.webhook_events"
    assert value(superuser, f"{data} where id = %s", id) == "why"


def test_what_stripe_does_not_know_is_let_go(server: StripeServer, superuser: Connection) -> None:
    for kind in ("subscription", "invoice", "charge", "event"):
        ask_for(superuser, kind, f"gone_{kind}")
    for kind in ("subscription", "invoice", "charge", "event"):
        await_fetched(superuser, f"gone_{kind}")
    assert {one["status"] for one in server.requests()} == {404}


def test_an_id_is_no_path(server: StripeServer, superuser: Connection) -> None:
    ask_for(superuser, "subscription", "../customers/cus_1?x=1")
    await_fetched(superuser, "../customers/cus_1?x=1")
    assert not [one for one in server.requests() if one["path"].startswith("/v1/customers")]


def test_who_is_busy_is_left_alone(server: StripeServer, superuser: Connection) -> None:
    server.fail(kind="status", status=429, retry_after=600, times=None)
    ask_for(superuser, "subscription", "sub_busy")
    row = eventually(lambda: waiting(superuser, "sub_busy"), lambda row: row is not None and is_later(row, 500))
    assert row is not None
    assert is_later(row, 500)
    assert row["attempts"] == 0  # nothing was wrong with it
    assert len(server.requests("/v1/subscriptions/sub_busy")) == 1


def test_what_fails_is_tried_again_more_and_more_seldom(server: StripeServer, superuser: Connection) -> None:
    server.fail(kind="status", status=400, code="whatever", times=None)
    ask_for(superuser, "subscription", "sub_bad")
    pauses = []
    for attempt in range(1, 4):
        row = eventually(
            lambda: waiting(superuser, "sub_bad"),
            lambda row, attempt=attempt: row is not None and row["attempts"] == attempt,  # type: ignore[misc]
        )
        assert row is not None
        assert row["attempts"] == attempt
        assert row["last_error"] == "It was told to fail."
        pauses.append(value(superuser, "select next_attempt_at - now() from stripe.refetches"))
        if attempt == 3:
            server.mend()
        superuser.execute("update stripe.refetches set next_attempt_at = now()")
    assert pauses == sorted(pauses)
    await_fetched(superuser, "sub_bad")


def test_while_stripe_is_away_everything_stays_where_it_is(
    stripe: Stripe, server: StripeServer, superuser: Connection, customer: str
) -> None:
    id = f"sub_of_{customer}"
    server.fail(kind="close", times=None)
    server.put(of_customer(customer, "active"))
    ask_for(superuser, "subscription", id)
    row = eventually(lambda: waiting(superuser, id), lambda row: row is not None and is_later(row, 5))
    assert row is not None
    assert row["attempts"] == 0
    server.mend()
    superuser.execute("update stripe.refetches set next_attempt_at = now()")
    await_fetched(superuser, id)
    assert value(superuser, "select status from stripe.subscriptions where id = %s", id) == "active"


def test_what_is_asked_for_meanwhile_is_fetched_again(
    stripe: Stripe, server: StripeServer, superuser: Connection, customer: str
) -> None:
    id = f"sub_of_{customer}"
    path = f"/v1/subscriptions/{id}"
    server.put(of_customer(customer, "past_due"))
    server.fail(path=path, kind="hang")  # the first one never comes back before its lease
    ask_for(superuser, "subscription", id)
    eventually(lambda: waiting(superuser, id), lambda row: row is not None and is_later(row, 60))
    server.put(of_customer(customer, "active"))
    ask_for(superuser, "subscription", id)
    await_fetched(superuser, id)
    assert value(superuser, "select status from stripe.subscriptions where id = %s", id) == "active"


def test_an_answer_does_not_count_for_what_was_asked_for_since(superuser: Connection) -> None:
    with superuser.transaction(force_rollback=True):
        ask_for(superuser, "subscription", "sub_twice")
        superuser.execute("update stripe.refetches set next_attempt_at = now()")
        [(_, _, asked, _)] = superuser.execute(
            "select * from stripe.claim_refetches(10, '1 hour') where object_id = 'sub_twice'"
        ).fetchall()
        ask_for(superuser, "subscription", "sub_twice")
        superuser.execute("select stripe.drop_refetch('subscription', 'sub_twice', %s)", [asked])
        superuser.execute("select stripe.mark_refetch_failed('subscription', 'sub_twice', %s, 'x', '0')", [asked])
        superuser.execute("select stripe.postpone_refetch('subscription', 'sub_twice', %s, '1 day')", [asked])
        row = waiting(superuser, "sub_twice")
        assert row is not None
        assert (row["asked"], row["attempts"], is_later(row, 1)) == (asked + 1, 0, False)


def test_two_that_claim_at_once_get_different_ones(database: Any, make_organization: MakeOrganization) -> None:
    claim = "select object_id from stripe.claim_refetches(3, '1 hour')"
    with database.connect() as superuser:
        for number in range(6):
            ask_for(superuser, "invoice", f"in_{number}")
        with (
            database.connect("sidecar", autocommit=False) as first,
            database.connect("sidecar", autocommit=False) as second,
        ):
            mine = {row[0] for row in first.execute(claim)}
            yours = {row[0] for row in second.execute(claim)}
            assert (len(mine), len(yours), mine & yours) == (3, 3, set())
            first.commit()
            second.commit()
            assert list(first.execute(claim)) == []


def test_without_a_key_they_wait_and_are_forgotten_in_the_end(open_stack: OpenStack, server: StripeServer) -> None:
    server.forget_requests()
    with open_stack() as stack, stack.database.connect() as superuser:
        ask_for(superuser, "invoice", "in_old")
        ask_for(superuser, "invoice", "in_new")
        superuser.execute(
            "update stripe.refetches set next_attempt_at = now() - interval '31 days' where object_id = 'in_old'"
        )
        superuser.execute("select ops.maintain()")
        assert waiting(superuser, "in_old") is None
        row = waiting(superuser, "in_new")
        assert row is not None
        assert row["attempts"] == 0
    assert server.requests() == []


def is_later(row: dict[str, Any], seconds: int) -> bool:
    at = datetime.fromisoformat(row["next_attempt_at"])
    return at > datetime.now(UTC) + timedelta(seconds=seconds)


class SlowStripe:
    """It says at once how a subscription is, and is slow to send that."""

    async def ask(self, call: object) -> SimpleNamespace:
        await asyncio.sleep(3.5)
        return SimpleNamespace(data={"object": "subscription"}, headers={"date": format_datetime(datetime.now(UTC))})


def test_what_changes_while_stripe_is_slow_to_answer_comes_later() -> None:
    """What is fetched is of when it was asked for, and not of when the answer came."""
    refetching = Refetching(cast("Any", None), cast("Any", SlowStripe()))
    began = datetime.now(UTC)
    _, at = asyncio.run(refetching._objects(Refetch("subscription", "sub_1", 1)))
    # In whole seconds; not before it was asked, since what asked for it is in it.
    assert began.replace(microsecond=0) <= at <= began + timedelta(seconds=2)

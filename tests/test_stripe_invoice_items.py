"""Lines of statements are on Stripe's next invoice, each once: whatever breaks between us and Stripe, and whenever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from api.database import Database as Calls
from api.stripe.client import Stripe
from api.stripe.invoice_items import InvoiceItems
from api.stripe.reported import resend_items
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Database
from tests.observe import eventually
from tests.sql_requests import Connection
from tests.statements import Row, agree, invoices, items, link, use
from tests.stripe_server import KEY, StripeServer, stripe_server
from tests.usage import finalize, month, value

PATH = "/v1/invoiceitems"
LIVE_KEY = KEY.replace("_test_", "_live_")


@pytest.fixture(scope="module")
def running() -> Iterator[StripeServer]:
    with stripe_server() as server:
        yield server


@pytest.fixture
def stripe(running: StripeServer, superuser: Connection) -> StripeServer:
    """It knows nothing, and nothing of others waits for it."""
    running.forget()
    superuser.execute("delete from stripe.invoice_items")
    return running


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def close(superuser: Connection, organization: UUID, requests: int = 4, mode: str = "stripe_items") -> Row:
    """The statement of a month in which so many requests were made, at 25 each."""
    agree(superuser, organization, mode)
    use(superuser, organization, requests)
    finalize(superuser, organization, month(1))
    return invoices(superuser, organization)[-1]


def send(database: Database, stripe: StripeServer, *, key: str = KEY, steps: int = 1, seconds: float = 15.0) -> None:
    """As the sidecar does, so many times, without a pause."""

    async def act() -> None:
        calls, client = Calls(database.url("sidecar"), 4), Stripe(key, stripe.url, call_seconds=seconds)
        try:
            sender = InvoiceItems(calls, client)
            for _ in range(steps):
                await sender.step()
        finally:
            await client.close()
            await calls.close()

    asyncio.run(act())


def due(superuser: Connection, organization: UUID) -> None:
    """What waits for its time, or for a lease to end, waits no more."""
    superuser.execute(
        "update stripe.invoice_items set next_attempt_at = now() where organization_id = %s", [organization]
    )


def days_ago(superuser: Connection, organization: UUID) -> None:
    """It was first sent so long ago that Stripe may have forgotten its key."""
    superuser.execute(
        """
        update stripe.invoice_items set first_sent_at = first_sent_at - interval '25 hours', next_attempt_at = now()
        where organization_id = %s
        """,
        [organization],
    )


def at_stripe(stripe: StripeServer, customer: str) -> list[Any]:
    return [item["amount"] for item in stripe.all("invoiceitem") if item["customer"] == customer]


def statuses(superuser: Connection, organization: UUID) -> list[str]:
    return [item["status"] for item in items(superuser, organization)]


def test_a_line_is_an_item(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    customer = link(superuser, organization)
    statement = close(superuser, organization)
    (waiting,) = items(superuser, organization)
    assert (waiting["status"], waiting["amount_cents"], waiting["invoice_id"]) == ("pending", 100, statement["id"])

    send(shared_database, stripe)
    (made,) = stripe.all("invoiceitem")
    assert (made["customer"], made["amount"], made["currency"]) == (customer, 100, "usd")
    assert "4 request" in made["description"]
    bounds = statement["period_start"], statement["period_end"]
    assert (made["period"]["start"], made["period"]["end"]) == tuple(int(at.timestamp()) for at in bounds)
    assert made["metadata"] == {
        "goldleaves_item": str(waiting["id"]),
        "organization_id": str(organization),
        "kind": "line",
        "invoice_id": str(statement["id"]),
        "line": "1",
    }
    (sent,) = items(superuser, organization)
    assert (sent["status"], sent["stripe_id"], sent["customer_id"]) == ("acknowledged", made["id"], customer)

    due(superuser, organization)
    send(shared_database, stripe, steps=2)
    assert len(stripe.requests(PATH)) == 1


def test_it_goes_with_the_subscription_that_is_alive(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    customer = link(superuser, organization)
    for name, status, age in (("dead", "canceled", 1), ("old", "active", 3), ("new", "past_due", 2)):
        superuser.execute(
            """
            insert into stripe.subscriptions (organization_id, id, customer_id, subscription_id, status, is_live,
              latest_event_id, latest_event_at)
            values (%s, %s, %s, gen_random_uuid(), %s, false, 'evt_1', now() - %s)
            """,
            [organization, f"sub_{name}_{customer}", customer, status, timedelta(days=age)],
        )
        stripe.put({"object": "subscription", "id": f"sub_{name}_{customer}", "status": status})
    close(superuser, organization)
    send(shared_database, stripe)
    (asked,) = stripe.requests(PATH)
    assert asked["params"]["subscription"] == f"sub_new_{customer}"


def test_invoices_of_ours_do_not_go_there(superuser: Connection, organization: UUID) -> None:
    link(superuser, organization)
    close(superuser, organization, mode="local")
    assert items(superuser, organization) == []


@pytest.mark.parametrize("behavior", ["inclusive", "exclusive"])
def test_tax_is_left_to_stripe(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID, behavior: str
) -> None:
    """It is told whether our prices contain it."""
    link(superuser, organization)
    agree(superuser, organization, "stripe_items")
    superuser.execute(
        "update billing.billing_terms set tax_percent = 19, tax_inclusive = %s where organization_id = %s",
        [behavior == "inclusive", organization],
    )
    statement = close(superuser, organization)
    assert (statement["tax_cents"], statement["total_cents"]) == ((16, 100) if behavior == "inclusive" else (19, 119))
    assert [item["amount_cents"] for item in items(superuser, organization)] == [100]
    send(shared_database, stripe)
    (asked,) = stripe.requests(PATH)
    assert asked["params"]["tax_behavior"] == behavior


def test_who_is_not_linked_is_waited_for(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    close(superuser, organization)
    send(shared_database, stripe)
    assert stripe.requests(PATH) == []
    customer = link(superuser, organization)
    due(superuser, organization)
    send(shared_database, stripe)
    assert at_stripe(stripe, customer) == [100]


def test_no_customer_of_the_other_mode_is_charged(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    """A copy of the database with a key of test mode asks nothing of customers of live mode."""
    link(superuser, organization, is_live=True)
    close(superuser, organization)
    send(shared_database, stripe)
    assert stripe.requests(PATH) == []
    assert statuses(superuser, organization) == ["pending"]


def test_where_the_answer_is_lost_it_is_one_item(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    customer = link(superuser, organization)
    close(superuser, organization)
    stripe.fail(path=PATH, kind="close", when="after")
    send(shared_database, stripe)
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["pending"])
    due(superuser, organization)
    send(shared_database, stripe)
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["acknowledged"])


@pytest.mark.parametrize("status", [429, 401, 409])
def test_what_was_not_done_is_no_attempt(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID, status: int
) -> None:
    customer = link(superuser, organization)
    close(superuser, organization)
    stripe.fail(path=PATH, kind="status", status=status)
    send(shared_database, stripe)
    (waiting,) = items(superuser, organization)
    assert (waiting["status"], waiting["attempts"], waiting["first_sent_at"]) == ("pending", 0, None)
    due(superuser, organization)
    send(shared_database, stripe)
    assert at_stripe(stripe, customer) == [100]


def test_nor_is_it_forgotten_that_an_earlier_one_may_have_done_it(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    link(superuser, organization)
    close(superuser, organization)
    for kind in ({"kind": "close"}, {"kind": "status", "status": 429}):
        stripe.fail(path=PATH, **kind)
        send(shared_database, stripe)
        due(superuser, organization)
    (waiting,) = items(superuser, organization)
    assert waiting["attempts"] == 1 and waiting["first_sent_at"] is not None


def test_what_stripe_refuses_is_kept_with_why_and_sent_again_once_that_is_mended(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    customer = link(superuser, organization)
    close(superuser, organization)
    stripe.fail(path=PATH, kind="status", status=400, code="parameter_invalid_integer")
    send(shared_database, stripe)
    (refused,) = items(superuser, organization)
    assert refused["status"] == "rejected" and "parameter_invalid_integer" in refused["last_error"]
    due(superuser, organization)
    send(shared_database, stripe)
    assert at_stripe(stripe, customer) == []
    assert resend_items(shared_database.migrator, organization) == 1
    send(shared_database, stripe, steps=2)
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["acknowledged"])


@pytest.mark.parametrize("arrived", [True, False])
def test_after_a_day_stripe_is_asked_for_it_before_it_is_sent_anew(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID, arrived: bool
) -> None:
    customer = link(superuser, organization)
    close(superuser, organization)
    stripe.fail(path=PATH, kind="close", when="after" if arrived else "before")
    send(shared_database, stripe)
    days_ago(superuser, organization)
    send(shared_database, stripe, steps=2)
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["acknowledged"])
    asked = [one["method"] for one in stripe.requests(PATH)]
    assert asked == (["POST", "GET"] if arrived else ["POST", "GET", "POST"])
    assert items(superuser, organization)[0]["rounds"] == (0 if arrived else 1)


@pytest.mark.parametrize("sent", [True, False])
def test_what_was_sent_after_a_backup_is_not_sent_once_more(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID, sent: bool
) -> None:
    """A database that was restored does not know what became of what waited in it."""
    customer = link(superuser, organization)
    close(superuser, organization)
    if sent:
        send(shared_database, stripe)
        superuser.execute(
            """
            update stripe.invoice_items set status = 'pending', attempts = 0, first_sent_at = null, stripe_id = null,
              acknowledged_at = null, customer_id = null, next_attempt_at = now()
            where organization_id = %s
            """,
            [organization],
        )
    generation = "insert into metering.generations (generation, system_identifier) values (99, 1) returning generation"
    value(superuser, generation)
    try:
        stripe.forget_requests()
        send(shared_database, stripe, steps=3)
    finally:
        superuser.execute("delete from metering.generations where generation = 99")
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["acknowledged"])
    assert [one["method"] for one in stripe.requests(PATH)] == (["GET"] if sent else ["GET", "POST"])


def test_a_month_that_was_closed_after_a_backup_is_not_charged_twice(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    """A database that was restored closes it again, and makes another statement of it."""
    customer = link(superuser, organization)
    close(superuser, organization)
    send(shared_database, stripe)
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        for table in ("stripe.invoice_items", "billing.invoice_lines", "billing.invoices"):
            superuser.execute(f"delete from {table} where organization_id = %s".encode(), [organization])
        superuser.execute(
            "update billing.billing_periods set status = 'open', finalized_at = null where organization_id = %s",
            [organization],
        )
    for made in stripe.all("invoiceitem"):
        stripe.remove("invoiceitem", id=made["id"])
        stripe.put({**made, "date": made["date"] - 5 * 86400})
    finalize(superuser, organization, month(1))
    value(
        superuser,
        """
        insert into metering.generations (generation, system_identifier, began_at)
        values (99, 1, now() - interval '1 minute') returning generation
        """,
    )
    try:
        stripe.forget_requests()
        send(shared_database, stripe, steps=3)
    finally:
        superuser.execute("delete from metering.generations where generation = 99")
    assert (at_stripe(stripe, customer), statuses(superuser, organization)) == ([100], ["acknowledged"])
    assert [one["method"] for one in stripe.requests(PATH)] == ["GET"]


def test_an_error_of_stripes_that_it_repeats_for_a_day_ends(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    """Stripe answers a key with what it answered first, an error of its own as well."""
    customer = link(superuser, organization)
    close(superuser, organization)
    stripe.fail(path=PATH, kind="status", status=500, method="POST", times=2)
    for _ in range(2):
        send(shared_database, stripe)
        due(superuser, organization)
    days_ago(superuser, organization)
    send(shared_database, stripe, steps=2)
    assert at_stripe(stripe, customer) == [100]


def test_while_stripe_is_away_the_others_keep_their_day(
    superuser: Connection, shared_database: Database, stripe: StripeServer, make_organization: MakeOrganization
) -> None:
    organizations = [make_organization(shared_database, roles=("owner",)).id for _ in range(12)]
    for organization in organizations:
        link(superuser, organization)
        close(superuser, organization, 1)
    stripe.fail(path=PATH, kind="close", times=None)
    send(shared_database, stripe)
    tried = [items(superuser, organization)[0]["attempts"] for organization in organizations]
    assert 1 <= sum(tried) <= 4  # those that were on their way at once
    stripe.mend()
    for organization in organizations:
        due(superuser, organization)
    send(shared_database, stripe, steps=2)
    assert sorted(item["amount"] for item in stripe.all("invoiceitem")) == [25] * 12


def test_several_that_send_send_each_once(
    superuser: Connection, shared_database: Database, stripe: StripeServer, make_organization: MakeOrganization
) -> None:
    for _ in range(10):
        organization = make_organization(shared_database, roles=("owner",)).id
        link(superuser, organization)
        close(superuser, organization, 1)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: send(shared_database, stripe), range(3)))
    assert len(stripe.requests(PATH)) == len(stripe.all("invoiceitem")) == 10


def test_credits_go_the_same_way(
    superuser: Connection, shared_database: Database, stripe: StripeServer, organization: UUID
) -> None:
    customer = link(superuser, organization)
    superuser.execute(
        """
        insert into stripe.invoice_items (organization_id, kind, meter_code, amount_cents, currency, description,
          period_start, period_end)
        values (%s, 'credit', 'api.request', -75, 'usd', 'Requests that were taken back', '2026-01-01', '2026-02-01')
        """,
        [organization],
    )
    send(shared_database, stripe)
    assert at_stripe(stripe, customer) == [-75]
    assert stripe.all("invoiceitem")[0]["metadata"]["meter"] == "api.request"


AMOUNTS = {
    "usd": (1234, 1234),
    "jpy": (1234, 1234),
    "isk": (1234, 123400),
    "ugx": (1234, 123400),
    "mga": (1250, 13),  # two decimals in ISO, none at Stripe
    "kwd": (1234, 1230),  # the last digit is a zero there
    "bhd": (-1235, -1240),
}


@pytest.mark.parametrize("currency", AMOUNTS)
def test_amounts_are_in_what_stripe_takes_for_the_smallest_unit(superuser: Connection, currency: str) -> None:
    ours, theirs = AMOUNTS[currency]
    assert value(superuser, "select stripe.amount_at_stripe(%s, %s)", Decimal(ours), currency) == theirs


DEATHS: dict[str, Callable[[StripeServer], None]] = {
    "before Stripe has it": lambda stripe: stripe.fail(path=PATH, kind="hang"),
    "after Stripe has it": lambda stripe: stripe.fail(path=PATH, kind="hang", when="after"),
}


@pytest.mark.parametrize("when", DEATHS)
def test_who_is_killed_while_sending_sends_once(open_stack: OpenStack, when: str) -> None:
    with (
        stripe_server() as stripe,
        open_stack(stripe_secret_key=SecretStr(stripe.key), stripe_api_base=stripe.url, close_periods=False) as stack,
    ):
        DEATHS[when](stripe)
        with stack.database.connect() as superuser:
            organization = value(
                superuser,
                """
                with person as (insert into tenancy.users (subject) values ('killed') returning id)
                insert into tenancy.organizations (name, slug, owner_user_id)
                select 'Killed', 'killed', id from person returning id
                """,
            )
            customer = link(superuser, organization)
            close(superuser, organization)
            assert eventually(lambda: stripe.requests(PATH), bool)
            stack.kill()
            due(superuser, organization)  # rather than wait for the lease
            stack.start()
            assert eventually(lambda: statuses(superuser, organization), lambda all_: all_ == ["acknowledged"])
        assert at_stripe(stripe, customer) == [100]

"""What was paid at Stripe is among payments, what was paid back among refunds, once, and in whatever order it is told;
of our own invoices, too, where Stripe's says which one it is for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count, permutations
from random import Random
from typing import Any
from uuid import UUID

import pytest

from api.stripe import fixtures
from api.stripe.fixtures import BASIL, VERSIONS, Json
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.ledgers import issue, staff
from tests.stripe_lives import BEGINNING, Life, insert_bare_organization, link, price_plans, receive
from tests.usage import Connection, value

OLD = VERSIONS[0]
_number = count()
# Of the 120 there are.
ORDERS = Random(9).sample(list(permutations(range(5))), 40)


@pytest.fixture(autouse=True, scope="module")
def prices(shared_database: Database) -> None:
    price_plans(shared_database)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def life(superuser: Connection, organization: Organization) -> Life:
    """A customer of the organization."""
    life = Life(f"p{next(_number)}")
    link(superuser, organization.id, life.customer)
    return life


def paid(life: Life, name: str = "in", version: str = OLD, **members: Any) -> Json:
    members = {"total": 1000} | members
    made = fixtures.invoice(
        life.name(name),
        customer=life.customer,
        subscription=None,
        status="paid",
        created=BEGINNING,
        charge=life.name(f"ch_{name}"),
        payment_intent=life.name(f"pi_{name}"),
        api_version=version,
        **members,
    )
    return fixtures.event("invoice.paid", made, created=BEGINNING + 5, api_version=version)


def paid_by(life: Life, name: str = "in") -> Json:
    made = fixtures.invoice_payment(
        life.name(f"inpay_{name}"), invoice=life.name(name), payment_intent=life.name(f"pi_{name}"), amount=1000
    )
    return fixtures.event("invoice_payment.paid", made, created=BEGINNING + 5)


def refunded(life: Life, until: int, since: int | None, at: int, name: str = "in", version: str = OLD) -> Json:
    made = fixtures.charge(
        life.name(f"ch_{name}"),
        customer=life.customer,
        amount=1000,
        refunded=until,
        invoice=life.name(name),
        payment_intent=life.name(f"pi_{name}"),
        api_version=version,
    )
    previous = None if since is None else {"amount_refunded": since}
    return fixtures.event("charge.refunded", made, created=BEGINNING + at, previous=previous, api_version=version)


def disputed(life: Life, name: str = "in") -> Json:
    made = fixtures.dispute(
        life.name("dp"), charge=life.name(f"ch_{name}"), payment_intent=life.name(f"pi_{name}"), amount=1000
    )
    return fixtures.event("charge.dispute.created", made, created=BEGINNING + 50)


def send(sidecar: Connection, *events: Json) -> list[str]:
    return [outcome for event in events for outcome in receive(sidecar, [json.dumps(event)])]


def status_of(superuser: Connection, event: Json) -> tuple[str, str | None]:
    found = superuser.execute("select status, message from stripe.webhook_events where id = %s", [event["id"]])
    status, message = found.fetchall()[0]
    return status, message


def payments(superuser: Connection, organization: UUID) -> list[tuple[Any, ...]]:
    return superuser.execute(
        """
        select reference, invoice_id, stripe_invoice_id, amount_cents::bigint, recorded_by
        from billing.payments where organization_id = %s order by reference
        """,
        [organization],
    ).fetchall()


def refunds(superuser: Connection, organization: UUID) -> list[tuple[str, int]]:
    return superuser.execute(
        """
        select r.reference, r.amount_cents::bigint from billing.refunds r where organization_id = %s
        order by r.amount_cents, r.reference
        """,
        [organization],
    ).fetchall()


def messages(superuser: Connection, organization: UUID, type: str) -> list[Json]:
    found = superuser.execute(
        "select payload from notifications.webhook_messages where organization_id = %s and type = %s order by id",
        [organization, type],
    ).fetchall()
    return [payload for (payload,) in found]


@pytest.mark.parametrize("version", [OLD, BASIL])
def test_two_partial_refunds_are_two_in_every_order(superuser: Connection, sidecar: Connection, version: str) -> None:
    for order in ORDERS:
        token = f"r{next(_number)}"
        organization, life = insert_bare_organization(superuser, token), Life(token)
        link(superuser, organization, life.customer)
        events = [
            paid(life, version=version),
            paid_by(life),
            refunded(life, 300, 0, 20, version=version),
            refunded(life, 1000, 300, 30, version=version),
            disputed(life),
        ]
        for number in order:
            send(sidecar, events[number])
        charge = life.name("ch_in")
        assert refunds(superuser, organization) == [(f"{charge}:300", 300), (f"{charge}:1000", 700)], order
        assert {status_of(superuser, event)[0] for event in events} == {"applied"}
        assert value(superuser, "select count(*) from stripe.disputes where organization_id = %s", organization) == 1
        assert len(messages(superuser, organization, "payment.disputed")) == 1


def test_what_does_not_say_from_where_counts_once(superuser: Connection, sidecar: Connection) -> None:
    """Into how many refunds it falls depends on the order, how much they are does not."""
    for order in ORDERS:
        token = f"r{next(_number)}"
        organization, life = insert_bare_organization(superuser, token), Life(token)
        link(superuser, organization, life.customer)
        events = [
            paid(life),
            refunded(life, 300, None, 20),
            refunded(life, 600, 300, 30),
            refunded(life, 900, None, 40),
            refunded(life, 700, 600, 50),
        ]
        for number in order:
            send(sidecar, events[number])
        assert sum(amount for _, amount in refunds(superuser, organization)) == 900, order


def test_a_refund_waits_for_its_customer_and_for_its_payment(superuser: Connection, sidecar: Connection) -> None:
    token = f"w{next(_number)}"
    organization, life = insert_bare_organization(superuser, token), Life(token)
    back, payment = refunded(life, 300, 0, 20), paid(life)
    assert send(sidecar, back, payment) == ["unlinked", "unlinked"]
    link(superuser, organization, life.customer)
    assert refunds(superuser, organization) == [(f"{life.name('ch_in')}:300", 300)]
    assert {status_of(superuser, event)[0] for event in (back, payment)} == {"applied"}


def test_who_is_not_told_asks_which_invoice_a_charge_paid(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Since basil a charge names no invoice, and the webhook of invoice_payment.paid may not be switched on."""
    send(sidecar, paid(life, version=BASIL))
    back = refunded(life, 300, 0, 20, version=BASIL)
    assert send(sidecar, back) == ["pending"]
    asked = superuser.execute(
        "select object_type, asked from stripe.refetches where object_id = %s", [life.name("ch_in")]
    ).fetchall()
    assert asked == [("charge", 1)]
    payment = paid_by(life)["data"]["object"]
    fetched = sidecar.execute(
        "select stripe.receive_fetched('charge', %s, 1, %s, %s)",
        [life.name("ch_in"), json.dumps(payment), datetime.now(UTC)],
    ).fetchone()
    assert fetched == ("applied",)
    assert refunds(superuser, organization.id) == [(f"{life.name('ch_in')}:300", 300)]
    assert value(superuser, "select count(*) from stripe.refetches where object_id = %s", life.name("ch_in")) == 0


def test_what_was_asked_for_meanwhile_is_fetched_once_more(
    superuser: Connection, sidecar: Connection, life: Life
) -> None:
    send(sidecar, refunded(life, 300, 0, 20, version=BASIL), refunded(life, 400, 300, 21, version=BASIL))
    payment = json.dumps(paid_by(life)["data"]["object"])
    for asked, left in ((1, 1), (2, 0)):
        sidecar.execute(
            "select stripe.receive_fetched('charge', %s, %s, %s, now())", [life.name("ch_in"), asked, payment]
        )
        assert (
            value(superuser, "select count(*) from stripe.refetches where object_id = %s", life.name("ch_in")) == left
        )


def test_a_charge_of_no_invoice_waits_quietly_in_the_end(
    superuser: Connection, sidecar: Connection, life: Life
) -> None:
    back = refunded(life, 300, 0, 20, name="elsewhere")
    send(sidecar, back)
    for _ in range(8):
        assert status_of(superuser, back)[0] == "failed"
        sidecar.execute("select * from stripe.apply_event(%s)", [back["id"]])
    assert status_of(superuser, back)[0] == "unlinked"
    send(sidecar, paid(life, "elsewhere"))
    assert status_of(superuser, back)[0] == "applied"


def test_our_invoice_is_paid_and_reopened(
    superuser: Connection, sidecar: Connection, api: Connection, organization: Organization, life: Life
) -> None:
    invoice = issue(superuser, organization, [("usage", 1000)])
    assert send(sidecar, paid(life, metadata={"goldleaves_invoice_id": str(invoice)})) == ["applied"]
    assert payments(superuser, organization.id) == [(life.name("in"), invoice, None, 1000, "stripe")]
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("paid", 1000, 0, 0)
    assert send(sidecar, refunded(life, 300, 0, 20)) == ["applied"]
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("open", 700, 0, 300)


def test_what_is_paid_twice_is_not_lost(
    superuser: Connection, sidecar: Connection, api: Connection, organization: Organization, life: Life
) -> None:
    """The second one is a payment of Stripe's invoice, to be paid back there."""
    invoice = issue(superuser, organization, [("usage", 1000)])
    named = {"goldleaves_invoice_id": str(invoice)}
    assert send(sidecar, paid(life, metadata=named), paid(life, "in_2", metadata=named)) == ["applied", "applied"]
    assert payments(superuser, organization.id) == [
        (life.name("in_2"), None, life.name("in_2"), 1000, "stripe"),
        (life.name("in"), invoice, None, 1000, "stripe"),
    ]
    assert send(sidecar, refunded(life, 1000, 0, 20, "in_2")) == ["applied"]
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("paid", 1000, 0, 0)


@pytest.mark.parametrize("what", ["another organization's", "nonsense", "none", "another currency"])
def test_what_names_no_invoice_of_the_organization_is_of_stripes(
    superuser: Connection,
    sidecar: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    organization: Organization,
    life: Life,
    what: str,
) -> None:
    other = make_organization(shared_database, roles=("owner",))
    named = {
        "another organization's": str(issue(superuser, other, [("usage", 1000)])),
        "nonsense": "../../1",
        "none": "00000000-0000-0000-0000-000000000000",
        "another currency": str(issue(superuser, organization, [("usage", 1000)])),
    }[what]
    currency = "eur" if what == "another currency" else "usd"
    assert send(sidecar, paid(life, metadata={"goldleaves_invoice_id": named}, currency=currency)) == ["applied"]
    assert payments(superuser, organization.id) == [(life.name("in"), None, life.name("in"), 1000, "stripe")]
    assert payments(superuser, other.id) == []


@pytest.mark.parametrize(
    ("currency", "at_stripe", "here"), [("isk", 50_000, 500), ("mga", 500, 50_000), ("kwd", 500, 500)]
)
def test_amounts_are_in_our_minor_units(
    superuser: Connection,
    sidecar: Connection,
    organization: Organization,
    life: Life,
    currency: str,
    at_stripe: int,
    here: int,
) -> None:
    """Stripe has two decimals where ISO has none, and the other way round."""
    send(
        sidecar,
        with_currency(paid(life, total=at_stripe), currency),
        with_currency(refunded(life, at_stripe, 0, 9), currency),
    )
    assert (
        value(superuser, "select sum(amount_cents) from billing.payments where organization_id = %s", organization.id)
        == here
    )
    assert (
        value(superuser, "select sum(amount_cents) from billing.refunds where organization_id = %s", organization.id)
        == here
    )
    assert (
        value(superuser, "select total_cents from stripe.invoices where organization_id = %s", organization.id) == here
    )


def with_currency(event: Json, currency: str) -> Json:
    event["data"]["object"]["currency"] = currency
    return event


def test_nothing_was_paid_of_an_invoice_over_nothing(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    assert send(sidecar, paid(life, total=0)) == ["applied"]
    assert payments(superuser, organization.id) == []


def test_an_invoice_that_was_fetched_is_paid_as_if_it_was_told(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    told = paid(life)
    sidecar.execute(
        "select stripe.receive_fetched('invoice', %s, 1, %s, now())",
        [life.name("in"), json.dumps(told["data"]["object"])],
    )
    before = payments(superuser, organization.id)
    assert before == [(life.name("in"), None, life.name("in"), 1000, "stripe")]
    send(sidecar, told)
    assert payments(superuser, organization.id) == before


def test_no_more_is_paid_back_than_was_paid(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Somebody wrote down by hand what Stripe tells as well: people look at that."""
    invoice = issue(superuser, organization, [("usage", 1000)])
    send(sidecar, paid(life, metadata={"goldleaves_invoice_id": str(invoice)}))
    payment = value(superuser, "select id from billing.payments where reference = %s", life.name("in"))
    superuser.execute("select billing.record_refund(%s, %s, 900, 'by hand', null)", [organization.id, payment])
    back = refunded(life, 300, 0, 20)
    assert send(sidecar, back) == ["pending"]
    assert str(status_of(superuser, back)[1]).startswith("REFUND_TOO_HIGH: ")


def replay(superuser: Connection, events: Sequence[Json]) -> None:
    """As staff has it done, and the sidecar does it."""
    with superuser.transaction():
        superuser.execute("set local role goldleaves_kernel")
        for event in events:
            superuser.execute("select stripe.settle(stripe.read_again(%s), true)", [event["id"]])


def test_what_failed_is_told_once_however_often_it_is_replayed(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    made = fixtures.invoice(life.name("in"), customer=life.customer, subscription=None, total=1000, created=BEGINNING)
    failed = fixtures.event("invoice.payment_failed", made, created=BEGINNING + 5)
    subscription = fixtures.subscription(
        life.name("sub"), customer=life.customer, status="trialing", trial_end=BEGINNING + 3 * 86_400, created=BEGINNING
    )
    ending = fixtures.event("customer.subscription.trial_will_end", subscription, created=BEGINNING + 6)
    told = [failed, ending, paid(life), refunded(life, 300, 0, 20), disputed(life)]
    assert send(sidecar, *told, *told) == ["applied"] * 5 + ["duplicate"] * 5

    def everything() -> list[Any]:
        types = ("payment.failed", "subscription.trial_will_end", "payment.disputed", "subscription.changed")
        return [
            *(messages(superuser, organization.id, type) for type in types),
            payments(superuser, organization.id),
            refunds(superuser, organization.id),
        ]

    before = everything()
    assert [len(one) for one in before] == [1, 1, 1, 1, 1, 1]
    assert before[0][0]["stripe_invoice_id"] == life.name("in")
    ends_at = datetime.fromisoformat(before[1][0]["trial_end"])
    assert ends_at == datetime.fromtimestamp(BEGINNING + 3 * 86_400, UTC)
    replay(superuser, told)
    assert everything() == before

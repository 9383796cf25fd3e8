"""What a subscription at Stripe means here, where that is not only a matter of order: beside subscriptions of our own
and closed periods, at prices that nobody knows, of which the beginning was never told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import psycopg
import pytest

from api.stripe import fixtures
from api.stripe.fixtures import Json
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import roll_up_all
from tests.sql_requests import enter
from tests.stripe_lives import (
    BEGINNING,
    DAY,
    GRACE,
    Life,
    apply_what_is_due,
    expected,
    found,
    link,
    price_plans,
    receive,
)
from tests.subscriptions import call, staff_of
from tests.usage import Connection, event, finalize, ingest, moment, month, value

_number = count()
Timeline = list[tuple[str, str, str | None]]


@pytest.fixture(autouse=True, scope="module")
def prices(shared_database: Database) -> None:
    price_plans(shared_database)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def life(superuser: Connection, organization: Organization) -> Life:
    """A customer of the organization."""
    life = Life(f"s{next(_number)}")
    link(superuser, organization.id, life.customer)
    return life


@pytest.fixture
def price(superuser: Connection) -> Iterator[str]:
    """Of no plan yet."""
    id = f"price_new{next(_number)}"
    yield id
    superuser.execute("delete from stripe.plan_prices where price_id = %s", [id])


def send(sidecar: Connection, *events: Json) -> list[str]:
    return [outcome for one in events for outcome in receive(sidecar, [json.dumps(one)])]


def timeline(superuser: Connection, organization: Organization) -> Timeline:
    """Status, plan and whose, from the first phase to what is planned."""
    return superuser.execute(
        """
        select f.status, f.plan_code, s.managed_by
        from billing.subscription_phases f
        left join billing.subscriptions s on s.organization_id = f.organization_id and s.id = f.subscription_id
        where f.organization_id = %s order by f.starts_at
        """,
        [organization.id],
    ).fetchall()


def now_on(superuser: Connection, organization: Organization) -> tuple[str, str]:
    """Its plan and status now."""
    found = superuser.execute(
        "select o.plan, s.status from tenancy.organizations o, billing.standing(o.id, now()) s where o.id = %s",
        [organization.id],
    ).fetchall()
    return found[0][0], found[0][1]


def as_staff(superuser: Connection, organization: Organization, function: str, **arguments: object) -> Json:
    with superuser.transaction():
        enter(superuser, staff_of(organization))
        return call(superuser, function, **arguments)


def refused(superuser: Connection, organization: Organization, code: str, function: str, **arguments: object) -> None:
    with pytest.raises(psycopg.Error, match=f"^{code}: "):
        as_staff(superuser, organization, function, **arguments)


def status_of(superuser: Connection, id: str) -> tuple[str, str | None]:
    found = superuser.execute("select status, message from stripe.webhook_events where id = %s", [id])
    status, message = found.fetchall()[0]
    return status, message


def told(superuser: Connection, organization: Organization) -> list[Json]:
    rows = superuser.execute(
        """
        select payload from notifications.webhook_messages
        where organization_id = %s and type = 'subscription.changed' order by created_at, id
        """,
        [organization.id],
    ).fetchall()
    return [payload for (payload,) in rows]


# Beside subscriptions of our own


def test_a_subscription_at_stripe_takes_the_place_of_ours(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    as_staff(superuser, organization, "start_subscription", plan="pro", trial_days=60)
    subscription = life.subscribe(39 * DAY, plan="firm")
    send(sidecar, *life.events())
    # Ours began after that, and what it was stays; what was planned of it is off.
    assert timeline(superuser, organization) == [
        ("active", "starter", None),
        ("trialing", "pro", "goldleaves"),
        ("active", "firm", "stripe"),
    ]
    assert now_on(superuser, organization) == ("firm", "active")
    subscription.delete(int(datetime.now(UTC).timestamp()) - BEGINNING + 1)
    send(sidecar, life.events()[-1])
    assert [status for status, _, _ in timeline(superuser, organization)][-1] == "canceled"


def test_what_is_over_at_stripe_takes_nothing_from_ours(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """A subscription that staff made after Stripe's ended, with a trial that ends by itself."""
    subscription = life.subscribe(0)
    subscription.bill(1, "in", ("payment_failed", 2 * DAY), ("paid", 3 * DAY))
    subscription.delete(9 * DAY)
    events = life.events()
    send(sidecar, *events[:3], events[-1])
    assert now_on(superuser, organization) == ("pro", "canceled")
    as_staff(superuser, organization, "start_subscription", plan="firm", trial_days=9)
    before = timeline(superuser, organization)
    assert before[-2:] == [("trialing", "firm", "goldleaves"), ("paused", "firm", "goldleaves")]
    # Late, and again; and one that was begun and never paid.
    life.subscribe(39 * DAY, "sub_b", status="incomplete")
    send(sidecar, *events, *life.events()[-1:])
    life.change_customer(39 * DAY, payment_method="pm_new")
    send(sidecar, life.events()[-1])
    assert timeline(superuser, organization)[-2:] == before[-2:]
    assert now_on(superuser, organization) == ("firm", "trialing")


def test_what_was_never_paid_at_stripe_takes_nothing_from_ours(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """A checkout that was begun and left, while a subscription of our own goes on."""
    began = datetime.fromtimestamp(BEGINNING + 30 * DAY, UTC)
    as_staff(superuser, organization, "start_subscription", plan="firm", trial_days=60, at=began)
    before = timeline(superuser, organization)
    subscription = life.subscribe(31 * DAY, status="incomplete")
    subscription.change(32 * DAY, status="incomplete_expired", ended_at=BEGINNING + 32 * DAY)
    send(sidecar, *life.events())
    assert timeline(superuser, organization) == before
    # Who pays then is Stripe's from that moment on.
    life.subscribe(33 * DAY, "sub_b", status="incomplete").change(34 * DAY, status="active")
    send(sidecar, *reversed(life.events()))
    assert timeline(superuser, organization) == [
        ("active", "starter", None),
        ("trialing", "firm", "goldleaves"),
        ("active", "pro", "stripe"),
    ]
    assert now_on(superuser, organization) == ("pro", "active")


def test_what_staff_gave_after_the_end_stays(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    life.subscribe(0).delete(9 * DAY)
    created, deleted = life.events()
    send(sidecar, deleted)
    as_staff(superuser, organization, "set_plan", plan="firm")
    send(sidecar, created)
    assert now_on(superuser, organization) == ("firm", "active")
    assert timeline(superuser, organization)[-1] == ("active", "firm", None)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("change_subscription", {"plan": "firm"}),
        ("cancel_subscription", {}),
        ("resume_subscription", {}),
        ("pause_subscription", {}),
        ("mark_past_due", {}),
        ("mark_paid", {}),
        ("set_payment_method", {"has_payment_method": True}),
        ("set_plan", {"plan": "firm"}),
    ],
)
def test_staff_changes_it_at_stripe(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, function: str, arguments: Json
) -> None:
    life.subscribe(0)
    send(sidecar, *life.events())
    before = timeline(superuser, organization)
    refused(superuser, organization, "SUBSCRIPTION_AT_STRIPE", function, **arguments)
    refused(superuser, organization, "SUBSCRIPTION_EXISTS", "start_subscription", plan="firm")
    assert timeline(superuser, organization) == before


# What is not known


def test_a_price_that_nobody_knows_holds_up_what_comes_after_it_no_longer_than_it_counts(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, price: str
) -> None:
    subscription = life.subscribe(0, plan=price.removeprefix("price_"))
    subscription.change(DAY, status="past_due")
    unknown, later = life.events()
    assert send(sidecar, unknown) == ["pending"]
    assert str(status_of(superuser, unknown["id"])[1]).startswith("STRIPE_UNKNOWN: ")
    assert timeline(superuser, organization) == []
    assert send(sidecar, later) == ["pending"]
    # Nothing is lost: at a price that is known it counts, and what it was before is taken to be that.
    subscription.change(2 * DAY, status="active", plan="firm")
    assert send(sidecar, life.events()[-1]) == ["applied"]
    assert timeline(superuser, organization) == [
        ("active", "starter", None),
        ("active", "firm", "stripe"),
        ("past_due", "firm", "stripe"),
        ("active", "firm", "stripe"),
    ]
    apply_what_is_due(superuser, sidecar, life.token)
    assert {status_of(superuser, one["id"])[0] for one in (unknown, later)} == {"stale"}
    superuser.execute("select stripe.set_price('pro', %s)", [price])
    life.change_customer(2 * DAY + 1, payment_method="pm_x")
    send(sidecar, life.events()[-1])
    assert timeline(superuser, organization)[1] == ("active", "pro", "stripe")


def test_who_moves_to_a_price_that_nobody_knows_keeps_the_plan_until_somebody_does(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, price: str
) -> None:
    subscription = life.subscribe(0, plan="pro")
    subscription.change(DAY, plan=price.removeprefix("price_"))
    assert send(sidecar, *life.events()) == ["applied", "pending"]
    assert now_on(superuser, organization) == ("pro", "active")
    superuser.execute("select stripe.set_price('firm', %s)", [price])
    apply_what_is_due(superuser, sidecar, life.token)
    assert now_on(superuser, organization) == ("firm", "active")
    assert found(superuser, organization.id, life.token)["subscriptions"][0][2] == "firm"
    assert status_of(superuser, life.events()[-1]["id"])[0] in ("applied", "stale")


def test_a_subscription_to_something_else_is_in_nobodys_way(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, price: str
) -> None:
    other = life.subscribe(0, "sub_support", plan=price.removeprefix("price_"))
    life.subscribe(DAY, "sub", plan="pro")
    assert send(sidecar, *life.events()) == ["pending", "applied"]
    assert now_on(superuser, organization) == ("pro", "active")
    other.delete(2 * DAY)
    assert send(sidecar, life.events()[-1]) == ["applied"]
    assert now_on(superuser, organization) == ("pro", "active")


def test_a_status_that_nobody_knows_leaves_what_was(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    life.subscribe(0).change(DAY, status="hibernating")
    assert send(sidecar, *life.events()) == ["applied", "pending"]
    assert now_on(superuser, organization) == ("pro", "active")


@pytest.mark.parametrize(
    ("status", "before"),
    [("past_due", "active"), ("unpaid", "active"), ("paused", "active"), ("trialing", None), ("active", None)],
)
def test_the_beginning_is_what_came_before_the_first_event(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, status: str, before: str | None
) -> None:
    """So who was linked long after the beginning is not past due since then, without any grace left."""
    subscription = life.subscribe(0)
    subscription.change(30 * DAY, status=status)
    told_last = life.events()[-1]
    del told_last["data"]["previous_attributes"]
    assert send(sidecar, told_last) == ["applied"]
    here = {"unpaid": "past_due"}.get(status, status)
    assert [one for one, _, _ in timeline(superuser, organization)] == ["active", *([before] if before else []), here]


def test_what_the_first_event_says_that_was_before_is_the_beginning(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    subscription = life.subscribe(0, status="trialing", trial_end=BEGINNING + 60 * DAY)
    subscription.change(30 * DAY, status="past_due", plan="firm")
    send(sidecar, life.events()[-1])
    assert timeline(superuser, organization) == [
        ("active", "starter", None),
        ("trialing", "pro", "stripe"),
        ("past_due", "firm", "stripe"),
    ]


def test_several_prices_beside_the_plan(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Metered ones, and others that are of no plan: the one of the plan says it. Of two plans neither does."""
    metered = fixtures.price("price_firm", meter="mtr_x", unit_amount=None, unit_amount_decimal="0.5")
    support = fixtures.price("price_support", unit_amount=900)
    told_of = fixtures.subscription(
        life.name("sub"),
        customer=life.customer,
        prices=[metered, support, fixtures.price("price_pro")],
        created=BEGINNING,
    )
    assert send(sidecar, fixtures.event("customer.subscription.created", told_of, created=BEGINNING)) == ["applied"]
    assert now_on(superuser, organization) == ("pro", "active")
    two = fixtures.subscription(
        life.name("sub"), customer=life.customer, prices=[fixtures.price("price_firm"), fixtures.price("price_pro")]
    )
    assert send(sidecar, fixtures.event("customer.subscription.updated", two, created=BEGINNING + 5)) == ["pending"]
    assert now_on(superuser, organization) == ("pro", "active")


@pytest.mark.parametrize(("members", "is_charged"), [({}, True), ({"unit_amount": 0}, False)])
def test_whether_stripe_charges_the_fee(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life, members: Json, is_charged: bool
) -> None:
    made = fixtures.subscription(
        life.name("sub"), customer=life.customer, prices=[fixtures.price("price_pro", **members)], created=BEGINNING
    )
    send(sidecar, fixtures.event("customer.subscription.created", made, created=BEGINNING))
    assert (
        value(
            superuser,
            "select fee_by_stripe from billing.subscription_phases where organization_id = %s and made_by = 'stripe' "
            "and subscription_id is not null",
            organization.id,
        )
        is is_charged
    )


def test_events_of_the_other_mode_do_nothing(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    life.subscribe(0)
    told_of = life.events()[0] | {"livemode": True}
    outcome = sidecar.execute("select outcome from stripe.receive_events(%s, false)", [[json.dumps(told_of)]])
    assert outcome.fetchone() == ("ignored",)
    assert timeline(superuser, organization) == []


# In time


def test_a_grace_that_was_given_is_not_taken_back(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """PAST_DUE_GRACE_DAYS is of those that become past due from then on."""
    subscription = life.subscribe(0)
    subscription.change(38 * DAY, status="past_due")
    send(sidecar, *life.events())
    try:
        superuser.execute("update billing.defaults set past_due_grace_days = 1")
        subscription.change(38 * DAY + 60, end=BEGINNING + 90 * DAY)
        life.change_customer(38 * DAY + 61, payment_method="pm_x")
        send(sidecar, *life.events())
    finally:
        superuser.execute("update billing.defaults set past_due_grace_days = 7")
    ends = value(
        superuser,
        """
        select extract(epoch from grace_ends_at)::bigint from billing.subscription_phases
        where organization_id = %s and status = 'past_due'
        """,
        organization.id,
    )
    assert ends == BEGINNING + 38 * DAY + GRACE


def test_what_is_finalized_stays_and_what_is_now_is_right(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Events from before the end of a finalized period come after it was finalized."""
    ingest(superuser, [event("a", moment(1, days=3))], organization.id)
    roll_up_all(sidecar)
    closed = finalize(superuser, organization.id, month(1))
    # A life from before that month on, of which all comes late.
    first = int(moment(2, days=10).timestamp()) - BEGINNING
    subscription = life.subscribe(first, plan="pro")
    subscription.change(int(moment(1, days=5).timestamp()) - BEGINNING, plan="firm")
    end = int(moment(0).timestamp()) - BEGINNING
    for order in ([1, 0], [0, 1]):
        send(sidecar, *(life.events()[number] for number in order))
    assert now_on(superuser, organization) == ("firm", "active")
    begins = superuser.execute(
        """
        select min(extract(epoch from starts_at)) filter (where subscription_id is not null), count(*)
        from billing.subscription_phases where organization_id = %s
        """,
        [organization.id],
    ).fetchall()
    assert begins[0][0] >= BEGINNING + end
    assert begins[0][1] == 2
    assert (
        superuser.execute("select * from billing.verify_invoice(%s, %s)", [organization.id, closed.id]).fetchall() == []
    )
    # And a status of now is one of now.
    subscription.change(int(datetime.now(UTC).timestamp()) - BEGINNING - 5, status="past_due")
    send(sidecar, life.events()[-1])
    assert now_on(superuser, organization) == ("firm", "past_due")


def test_an_invoice_and_the_log_agree_with_phases_that_were_made_anew(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    start = int(moment(1, days=2).timestamp()) - BEGINNING
    subscription = life.subscribe(start, plan="pro")
    subscription.change(start + 5 * DAY, plan="firm")
    subscription.change(start + 6 * DAY, plan="starter")
    for told_of in reversed(life.events()):
        send(sidecar, told_of)
    ingest(superuser, [event("a", moment(1, days=12))], organization.id)
    roll_up_all(sidecar)
    closed = finalize(superuser, organization.id, month(1))
    assert (
        superuser.execute("select * from billing.verify_invoice(%s, %s)", [organization.id, closed.id]).fetchall() == []
    )
    # The log has told of each phase that was made and taken away on the way, so nothing was changed behind its back.
    assert (
        superuser.execute("select * from billing.differences_beside_invoices(%s)", [organization.id]).fetchall() == []
    )
    made_by = superuser.execute(
        "select distinct made_by from billing.subscription_phases where organization_id = %s", [organization.id]
    ).fetchall()
    assert made_by == [("stripe",)]


def test_only_what_is_now_is_told(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    subscription = life.subscribe(0, plan="starter")
    subscription.change(DAY, plan="pro")
    subscription.change(2 * DAY, plan="firm")
    created, to_pro, to_firm = life.events()
    send(sidecar, to_firm)
    assert [one["plan"] for one in told(superuser, organization)] == ["firm"]
    # The past becomes better known, which is no news.
    send(sidecar, to_pro, created, to_pro, to_firm)
    assert [one["plan"] for one in told(superuser, organization)] == ["firm"]
    subscription.change(3 * DAY, cancel_at_period_end=True)
    send(sidecar, life.events()[-1])
    assert [(one["plan"], one["cancel_at"] is not None) for one in told(superuser, organization)] == [
        ("firm", False),
        ("firm", True),
    ]


def test_the_plan_follows_where_something_is_only_taken_away(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Two subscriptions: of the later one it turns out that it was over before it began to count."""
    life.subscribe(0, "sub_a", plan="starter")
    later = life.subscribe(DAY, "sub_b", plan="firm")
    later.delete(2 * DAY)
    first, second, over = life.events()
    send(sidecar, first, second)
    assert now_on(superuser, organization) == ("firm", "active")
    send(sidecar, over)
    assert now_on(superuser, organization) == ("starter", "active")
    assert found(superuser, organization.id, life.token) == expected(life)


def test_a_payment_that_failed_long_ago_makes_nobody_past_due(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """The bank says no once more to an invoice that is older than one that was paid since."""
    subscription = life.subscribe(0)
    old = fixtures.invoice(life.name("in_1"), customer=life.customer, subscription=subscription.id, created=BEGINNING)
    new = fixtures.invoice(
        life.name("in_2"), customer=life.customer, subscription=subscription.id, status="paid", created=BEGINNING + DAY
    )
    send(
        sidecar,
        *life.events(),
        fixtures.event("invoice.paid", new, created=BEGINNING + 2 * DAY),
        fixtures.event("invoice.payment_failed", old, created=BEGINNING + 3 * DAY),
    )
    assert now_on(superuser, organization) == ("pro", "active")
    newest = fixtures.invoice(
        life.name("in_3"), customer=life.customer, subscription=subscription.id, created=BEGINNING + 4 * DAY
    )
    send(sidecar, fixtures.event("invoice.payment_failed", newest, created=BEGINNING + 5 * DAY))
    assert now_on(superuser, organization) == ("pro", "past_due")


# Asking Stripe


def same_second(life: Life) -> list[Json]:
    """Two changes, of which neither says what was before."""
    subscription = life.subscribe(0)
    subscription.change(DAY, plan="firm")
    subscription.change(DAY, plan="starter")
    events = life.events()
    for one in events:
        one["data"].pop("previous_attributes", None)
    return events


def asked(superuser: Connection, id: str) -> list[Any]:
    return superuser.execute("select object_type, asked from stripe.refetches where object_id = %s", [id]).fetchall()


def test_where_events_do_not_say_it_stripe_does(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    created, one, other = same_second(life)
    id = life.subscriptions[0].id
    send(sidecar, created, one)
    assert asked(superuser, id) == []
    send(sidecar, other)
    assert asked(superuser, id) == [("subscription", 1)]
    truth = one["data"]["object"]
    sidecar.execute(
        "select stripe.receive_fetched('subscription', %s, 1, %s, %s)", [id, json.dumps(truth), datetime.now(UTC)]
    )
    assert asked(superuser, id) == []
    plan = found(superuser, organization.id, life.token)["subscriptions"][0][2]
    assert (plan, "active") == now_on(superuser, organization)
    assert truth["items"]["data"][0]["price"]["id"] == f"price_{plan}"


def test_what_says_what_was_before_needs_nobody_to_ask(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    subscription = life.subscribe(0)
    subscription.change(DAY, plan="firm")
    subscription.change(DAY, plan="starter")
    send(sidecar, *reversed(life.events()))
    assert asked(superuser, subscription.id) == []
    assert now_on(superuser, organization) == ("starter", "active")


def test_what_comes_of_the_second_that_was_fetched_in_is_fetched_again(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """It may have happened after that."""
    subscription = life.subscribe(0)
    send(sidecar, *life.events())
    snapshot = json.dumps(life.events()[0]["data"]["object"])
    at = datetime.fromtimestamp(BEGINNING + DAY, UTC)
    sidecar.execute("select stripe.receive_fetched('subscription', %s, 1, %s, %s)", [subscription.id, snapshot, at])
    subscription.change(DAY, plan="firm")
    send(sidecar, life.events()[-1])
    assert asked(superuser, subscription.id) == [("subscription", 1)]


def test_a_deletion_is_for_good(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Stripe's servers have clocks of their own: what one says may be a second later than the end, and older."""
    subscription = life.subscribe(0)
    subscription.delete(5 * DAY)
    created, deleted = life.events()
    late = fixtures.event("customer.subscription.updated", created["data"]["object"], created=deleted["created"] + 1)
    for events in ([created, deleted, late], [late, deleted, created]):
        send(sidecar, *events)
        assert now_on(superuser, organization) == ("pro", "canceled")
    assert found(superuser, organization.id, life.token)["subscriptions"][0][1] == "canceled"


# One customer after the other


def test_a_second_customer_waits_until_the_first_is_gone(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Told in the worst order: what the second one has comes first, and that the first one is gone comes last."""
    life.subscribe(0, plan="starter").delete(5 * DAY)
    life.delete_customer(5 * DAY)
    second = Life(f"{life.token}b")
    second.check_out(6 * DAY, organization.id)
    second.subscribe(6 * DAY, plan="firm")
    first_created, first_ended, first_gone = life.events()
    checkout, created = second.events()
    assert send(sidecar, first_created, created, checkout) == ["applied", "unlinked", "pending"]
    assert str(status_of(superuser, checkout["id"])[1]).startswith("CUSTOMER_LINKED: ")
    assert send(sidecar, first_gone, first_ended) == ["applied", "applied"]
    assert now_on(superuser, organization) == ("starter", "canceled")
    apply_what_is_due(superuser, sidecar, second.token)
    assert now_on(superuser, organization) == ("firm", "active")
    assert timeline(superuser, organization) == [
        ("active", "starter", None),
        ("active", "starter", "stripe"),
        ("canceled", "starter", "stripe"),
        ("active", "firm", "stripe"),
    ]

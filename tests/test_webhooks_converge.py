"""Invariant 11: any order, any duplication, any delay of the same events of Stripe ends in the same rows, and in those
that what happened comes to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.harness import Database
from tests.stripe_lives import (
    ALL_ROWS,
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
from tests.usage import Connection, race

_number = count()
LINK = -1  # in an order of events: staff links the customer


@pytest.fixture(autouse=True, scope="module")
def prices(shared_database: Database, superuser: Connection) -> None:
    price_plans(shared_database)
    superuser.execute(
        """
        insert into billing.plan_features (plan_code, feature, kind)
        values ('firm', 'sso', 'boolean'), ('firm', 'audit_export', 'boolean')
        """
    )


def whole(life: Life, organization: UUID) -> None:
    """A trial, active, past due, active, another plan, canceled; and what is paid and paid back on the way."""
    subscription = life.subscribe(10, status="trialing", trial_end=BEGINNING + 7 * DAY)
    life.check_out(10, organization)
    subscription.will_end(4 * DAY)
    subscription.change(7 * DAY, status="active", latest_invoice=life.name("in"))
    subscription.bill(7 * DAY + 1, "in", ("paid", 7 * DAY + 60))
    subscription.bill(12 * DAY, "in_2", ("payment_failed", 12 * DAY + 60), ("paid", 14 * DAY))
    subscription.change(12 * DAY + 61, status="past_due", latest_invoice=life.name("in_2"))
    subscription.change(14 * DAY + 1, status="active")
    subscription.change(15 * DAY, plan="firm")
    life.refund(16 * DAY, "ch_in", 0, 900)
    life.refund(17 * DAY, "ch_in", 900, 4000)
    life.dispute(18 * DAY, "ch_in_2", "in_2")
    life.change_customer(19 * DAY, email="new@x.example", payment_method="pm_new")
    subscription.delete(20 * DAY)


def in_one_second(life: Life, organization: UUID) -> None:
    """Changes of one second, which say what was before."""
    subscription = life.subscribe(0, status="incomplete")
    subscription.change(0, status="active")
    subscription.change(5 * DAY, status="past_due")
    subscription.change(5 * DAY, status="active")
    subscription.change(5 * DAY, status="past_due")
    subscription.change(6 * DAY, plan="firm")
    subscription.change(6 * DAY, status="active")
    subscription.change(6 * DAY, plan="starter")
    subscription.change(6 * DAY, plan="firm")


def over_at_once(life: Life, organization: UUID) -> None:
    subscription = life.subscribe(0, status="active")
    subscription.change(0, plan="firm")
    subscription.delete(0)


def taken_back(life: Life, organization: UUID) -> None:
    """Canceled at the end of the period, not so after all, then so again."""
    subscription = life.subscribe(0)
    subscription.change(3 * DAY, cancel_at_period_end=True, canceled_at=BEGINNING + 3 * DAY)
    subscription.change(4 * DAY, cancel_at_period_end=False, canceled_at=None)
    subscription.change(30 * DAY, start=BEGINNING + 30 * DAY, end=BEGINNING + 90 * DAY)
    subscription.change(31 * DAY, cancel_at_period_end=True, canceled_at=BEGINNING + 31 * DAY)


def standing_still(life: Life, organization: UUID) -> None:
    """A trial without anything to charge ends in a pause, which is resumed; collecting nothing changes nothing."""
    trial: dict[str, Any] = {"status": "trialing", "trial_end": BEGINNING + 5 * DAY, "payment_method": None}
    subscription = life.subscribe(0, **trial, without_payment_method="pause")
    subscription.change(2 * DAY, trial_end=BEGINNING + 6 * DAY)
    subscription.change(6 * DAY, "paused", status="paused")
    subscription.change(9 * DAY, "resumed", status="active", payment_method="pm_card")
    subscription.change(11 * DAY, pause_collection={"behavior": "void", "resumes_at": None})


def one_after_the_other(life: Life, organization: UUID) -> None:
    first = life.subscribe(0, "sub_a", plan="starter")
    first.delete(8 * DAY)
    second = life.subscribe(9 * DAY, "sub_b", plan="firm")
    second.change(20 * DAY, status="past_due")
    second.change(25 * DAY, status="unpaid")


def beside_each_other(life: Life, organization: UUID) -> None:
    first = life.subscribe(0, "sub_a", plan="starter")
    second = life.subscribe(5 * DAY, "sub_b", status="incomplete", plan="firm")
    second.change(6 * DAY, status="active")
    third = life.subscribe(7 * DAY, "sub_c", status="incomplete", plan="pro")
    third.change(8 * DAY, status="incomplete_expired", ended_at=BEGINNING + 8 * DAY)
    second.delete(12 * DAY)
    first.change(14 * DAY, plan="pro")


def given_up(life: Life, organization: UUID) -> None:
    """It fails, and fails, and is paid by nobody; the customer goes."""
    subscription = life.subscribe(0)
    subscription.bill(1, "in", ("paid", 60))
    subscription.bill(30 * DAY, "in_2", ("payment_failed", 30 * DAY + 5), ("marked_uncollectible", 34 * DAY))
    subscription.bill(30 * DAY, "in_3", ("voided", 31 * DAY))
    subscription.change(30 * DAY + 5, status="past_due", latest_invoice=life.name("in_2"))
    subscription.change(33 * DAY, status="unpaid")
    subscription.delete(35 * DAY)
    life.delete_customer(35 * DAY)


def features_and_card(life: Life, organization: UUID) -> None:
    life.subscribe(
        0, status="trialing", trial_end=BEGINNING + 60 * DAY, payment_method=None, without_payment_method="cancel"
    )
    life.have(0, "sso")
    life.have(1, "sso", "audit_export")
    life.change_customer(2, email="a@x.example")
    life.change_customer(2, email="b@x.example", payment_method="pm_card")
    life.change_customer(2, email="a@x.example")
    life.change_customer(3, payment_method=None)
    life.have(3, "audit_export", "An unknown one")


Story = Callable[[Life, UUID], None]
STORIES: list[Story] = [
    whole, in_one_second, over_at_once, taken_back, standing_still, one_after_the_other, beside_each_other, given_up,
    features_and_card,
]  # fmt: skip


def begin(superuser: Connection, story: Story, features: Sequence[str] = ("sso", "audit_export")) -> tuple[Life, UUID]:
    token = f"t{next(_number)}"
    organization = insert_bare_organization(superuser, token)
    life = Life(token)
    story(life, organization)
    life.features = [feature for feature in life.features if feature in features]
    return life, organization


def tell(
    life: Life, organization: UUID, order: Sequence[int], superuser: Connection, sidecar: Connection, at_once: int = 1
) -> None:
    events = [json.dumps(event) for event in life.events()]
    waiting: list[str] = []
    for number in order:
        if number == LINK:
            receive(sidecar, waiting)
            waiting = []
            link(superuser, organization, life.customer)
        else:
            waiting.append(events[number])
        if len(waiting) >= at_once:
            receive(sidecar, waiting)
            waiting = []
    receive(sidecar, waiting)


def rows(superuser: Connection, life: Life, organization: UUID) -> dict[str, list[Any]]:
    """All of them, with nothing that is another one in each life."""
    uuids = {
        str(superuser.execute("select stripe.uuid_of(%s)", [one.id]).fetchall()[0][0]): one.id
        for one in life.subscriptions
    }
    everything: dict[str, list[Any]] = {}
    for name, query in ALL_ROWS.items():
        fetched = superuser.execute(
            f"select to_jsonb(r)::text from ({query} where organization_id = '{organization}') r"
        ).fetchall()
        texts = []
        for (text,) in fetched:
            for uuid, id in uuids.items():
                text = text.replace(uuid, id)
            texts.append(text.replace(f"_{life.token}", ""))
        everything[name] = sorted(texts)
    return everything


def assert_settled(superuser: Connection, life: Life) -> None:
    left = superuser.execute(
        """
        select type, status, message from stripe.webhook_events
        where id like %s and status not in ('applied', 'stale')
          and not (type like 'invoice_payment%%' and status = 'ignored')
        """,
        [f"%_{life.token}"],
    ).fetchall()
    assert left == []


# What the first delivery, in order, of each story ended in.
_rows: dict[str, dict[str, list[Any]]] = {}


def in_order(story: Story, superuser: Connection, sidecar: Connection) -> dict[str, list[Any]]:
    if story.__name__ not in _rows:
        life, organization = begin(superuser, story)
        tell(life, organization, [LINK, *range(len(life.events()))], superuser, sidecar)
        apply_what_is_due(superuser, sidecar, life.token)
        _rows[story.__name__] = rows(superuser, life, organization)
    return _rows[story.__name__]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_in_order_a_life_ends_in_what_happened(superuser: Connection, sidecar: Connection, story: Story) -> None:
    life, organization = begin(superuser, story)
    tell(life, organization, [LINK, *range(len(life.events()))], superuser, sidecar)
    assert found(superuser, organization, life.token) == expected(life)
    assert_settled(superuser, life)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_in_any_order_a_life_ends_in_the_same_rows(
    superuser: Connection, sidecar: Connection, story: Story, data: st.DataObject
) -> None:
    life, organization = begin(superuser, story)
    numbers = range(len(life.events()))
    again = data.draw(st.lists(st.sampled_from([*numbers, LINK]), max_size=5))
    order = data.draw(st.permutations([LINK, *numbers, *again]))
    at_once = data.draw(st.sampled_from([1, 1, 2, 5]))
    note(str([LINK if number == LINK else life.told[number].type for number in order]))
    tell(life, organization, order, superuser, sidecar, at_once)
    apply_what_is_due(superuser, sidecar, life.token)
    assert found(superuser, organization, life.token) == expected(life)
    assert rows(superuser, life, organization) == in_order(story, superuser, sidecar)
    assert_settled(superuser, life)


# Lives that nobody has thought of: what happens next, and how many seconds later.
STATUSES = ("active", "past_due", "unpaid", "paused", "trialing", "incomplete")
HAPPENS = st.one_of(
    st.fixed_dictionaries({"status": st.sampled_from(STATUSES)}),
    st.fixed_dictionaries({"plan": st.sampled_from(("starter", "pro", "firm"))}),
    st.fixed_dictionaries({"cancel_at_period_end": st.booleans()}),
    st.fixed_dictionaries({"cancel_at": st.sampled_from((None, BEGINNING + 20 * DAY, BEGINNING + 70 * DAY))}),
    st.fixed_dictionaries({"trial_end": st.sampled_from((None, BEGINNING + 15 * DAY, BEGINNING + 80 * DAY))}),
    st.fixed_dictionaries({"payment_method": st.sampled_from((None, "pm_card"))}),
    st.just({"delete": True}),
    st.just({"fail": True}),
    st.just({"pay": True}),
)
LATER = st.sampled_from((0, 0, 1, 60, DAY, 5 * DAY))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_life_in_any_order_ends_in_what_happened(
    superuser: Connection, sidecar: Connection, data: st.DataObject
) -> None:
    happens = data.draw(st.lists(st.tuples(st.booleans(), LATER, HAPPENS), min_size=1, max_size=9))

    def story(life: Life, organization: UUID) -> None:
        at, last_invoice_at = 0, -1
        both = [life.subscribe(0, "sub_a"), life.subscribe(data.draw(LATER), "sub_b", plan="firm")]
        at = both[1].begun_at
        over: set[str] = set()
        for number, (which, later, members) in enumerate(happens):
            subscription = both[which]
            at += later
            if {"fail", "pay"} & set(members) or at == last_invoice_at:
                at += 1  # what invoices say comes first in its second, whatever happened
            if subscription.id in over:
                continue
            if "delete" in members:
                subscription.delete(at)
                over.add(subscription.id)
            elif "fail" in members or "pay" in members:
                outcome = "payment_failed" if "fail" in members else "paid"
                subscription.bill(at, f"in_{number}", (outcome, at))
                last_invoice_at = at
            else:
                subscription.change(at, **members)

    life, organization = begin(superuser, story)
    numbers = range(len(life.events()))
    order = data.draw(st.permutations([LINK, *numbers, *data.draw(st.lists(st.sampled_from(numbers), max_size=3))]))
    note(str([(told.type, told.at - BEGINNING) for told in life.told]))
    note(str(order))
    tell(life, organization, order, superuser, sidecar)
    apply_what_is_due(superuser, sidecar, life.token)
    assert found(superuser, organization, life.token) == expected(life)
    assert_settled(superuser, life)


@pytest.mark.parametrize("number", range(2))
def test_eight_who_deliver_lives_at_once_end_in_the_same_rows(
    shared_database: Database, superuser: Connection, sidecar: Connection, number: int
) -> None:
    """Each connection has all events of all lives, in an order of its own."""
    lives = {story.__name__: begin(superuser, story) for story in STORIES}
    for story in STORIES:
        in_order(story, superuser, sidecar)
    events = [json.dumps(event) for life, _ in lives.values() for event in life.events()]

    def deliver(seed: int) -> Callable[[Connection], None]:
        order = Random(f"{number}/{seed}").sample(events, len(events))

        def send(connection: Connection) -> None:
            left = list(order)
            while left:
                size = 1 + seed % 4 * 5
                group, left = left[:size], left[size:]
                states = connection.execute(
                    """
                    select "position", error_state, error_message from stripe.receive_events(%s, null)
                    where error_state is not null
                    """,
                    [group],
                ).fetchall()
                assert {state for _, state, _ in states} <= {"55P03"}, states
                for position, _, _ in states:  # held up: by itself, as the sidecar does it
                    connection.execute("select * from stripe.receive_events(%s, null, true)", [[group[position - 1]]])

        return send

    def link_all(connection: Connection) -> None:
        for life, organization in lives.values():
            link(connection, organization, life.customer)

    race(shared_database, [*(deliver(seed) for seed in range(7)), link_all], role="postgres")
    for name, (life, organization) in lives.items():
        apply_what_is_due(superuser, sidecar, life.token)
        assert found(superuser, organization, life.token) == expected(life), name
        assert rows(superuser, life, organization) == _rows[name], name
        assert_settled(superuser, life)


def test_a_customer_of_very_many_events_can_be_linked(superuser: Connection, sidecar: Connection) -> None:
    """Each is worked out of all of them: the sidecar applies what would take too long."""

    def busy(life: Life, organization: UUID) -> None:
        subscription = life.subscribe(0)
        for number in range(1, 400):
            subscription.change(number * 60, plan=("firm", "starter", "pro")[number % 3])

    life, organization = begin(superuser, busy)
    tell(life, organization, range(len(life.events())), superuser, sidecar, at_once=100)
    superuser.execute("set statement_timeout = '12s'")
    try:
        link(superuser, organization, life.customer)
    finally:
        superuser.execute("reset statement_timeout")
    assert found(superuser, organization, life.token) == expected(life)
    # The sidecar would do the rest, which takes a while, and changes nothing.
    superuser.execute(
        "update stripe.webhook_events set status = 'applied' where status = 'received' and id like %s",
        [f"%_{life.token}"],
    )
    assert_settled(superuser, life)

"""Which periods are due, and what closing them does: in order, after the grace, without an invoice for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, finalize, ingest, moment, month, value

NO_GRACE = timedelta(0)
DEFAULT_GRACE = timedelta(hours=1)


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    """All that a test does is taken back: what is due is asked for all organizations."""
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        yield made


def organization_of(connection: Connection, *, plan: str = "starter") -> UUID:
    made: UUID = value(
        connection,
        """
        with owner as (insert into tenancy.users (subject) values (gen_random_uuid()::text) returning id)
        insert into tenancy.organizations (name, slug, owner_user_id, plan)
        select 'A', 'o-' || left(id::text, 30), id, %s from owner returning id
        """,
        plan,
    )
    return made


def used(connection: Connection, *months_ago: int, quantity: float = 1) -> UUID:
    """An organization that used something in these months, which was recorded then."""
    organization = organization_of(connection)
    for ago in months_ago:
        answer = ingest(connection, [event(f"in {ago}", moment(ago, days=9), quantity=quantity)], organization)
        assert answer.accepted == 1
    connection.execute(
        "update billing.billing_periods set created_at = period_start where organization_id = %s", [organization]
    )
    return organization


def due(
    connection: Connection, grace: timedelta = NO_GRACE, most: int = 100, without: tuple[UUID, ...] = ()
) -> list[tuple[UUID, datetime]]:
    return [
        (organization, start)
        for organization, start, _ in connection.execute(
            "select organization_id, period_start, due_at from billing.due_periods(%s, %s, %s)",
            [grace, most, list(without)],
        )
    ]


def close_all(connection: Connection) -> None:
    while periods := due(connection):
        for period in periods:
            connection.execute("select billing.close_period(%s, %s)", period)


def periods(connection: Connection, organization: UUID) -> list[tuple[datetime, str]]:
    return [
        (start, status)
        for start, status in connection.execute(
            "select period_start, status from billing.billing_periods where organization_id = %s order by 1",
            [organization],
        )
    ]


def invoices(connection: Connection, organization: UUID) -> list[tuple[Any, ...]]:
    return connection.execute(
        """
        select right(number, 4), period_start, total_cents from billing.invoices
        where organization_id = %s order by period_start
        """,
        [organization],
    ).fetchall()


def test_what_has_ended_is_closing_and_then_finalized(connection: Connection) -> None:
    organization = used(connection, 1, 0)
    assert due(connection, timedelta(days=28) if datetime.now().day < 28 else timedelta(days=40)) == []
    assert periods(connection, organization) == [(moment(1), "closing"), (moment(0), "open")]
    # What is late is still taken in.
    assert ingest(connection, [event("late", moment(1, days=2))], organization).accepted == 1
    assert due(connection) == [(organization, moment(1))]
    assert value(connection, "select billing.close_period(%s, %s)", organization, moment(1)) == 1
    assert due(connection) == []
    assert periods(connection, organization) == [(moment(1), "finalized"), (moment(0), "open")]
    assert invoices(connection, organization) == [("0001", moment(1), 50)]


def test_the_grace_counts_from_when_usage_came_to_a_period_that_had_ended(connection: Connection) -> None:
    """Whoever brings usage of a year sends more than one batch of it."""
    organization = organization_of(connection)
    ingest(connection, [event("imported", moment(3, days=2))], organization)
    assert due(connection, DEFAULT_GRACE) == []
    connection.execute("update billing.billing_periods set created_at = created_at - interval '61 minutes'")
    assert due(connection, DEFAULT_GRACE) == [(organization, moment(3))]


def test_periods_are_due_one_after_the_other(connection: Connection) -> None:
    organization = used(connection, 3, 1)
    connection.execute("update billing.billing_periods set created_at = period_start")
    for ago in (3, 2, 1):
        assert due(connection) == [(organization, moment(ago))]
        connection.execute("select billing.close_period(%s, %s)", [organization, moment(ago)])
    assert due(connection) == []
    assert invoices(connection, organization) == [("0001", moment(3), 25), ("0002", moment(1), 25)]


def test_later_periods_are_refused_before_earlier_ones(connection: Connection) -> None:
    organization = used(connection, 2, 1)
    with pytest.raises(psycopg.Error, match=f"PERIOD_OUT_OF_ORDER: the period that starts on {month(2)} comes first"):
        connection.execute("select billing.close_period(%s, %s)", [organization, moment(1)])


def test_closing_twice_does_nothing_the_second_time(connection: Connection) -> None:
    organization = used(connection, 1)
    answers = [value(connection, "select billing.close_period(%s, %s)", organization, moment(1)) for _ in range(2)]
    assert answers == [1, 0]
    assert len(invoices(connection, organization)) == 1


def test_a_period_that_has_not_ended_is_not_closed(connection: Connection) -> None:
    organization = used(connection, 0)
    with pytest.raises(psycopg.Error, match="PERIOD_NOT_ENDED: "):
        connection.execute("select billing.close_period(%s, %s)", [organization, moment(0)])


def test_idle_months_are_closed_without_an_invoice_and_leave_no_gap_in_numbers(connection: Connection) -> None:
    organization = used(connection, 4)
    close_all(connection)
    assert [status for _, status in periods(connection, organization)] == ["finalized"] * 4 + ["open"]
    ingest(connection, [event("again")], organization)
    assert invoices(connection, organization) == [("0001", moment(4), 25)]
    # By hand there is one for each, while the period is open; afterwards it is too late to have one.
    with pytest.raises(psycopg.Error, match=r"BILLING_PERIOD_LOCKED: .* is closed already, and has no invoice"):
        finalize(connection, organization, month(2))


def test_by_hand_there_is_an_invoice_also_for_nothing(connection: Connection) -> None:
    organization = organization_of(connection)
    assert finalize(connection, organization, month(1)).total_cents == 0
    assert periods(connection, organization) == [(moment(1), "finalized"), (moment(0), "open")]


def test_usage_that_costs_nothing_has_an_invoice_that_says_so(connection: Connection) -> None:
    organization = organization_of(connection)
    ingest(connection, [event("free", moment(1, days=3), name="unpriced")], organization)
    close_all(connection)
    assert invoices(connection, organization) == [("0001", moment(1), 0)]


def test_whoever_never_used_anything_has_no_period(connection: Connection) -> None:
    organization = organization_of(connection)
    platform = UUID(int=0)
    ingest(connection, [event("ours", moment(1, days=3))], platform)
    close_all(connection)
    assert periods(connection, organization) == []
    # The platform's own organization uses things, and is never billed.
    assert {status for _, status in periods(connection, platform)} == {"open"}


@pytest.mark.parametrize("owes", ["fee", "minimum"])
def test_a_fee_or_a_minimum_is_due_without_usage(connection: Connection, owes: str) -> None:
    """From the period on in which it is seen first: nobody pays for months before."""
    if owes == "fee":
        connection.execute(
            """
            insert into billing.prices (plan_code, currency, effective_from, model, unit_amount_cents)
            values ('pro', 'usd', %s, 'flat', 4900)
            """,
            [moment(6)],
        )
    else:
        connection.execute(
            """
            insert into billing.prices (
              meter_code, plan_code, currency, effective_from, unit_amount_cents, minimum_cents
            )
            values ('traffic.bytes', 'pro', 'usd', %s, 1, 4900)
            """,
            [moment(6)],
        )
    organization, other = organization_of(connection, plan="pro"), organization_of(connection)
    assert due(connection) == []
    assert periods(connection, organization) == [(moment(0), "open")]
    assert periods(connection, other) == []
    # A month later.
    connection.execute(
        """
        update billing.billing_periods
        set period_start = period_start - interval '1 month', period_end = period_start, created_at = period_start
        where organization_id = %s
        """,
        [organization],
    )
    assert due(connection) == [(organization, moment(1))]
    connection.execute("select billing.close_period(%s, %s)", [organization, moment(1)])
    assert invoices(connection, organization) == [("0001", moment(1), 4900)]
    assert periods(connection, organization)[-1] == (moment(0), "open")


def test_who_pays_when_a_period_ends_is_shown_with_it(
    connection: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    """The month of a conversion is the organization's; those before it are the person's."""
    personal = make_organization(shared_database, kind="personal", roles=("owner",))
    ingest(connection, [event("a", moment(1, days=3)), event("b")], personal.id)
    connection.execute("select billing.ensure_periods(%s, now(), now())", [personal.id])

    def payers() -> list[tuple[Any, ...]]:
        return connection.execute(
            """
            select billing_entity_type, billing_entity_id from api.billing_periods
            where organization_id = %s order by period_start
            """,
            [personal.id],
        ).fetchall()

    person = ("user", personal["owner"].id)
    assert payers() == [person, person]
    connection.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = now() where id = %s", [personal.id]
    )
    assert payers() == [person, ("organization", personal.id)]


def test_those_that_failed_are_left_out_and_those_that_waited_longest_come_first(connection: Connection) -> None:
    late, later, last = used(connection, 1), used(connection, 3), used(connection, 2)
    connection.execute("update billing.billing_periods set created_at = period_start")
    assert due(connection) == [(later, moment(3)), (last, moment(2)), (late, moment(1))]
    assert due(connection, most=1) == [(later, moment(3))]
    assert due(connection, most=1, without=(later,)) == [(last, moment(2))]


def test_nobody_who_writes_usage_is_waited_for(shared_database: Database, make_organization: MakeOrganization) -> None:
    """Their locks, and rows of periods that they hold, are passed over until the next time."""
    held, free = (make_organization(shared_database, roles=("owner",)).id for _ in range(2))
    with shared_database.connect("sidecar") as sidecar, shared_database.connect(autocommit=False) as writer:
        for organization in (held, free):
            ingest(sidecar, [event("a", moment(1, days=3))], organization)
        writer.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        ingest(writer, [event("b", moment(1, days=4))], held)
        sidecar.execute("set lock_timeout = '50ms'")
        assert {organization for organization, _ in due(sidecar)} == {held, free}
        sidecar.execute("reset lock_timeout")
        writer.commit()
        with shared_database.connect() as reader:
            assert periods(reader, free)[0] == (moment(1), "closing")
            assert periods(reader, held)[0] == (moment(1), "open")
        for period in due(sidecar):
            sidecar.execute("select billing.close_period(%s, %s)", period)
        with shared_database.connect() as reader:
            assert invoices(reader, held) == [("0001", moment(1), 50)]


def test_what_lies_before_the_first_closed_period_is_closed_with_it(connection: Connection) -> None:
    organization = used(connection, 1)
    finalize(connection, organization, month(1))
    refused = ingest(connection, [event("earlier", moment(4, days=1))], organization)
    assert [refusal.code for refusal in refused.rejected] == ["BILLING_PERIOD_LOCKED"]
    adjusted = ingest(connection, [event("earlier", moment(4, days=1))], organization, late="adjust")
    assert adjusted.accepted == 1
    assert [status for _, status in periods(connection, organization)] == ["finalized"] * 4 + ["open"]
    for first_day in (month(2), month(7)):
        with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED: "), connection.transaction():
            finalize(connection, organization, first_day)
        with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED: "), connection.transaction():
            connection.execute("select billing.recalculate_period(%s, %s)", [organization, first_day])
    assert len(invoices(connection, organization)) == 1
    # It costs what it costs, in the open period.
    amounts = connection.execute(
        "select amount_cents from billing.recalculate_period(%s, %s)", [organization, month(0)]
    ).fetchall()
    assert amounts == [(25,)]


def test_an_organization_that_can_have_no_period_holds_up_no_other(connection: Connection) -> None:
    """Timezones go away when a server, or the files it reads them from, are upgraded."""
    connection.execute(
        """
        insert into billing.prices (plan_code, currency, model, unit_amount_cents, effective_from)
        values ('firm', 'usd', 'flat', 900, now() - interval '1 year')
        """
    )
    stuck, other, used_it = (
        organization_of(connection, plan="firm"),
        organization_of(connection, plan="firm"),
        used(connection, 1),
    )
    connection.execute("alter table tenancy.organizations disable trigger keep_current_period")
    connection.execute("update tenancy.organizations set billing_timezone = 'Mars/Phobos' where id = %s", [stuck])
    assert due(connection) == [(used_it, moment(1))]
    assert periods(connection, stuck) == []
    assert len(periods(connection, other)) == 1

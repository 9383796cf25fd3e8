"""A change of timezone or anchor day counts from the next period on: no gap, no overlap, no month billed twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, request
from tests.test_periods_are_half_open import ANCHORS, TIMEZONES, assert_chain, periods
from tests.usage import Connection, event, ingest, moment, value

FAR_APART = ("Pacific/Apia", "Pacific/Pago_Pago", "Pacific/Kiritimati", "Asia/Kathmandu", "Australia/Lord_Howe")
MONTH = timedelta(days=31)
# What is left of two days or less belongs to the period after it: timezones are 26 hours apart.
SHIFT = timedelta(hours=48)
SHORTEST = timedelta(hours=48)
CHAIN_STARTS = datetime.now(UTC)  # what lies before is there when the schedule changes, and stays as it is

CHANGES = st.tuples(
    st.sampled_from(TIMEZONES + FAR_APART), st.sampled_from((*ANCHORS, 2, 28)), st.integers(min_value=1, max_value=90)
)


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture(scope="module")
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=1, max_size=5), earlier=st.integers(min_value=0, max_value=90))
def test_whatever_changes_periods_are_one_chain_of_months(
    connection: Connection, organization: Organization, changes: list[tuple[str, int, int]], earlier: int
) -> None:
    """Each change is met by the periods of the days that follow it, and then somebody writes what is older than all."""
    with connection.transaction(force_rollback=True):
        at = CHAIN_STARTS
        for timezone, anchor_day, days in changes:
            connection.execute(
                "update tenancy.organizations set billing_timezone = %s, billing_anchor_day = %s where id = %s",
                [timezone, anchor_day, organization.id],
            )
            at += timedelta(days=days)
            predicted = find(connection, organization.id, at)
            ensure(connection, organization.id, at)
            assert find(connection, organization.id, at) == predicted
        before = CHAIN_STARTS - timedelta(days=earlier)
        predicted = find(connection, organization.id, before)
        ensure(connection, organization.id, before)
        assert find(connection, organization.id, before) == predicted

        found = periods(connection, organization.id)
        assert_chain(found)
        for start, end in found:
            assert SHORTEST < end - start <= MONTH + SHIFT, (start, end)
        # A client names each by its first day.
        named = connection.execute(
            """
            select count(*), count(distinct f.period_start)
            from billing.billing_periods p
            cross join lateral (select (p.period_start at time zone p.timezone)::date as first_day) as d
            cross join lateral billing.period_from_date(p.organization_id, d.first_day) f
            where p.organization_id = %s
            """,
            [organization.id],
        ).fetchone()
        assert named == (len(found), len(found))


def ensure(connection: Connection, organization: UUID, at: datetime) -> None:
    connection.execute("select billing.ensure_periods(%s, %s, %s)", [organization, at, at])


def find(connection: Connection, organization: UUID, at: datetime) -> tuple[Any, ...]:
    found = connection.execute(
        "select period_start, period_end, timezone from billing.find_period(%s, %s)", [organization, at]
    ).fetchone()
    assert found
    return found


@pytest.mark.parametrize("timezone", [*TIMEZONES, *FAR_APART])
@pytest.mark.parametrize("anchor_day", ANCHORS)
def test_months_from_anchor_to_anchor_are_whole(connection: Connection, timezone: str, anchor_day: int) -> None:
    """Also where clocks change at their ends, and where the next month is shorter."""
    wrong = connection.execute(
        """
        select b.period_start, b.period_end
        from generate_series(timestamptz '2025-01-10', timestamptz '2029-01-10', interval '1 month') as g (at)
        cross join lateral billing.period_bounds(%(timezone)s, %(anchor)s, g.at) as b
        where billing.month_seconds(%(timezone)s, b.period_start, b.period_end)
          <> extract(epoch from b.period_end - b.period_start)
        """,
        {"timezone": timezone, "anchor": anchor_day},
    ).fetchall()
    assert wrong == []


def test_the_fee_of_what_is_cut_short_is_by_the_time(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, roles=("owner",))
    with connection.transaction(force_rollback=True):
        connection.execute(
            """
            insert into billing.prices (plan_code, currency, effective_from, model, unit_amount_cents)
            values ('starter', 'usd', now() - interval '1 year', 'flat', 3000)
            """
        )
        ingest(connection, [event("a")], organization.id)
        connection.execute("update tenancy.organizations set billing_anchor_day = 15 where id = %s", [organization.id])
        ensure(connection, organization.id, moment(-2, days=20))
        fees = connection.execute(
            """
            select p.period_end - p.period_start, r.quantity, r.amount_cents
            from billing.billing_periods p
            cross join lateral billing.rate_period(p.organization_id, p.period_start, p.period_end) r
            where p.organization_id = %s and r.kind = 'fee'
            order by p.period_start
            """,
            [organization.id],
        ).fetchall()
        (_, *current), (rest, quantity, amount), (_, *following), *_ = fees
        assert current == following == [1, 3000]
        assert rest == timedelta(days=14)
        days = (moment(-2) - moment(-1)).days
        assert quantity == round(Decimal(14) / days, 6)
        assert amount == (Decimal(3000) * 14 / days).quantize(Decimal(1), ROUND_HALF_UP)


def as_staff(organization: Organization) -> Caller:
    return Caller("platform_admin", "staff", str(organization.id))


def test_staff_changes_it_from_the_next_period_on(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, roles=("owner",))
    ingest(connection, [event("a", moment(1, days=3))], organization.id)
    with shared_database.connect("authenticator") as api, request(api, as_staff(organization)):
        answer = api.execute("select * from api.set_billing_schedule('Asia/Tokyo', 15)").fetchall()
        assert answer == [("Asia/Tokyo", 15, moment(-1))]
        # What is left out stays as it is.
        answer = api.execute("select * from api.set_billing_schedule(billing_anchor_day => 31)").fetchall()
        assert answer == [("Asia/Tokyo", 31, moment(-1))]
        api.execute("reset role")
        assert find(connection, organization.id, datetime.now(UTC))[:2] == (moment(0), moment(-1))


def test_it_counts_at_once_where_nothing_was_used(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, roles=("owner",))
    with shared_database.connect("authenticator") as api, request(api, as_staff(organization)):
        found = api.execute("select * from api.set_billing_schedule('Asia/Tokyo')").fetchone()
        assert found
        starts = value(
            connection, "select period_start from billing.period_bounds('Asia/Tokyo', 1, %s)", datetime.now(UTC)
        )
        assert found == ("Asia/Tokyo", 1, starts)


def test_also_who_changes_it_in_sql_changes_the_next_period(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    """The current period is not there yet when its schedule changes, and is made as it was."""
    organization = make_organization(shared_database, roles=("owner",))
    ingest(connection, [event("a", moment(2, days=3))], organization.id)
    assert len(periods(connection, organization.id)) == 1
    connection.execute(
        "update tenancy.organizations set billing_timezone = 'Pacific/Apia' where id = %s", [organization.id]
    )
    starts = [start for start, _ in periods(connection, organization.id)]
    assert starts == [moment(2), moment(1), moment(0)]
    after = find(connection, organization.id, moment(-1))
    assert after[0] == moment(-1)
    assert after[1] > moment(-2) - timedelta(days=2)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("'Mars/Olympus'", "INVALID_TIMEZONE"),
        ("'EST5EDT4,M3.2.0'", "INVALID_TIMEZONE"),
        ("'+03'", "INVALID_TIMEZONE"),
        ("''", "INVALID_TIMEZONE"),
        ("null, 0", "INVALID_ANCHOR_DAY"),
        ("null, 32", "INVALID_ANCHOR_DAY"),
        ("null, -1", "INVALID_ANCHOR_DAY"),
        ("null, 99999", "INVALID_ANCHOR_DAY"),
    ],
)
def test_nonsense_is_refused(shared_database: Database, organization: Organization, arguments: str, code: str) -> None:
    with shared_database.connect("authenticator") as api, request(api, as_staff(organization)):
        with pytest.raises(psycopg.Error, match=f"{code}: ") as refused:
            api.execute(f"select * from api.set_billing_schedule({arguments})".encode())
        assert refused.value.sqlstate == "PT400"


@pytest.mark.parametrize("role", ["owner", "service"])
def test_only_staff_changes_it(shared_database: Database, organization: Organization, role: str) -> None:
    caller = Caller("service" if role == "service" else "member", organization["owner"].subject, str(organization.id))
    with (
        shared_database.connect("authenticator") as api,
        request(api, caller),
        pytest.raises(psycopg.Error, match="ROLE_REQUIRED: "),
    ):
        api.execute("select * from api.set_billing_schedule('Asia/Tokyo')")

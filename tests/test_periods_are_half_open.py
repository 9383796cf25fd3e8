"""Periods are half-open [start, end) in the organization's timezone, anchored like the 31st is, and leave no gap."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from random import Random
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, finalize, ingest, moment, month, race, value

ANCHORS = (1, 15, 29, 30, 31)
TIMEZONES = (
    "UTC",
    "America/Los_Angeles",
    "Pacific/Auckland",
    "Asia/Kolkata",
    "Pacific/Apia",
    "America/Santiago",  # midnight is skipped in spring
    "America/Havana",  # midnight comes twice in autumn, on a first of November
    "Atlantic/Azores",  # both
)
# Also where it is awkward: the hours around the ends of months, in the middle of which clocks change.
INSTANTS = st.one_of(
    st.datetimes(moment(48).replace(tzinfo=None), moment(-12).replace(tzinfo=None), timezones=st.just(UTC)),
    st.builds(lambda ago, hours: moment(ago, hours=hours), st.integers(-12, 48), st.floats(-40, 40)),
)

Period = tuple[datetime, datetime]


@pytest.fixture(scope="module")
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


def organization_with(
    make_organization: MakeOrganization, database: Database, timezone: str = "UTC", anchor_day: int = 1
) -> UUID:
    organization = make_organization(database, timezone=timezone, roles=("owner",))
    with database.connect() as connection:
        connection.execute(
            "update tenancy.organizations set billing_anchor_day = %s where id = %s", [anchor_day, organization.id]
        )
    return organization.id


def ensure(connection: Connection, organization: UUID, first: datetime, last: datetime | None = None) -> None:
    connection.execute("select billing.ensure_periods(%s, %s, %s)", [organization, first, last or first])


def periods(connection: Connection, organization: UUID) -> list[Period]:
    return [
        (start, end)
        for start, end in connection.execute(
            """
            select period_start, period_end from billing.billing_periods
            where organization_id = %s order by period_start
            """,
            [organization],
        )
    ]


def bounds(connection: Connection, timezone: str, anchor_day: int, at: datetime) -> Period:
    found = connection.execute("select * from billing.period_bounds(%s, %s, %s)", [timezone, anchor_day, at]).fetchone()
    assert found
    return found[0], found[1]


def assert_chain(found: list[Period]) -> None:
    assert all(start < end for start, end in found)
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]


@pytest.mark.parametrize(
    ("anchor_day", "year", "days"),
    [
        (1, 2027, ["01-01", "02-01", "03-01", "04-01"]),
        (15, 2027, ["01-15", "02-15", "03-15", "04-15"]),
        (29, 2027, ["01-29", "02-28", "03-29", "04-29"]),
        (29, 2028, ["01-29", "02-29", "03-29", "04-29"]),
        (30, 2027, ["01-30", "02-28", "03-30", "04-30"]),
        (31, 2027, ["01-31", "02-28", "03-31", "04-30"]),
        (31, 2028, ["01-31", "02-29", "03-31", "04-30"]),
    ],
)
def test_anchors_over_february(connection: Connection, anchor_day: int, year: int, days: list[str]) -> None:
    starts = [datetime.fromisoformat(f"{year}-{day}T00:00:00+00:00") for day in days]
    for start, end in pairwise(starts):
        for at in (start, start + timedelta(days=9), end - timedelta(microseconds=1)):
            assert bounds(connection, "UTC", anchor_day, at) == (start, end)


@pytest.mark.parametrize("timezone", TIMEZONES)
@pytest.mark.parametrize("anchor_day", ANCHORS)
def test_every_half_hour_around_the_anchor_lies_in_its_period(
    connection: Connection, timezone: str, anchor_day: int
) -> None:
    """start <= t < end, starting on the anchor day, each after the other, also in the hours that clocks change in."""
    wrong = connection.execute(
        """
        with hours as (
          select h.at, b.period_start, b.period_end
          from (
            select at
            from generate_series(timestamptz '2026-01-01 00:00Z', '2029-01-01 00:00Z', interval '30 minutes') as g (at)
            where extract(day from at) between %(anchor)s - 1 and %(anchor)s + 1 or extract(day from at) in (1, 28, 29)
          ) as h
          cross join lateral billing.period_bounds(%(timezone)s, %(anchor)s, h.at) as b
        ),
        judged as (
          select
            at, period_start, period_end,
            lag(period_end) over w as previous_end,
            lag(period_start) over w as previous_start,
            (period_start at time zone %(timezone)s)::date as first_day
          from hours
          window w as (order by at)
        )
        select at, period_start, period_end from judged
        where at < period_start
          or at >= period_end
          or (previous_start <> period_start and previous_end <> period_start)
          or extract(day from first_day) <> least(
            %(anchor)s, extract(day from date_trunc('month', first_day) + interval '1 month - 1 day')
          )
          or ((period_start - interval '1 microsecond') at time zone %(timezone)s)::date > first_day
        limit 3
        """,
        {"timezone": timezone, "anchor": anchor_day},
    ).fetchall()
    assert wrong == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    timezone=st.sampled_from(TIMEZONES),
    anchor_day=st.sampled_from(ANCHORS),
    instants=st.lists(INSTANTS, min_size=1, max_size=6),
    data=st.data(),
)
def test_periods_are_one_chain_in_whatever_order_they_are_made(
    connection: Connection,
    chained: UUID,
    timezone: str,
    anchor_day: int,
    instants: list[datetime],
    data: st.DataObject,
) -> None:
    made: list[list[Period]] = []
    for order in (instants, data.draw(st.permutations(instants))):
        with connection.transaction(force_rollback=True):
            connection.execute(
                "update tenancy.organizations set billing_timezone = %s, billing_anchor_day = %s where id = %s",
                [timezone, anchor_day, chained],
            )
            for at in order:
                ensure(connection, chained, at)
                ensure(connection, chained, at)
            made.append(periods(connection, chained))
    assert_chain(made[0])
    assert made[0] == made[1]
    for at in instants:
        containing = [(start, end) for start, end in made[0] if start <= at < end]
        assert containing == [bounds(connection, timezone, anchor_day, at)]


@pytest.fixture(scope="module")
def chained(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return organization_with(make_organization, shared_database)


def test_an_event_in_the_hour_that_midnight_comes_twice_is_accepted(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """In Havana the first hour of 2026-11-01 is lived twice: 04:00 to 05:00 UTC, and again until 06:00."""
    organization = organization_with(make_organization, shared_database, "America/Havana")
    twice = [datetime(2026, 11, 1, 4, 30, tzinfo=UTC), datetime(2026, 11, 1, 5, 30, tzinfo=UTC)]
    with shared_database.connect("sidecar") as connection:
        assert ingest(connection, [event(str(at), at) for at in twice], organization).accepted == 2


def test_an_event_at_the_end_belongs_to_the_next_period(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = organization_with(make_organization, shared_database, "Pacific/Auckland", 31)
    with shared_database.connect() as connection:
        start, end = bounds(connection, "Pacific/Auckland", 31, moment(2))
        microsecond = timedelta(microseconds=1)
        answer = ingest(
            connection,
            [
                event("last of the one before", start - microsecond),
                event("first", start),
                event("last", end - microsecond),
                event("first of the next", end),
            ],
            organization,
        )
        assert answer.accepted == 4
        first_day = "select (%s::timestamptz at time zone 'Pacific/Auckland')::date"
        quantity = "select quantity from billing.invoice_lines where invoice_id = %s"
        before, _ = bounds(connection, "Pacific/Auckland", 31, start - microsecond)
        invoice = finalize(connection, organization, value(connection, first_day, before))
        assert value(connection, quantity, invoice.id) == 1
        invoice = finalize(connection, organization, value(connection, first_day, start))
        assert value(connection, quantity, invoice.id) == 2
        assert_chain(periods(connection, organization))
        # And only they are locked.
        late = ingest(connection, [event("late", end - microsecond), event("in time", end)], organization)
        assert (late.accepted, [refusal.id for refusal in late.rejected]) == (1, ["late"])


def test_only_a_period_that_has_ended_is_finalized(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = organization_with(make_organization, shared_database)
    with shared_database.connect() as connection:
        for first_day in (month(0), month(-1), month(-11)):
            with pytest.raises(psycopg.Error, match="PERIOD_NOT_ENDED: ") as refused:
                finalize(connection, organization, first_day)
            assert refused.value.sqlstate == "PT409"
        assert finalize(connection, organization, month(1)).total_cents == 0


@pytest.mark.parametrize("function", ["finalize_period", "recalculate_period"])
@pytest.mark.parametrize(
    "first_day", [month(1).replace(day=2), date(1999, 1, 1), date(2999, 1, 1), "infinity", "4000-01-01 BC"], ids=str
)
def test_a_day_on_which_no_period_starts_is_not_found(
    shared_database: Database, make_organization: MakeOrganization, function: str, first_day: date | str
) -> None:
    organization = organization_with(make_organization, shared_database)
    with shared_database.connect() as connection:
        with pytest.raises(psycopg.Error, match="PERIOD_NOT_FOUND: ") as refused:
            connection.execute(f"select billing.{function}(%s, %s::date)", [organization, first_day])
        assert refused.value.sqlstate == "PT404"
        assert periods(connection, organization) == []


@pytest.mark.parametrize("timezone", TIMEZONES)
@pytest.mark.parametrize("anchor_day", [1, 31])
def test_the_first_day_of_each_period_finds_it(
    shared_database: Database, make_organization: MakeOrganization, timezone: str, anchor_day: int
) -> None:
    """A client names a period by start_date as the API shows it: before the period exists and after."""
    organization = organization_with(make_organization, shared_database, timezone, anchor_day)
    with shared_database.connect() as connection:
        now = datetime.now(UTC)
        for stored in (False, True):
            if stored:
                ensure(connection, organization, now - timedelta(days=900), now)
            missing = connection.execute(
                """
                select b.period_start
                from generate_series(now() - interval '900 days', now(), interval '20 days') as d (at)
                cross join lateral billing.period_bounds(%(timezone)s, %(anchor)s, d.at) b
                cross join lateral billing.period_from_date(
                  %(organization)s, (b.period_start at time zone %(timezone)s)::date
                ) f
                where f.period_start <> b.period_start
                """,
                {"timezone": timezone, "anchor": anchor_day, "organization": organization},
            ).fetchall()
            assert missing == []


@pytest.mark.parametrize("timezone", ["Pacific/Auckland", "America/Los_Angeles"])
def test_periods_keep_their_first_day_when_the_organization_moves(
    shared_database: Database, make_organization: MakeOrganization, timezone: str
) -> None:
    """What was made in the old timezone stays as it is, the next one fills the gap, and each can still be closed."""
    organization = organization_with(make_organization, shared_database)
    with shared_database.connect() as connection:
        ingest(connection, [event("before", moment(3, days=9))], organization)
        connection.execute(
            "update tenancy.organizations set billing_timezone = %s where id = %s", [timezone, organization]
        )
        ingest(connection, [event("after", moment(1, days=9))], organization)
        assert_chain(periods(connection, organization))
        ended = connection.execute(
            """
            select period_start, (period_start at time zone timezone)::date
            from billing.billing_periods where organization_id = %s and period_end < now() order by 1
            """,
            [organization],
        ).fetchall()
        assert len(ended) >= 2
        for start, first_day in ended:
            invoice = finalize(connection, organization, first_day)
            assert value(connection, "select period_start from billing.invoices where id = %s", invoice.id) == start


def test_what_is_old_enough_to_be_accepted_can_be_invoiced(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """The oldest event that is welcome lies within a period that began before it."""
    organization = organization_with(make_organization, shared_database)
    with shared_database.connect() as connection:
        oldest = value(connection, "select metering.oldest_event_time() + interval '1 minute'")
        assert ingest(connection, [event("oldest", oldest)], organization).accepted == 1
        first_day = value(connection, "select date_trunc('month', %s::timestamptz, 'UTC')::date", oldest)
        if first_day != oldest.date():
            assert finalize(connection, organization, first_day).total_cents == 25
        assert periods(connection, organization)[0][0].date() == first_day


def test_many_writers_make_periods_before_and_after_at_once(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Nobody fails, nobody deadlocks, and the chain is the same as if one writer had made it."""
    random = Random(8)
    for number in range(25):
        timezone, anchor_day = random.choice(TIMEZONES), random.choice(ANCHORS)
        organization = organization_with(make_organization, shared_database, timezone, anchor_day)
        spans = [sorted(moment(random.randrange(4), days=random.randrange(28)) for _ in range(2)) for _ in range(8)]
        spans[:4] = [[moment(3), moment(0)], [moment(0), moment(0)], [moment(3), moment(3)], [moment(2), moment(0)]]
        with shared_database.connect() as connection:
            if number % 2:
                ensure(connection, organization, moment(2, days=9))
            race(
                shared_database,
                [
                    lambda connection, span=span, organization=organization: ensure(  # type: ignore[misc]
                        connection, organization, *span
                    )
                    for span in spans
                ],
                role="postgres",
            )
            made = periods(connection, organization)
            assert_chain(made)
            for at in (at for span in spans for at in span):
                assert bounds(connection, timezone, anchor_day, at) in made

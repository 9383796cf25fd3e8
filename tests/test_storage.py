"""Storage: the level at every moment, snapshots of days of 23, 24 and 25 hours, and rows that were there before."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.sql_requests import Caller, enter, run
from tests.usage import Connection, value

GIB = 2**30


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def store(connection: Connection, organization: UUID, at: datetime, change: int) -> None:
    connection.execute("select metering.ensure_partition(%s)", [at.astimezone(UTC).date()])
    connection.execute(
        """
        insert into metering.usage_events (
          organization_id, occurred_at, source, event_name, quantity, unit, recorded_generation
        ) values (%s, %s, 'test', 'storage.bytes', %s, 'byte', metering.recording_generation())
        """,
        [organization, at, change],
    )


def level(connection: Connection, organization: UUID, at: datetime) -> int:
    return int(value(connection, "select metering.storage_level(%s, %s)", organization, at))


def test_the_level_is_the_sum_of_what_came_and_went(connection: Connection, organization: UUID) -> None:
    """Before, between and after rollups, within an hour and over periods; exact to the byte."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    changes = [
        (now - timedelta(days=70), 3 * GIB + 1),
        (now - timedelta(days=33), -GIB),
        (now - timedelta(hours=5), 7),
        (now + timedelta(minutes=10), -5),
        (now + timedelta(minutes=50), GIB // 2),
    ]

    def check() -> None:
        for at, _ in changes:
            for moment in (at, at + timedelta(microseconds=1), at + timedelta(hours=1)):
                expected = sum(change for when, change in changes if when < moment)
                assert level(connection, organization, moment) == expected, moment

    for at, change in changes[:3]:
        store(connection, organization, at, change)
    connection.execute("select metering.roll_up()")
    for at, change in changes[3:]:
        store(connection, organization, at, change)
    check()
    connection.execute("select metering.roll_up()")
    check()
    late = (now - timedelta(days=50), 11)
    changes.append(late)
    store(connection, organization, *late)
    check()


def test_what_is_shown_is_never_below_zero_and_what_is_stored_is(connection: Connection, organization: UUID) -> None:
    now = datetime.now(UTC)
    store(connection, organization, now - timedelta(days=3), -100)
    assert level(connection, organization, now) == 0
    store(connection, organization, now - timedelta(days=2), 130)
    assert level(connection, organization, now) == 30
    day = (now - timedelta(days=3)).date()
    connection.execute("select metering.take_storage_snapshots(%s, %s)", [day, organization])
    for schema, expected in (("metering", -100), ("api", 0)):
        shown = run(
            connection, f"select bytes from {schema}.storage_snapshots where organization_id = '{organization}'"
        ).fetchall()
        assert shown == [(expected,)]


@pytest.mark.parametrize(
    ("timezone", "day", "ends", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), "2026-03-29T22:00Z", 23),
        ("Europe/Berlin", date(2025, 10, 26), "2025-10-26T23:00Z", 25),
        ("America/Havana", date(2025, 11, 1), "2025-11-02T05:00Z", 25),  # midnight comes twice, the second one counts
        ("Asia/Kolkata", date(2026, 1, 31), "2026-01-31T18:30Z", 24),
    ],
)
def test_a_day_ends_at_midnight_of_its_timezone(
    shared_database: Database,
    make_organization: MakeOrganization,
    connection: Connection,
    timezone: str,
    day: date,
    ends: str,
    hours: int,
) -> None:
    organization = make_organization(shared_database, roles=("owner",), timezone=timezone).id
    end = datetime.fromisoformat(ends)
    for at, change in ((end - timedelta(hours=hours), 1), (end - timedelta(microseconds=1), 10), (end, 100)):
        store(connection, organization, at, change)
    for asked in (day - timedelta(days=1), day, day + timedelta(days=1)):
        connection.execute("select metering.take_storage_snapshots(%s, %s)", [asked, organization])
    taken = connection.execute(
        "select day_end, bytes from metering.storage_snapshots where organization_id = %s order by day", [organization]
    ).fetchall()
    assert taken[1] == (end, Decimal(11))
    assert [stored for _, stored in taken] == [0, 11, 111]
    assert taken[1][0] - taken[0][0] == timedelta(hours=hours)


def test_a_snapshot_stays_until_it_is_made_anew(connection: Connection, organization: UUID) -> None:
    day = datetime.now(UTC).date() - timedelta(days=2)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    store(connection, organization, noon, 40)
    count = "select count(*) from metering.storage_snapshots where organization_id = %s"
    stored = "select bytes from metering.storage_snapshots where organization_id = %s and day = %s"

    connection.execute("select metering.take_storage_snapshots(%s, %s)", [day, organization])
    store(connection, organization, noon, 2)
    # By the clock: what has ended since, and nothing that is there.
    taken = value(connection, "select metering.take_storage_snapshots(null, %s)", organization)
    assert (taken, value(connection, count, organization)) in ((1, 2), (0, 1))  # 0: today is a quarter of an hour old
    assert value(connection, "select metering.take_storage_snapshots(null, %s)", organization) == 0
    assert value(connection, stored, organization, day) == 40

    with connection.transaction(force_rollback=True):
        enter(connection, Caller("platform_admin", "staff", str(organization)))
        assert value(connection, "select api.remake_storage_snapshots(%s)", day) == 1
        connection.execute("reset role")
        assert value(connection, stored, organization, day) == 42


def test_who_may_make_them_anew(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    made = make_organization(shared_database, roles=("owner",))
    with connection.transaction(force_rollback=True):
        enter(connection, Caller("member", made["owner"].subject, made.slug))
        with pytest.raises(psycopg.Error, match="ROLE_REQUIRED"):
            connection.execute("select api.remake_storage_snapshots('2026-01-01')")
    with connection.transaction(force_rollback=True):
        enter(connection, Caller("platform_admin", "staff"))
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)
        with pytest.raises(psycopg.Error, match="DAY_NOT_ENDED"):
            connection.execute("select api.remake_storage_snapshots(%s)", [tomorrow])


FILES = """
create table app.files (
  organization_id uuid not null, id int not null, bytes bigint, primary key (organization_id, id)
);
alter table app.files enable row level security;
alter table app.files force row level security;
"""
METER = "select metering.meter_table('app.files', resource => 'file', storage_column => 'bytes')"


def test_rows_count_from_when_they_are_metered_to_when_they_are_not(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Settled again and again nothing changes, also after a gap in which nothing was recorded."""
    one, two = (make_organization(shared_database, roles=("owner",)).id for _ in range(2))
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):

        def levels() -> tuple[int, int]:
            for _ in range(2):
                connection.execute("select metering.settle_storage()")
            recorded = connection.execute(
                """
                select organization_id, sum(quantity) from metering.usage_events
                where event_name = 'storage.bytes' and dimensions ->> 'resource' = 'file' group by 1
                """
            ).fetchall()
            found = dict(recorded)
            return int(found.get(one, 0)), int(found.get(two, 0))

        def as_migrator(*statements: str) -> None:
            connection.execute("set local role goldleaves_migrator")
            for statement in statements:
                run(connection, statement)
            connection.execute("reset role")

        as_migrator("set local role goldleaves_owner", FILES)
        insert = "insert into app.files values (%s, %s, %s)"
        for row in ((one, 1, 100), (one, 2, 50), (two, 1, 7), (two, 2, None)):
            connection.execute(insert, row)
        assert levels() == (0, 0)

        as_migrator(METER)
        connection.execute(insert, (two, 3, 1))  # before what was there is settled
        assert levels() == (150, 8)
        as_migrator(METER)
        assert levels() == (150, 8)
        forced = "select relforcerowsecurity from pg_class where oid = 'app.files'::regclass"
        assert value(connection, forced) is True

        as_migrator("select metering.unmeter_table('app.files')")
        connection.execute("delete from app.files where organization_id = %s and id = 1", [one])
        as_migrator(METER)
        connection.execute(insert, (one, 4, 5))
        assert levels() == (55, 8)

        run(connection, "drop table app.files")
        assert levels() == (0, 0)
        assert value(connection, "select count(*) from metering.stored_resources where resource = 'file'") == 0

"""Partitions of usage_events are there before they are needed, or made when they are, and as closed as the parent."""

from __future__ import annotations

import time
from datetime import date
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, event, ingest, moment, month, race, value

PARENT = "metering.usage_events"
GUARDS = {"guard_insert", "guard_update_old", "guard_update_new", "guard_delete", "guard_truncate"}


def partitions(connection: Connection) -> dict[str, str]:
    """Names with their bounds."""
    return dict(
        connection.execute(
            """
            select c.relname, pg_get_expr(c.relpartbound, c.oid)
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = %s::regclass order by 1
            """,
            [PARENT],
        ).fetchall()
    )


def name(first: date) -> str:
    return f"usage_events_{first:%Y_%m}"


def assert_closed(connection: Connection) -> None:
    """Each partition has the switches, triggers and indexes of its parent, and no grants."""
    for partition in partitions(connection):
        found = connection.execute(
            """
            select
              relrowsecurity and relforcerowsecurity,
              pg_get_userbyid(relowner),
              (
                select coalesce(array_agg(distinct grantee::regrole::text), '{}')
                from aclexplode(relacl) where grantee <> relowner
              ),
              (select array_agg(tgname::text) from pg_trigger where tgrelid = c.oid and tgenabled = 'O'),
              (select count(*) from pg_index where indrelid = c.oid),
              (select count(*) from pg_policy where polrelid = c.oid)
            from pg_class c where oid = %s::regclass
            """,
            [f"metering.{partition}"],
        ).fetchone()
        assert found
        forced, owner, grantees, triggers, indexes, policies = found
        assert forced, partition
        assert owner == "goldleaves_owner"
        assert grantees == []
        assert set(triggers) >= GUARDS
        assert indexes == value(connection, "select count(*) from pg_index where indrelid = %s::regclass", PARENT)
        assert policies == 0


def assert_whole_months(connection: Connection) -> None:
    for partition, bounds in partitions(connection).items():
        first = date.fromisoformat(partition.removeprefix("usage_events_").replace("_", "-") + "-01")
        following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        assert bounds == f"FOR VALUES FROM ('{first} 00:00:00+00') TO ('{following} 00:00:00+00')"


def test_there_is_no_default_partition(database: Database) -> None:
    """It would take in what has no month, and then no month could be attached any more."""
    with database.connect() as connection:
        connection.execute("select ops.maintain()")
        assert (
            value(connection, "select partdefid from pg_partitioned_table where partrelid = %s::regclass", PARENT) == 0
        )


def test_maintenance_makes_them_ahead(database: Database) -> None:
    with database.connect("sidecar") as sidecar, database.connect() as connection:
        sidecar.execute("set timezone = 'Pacific/Auckland'")  # months are UTC, whatever the session thinks
        sidecar.execute("select ops.maintain()")
        made = partitions(connection)
        assert {name(month(ago)) for ago in (2, 1, 0, -1, -2, -3)} <= set(made)
        assert_whole_months(connection)
        assert_closed(connection)
        sidecar.execute("select ops.maintain()")
        assert partitions(connection) == made


def test_maintenance_by_many_at_once(database: Database) -> None:
    race(database, [lambda connection: connection.execute("select ops.maintain()").fetchall()] * 8)
    with database.connect() as connection:
        assert {name(month(ago)) for ago in (2, 1, 0, -1, -2, -3)} <= set(partitions(connection))
        assert_closed(connection)


def test_an_event_of_a_month_without_partition_makes_it(
    database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(database).id
    with database.connect("sidecar") as sidecar, database.connect() as connection:
        assert name(month(30)) not in partitions(connection)
        assert ingest(sidecar, [event("a", moment(30, days=3))], organization).accepted == 1
        assert name(month(30)) in partitions(connection)
        assert name(month(29)) not in partitions(connection), "only the month of the event"
        assert_whole_months(connection)
        assert_closed(connection)
        for role in ("member", "platform_admin", "service", "anon", "sidecar", "goldleaves_kernel"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"set local role {role}")
                connection.execute(f"select * from metering.{name(month(30))}")


def test_a_document_makes_the_partition_of_its_moment(database: Database, make_organization: MakeOrganization) -> None:
    organization = make_organization(database).id
    with database.connect() as connection:
        for partition in partitions(connection):
            connection.execute(f"drop table metering.{partition}")
        connection.execute("insert into app.documents (organization_id, title) values (%s, 'a')", [organization])
        assert list(partitions(connection)) == [name(month(0))]
        assert_closed(connection)


def test_an_event_at_a_border_of_months_lies_in_the_right_one(
    database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(database).id
    with database.connect() as connection:
        times = [moment(13), moment(13, microseconds=-1), moment(14)]
        ingest(connection, [event(str(at), at) for at in times], organization)
        found = connection.execute(
            "select occurred_at, tableoid::regclass::text from metering.usage_events order by 1"
        ).fetchall()
    assert found == [(at, f"metering.{name(at.date().replace(day=1))}") for at in sorted(times)]


def test_a_batch_that_is_rolled_back_takes_its_partition_with_it(
    database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(database).id
    with database.connect("sidecar", autocommit=False) as connection, database.connect() as watcher:
        assert ingest(connection, [event("a", moment(40))], organization).accepted == 1
        connection.rollback()
        assert name(month(40)) not in partitions(watcher)
        assert ingest(connection, [event("a", moment(40))], organization).accepted == 1
        connection.commit()
        assert name(month(40)) in partitions(watcher)


def test_eight_writers_of_many_missing_months_beside_maintenance(
    database: Database, make_organization: MakeOrganization
) -> None:
    """Nobody deadlocks, nobody finds a partition that another just made in the way, and no event is lost."""
    organizations = [make_organization(database, roles=("owner",)).id for _ in range(8)]
    months = range(4, 52)

    def write(connection: Connection, organization: UUID, turn: int) -> int:
        accepted = 0
        for ago in [*months[turn * 6 :], *months[: turn * 6]]:
            accepted += ingest(connection, [event(str(ago), moment(ago, days=3))], organization).accepted
        return accepted

    def maintain(connection: Connection) -> int:
        for _ in range(10):
            connection.execute("select ops.maintain()")
        return 0

    outcomes = race(
        database,
        [
            lambda connection, organization=organization, turn=turn: write(connection, organization, turn)
            for turn, organization in enumerate(organizations)
        ]
        + [maintain, maintain],
    )
    assert outcomes == [len(months)] * 8 + [0, 0]
    with database.connect() as connection:
        assert value(connection, "select count(*) from metering.usage_events") == len(months) * 8
        assert {name(month(ago)) for ago in months} <= set(partitions(connection))
        assert_closed(connection)


def test_two_writers_of_the_same_missing_month(database: Database, make_organization: MakeOrganization) -> None:
    """The second one waits for the first one's partition and then sees it."""
    organizations = [make_organization(database, roles=("owner",)).id for _ in range(2)]
    for ago in range(20, 30):

        def write(connection: Connection, organization: UUID, ago: int = ago) -> int:
            return ingest(connection, [event(str(ago), moment(ago, days=1))], organization).accepted

        with database.connect("sidecar", autocommit=False) as first:
            assert write(first, organizations[0]) == 1

            def late_commit(_: Connection, first: Connection = first) -> int:
                time.sleep(0.05)
                first.commit()
                return 1

            second = organizations[1]
            assert race(
                database,
                [lambda connection, write=write, second=second: write(connection, second), late_commit],  # type: ignore[misc]
            ) == [1, 1]


def test_maintenance_does_not_wait_for_readers_and_writers(
    database: Database, make_organization: MakeOrganization
) -> None:
    """A report that runs for hours, or a long import, must not stop the partitions of next month, nor the other way."""
    organization = make_organization(database).id
    with (
        database.connect("sidecar") as sidecar,
        database.connect(autocommit=False) as reader,
        database.connect("sidecar", autocommit=False) as writer,
    ):
        ingest(sidecar, [event("first")], organization)
        reader.execute("select count(*) from metering.usage_events")
        assert ingest(writer, [event("second")], organization).accepted == 1
        sidecar.execute("set lock_timeout = '2s'")
        sidecar.execute("select ops.maintain()")
        assert ingest(sidecar, [event("third", moment(33))], organization).accepted == 1
        writer.commit()

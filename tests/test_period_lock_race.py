"""An event that commits while its period is being finalized is either on that invoice or refused, never neither."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from threading import Barrier, Thread
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Connection, event, finalize, ingest, moment, month, race, value

ROUNDS = 30
LOCKED = "PT409"

Write = Callable[[Connection, UUID, str], bool]


@pytest.fixture(scope="module")
def database(shared_database: Database) -> Database:
    with shared_database.connect() as connection:
        connection.execute("select ops.maintain()")
    return shared_database


def partition(when: datetime) -> str:
    return f"metering.usage_events_{when:%Y_%m}"


def ingested(connection: Connection, organization: UUID, key: str) -> bool:
    answer = ingest(connection, [event(key, moment(1, days=9))], organization)
    assert answer.accepted or [refusal.code for refusal in answer.rejected] == ["BILLING_PERIOD_LOCKED"]
    return answer.accepted == 1


def insert_into(table: str, connection: Connection, organization: UUID, key: str) -> bool:
    connection.execute(
        f"""
        insert into {table} (
          organization_id, occurred_at, source, idempotency_key, event_name, quantity, recorded_generation
        )
        values (%s, %s, 'sql', %s, 'api.request', 1, 1)
        """,
        [organization, moment(1, days=9), key],
    )
    return True


def inserted(connection: Connection, organization: UUID, key: str) -> bool:
    return insert_into("metering.usage_events", connection, organization, key)


def inserted_into_partition(connection: Connection, organization: UUID, key: str) -> bool:
    return insert_into(partition(moment(1, days=9)), connection, organization, key)


WRITES: tuple[Write, ...] = (ingested, inserted, inserted_into_partition)
SNAPSHOTS = (IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)


def commit_one(connection: Connection, write: Write, organization: UUID, key: str) -> bool:
    """Write one event and commit. False when it was refused; any other error is a failure of the test."""
    try:
        accepted = write(connection, organization, key)
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        assert error.sqlstate in (LOCKED, "40001"), error
        return False
    return accepted


def on_invoice(connection: Connection, organization: UUID) -> Decimal:
    found: Decimal = value(
        connection,
        "select coalesce(sum(quantity), 0) from billing.invoice_lines where organization_id = %s",
        organization,
    )
    return found


def in_period(connection: Connection, organization: UUID) -> int:
    found: int = value(
        connection,
        """
        select count(*) from metering.usage_events
        where organization_id = %s and occurred_at >= %s and occurred_at < %s
        """,
        organization,
        moment(1),
        moment(0),
    )
    return found


def test_rounds_of_writers_against_the_finalizer(database: Database, make_organization: MakeOrganization) -> None:
    """Half of the organizations have no period row before the round: a row that is missing is no open door."""
    random = Random(6)
    organizations = [make_organization(database, roles=("owner",)).id for _ in range(ROUNDS)]
    writers = [(write, IsolationLevel.READ_COMMITTED) for write in WRITES] + [
        (write, level) for level, write in zip(SNAPSHOTS * 2, WRITES + WRITES[:1], strict=False)
    ]
    delays = [random.uniform(0, 0.02) for _ in organizations]
    ready = Barrier(len(writers) + 1)
    committed: list[list[int]] = [[0] * len(organizations) for _ in writers]
    refused: list[list[int]] = [[0] * len(organizations) for _ in writers]
    errors: list[BaseException] = []

    def write_all(number: int, write: Write, level: IsolationLevel) -> None:
        try:
            with database.connect(autocommit=False) as connection:
                connection.isolation_level = level
                for index, organization in enumerate(organizations):
                    connection.execute("select 1")  # what takes the snapshot, where there is one for the transaction
                    ready.wait(60)
                    for copy in range(6):
                        accepted = commit_one(connection, write, organization, f"{number}-{copy}")
                        (committed if accepted else refused)[number][index] += 1
                    connection.rollback()
                    ready.wait(60)
        except BaseException as error:
            errors.append(error)
            ready.abort()

    threads = [Thread(target=write_all, args=(number, *writer)) for number, writer in enumerate(writers)]
    with database.connect() as connection:
        for thread in threads:
            thread.start()
        try:
            for index, organization in enumerate(organizations):
                if index % 2:
                    ingest(connection, [event("makes the period", moment(1, days=1), name="unpriced")], organization)
                ready.wait(60)
                time.sleep(delays[index])
                finalize(connection, organization, month(1))
                ready.wait(60)
        except BaseException as error:
            ready.abort()
            errors.append(error)
        for thread in threads:
            thread.join()
        for failure in errors:
            raise failure

        for index, organization in enumerate(organizations):
            there = in_period(connection, organization) - index % 2
            assert there == sum(counts[index] for counts in committed), "committed is what is there"
            assert there == on_invoice(connection, organization), f"round {index}: an event is on no invoice"
    # A round in which nobody was refused, or nobody came through, would prove nothing.
    assert sum(map(sum, committed)) > ROUNDS
    assert sum(map(sum, refused)) > ROUNDS


@pytest.mark.parametrize("known", [True, False], ids=["period exists", "no period yet"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("level", SNAPSHOTS, ids=lambda level: level.name)
def test_a_snapshot_from_before_the_finalization_writes_nothing_after_it(
    database: Database, make_organization: MakeOrganization, level: IsolationLevel, write: Write, known: bool
) -> None:
    organization = make_organization(database, roles=("owner",)).id
    with database.connect() as finalizer, database.connect(autocommit=False) as writer:
        if known:
            ingest(finalizer, [event("makes the period", moment(1, days=1), name="unpriced")], organization)
        writer.isolation_level = level
        writer.execute("select count(*) from billing.billing_periods")
        finalize(finalizer, organization, month(1))
        assert not commit_one(writer, write, organization, "late")
        assert in_period(finalizer, organization) == int(known)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
def test_the_finalizer_waits_for_a_writer_and_then_sees_what_it_wrote(
    database: Database, make_organization: MakeOrganization, write: Write, commits: bool
) -> None:
    organization = make_organization(database, roles=("owner",)).id
    with database.connect() as finalizer, database.connect(autocommit=False) as writer:
        assert write(writer, organization, "in flight")
        closing = Thread(target=finalize, args=(finalizer, organization, month(1)))
        closing.start()
        wait_for_a_waiter(database)
        if commits:
            writer.commit()
        else:
            writer.rollback()
        closing.join()
        assert on_invoice(finalizer, organization) == int(commits)
        assert in_period(finalizer, organization) == int(commits)


def wait_for_a_waiter(database: Database) -> None:
    with database.connect() as watcher:
        deadline = time.monotonic() + 20
        while not value(
            watcher,
            """
            select count(*) from pg_locks
            where locktype = 'advisory' and not granted
              and database = (select oid from pg_database where datname = current_database())
            """,
        ):
            assert time.monotonic() < deadline, "nobody waits for the period lock"
            time.sleep(0.005)


@pytest.mark.parametrize(
    "busy",
    [
        "billing.take_ledger_lock(%s)",
        "pg_advisory_xact_lock(hashtextextended('goldleaves.prices', 0 * length(%s)))",
    ],
    ids=["ledger", "prices"],
)
def test_a_finalizer_does_not_hold_up_writers_for_who_writes_a_payment_or_a_price(
    database: Database, make_organization: MakeOrganization, busy: str
) -> None:
    organization = make_organization(database).id
    with database.connect() as slow, database.connect() as finalizer:
        ingest(finalizer, [event("in time", moment(1, days=2))], organization)
        with slow.transaction():
            slow.execute("select " + busy, [str(organization)])
            finalizer.execute("set statement_timeout = '20s'")
            with pytest.raises(psycopg.Error, match="PERIOD_BUSY") as refused:
                finalize(finalizer, organization, month(1))
            assert refused.value.sqlstate == "PT503"
        assert finalize(finalizer, organization, month(1)).total_cents == 25


@pytest.mark.parametrize("level", SNAPSHOTS, ids=lambda level: level.name)
def test_a_finalizer_with_a_snapshot_of_its_own_is_refused(
    database: Database, make_organization: MakeOrganization, level: IsolationLevel
) -> None:
    organization = make_organization(database, roles=("owner",)).id
    with database.connect(autocommit=False) as connection:
        connection.isolation_level = level
        with pytest.raises(psycopg.Error, match="ISOLATION_LEVEL: "):
            finalize(connection, organization, month(1))


def test_many_finalizations_at_once_make_one_invoice(database: Database, make_organization: MakeOrganization) -> None:
    organization = make_organization(database, roles=("owner",)).id
    with database.connect() as connection:
        ingest(connection, [event("a", moment(1, days=1))], organization)
        issued = race(database, [lambda connection: finalize(connection, organization, month(1))] * 8, role="postgres")
        assert len(set(issued)) == 1
        assert value(connection, "select count(*) from billing.invoices where organization_id = %s", organization) == 1


def test_one_call_that_closes_many_organizations_costs_their_writers_nothing(
    database: Database, make_organization: MakeOrganization
) -> None:
    """`select finalize_period(id, …) from organizations` is what a scheduler writes; the spool sends mixed batches."""
    organizations = [make_organization(database, roles=("owner",)).id for _ in range(12)]

    def write(connection: Connection) -> int:
        batches = [
            [
                event(f"{number}-{index}", moment(1, days=1), organization_id=str(organization))
                for index, organization in enumerate(organizations)
            ]
            for number in range(12)
        ]
        return sum(ingest(connection, batch, source=str(id(connection))).accepted for batch in batches)

    def close(connection: Connection) -> int:
        time.sleep(0.02)
        try:
            connection.execute(
                """
                select billing.finalize_period(id, %s)
                from unnest(%s::uuid[]) as o (id)
                order by billing.period_lock_slot(id) desc
                """,
                [month(1), organizations],
            )
        except psycopg.Error as error:
            assert (error.sqlstate or "").startswith("PT"), error  # a refusal that says what to do, nothing else
        return 0

    race(database, [write, write, write, close], role="postgres")
    with database.connect() as connection:
        for organization in organizations:
            finalize(connection, organization, month(1))
            assert in_period(connection, organization) == on_invoice(connection, organization)


def test_several_schedulers_close_many_organizations_while_all_of_them_are_written_to(
    database: Database, make_organization: MakeOrganization
) -> None:
    """What is accepted counts once: on the invoice of its month, or as an adjustment in the next one."""
    organizations = [make_organization(database, roles=("owner",)).id for _ in range(16)]
    with database.connect("sidecar") as connection:
        for organization in organizations:
            ingest(connection, [event("makes the period", moment(1, days=1))], organization)

    def write(connection: Connection) -> int:
        batches = [
            [
                event(f"{number}-{index}", moment(1, days=number + 1), organization_id=str(organization))
                for index, organization in enumerate(organizations)
            ]
            for number in range(10)
        ]
        return sum(
            ingest(connection, batch, source=str(connection.info.backend_pid), late="adjust").accepted
            for batch in batches
        )

    def close(connection: Connection) -> int:
        query = "select organization_id, period_start from billing.due_periods('0', 5)"
        while due := connection.execute(query).fetchall():
            for period in due:
                connection.execute("select billing.close_period(%s, %s)", period)
        return 0

    written = sum(race(database, [write] * 8 + [close] * 3)) + len(organizations)
    assert written == (8 * 10 + 1) * len(organizations)
    with database.connect() as connection:
        adjusted = 0
        for organization in organizations:
            late = value(
                connection,
                "select count(*) from metering.usage_events where organization_id = %s and belongs_at is not null",
                organization,
            )
            invoices = "select count(*) from billing.invoices where organization_id = %s"
            assert value(connection, invoices, organization) == 1
            assert in_period(connection, organization) == on_invoice(connection, organization)
            assert in_period(connection, organization) + late == 8 * 10 + 1
            open_period = "select coalesce(sum(quantity), 0) from billing.recalculate_period(%s, %s)"
            assert value(connection, open_period, organization, month(0)) == late
            adjusted += late
    assert 0 < adjusted < written


def short_period(connection: Connection, organization: Organization, end: datetime) -> None:
    """Let the current period end in a moment, so that events which happen now cross its end."""
    connection.execute(
        """
        insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
        values (%s, date_trunc('day', %s::timestamptz, 'UTC'), %s, 'UTC')
        """,
        [organization.id, end - timedelta(milliseconds=500), end],
    )


def test_what_happens_while_the_period_ends_is_on_its_invoice_or_in_the_next_one(
    database: Database, make_organization: MakeOrganization
) -> None:
    """Document triggers and the gateway are never refused: what they write at the end of a period finds its place."""
    rounds = 0
    for number in range(30):
        if rounds == 6:
            break
        organization = make_organization(database, roles=("owner",))
        with database.connect() as connection:
            end = datetime.now(UTC) + timedelta(milliseconds=250)
            short_period(connection, organization, end)
            stop = end + timedelta(milliseconds=100)

            def upload(connection: Connection, organization: Organization = organization, stop: datetime = stop) -> int:
                count = 0
                while datetime.now(UTC) < stop:
                    connection.execute(
                        "insert into app.documents (organization_id, title) values (%s, 'a'), (%s, 'b')",
                        [organization.id, organization.id],
                    )
                    count += 2
                return count

            def pass_gateway(
                connection: Connection, organization: Organization = organization, stop: datetime = stop
            ) -> int:
                count = 0
                while (now := datetime.now(UTC)) < stop:
                    batch = [event(f"{id(connection)}-{count}", now - timedelta(milliseconds=count % 40))]
                    assert ingest(connection, batch, organization.id, source="gateway", late="adjust").accepted == 1
                    count += 1
                return count

            def close(connection: Connection, organization: Organization = organization, end: datetime = end) -> int:
                first_day = (end - timedelta(milliseconds=500)).date()
                while True:
                    try:
                        finalize(connection, organization.id, first_day)
                        return 0
                    except psycopg.Error as error:
                        assert "PERIOD_NOT_ENDED" in str(error)
                        time.sleep(0.002)

            written = sum(race(database, [upload, upload, upload, pass_gateway, pass_gateway, close], role="postgres"))
            counted = connection.execute(
                """
                select
                  count(*),
                  count(*) filter (where occurred_at < %s),
                  count(*) filter (where event_type = 'adjustment' and (occurred_at < %s or belongs_at >= %s))
                from metering.usage_events where organization_id = %s
                """,
                [end, end, end, organization.id],
            ).fetchone()
            assert counted
            everything, before, misplaced = counted
            assert everything == written
            assert before == on_invoice(connection, organization.id), f"round {number}"
            rounds += 0 < before < everything  # nothing crossed the end where the processors were busy elsewhere
            assert misplaced == 0
    assert rounds == 6

"""Who pays follows from an event's own time: before billing_start_at the user, from it on the organization. It is
decided when the event is recorded, no writer gets past a conversion, and each payer has an invoice of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from threading import Barrier, Event, Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel

from tests.conftest import MakeOrganization
from tests.harness import Database, RunningStack
from tests.observe import eventually, metered_since
from tests.usage import Connection, event, finalize, ingest, moment, month, value

ROUNDS = 12
SERIALIZATION_FAILURE = "40001"
MICROSECOND = timedelta(microseconds=1)
START = moment(1, days=10)

_number = count(1)


@dataclass(frozen=True)
class Personal:
    """A personal organization, and the person who pays for it."""

    id: UUID
    user: UUID

    def payer(self, at: datetime, start: datetime | None) -> tuple[str, UUID]:
        """What invariant 9 says."""
        return ("user", self.user) if start is None or at < start else ("organization", self.id)


@pytest.fixture(scope="module")
def database(shared_database: Database) -> Database:
    with shared_database.connect() as connection:
        connection.execute("select ops.maintain()")
    return shared_database


@pytest.fixture(scope="module")
def connection(database: Database) -> Iterator[Connection]:
    with database.connect() as made:
        yield made


def make_personal(connection: Connection) -> Personal:
    slug = f"person-{next(_number)}"
    found = connection.execute(
        """
        with person as (insert into tenancy.users (subject) values (%(slug)s) returning id),
        made as (
          insert into tenancy.organizations (kind, name, slug, owner_user_id, billing_user_id)
          select 'personal', %(slug)s, %(slug)s, id, id from person
          returning id, owner_user_id
        )
        insert into tenancy.memberships (organization_id, user_id, role)
        select id, owner_user_id, 'owner' from made
        returning organization_id, user_id
        """,
        {"slug": slug},
    ).fetchone()
    assert found
    return Personal(*found)


@pytest.fixture(scope="module")
def personal(connection: Connection) -> Personal:
    """For tests that take back what they did."""
    return make_personal(connection)


def convert_at(connection: Connection, personal: Personal, start: datetime) -> None:
    """Let the conversion have been then."""
    connection.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [start, personal.id],
    )


def convert(connection: Connection, personal: Personal) -> datetime:
    """As its owner does."""
    with connection.transaction():
        connection.execute(
            """
            select
              set_config('app.current_org', %s, true),
              set_config('app.current_user_id', %s, true),
              set_config('app.current_org_role', 'owner', true)
            """,
            [str(personal.id), str(personal.user)],
        )
        start: datetime = value(
            connection,
            "select billing_start_at from tenancy.convert_to_organization('Firm', %s)",
            f"firm-{personal.id}",
        )
    return start


@dataclass(frozen=True)
class Recorded:
    key: str | None
    at: datetime
    payer: tuple[str, UUID]


def recorded(connection: Connection, organization: UUID) -> list[Recorded]:
    rows = connection.execute(
        """
        select idempotency_key, coalesce(belongs_at, occurred_at), billing_entity_type, billing_entity_id
        from metering.usage_events where organization_id = %s
        """,
        [organization],
    ).fetchall()
    return [Recorded(key, at, (kind, payer)) for key, at, kind, payer in rows]


@dataclass(frozen=True)
class Issued:
    payer: tuple[str, UUID]
    number: str
    total_cents: Decimal
    lines: tuple[tuple[Any, ...], ...]


def invoices(connection: Connection, organization: UUID, months_ago: int) -> list[Issued]:
    """In the order of their numbers."""
    rows = connection.execute(
        """
        select billing_entity_type, billing_entity_id, number, total_cents, id
        from billing.invoices where organization_id = %s and period_start = %s order by number
        """,
        [organization, moment(months_ago)],
    ).fetchall()
    return [Issued((kind, payer), number, total, lines(connection, id)) for kind, payer, number, total, id in rows]


def lines(connection: Connection, invoice: UUID) -> tuple[tuple[Any, ...], ...]:
    rows = connection.execute(
        """
        select meter_code, events, quantity, amount_cents from billing.invoice_lines
        where invoice_id = %s order by line_number
        """,
        [invoice],
    ).fetchall()
    numbers = connection.execute(
        "select array_agg(line_number order by line_number) from billing.invoice_lines where invoice_id = %s", [invoice]
    ).fetchone()
    assert numbers
    assert (numbers[0] or []) == list(range(1, len(rows) + 1))
    return tuple(rows)


def summary(connection: Connection, organization: UUID, months_ago: int, function: str) -> list[tuple[Any, ...]]:
    with connection.transaction():
        connection.execute("select set_config('app.current_org', %s, true)", [str(organization)])
        arguments = {"usage_summary": "%(day)s", "recalculate_period": "%(org)s, %(day)s"}[function]
        return connection.execute(
            f"select meter, events, quantity, amount_cents from billing.{function}({arguments}) order by meter",
            {"org": organization, "day": month(months_ago)},
        ).fetchall()


def added_up(issued: Sequence[Issued]) -> list[tuple[Any, ...]]:
    """The lines of all invoices, a row a meter."""
    sums: dict[str, tuple[int, Decimal, Decimal]] = {}
    for code, events, quantity, amount in (line for one in issued for line in one.lines):
        before = sums.get(code, (0, Decimal(), Decimal()))
        sums[code] = (before[0] + events, before[1] + quantity, before[2] + amount)
    return [(code, *sums[code]) for code in sorted(sums)]


@contextmanager
def taken_back(connection: Connection) -> Iterator[None]:
    with connection.transaction(force_rollback=True):
        yield


# The rule

EDGES = [timedelta(), MICROSECOND, -MICROSECOND, START - moment(1), moment(1) - START, moment(0) - START - MICROSECOND]
OFFSETS = st.one_of(st.sampled_from(EDGES), st.timedeltas(moment(2) - START, moment(0) - START - MICROSECOND))
WAYS = st.sampled_from([("api", "reject"), ("gateway", "adjust")])
BATCHES = st.lists(st.tuples(OFFSETS, WAYS, st.decimals("0.1", "9", places=1)), max_size=6)


@settings(max_examples=40, deadline=None)
@given(before=BATCHES, after=BATCHES)
@example(before=[], after=[])
@example(before=[(-MICROSECOND, ("api", "reject"), Decimal(1))], after=[(timedelta(), ("api", "reject"), Decimal(1))])
def test_an_event_is_paid_by_whoever_pays_at_its_own_time(
    connection: Connection,
    personal: Personal,
    before: list[tuple[timedelta, tuple[str, str], Decimal]],
    after: list[tuple[timedelta, tuple[str, str], Decimal]],
) -> None:
    """Events of the month before are late: its period is finalized, so the gateway's become adjustments."""
    with taken_back(connection):
        # A half cent, which the guard of prices would let count from now on only.
        connection.execute("set local session_replication_role = replica")
        connection.execute("update billing.prices set unit_amount_cents = 0.5 where meter_code = 'api.request'")
        connection.execute("set local session_replication_role = origin")
        finalize(connection, personal.id, month(2))

        sent: dict[str, datetime] = {}

        def send(name: str, offset: timedelta, way: tuple[str, str], quantity: Decimal) -> None:
            at, (source, late) = START + offset, way
            answer = ingest(
                connection, [event(name, at, quantity=float(quantity))], personal.id, source=source, late=late
            )
            assert answer.accepted == int(late == "adjust" or at >= moment(1))
            if answer.accepted:
                sent[name] = at

        for number, (offset, way, quantity) in enumerate(before):
            if offset < timedelta():  # what is recorded lies before the moment of a conversion
                send(f"before {number}", offset, way, quantity)
        convert_at(connection, personal, START)
        for number, (offset, way, quantity) in enumerate(after):
            send(f"after {number}", offset, way, quantity)

        there = recorded(connection, personal.id)
        assert {each.key: each.at for each in there} == sent
        for each in there:
            assert each.payer == personal.payer(each.at, START), each

        expected = summary(connection, personal.id, 1, "recalculate_period")
        assert summary(connection, personal.id, 1, "usage_summary") == expected
        last = finalize(connection, personal.id, month(1))
        issued = invoices(connection, personal.id, 1)
        assert [one.payer for one in issued] == [("user", personal.user), ("organization", personal.id)]
        assert [int(one.number[5:]) for one in issued] == [2, 3]
        assert (last.number, last.total_cents) == (issued[1].number, issued[1].total_cents)
        assert finalize(connection, personal.id, month(1)) == last
        for one in issued:
            assert one.total_cents == sum(line[-1] for line in one.lines)
            assert sum(line[1] for line in one.lines) == sum(
                each.payer == one.payer and each.at >= moment(1) for each in there
            )
        assert added_up(issued) == expected == summary(connection, personal.id, 1, "usage_summary")


def test_a_person_pays_for_a_personal_organization(connection: Connection, personal: Personal) -> None:
    with taken_back(connection):
        ingest(connection, [event("last month", moment(1, days=3)), event("now")], personal.id)
        connection.execute("insert into app.documents (organization_id, title) values (%s, 'a')", [personal.id])
        assert {each.payer for each in recorded(connection, personal.id)} == {("user", personal.user)}
        finalize(connection, personal.id, month(1))
        assert [one.payer for one in invoices(connection, personal.id, 1)] == [("user", personal.user)]


def test_an_organization_that_was_founded_has_always_paid(
    connection: Connection, database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(database, roles=("owner",)).id
    with taken_back(connection):
        ingest(connection, [event("last month", moment(1, days=3)), event("now")], organization)
        connection.execute("insert into app.documents (organization_id, title) values (%s, 'a')", [organization])
        assert {each.payer for each in recorded(connection, organization)} == {("organization", organization)}
        finalize(connection, organization, month(1))
        assert [one.payer for one in invoices(connection, organization, 1)] == [("organization", organization)]


def test_one_batch_for_many_payers(connection: Connection, database: Database) -> None:
    """The spool and a backend send mixed batches."""
    people = [make_personal(connection) for _ in range(5)]
    starts = [None, START, START + MICROSECOND, moment(1), moment(0)]
    with taken_back(connection):
        for person, start in zip(people, starts, strict=True):
            if start is not None:
                convert_at(connection, person, start)
        times = [START, START - MICROSECOND, START + MICROSECOND, moment(1), moment(0)]
        batch = [
            event(f"{number} {person.id}", at, organization_id=str(person.id))
            for number, at in enumerate(times)
            for person in people
        ]
        assert ingest(connection, batch).accepted == len(batch)
        for person, start in zip(people, starts, strict=True):
            there = recorded(connection, person.id)
            assert sorted(each.at for each in there) == sorted(times)
            assert all(each.payer == person.payer(each.at, start) for each in there)


# Invoices

BEFORE, FIRST, LAST = moment(1) - MICROSECOND, moment(1), moment(0) - MICROSECOND


@pytest.mark.parametrize(
    ("start", "payers"),
    [
        pytest.param(BEFORE, ["organization"], id="in the period before"),
        pytest.param(FIRST, ["organization"], id="with its first moment"),
        pytest.param(FIRST + MICROSECOND, ["user", "organization"], id="after its first moment"),
        pytest.param(LAST, ["user", "organization"], id="with its last moment"),
        pytest.param(LAST + MICROSECOND, ["user"], id="with the next period"),
    ],
)
def test_a_period_has_an_invoice_for_each_who_pays_in_it(
    connection: Connection, personal: Personal, start: datetime, payers: list[str]
) -> None:
    """Also one of nothing."""
    with taken_back(connection):
        convert_at(connection, personal, start)
        finalize(connection, personal.id, month(1))
        assert [one.payer[0] for one in invoices(connection, personal.id, 1)] == payers


def test_an_adjustment_of_a_time_before_is_on_an_invoice_of_who_paid_then(
    connection: Connection, personal: Personal
) -> None:
    """It counts in a period in which the organization alone pays, and yet not for the organization."""
    with taken_back(connection):
        finalize(connection, personal.id, month(2))
        convert_at(connection, personal, moment(2, days=3))
        late = [event("early", moment(2, days=1), quantity=4), event("later", moment(2, days=9), quantity=2)]
        assert ingest(connection, late, personal.id, source="gateway", late="adjust").accepted == 2
        # As if they had come a month ago: the current period cannot be finalized yet.
        connection.execute(
            "update metering.usage_events set occurred_at = %s where organization_id = %s", [START, personal.id]
        )
        finalize(connection, personal.id, month(1))
        user, organization = invoices(connection, personal.id, 1)
        assert (user.payer, user.total_cents) == (("user", personal.user), Decimal(100))
        assert (organization.payer, organization.total_cents) == (("organization", personal.id), Decimal(50))


# A conversion among writers


def test_what_is_recorded_ahead_of_time_comes_before_the_conversion(connection: Connection) -> None:
    personal = make_personal(connection)
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    ingest(connection, [event("ahead", ahead), event("now")], personal.id)
    start = convert(connection, personal)
    assert start == ahead + MICROSECOND
    ingest(connection, [event("at", start), event("just before", start - MICROSECOND), event("still")], personal.id)
    payers = {each.key: each.payer[0] for each in recorded(connection, personal.id)}
    assert payers == {"ahead": "user", "now": "user", "just before": "user", "still": "user", "at": "organization"}


Write = Callable[[Connection, UUID], bool]


def send_now(connection: Connection, organization: UUID) -> bool:
    return ingest(connection, [event(f"{next(_number)}")], organization).accepted == 1


def send_ahead(connection: Connection, organization: UUID) -> bool:
    at = datetime.now(UTC) + timedelta(minutes=4)
    return ingest(connection, [event(f"{next(_number)}", at)], organization).accepted == 1


def send_late(connection: Connection, organization: UUID) -> bool:
    at = datetime.now(UTC) - timedelta(milliseconds=20)
    return (
        ingest(connection, [event(f"{next(_number)}", at)], organization, source="gateway", late="adjust").accepted == 1
    )


def upload(connection: Connection, organization: UUID) -> bool:
    connection.execute("insert into app.documents (organization_id, title) values (%s, 'a')", [organization])
    return True


def process(connection: Connection, organization: UUID) -> bool:
    connection.execute(
        """
        insert into app.documents (organization_id, title) values (%s, 'a') on conflict do nothing;
        """,
        [organization],
    )
    changed = connection.execute(
        """
        update app.documents set status = 'processed'
        where organization_id = %s and id = (
          select id from app.documents where organization_id = %s and status = 'uploaded' limit 1 for update skip locked
        )
        """,
        [organization, organization],
    )
    return changed.rowcount == 1


def wait_for_a_waiter(connection: Connection) -> None:
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    assert eventually(lambda: value(connection, waiting), bool)


def written(connection: Connection, write: Write, organization: UUID) -> bool:
    """Write and commit. False when it is to be tried again; any other error is a failure of the test."""
    try:
        done = write(connection, organization)
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        assert error.sqlstate == SERIALIZATION_FAILURE, error
        return False
    return done


WRITERS: tuple[tuple[Write, IsolationLevel], ...] = (
    (send_now, IsolationLevel.READ_COMMITTED),
    (send_late, IsolationLevel.READ_COMMITTED),
    (upload, IsolationLevel.READ_COMMITTED),
    (process, IsolationLevel.READ_COMMITTED),
    (send_now, IsolationLevel.REPEATABLE_READ),
    (upload, IsolationLevel.SERIALIZABLE),
)


def test_rounds_of_writers_against_a_conversion(database: Database, connection: Connection) -> None:
    """Every writer has written before it and writes after it: none is refused, and every event has the right payer."""
    people = [make_personal(connection) for _ in range(ROUNDS)]
    converted = [Event() for _ in people]
    writing = Barrier(len(WRITERS) + 1)
    starts: list[datetime] = []
    failures: list[BaseException] = []

    def write_all(write: Write, level: IsolationLevel) -> None:
        try:
            with database.connect(autocommit=False) as own:
                own.isolation_level = level
                for index, (person, done) in enumerate(zip(people, converted, strict=True)):
                    ahead = write is send_now and index % 3 == 0
                    while not written(own, send_ahead if ahead else write, person.id):
                        pass
                    writing.wait(60)
                    while not done.is_set():
                        written(own, write, person.id)
                    while not written(own, write, person.id):
                        pass
        except BaseException as error:
            failures.append(error)
            writing.abort()

    threads = [Thread(target=write_all, args=writer) for writer in WRITERS]
    for thread in threads:
        thread.start()
    try:
        for person, done in zip(people, converted, strict=True):
            writing.wait(60)
            starts.append(convert(connection, person))
            done.set()
    except BaseException as error:
        failures.append(error)
        writing.abort()
    for done in converted:
        done.set()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure

    for index, (person, start) in enumerate(zip(people, starts, strict=True)):
        there = recorded(connection, person.id)
        assert [each for each in there if each.payer != person.payer(each.at, start)] == []
        payers = [each.payer[0] for each in there]
        assert payers.count("user") >= len(WRITERS)
        # Where something was recorded ahead of time, the organization pays some minutes later.
        assert index % 3 == 0 or payers.count("organization") >= len(WRITERS)


@pytest.mark.parametrize("write", [send_now, send_late, upload], ids=lambda write: write.__name__)
def test_a_writer_that_waited_for_a_conversion_sees_it(
    database: Database, connection: Connection, write: Write
) -> None:
    personal = make_personal(connection)
    with (
        database.connect() as converting,
        database.connect(autocommit=False) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        with converting.transaction():
            start = convert(converting, personal)
            waiting = pool.submit(written, writer, write, personal.id)
            wait_for_a_waiter(connection)
        assert waiting.result()
    [there] = recorded(connection, personal.id)
    assert there.payer == personal.payer(there.at, start)


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize("write", [send_ahead, upload], ids=lambda write: write.__name__)
def test_a_conversion_comes_after_what_it_waited_for(
    database: Database, connection: Connection, write: Write, commits: bool
) -> None:
    personal = make_personal(connection)
    with (
        database.connect() as converting,
        database.connect(autocommit=False) as writer,
        ThreadPoolExecutor(1) as pool,
    ):
        assert write(writer, personal.id)
        start = pool.submit(convert, converting, personal)
        wait_for_a_waiter(connection)
        if commits:
            writer.commit()
        else:
            writer.rollback()
        there = recorded(connection, personal.id) if start.result() else []
    assert len(there) == int(commits)
    assert all(each.at < start.result() and each.payer == ("user", personal.user) for each in there)


@pytest.mark.parametrize("write", [send_now, send_late, upload], ids=lambda write: write.__name__)
@pytest.mark.parametrize(
    "level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE], ids=lambda level: level.name
)
def test_a_snapshot_from_before_the_conversion_writes_nothing_after_it(
    database: Database, connection: Connection, level: IsolationLevel, write: Write
) -> None:
    personal = make_personal(connection)
    ingest(connection, [event("makes the period")], personal.id)
    with database.connect(autocommit=False) as writer:
        writer.isolation_level = level
        writer.execute("select count(*) from tenancy.organizations")
        start = convert(connection, personal)
        assert not written(writer, write, personal.id)
        assert written(writer, write, personal.id), "the next snapshot sees it"
    there = recorded(connection, personal.id)
    assert len(there) == 2
    assert all(each.payer == personal.payer(each.at, start) for each in there)


# As a filter


def test_what_the_user_paid_is_found_without_reading_what_the_organization_paid(
    connection: Connection, personal: Personal
) -> None:
    with taken_back(connection):
        connection.execute(
            """
            insert into metering.usage_events (
              organization_id, occurred_at, source, event_name, quantity, recorded_generation, payer_user_id
            )
            select %s, %s::timestamptz + n * interval '1 second', 'sql', 'api.request', 1, 1,
              case when n < 20 then %s::uuid end
            from generate_series(1, 5000) n
            """,
            [personal.id, moment(1), personal.user],
        )
        connection.execute("analyze metering.usage_events")
        connection.execute(
            """
            select
              set_config('app.current_org', %s, true), set_config('app.current_org_role', 'owner', true),
              set_config('role', 'member', true)
            """,
            [str(personal.id)],
        )
        plan = "".join(
            line
            for (line,) in connection.execute(
                """
                explain (analyze, costs off) select id from api.usage_events
                where billing_entity_type = 'user' order by ts desc limit 10
                """
            )
        )
    assert "Index Cond" in plan
    assert "Rows Removed by Filter" not in plan


def test_who_pays_is_a_filter(stack: RunningStack) -> None:
    with stack.client("ada|converts", email="ada@converts.example") as ada:
        assert ada.get("/api/v1/cases").status_code == 200
        [before] = ada.get("/api/v1/organizations").json()
        organization, user = before["id"], ada.get("/api/v1/memberships").json()[0]["user_id"]
        assert ada.post("/api/v1/documents", json={"title": "before"}).status_code == 201
        metered_since(stack, ada, UUID(organization))

        after = ada.post("/api/v1/rpc/convert_to_organization", json={"name": "Ada's", "slug": "adas"})
        assert after.status_code == 200, after.text
        assert after.json()["id"] == organization
        assert ada.post("/api/v1/documents", json={"title": "after"}).status_code == 201
        metered_since(stack, ada, UUID(organization))

        def read(path: str, **filters: str) -> list[dict[str, Any]]:
            answer = ada.get(f"/api/v1/{path}", params={"limit": "1000", **filters})
            assert answer.status_code == 200, answer.text
            found: list[dict[str, Any]] = answer.json()
            return found

        start = after.json()["billing_start_at"]
        for view, time in [("usage_events", "ts"), ("billing_events", "occurred_at")]:
            users = read(view, billing_entity_type="eq.user")
            organizations = read(view, billing_entity_id=f"eq.{organization}")
            assert {row["billing_entity_id"] for row in users} == {user}
            assert {row["billing_entity_type"] for row in organizations} == {"organization"}
            assert max(row[time] for row in users) < start <= min(row[time] for row in organizations)
            for rows in (users, organizations):
                assert {row["event_name"] for row in rows} == {"api.request", "doc.upload", "traffic.bytes"}

        with stack.client("backend", role="service", org=organization) as backend:
            sent = backend.post("/v1/events", json=[event("late", moment(1, days=3))])
            assert sent.json()["accepted"] == 1
        with stack.client("staff", role="platform_admin", org=organization) as staff:
            made = staff.post("/api/v1/rpc/finalize_period", json={"period_start": str(month(1))})
            assert made.status_code == 200, made.text
        assert (made.json()["billing_entity_type"], made.json()["billing_entity_id"]) == ("user", user)
        assert read("invoices", billing_entity_type="eq.user") == [made.json()]
        assert read("invoices", billing_entity_id=f"eq.{organization}") == []

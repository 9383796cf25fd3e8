"""Invariant 10: rollups equal events, at every moment. Rolled-up buckets plus what is not rolled up yet are compared
with a plain aggregate of the rows, written here without any of the functions under test, in one snapshot.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from threading import Event
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
from tests.usage import Connection, event, ingest, value

ZERO = Decimal(0)
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAYS = tuple(TODAY - timedelta(days=n) for n in (4, 3, 2, 1, 0))

METERS = """
insert into metering.meters
  (code, event_name, aggregation, value, filter, group_by, allow_negative, unit, unit_size, description) values
  ('t.sum', 't', 'sum', 'dimensions.n', '{}', '{k}', false, 'unit', 1, 'test'),
  ('t.count', 't', 'count', 'quantity', '{"k": ["0", "1"]}', '{}', false, 'unit', 1, 'test'),
  ('t.max', 't', 'max', 'quantity', '{}', '{k}', false, 'unit', 1, 'test'),
  ('t.min', 't', 'min', 'quantity', '{}', '{}', false, 'unit', 1, 'test'),
  ('t.latest', 't', 'latest', 'quantity', '{}', '{k}', false, 'unit', 1, 'test'),
  ('t.unique', 't', 'unique', 'user_id', '{}', '{k}', false, 'unit', 1, 'test'),
  ('s.hours', 's', 'weighted_sum', 'quantity', '{}', '{}', true, 'byte-hour', 1, 'test')
"""

RAW = """
select
  occurred_at, id, event_type, corrects, event_name, quantity, user_id,
  dimensions ->> 'k', (dimensions ->> 'n')::numeric
from metering.usage_events
where organization_id = %s
"""


@dataclass(frozen=True)
class Row:
    at: datetime
    id: UUID
    type: str
    corrects: UUID | None
    name: str
    quantity: Decimal
    user: str | None
    k: str | None
    n: Decimal | None


Result = dict[tuple[int, str, str | None], tuple[int, Decimal]]  # bucket, meter, k: events and quantity


@pytest.fixture(scope="module")
def metered(shared_database: Database) -> Database:
    with shared_database.connect() as superuser:
        superuser.execute(METERS)
    return shared_database


@pytest.fixture
def connections(metered: Database) -> Iterator[Callable[..., Connection]]:
    opened: list[Connection] = []

    def connect(role: str | None = None, *, autocommit: bool = True) -> Connection:
        opened.append(metered.connect(role, autocommit=autocommit) if role else metered.connect(autocommit=autocommit))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def _aggregated(code: str, rows: Sequence[Row]) -> Decimal:
    match code:
        case "sum":
            return sum((row.n or ZERO for row in rows), ZERO)
        case "count":
            return Decimal(len(rows))
        case "max":
            return max((row.quantity for row in rows), default=ZERO)
        case "min":
            return min((row.quantity for row in rows), default=ZERO)
        case "latest":
            return max(rows, key=lambda row: (row.at, row.id)).quantity if rows else ZERO
        case _:
            return Decimal(len({row.user for row in rows if row.user is not None}))


def expected(rows: Sequence[Row], bounds: Sequence[datetime], *, by_k: bool) -> Result:
    voided = {row.corrects for row in rows if row.type == "void"}
    result: dict[tuple[int, str, str | None], list[Any]] = {}
    for number, (start, end) in enumerate(pairwise(bounds), 1):
        groups: dict[str | None, list[Row]] = defaultdict(list)
        inside = [row for row in rows if start <= row.at < end]
        for row in inside:
            if row.name == "t":
                groups[row.k if by_k else None].append(row)
        whole: dict[str | None, list[Row]] = {None: [row for row in inside if row.name == "t"]}
        for code, keeps in (
            ("sum", True),
            ("count", False),
            ("max", True),
            ("min", False),
            ("latest", True),
            ("unique", True),
        ):
            for k, members in (groups if keeps else whole).items():
                counted = [row for row in members if code != "count" or row.k in ("0", "1")]
                left = [row for row in counted if row.type != "void" and row.id not in voided]
                if not counted:
                    continue
                quantity = _aggregated(code, left)
                if code == "unique" and all(row.user is None for row in counted):
                    continue
                events = len([row for row in left if row.user is not None]) if code == "unique" else len(left)
                result[number, f"t.{code}", k] = [events, quantity]
        before = sum((row.quantity for row in rows if row.name == "s" and row.at < start), ZERO)
        seconds = Decimal((end - start) // timedelta(microseconds=1)) / 1_000_000
        area = before * seconds + sum(
            (
                row.quantity * (Decimal((end - row.at) // timedelta(microseconds=1)) / 1_000_000)
                for row in inside
                if row.name == "s"
            ),
            ZERO,
        )
        events = sum(-1 if row.type == "void" else 1 for row in inside if row.name == "s")
        if events or area:
            result[number, "s.hours", None] = [events, max(area, ZERO) / 3600]
    return {key: (events, round(quantity, 6)) for key, (events, quantity) in result.items()}


def measured(connection: Connection, organization: UUID, bounds: Sequence[datetime], *, by_k: bool) -> Result:
    found = connection.execute(
        "select bucket, meter_code, groups ->> 'k', events, quantity from metering.measure(%s, %s, %s) where metered",
        [organization, list(bounds), ["k"] if by_k else []],
    ).fetchall()
    return {(bucket, code, k): (events, round(quantity, 6)) for bucket, code, k, events, quantity in found}


def assert_equal(connection: Connection, organization: UUID, *bounds: Sequence[datetime]) -> None:
    """All in one snapshot."""
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read")
        rows = [Row(*row) for row in connection.execute(RAW, [organization])]
        for some in bounds:
            for by_k in (False, True):
                assert measured(connection, organization, some, by_k=by_k) == expected(rows, some, by_k=by_k)


def some_event(chance: random.Random, key: str, *, days: Sequence[datetime] = DAYS) -> dict[str, Any]:
    seconds = chance.randrange(int((days[-1] - days[0]).total_seconds()))
    at = days[0] + timedelta(seconds=seconds if chance.random() < 0.8 else seconds // 3600 * 3600)
    if chance.random() < 0.2:
        return event(key, at, name="s", quantity=chance.randrange(1, 1000))
    dimensions = {"k": str(chance.randrange(4)), "n": chance.randrange(100)}
    return event(
        key, at, name="t", quantity=chance.randrange(1000), user_id=f"u{chance.randrange(9)}", dimensions=dimensions
    )


def roll_up(connection: Connection, most: int = 200_000) -> dict[str, Any]:
    answer: dict[str, Any] = value(connection, "select metering.roll_up(%s)", most)
    return answer


def prime(connection: Connection, organization: UUID) -> None:
    """Make the periods, which nobody else can make while a transaction that did so is open."""
    ingest(connection, [event("first", DAYS[0], name="t"), event("last", name="t")], organization)


def rolled_up_events(connection: Connection, organization: UUID, code: str = "t.max") -> int:
    query = """
        select coalesce(sum(events), 0) from metering.usage_rollups
        where organization_id = %s and grain = 'hour' and meter_code = %s
    """
    return int(value(connection, query, organization, code))


def test_random_writers_voids_rollups_and_readers_agree_at_every_moment(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization = make_organization(metered).id
    hourly = [DAYS[0] + timedelta(hours=n) for n in range(0, 97)]
    done = Event()

    def write(number: int) -> int:
        chance, connection, sent = random.Random(number), connections("sidecar"), 0
        for batch in range(40):
            events = [some_event(chance, f"{number}-{batch}-{n}") for n in range(chance.choice((1, 3, 20)))]
            sent += ingest(connection, events + events[:1], organization).accepted
        return sent

    def void(number: int) -> int:
        chance, connection, voided = random.Random(number), connections("sidecar"), 0
        while voided < 30:
            key = f"{chance.randrange(3)}-{chance.randrange(40)}-{chance.randrange(3)}"
            try:
                connection.execute("select metering.void_event(%s, %s)", [organization, key])
                voided += 1
            except psycopg.Error as error:
                assert "EVENT_NOT_FOUND" in str(error)
                assert not done.wait(0.01)
        return voided

    def keep_rolling() -> None:
        chance, connection = random.Random(99), connections("sidecar")
        while not done.is_set():
            roll_up(connection, chance.choice((1, 10, 1000)))

    def keep_reading() -> int:
        connection, readings = connections(), 0
        while not done.is_set() or readings < 3:
            assert_equal(connection, organization, DAYS, (DAYS[0], DAYS[-1]))
            readings += 1
        return readings

    with ThreadPoolExecutor(7) as pool:
        rolling, reading = pool.submit(keep_rolling), pool.submit(keep_reading)
        writing = [pool.submit(write, number) for number in range(3)]
        voiding = [pool.submit(void, number) for number in range(2)]
        try:
            sent = sum(one.result() for one in writing)
            voided = sum(one.result() for one in voiding)
        finally:
            done.set()
        rolling.result()
        assert reading.result() >= 3
    assert sent > 500
    assert voided == 60

    last = connections()
    roll_up_all(connections("sidecar"))
    assert value(last, "select count(*) from metering.unique_values where events < 0") == 0
    assert_equal(
        last, organization, DAYS, (DAYS[0], DAYS[-1]), hourly, [DAYS[0], DAYS[1] + timedelta(minutes=7), DAYS[-1]]
    )


def test_a_transaction_that_commits_late_is_neither_lost_nor_doubled(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization = make_organization(metered).id
    late, early, roller, reader = (
        connections("sidecar", autocommit=False),
        connections("sidecar"),
        connections("sidecar"),
        connections(),
    )
    chance = random.Random(7)

    prime(early, organization)
    roll_up_all(roller)
    before = rolled_up_events(reader, organization)
    ingest(late, [some_event(chance, f"late-{n}") for n in range(10)], organization)
    for n in range(5):
        ingest(early, [some_event(chance, f"early-{n}")], organization)
    roll_up_all(roller)
    # What began later is there, and waits for what began before it.
    assert rolled_up_events(reader, organization) == before
    assert_equal(reader, organization, DAYS)
    assert value(reader, "select count(*) from metering.usage_events where organization_id = %s", organization) == 7

    # The late one writes once more, after a rollup that saw later ones, and commits.
    ingest(late, [some_event(chance, "late-again")], organization)
    late.commit()
    assert_equal(reader, organization, DAYS)
    roll_up_all(roller)
    assert rolled_up_events(reader, organization) == value(
        reader,
        "select count(*) from metering.usage_events where organization_id = %s and event_name = 't'",
        organization,
    )
    assert_equal(reader, organization, DAYS, (DAYS[0], DAYS[-1]))


def test_whoever_holds_rollups_back_is_named(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization = make_organization(metered).id
    late, early, superuser = connections("sidecar", autocommit=False), connections("sidecar"), connections()
    prime(early, organization)
    ingest(late, [event("late")], organization)
    ingest(early, [event("early")], organization)
    # An event is as old as it was recorded.
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        superuser.execute(
            "update metering.usage_events set recorded_at = now() - interval '5 minutes' where organization_id = %s",
            [organization],
        )
    report = roll_up(early)
    late_pid = late.info.backend_pid
    late.rollback()
    assert report["held_back_by"] == f"session {late_pid}"
    assert report["lag_seconds"] > 60


def test_one_run_at_a_time_takes_whole_transactions(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization = make_organization(metered).id
    one, other, reader = connections("sidecar", autocommit=False), connections("sidecar"), connections()
    roll_up_all(other)
    chance = random.Random(3)
    for batch in range(3):
        ingest(other, [{**some_event(chance, f"{batch}-{n}"), "event": "t"} for n in range(5)], organization)
    roll_up(one, 1)
    assert roll_up(other) == {"busy": True}
    one.commit()
    assert rolled_up_events(reader, organization) == 5
    assert roll_up(other, 1)["behind"] is True
    roll_up_all(other)
    assert rolled_up_events(reader, organization) == 15
    assert roll_up(other)["behind"] is False
    with pytest.raises(psycopg.Error, match="ISOLATION_LEVEL"), other.transaction():
        other.execute("set transaction isolation level repeatable read")
        roll_up(other)


def test_a_new_generation_goes_on_where_the_old_one_ended(
    database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(database).id
    with database.connect() as superuser, database.connect("sidecar") as sidecar:
        superuser.execute(METERS)
        chance = random.Random(5)
        ingest(sidecar, [some_event(chance, f"one-{n}") for n in range(20)], organization)
        roll_up(sidecar)
        ingest(sidecar, [some_event(chance, f"two-{n}") for n in range(20)], organization)
        # Restored into a cluster whose transaction ids begin anew, far below those of the rows.
        superuser.execute("set session_replication_role = replica")
        superuser.execute(
            "update metering.usage_events set recorded_xid = (recorded_xid::text::bigint + 4000000000)::text::xid8"
        )
        superuser.execute("update metering.rollup_position set xid = (xid::text::bigint + 4000000000)::text::xid8")
        superuser.execute("reset session_replication_role")
        with pytest.raises(psycopg.Error, match="DATABASE_RESTORED"):
            roll_up(sidecar)
        superuser.execute(
            "insert into metering.generations (generation, system_identifier)"
            " select 2, system_identifier from pg_control_system()"
        )
        ingest(sidecar, [some_event(chance, f"three-{n}") for n in range(20)], organization)
        assert_equal(superuser, organization, DAYS)
        roll_up_all(sidecar)
        assert_equal(superuser, organization, DAYS)
        position = superuser.execute("select generation from metering.rollup_position").fetchone()
        assert position == (2,)


def test_groups_beyond_the_bound_of_a_meter_are_other(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization, sidecar, reader = make_organization(metered).id, connections("sidecar"), connections()
    reader.execute(
        "insert into metering.meters (code, event_name, aggregation, value, group_by, max_groups, unit, description)"
        " values ('few', 'few', 'max', 'quantity', '{g}', 3, 'unit', 'test')"
    )
    groups = "select groups ->> 'g', events, quantity from metering.measure(%s, %s, '{g}') order by 1"

    def send(*names: str) -> None:
        for name in names:
            ingest(
                sidecar,
                [event(f"few-{name}", DAYS[1], name="few", quantity=int(name), dimensions={"g": name})],
                organization,
            )

    send("1", "2")
    roll_up_all(sidecar)
    send("3", "4", "5", "6")
    report = roll_up(sidecar)
    whole = [("1", 1, 1), ("2", 1, 2), ("3", 1, 3), ("other", 3, 6)]
    assert report["folded"] == 3
    assert report["folded_of"] == [{"organization_id": str(organization), "meter": "few", "groups": 3}]
    assert reader.execute(groups, [organization, [DAYS[0], DAYS[-1]]]).fetchall() == whole
    # Whose group is full by now goes there at once, and whose is there stays in it.
    send("7")
    ingest(sidecar, [event("few-2-again", DAYS[1], name="few", quantity=9, dimensions={"g": "2"})], organization)
    whole = [("1", 1, 1), ("2", 2, 9), ("3", 1, 3), ("other", 4, 7)]
    assert reader.execute(groups, [organization, [DAYS[0], DAYS[-1]]]).fetchall() == whole
    roll_up_all(sidecar)
    assert reader.execute(groups, [organization, [DAYS[0], DAYS[-1]]]).fetchall() == whole
    # A greatest value among the others is voided: the greatest of those left counts.
    sidecar.execute("select metering.void_event(%s, 'few-7')", [organization])
    roll_up_all(sidecar)
    whole[-1] = ("other", 3, 6)
    assert reader.execute(groups, [organization, [DAYS[0], DAYS[-1]]]).fetchall() == whole
    # A filter looks behind "other".
    only = "select events, quantity from metering.measure(%s, %s, '{}', %s)"
    assert reader.execute(
        only, [organization, [DAYS[0], DAYS[-1]], json.dumps({"meter": "few", "g": "5"})]
    ).fetchall() == [(1, 5)]


def test_hours_of_every_timezone_are_exact(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    sidecar, reader = connections("sidecar"), connections()
    for timezone, offset in (("Asia/Kathmandu", 345), ("Australia/Lord_Howe", 660), ("Asia/Kolkata", 330)):
        organization = make_organization(metered, timezone=timezone).id
        chance = random.Random(offset)
        ingest(sidecar, [some_event(chance, f"{n}") for n in range(300)], organization)
        roll_up_all(sidecar)
        local = [day - timedelta(minutes=offset) for day in DAYS]
        assert_equal(reader, organization, local, DAYS, [local[0] + timedelta(hours=n) for n in range(97)])


def test_stored_bytes_are_paid_by_who_pays_at_the_time(
    metered: Database, make_organization: MakeOrganization, connections: Callable[..., Connection]
) -> None:
    organization = make_organization(metered, kind="personal")
    sidecar, superuser = connections("sidecar"), connections()
    ingest(sidecar, [event("stored", DAYS[0], name="s", quantity=1000)], organization.id)
    start = DAYS[1] + timedelta(hours=5, minutes=7, seconds=11)
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [start, organization.id],
    )
    for _ in range(2):
        found = superuser.execute(
            "select billing_entity_id, quantity from metering.measure(%s, %s) order by 2",
            [organization.id, [DAYS[0], DAYS[-1]]],
        ).fetchall()
        seconds = Decimal((start - DAYS[0]) // timedelta(seconds=1))
        assert found == [
            (organization["owner"].id, pytest.approx(1000 * seconds / 3600)),
            (organization.id, pytest.approx(1000 * (Decimal(4 * 86400) - seconds) / 3600)),
        ]
        roll_up_all(sidecar)

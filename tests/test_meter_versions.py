"""A change of a meter never rewrites the past: an event counts by the last version that was made before it was recorded
and is effective when it happened. So it does while writers, rollups and changes go on at once.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from threading import Barrier, Event

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import by_member, by_staff, roll_up_all, void
from tests.usage import Connection, event, ingest, moment, month, value

NEXT = count(1)

# The rule as the documentation has it, over the rows as they are.
COUNTED = """
select e.dimensions ->> 'k', v.version, e.quantity, v.filter, v.counts, m.deleted_at <= e.recorded_at
from metering.usage_events e
left join lateral (
  select * from metering.meter_versions v
  where v.meter_code = e.event_name and v.created_at <= e.recorded_at and v.effective_from <= e.occurred_at
  order by v.version desc
  limit 1
) as v on true
left join metering.meters m on m.code = e.event_name
where e.organization_id = %s and e.event_name = %s
"""


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def code(api: Connection) -> str:
    """A meter that no other test has, of the events of the same name with k "a"."""
    code = f"version.{next(NEXT)}"
    define(api, code)
    return code


def define(api: Connection, code: str) -> None:
    by_staff(
        api,
        "create_meter",
        code=code,
        event_name=code,
        unit="unit",
        description="Test",
        filter={"k": "a"},
        group_by=["k"],
    )


def send(sidecar: Connection, organization: Organization, code: str, *kinds: str, at: datetime | None = None) -> None:
    events = [event(f"{next(NEXT)}", at, name=code, quantity=1, dimensions={"k": kind}) for kind in kinds]
    assert ingest(sidecar, events, organization.id).accepted == len(kinds)


def counted(api: Connection, organization: Organization, code: str, months_ago: int = 0) -> dict[str | None, Decimal]:
    rows = by_member(
        api, organization, "usage_summary", period_start=month(months_ago), group_by=["k"], filter={"meter": code}
    )
    return {row["groups"]["k"]: row["quantity"] for row in rows if row["unit"]}


def versions(superuser: Connection, code: str) -> list[tuple[object, ...]]:
    query = "select version, filter, counts from metering.meter_versions where meter_code = %s order by version"
    return superuser.execute(query, [code]).fetchall()


def test_a_change_counts_from_now_on(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    send(sidecar, organization, code, "a", "b")
    changed = by_staff(api, "change_meter", code=code, filter={"k": ["a", "b"]})
    assert changed["version"] == 2
    send(sidecar, organization, code, "a", "b")
    # What happened before counts as it did, also when it comes now.
    send(sidecar, organization, code, "a", "b", at=changed["effective_from"] - timedelta(microseconds=1))
    for _ in range(2):
        assert counted(api, organization, code) == {"a": 3, "b": 1}
        roll_up_all(sidecar)


def test_a_change_may_be_planned_put_right_and_called_off(
    api: Connection, sidecar: Connection, organization: Organization, code: str, superuser: Connection
) -> None:
    ahead = datetime.now(UTC) + timedelta(minutes=3)
    by_staff(api, "change_meter", code=code, filter={"k": "b"}, effective_from=ahead)
    send(sidecar, organization, code, "a", "b")
    send(sidecar, organization, code, "a", "b", at=ahead + timedelta(seconds=1))
    put_right = by_staff(api, "change_meter", code=code, filter={"k": "c"})
    assert put_right["effective_from"] == ahead
    send(sidecar, organization, code, "a", "b", "c", at=ahead + timedelta(seconds=2))
    with pytest.raises(psycopg.Error, match=r"^INVALID_METER: .*: version 3 counts from"):
        by_staff(api, "change_meter", code=code, filter={}, effective_from=ahead - timedelta(minutes=1))
    by_staff(api, "change_meter", code=code, filter={"k": "a"})
    send(sidecar, organization, code, "a", "b", "c", at=ahead + timedelta(seconds=3))
    send(sidecar, organization, code, "a", "b", "c")
    found: Counter[str | None] = Counter()
    for months_ago in (0, -1):  # minutes ahead may be next month
        try:
            found.update(counted(api, organization, code, months_ago))
        except psycopg.Error as error:
            assert "PERIOD_NOT_FOUND" in str(error)
    assert found == {"a": 3, "b": 1, "c": 1}
    assert [(version, filter_["k"]) for version, filter_, _ in versions(superuser, code)] == [  # type: ignore[index]
        (1, "a"),
        (2, "b"),
        (3, "c"),
        (4, "a"),
    ]


def test_a_void_is_counted_by_the_version_that_counted_the_event(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    at = moment(1, days=3)
    ingest(
        sidecar,
        [event(key, at, name=code, quantity=5, dimensions={"k": "a"}) for key in ("voided", "left")],
        organization.id,
    )
    by_staff(api, "change_meter", code=code, filter={"k": "b"})
    void(sidecar, organization.id, "voided")
    assert counted(api, organization, code, 1) == {"a": 5}
    by_staff(api, "delete_meter", code=code)
    roll_up_all(sidecar)
    void(sidecar, organization.id, "left")
    assert counted(api, organization, code, 1) in ({}, {"a": 0})


def test_plain_sql_makes_versions_and_only_of_what_counts(superuser: Connection, code: str) -> None:
    superuser.execute("update metering.meters set description = 'Better', filter = filter where code = %s", [code])
    superuser.execute("update metering.meters set effective_from = '2098-01-01Z' where code = %s", [code])
    assert versions(superuser, code) == [(1, {"k": "a"}, True)]
    superuser.execute("update metering.meters set filter = '{}' where code = %s", [code])
    superuser.execute("update metering.meters set deleted_at = '2000-01-01Z' where code = %s", [code])
    assert versions(superuser, code) == [(1, {"k": "a"}, True), (2, {}, True), (3, {}, False)]
    assert value(
        superuser,
        """
        select m.deleted_at = v.created_at and m.deleted_at > m.created_at and m.version = 3
        from metering.meters m join metering.meter_versions v on v.meter_code = m.code and v.version = 3
        where m.code = %s
        """,
        code,
    )
    with pytest.raises(psycopg.Error, match=r"^METER_FIXED: .* was deleted"):
        superuser.execute("update metering.meters set deleted_at = null where code = %s", [code])


def test_changes_at_once_are_versions_one_after_the_other(
    shared_database: Database, superuser: Connection, code: str
) -> None:
    """By staff, who come to the lock first, and by hand."""
    barrier = Barrier(6)

    def change(number: int) -> None:
        with shared_database.connect("authenticator" if number % 2 else "postgres") as connection:
            barrier.wait(60)
            for n in range(5):
                if number % 2:
                    by_staff(connection, "change_meter", code=code, filter={"k": f"{number}-{n}"})
                else:
                    filter_ = f'{{"k": "{number}-{n}"}}'
                    connection.execute("update metering.meters set filter = %s where code = %s", [filter_, code])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(6)))
    assert [version for version, _, _ in versions(superuser, code)] == list(range(1, 32))
    assert value(
        superuser,
        """
        select bool_and(effective_from >= before and created_at > made_before) from (
          select effective_from, lag(effective_from) over w as before, created_at, lag(created_at) over w as made_before
          from metering.meter_versions where meter_code = %s
          window w as (order by version)
        ) as v where before is not null
        """,
        code,
    )


def test_nothing_is_rolled_up_by_a_version_that_is_about_to_be_replaced(
    shared_database: Database, api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    """By an event that is recorded after the change, in a transaction that began before it and ends before it."""
    with (
        shared_database.connect("sidecar", autocommit=False) as writer,
        shared_database.connect(autocommit=False) as changer,
    ):
        send(writer, organization, code, "a")
        changer.execute("update metering.meters set filter = %s where code = %s", ['{"k": "b"}', code])
        send(writer, organization, code, "a", "b")
        writer.commit()
        sidecar.execute("select metering.roll_up()")
        changer.commit()
    for _ in range(2):
        assert counted(api, organization, code) == {"a": 1, "b": 1}
        roll_up_all(sidecar)


def test_meters_change_while_writers_and_rollups_go_on(
    shared_database: Database, superuser: Connection, organization: Organization, make_organization: MakeOrganization
) -> None:
    """Eight writers, a rollup after the other, and meters that are made, changed and deleted: afterwards what is read
    is what the rule says of each row.
    """
    codes = [f"race.{n}" for n in range(3)]
    done = Event()

    def write(number: int) -> None:
        chance = random.Random(number)
        with shared_database.connect("sidecar") as sidecar:
            for _ in range(25):
                for code in codes:
                    at = (
                        datetime.now(UTC) - timedelta(milliseconds=chance.randrange(200))
                        if chance.random() < 0.5
                        else None
                    )
                    send(sidecar, organization, code, *(chance.choice("ab") for _ in range(4)), at=at)

    def keep_rolling() -> None:
        with shared_database.connect("sidecar") as sidecar:
            while not done.is_set():
                sidecar.execute("select metering.roll_up(50)")

    def change() -> None:
        chance = random.Random(99)
        with shared_database.connect("authenticator") as staff:
            for code in codes:
                define(staff, code)
            for _ in range(20):
                by_staff(staff, "change_meter", code=chance.choice(codes), filter={"k": chance.choice("ab")})
            by_staff(staff, "delete_meter", code=codes[0])

    with ThreadPoolExecutor(10) as pool:
        rolling = pool.submit(keep_rolling)
        try:
            working = [pool.submit(write, number) for number in range(8)] + [pool.submit(change)]
            for one in working:
                one.result()
        finally:
            done.set()
        rolling.result()

    with shared_database.connect("authenticator") as api, shared_database.connect("sidecar") as sidecar:
        for _ in range(2):
            for code in codes:
                expected: Counter[str] = Counter()
                rows = superuser.execute(COUNTED, [organization.id, code]).fetchall()
                assert len(rows) == 8 * 25 * 4
                for kind, version, quantity, filter_, counts, is_late in rows:
                    if version and counts and not is_late and kind in filter_["k"]:
                        expected[kind] += quantity
                assert counted(api, organization, code) == expected
            roll_up_all(sidecar)

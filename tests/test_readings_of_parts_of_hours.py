"""A reading may begin and end at any moment, as where a plan changes: the hours that a bound lies within are read from
their events, and all others from rollups. It is compared with a plain aggregate of the rows, and with itself read from
events alone.
"""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all, void
from tests.test_rollups_equal_events import DAYS, METERS, RAW, Row, expected, measured, some_event
from tests.usage import Connection, event, finalize, ingest, moment, month

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"k": "1"},
    {"k": ["0", "3"], "meter": ["t.sum", "t.unique", "t.latest"]},
    {"meter": "t.unique"},
    {"meter": "s.hours"},
    {"user_id": "u3"},
)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(scope="module", autouse=True)
def metered(superuser: Connection) -> None:
    superuser.execute(METERS)


def some_bounds(chance: random.Random, times: list[datetime]) -> list[datetime]:
    """Anywhere, at events and just after them, on quarters and hours, and several in one hour."""
    found: set[datetime] = set()
    for _ in range(chance.choice((2, 3, 5))):
        at = DAYS[0] + timedelta(seconds=chance.randrange(4 * 86400))
        match chance.randrange(5):
            case 0:
                at = chance.choice(times)
            case 1:
                at = chance.choice(times) + MICROSECOND
            case 2:
                at = at.replace(minute=chance.choice((0, 15, 30, 45)), second=0)
            case 3:
                found.add(at.replace(minute=59, second=59))
        found.add(at)
    found |= {min(found) + timedelta(minutes=11)} if len(found) == 1 else set()
    return sorted(found)


def readings(
    connection: Connection, organization: UUID, bounds: list[datetime], by: list[str], where: dict[str, Any], once: Any
) -> tuple[Any, Any]:
    """By rollups, and by events alone."""
    found = []
    for source in ("", "events"):
        with connection.transaction():
            connection.execute("select set_config('goldleaves.measure_from', %s, true)", [source])
            rows = connection.execute(
                """
                select bucket, meter_code, metered, billing_entity_id, groups::text, events, round(quantity, 9)
                from metering.measure(%s, %s, %s, %s, true, false, %s)
                where events <> 0 or quantity <> 0
                order by 1, 2, 3, 4, 5
                """,
                [organization, bounds, by, json.dumps(where), json.dumps(once)],
            ).fetchall()
            found.append(rows)
    return found[0], found[1]


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_a_bound_within_an_hour_cuts_it_exactly(
    timezone: str,
    shared_database: Database,
    superuser: Connection,
    sidecar: Connection,
    make_organization: MakeOrganization,
) -> None:
    organization = make_organization(shared_database, timezone=timezone).id
    chance = random.Random(timezone)
    times: list[datetime] = []
    for batch in range(3):
        sent = [some_event(chance, f"{batch}-{n}") for n in range(60)]
        times += [datetime.fromisoformat(each["time"]) for each in sent]
        ingest(superuser, sent, organization)
        # One is voided when it is rolled up, one before, and with the last batch some of both are not.
        void(superuser, organization, f"{batch}-1")
        if batch < 2:
            roll_up_all(sidecar)
            void(superuser, organization, f"{batch}-2")
    for round_ in range(12):
        if round_ == 6:
            roll_up_all(sidecar)
        bounds = some_bounds(chance, times)
        rows = [Row(*row) for row in superuser.execute(RAW, [organization])]
        for by_k in (False, True):
            # Of a group that was voided as a whole some readings say that it is nothing, and others nothing.
            plainly, found = (
                {key: numbers for key, numbers in result.items() if any(numbers)}
                for result in (
                    expected(rows, bounds, by_k=by_k),
                    measured(superuser, organization, bounds, by_k=by_k),
                )
            )
            assert found == plainly, bounds
        where, by = chance.choice(FILTERS), chance.choice(([], ["k"]))
        rolled_up, plain = readings(superuser, organization, bounds, by, where, {"t.unique": [1, 3]})
        assert rolled_up == plain, (bounds, where, by)


def test_a_unique_value_counts_once_in_buckets_that_belong_together(
    shared_database: Database, superuser: Connection, sidecar: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database).id
    bounds = [DAYS[0] + timedelta(hours=hours, minutes=20) for hours in (1, 2, 3, 4)]
    seen = ((0, "ann"), (0, "ben"), (1, "ann"), (1, "cat"), (2, "ben"), (2, "cat"), (2, "dan"))
    ingest(
        superuser,
        [
            event(f"{n}", bounds[bucket] + timedelta(minutes=n), name="t", user_id=user)
            for n, (bucket, user) in enumerate(seen)
        ],
        organization,
    )
    # The first one's "ben" is taken back: it counts in the third one.
    void(superuser, organization, "1")
    for _ in range(2):
        for once, counts in (
            ({}, [1, 2, 3]),
            ({"t.unique": [1, 3]}, [1, 2, 3]),
            ({"t.unique": [1, 2, 3]}, [1, 1, 2]),
        ):
            found = readings(superuser, organization, bounds, [], {"meter": "t.unique"}, once)
            assert [[row[6] for row in rows] for rows in found] == [counts] * 2, once
        roll_up_all(sidecar)


def test_late_usage_and_what_is_taken_back_of_a_closed_month_are_where_they_came(
    shared_database: Database, superuser: Connection, sidecar: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database).id
    ingest(superuser, [event("wrong", moment(1, days=3), name="t", quantity=7, user_id="ann")], organization)
    finalize(superuser, organization, month(1))
    ingest(
        superuser, [event("late", moment(1, days=4), name="t", quantity=9, user_id="ben")], organization, late="adjust"
    )
    superuser.execute("select metering.void_event(%s, 'wrong', 'api', 'adjust')", [organization])
    times = [
        at
        for (at,) in superuser.execute(
            "select occurred_at from metering.usage_events where organization_id = %s and belongs_at is not null",
            [organization],
        )
    ]
    assert len(times) == 2
    cut = [moment(0), min(times), min(times) + MICROSECOND, max(times) + MICROSECOND, moment(-1)]
    for _ in range(2):
        rolled_up, plain = readings(superuser, organization, cut, [], {}, {})
        assert rolled_up == plain
        assert rolled_up
        roll_up_all(sidecar)

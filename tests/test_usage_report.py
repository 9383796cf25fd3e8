"""Usage over time: the buckets of every timezone, with zeros where nothing was used, filtered and grouped; compared
with sums made here from the rows as they are stored.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import Row, by_member, by_staff, roll_up_all
from tests.sql_requests import Caller, request
from tests.usage import Connection, event, finalize, ingest, moment, month, value

NEXT = count(1)
QUARTER = timedelta(minutes=15)
GRANULARITIES = ("hour", "day", "week", "month")
# Whole hours, halves and quarters from UTC; clocks that move by half an hour, at midnight, on the last Thursday.
TIMEZONES = (
    "UTC",
    "America/Los_Angeles",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Pacific/Apia",
    "America/Havana",
    "Atlantic/Azores",
    "Africa/Cairo",
)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def code(api: Connection) -> str:
    """A meter that no other test has, of the events of the same name. It keeps page and user_id."""
    code = f"report.{next(NEXT)}"
    by_staff(
        api, "create_meter", code=code, event_name=code, unit="unit", description="Test", group_by=["page", "user_id"]
    )
    return code


def report(
    api: Connection,
    organization: Organization,
    start: datetime | date | str,
    end: datetime | date | str,
    **rest: object,
) -> list[Row]:
    texts = [at if isinstance(at, str) else at.isoformat() for at in (start, end)]
    return by_member(api, organization, "usage_report", **{"from": texts[0], "to": texts[1]}, **rest)


# The calendar, as Python's own timezones have it


def begins(day: date, zone: ZoneInfo) -> datetime:
    """The midnight with which a day begins: the later one where there are two, the end of a gap that it lies in."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    is_there = midnight.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == midnight.replace(tzinfo=None)
    return midnight.replace(fold=1 if is_there else 0).astimezone(UTC)


def next_first(day: date, granularity: str) -> date:
    if granularity == "day":
        return day + timedelta(days=1)
    if granularity == "week":
        return day + timedelta(days=7)
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def calendar(start: datetime, end: datetime, granularity: str, zone: ZoneInfo) -> list[datetime]:
    """Bounds of the buckets that have something of [start, end)."""
    if granularity == "hour":
        at = start.replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
        found, hour = [], (at - QUARTER).astimezone(zone).replace(minute=0, tzinfo=None)
        while at < end + timedelta(hours=3):
            local = at.astimezone(zone).replace(tzinfo=None)
            if local.minute == 0 or local.replace(minute=0) != hour:
                found.append(at)
            hour, at = local.replace(minute=0), at + QUARTER
    else:
        day = (start.astimezone(zone) - timedelta(days=40)).date()
        day = day.replace(day=1) if granularity == "month" else day - timedelta(days=day.weekday())
        found = []
        while not found or found[-1] < end:
            at = begins(day, zone)
            if not found or found[-1] != at:
                found.append(at)
            day = next_first(day, granularity)
    first = bisect_right(found, start) - 1
    last = next(n for n, at in enumerate(found) if at >= end)
    return found[first : last + 1]


def changes_of_clocks(zone: ZoneInfo) -> list[datetime]:
    """Of the last year and a half, to the quarter of an hour."""
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=550)
    days = [first + timedelta(days=n) for n in range(549)]
    changes = []
    for before, after in pairwise(days):
        offset = before.astimezone(zone).utcoffset()
        if after.astimezone(zone).utcoffset() != offset:
            at = before
            while at.astimezone(zone).utcoffset() == offset:
                at += QUARTER
            changes.append(at)
    return changes


@pytest.mark.parametrize("timezone", TIMEZONES)
def test_buckets_are_those_of_the_timezone(superuser: Connection, timezone: str) -> None:
    zone, chance = ZoneInfo(timezone), random.Random(timezone)
    around = [*changes_of_clocks(zone), datetime.now(UTC) - timedelta(days=30)]
    if timezone == "Pacific/Apia":
        around.append(datetime(2011, 12, 30, 10, tzinfo=UTC))  # the day that was left out
    for middle in around:
        for granularity in GRANULARITIES:
            for _ in range(4):
                start = middle - timedelta(minutes=chance.randrange(3 * 1440))
                end = middle + timedelta(minutes=chance.randrange(1, 3 * 1440))
                found = value(
                    superuser, "select metering.report_bounds(%s, %s, %s, %s)", start, end, granularity, timezone
                )
                assert found == calendar(start, end, granularity, zone), (start, end, granularity)


def test_days_have_23_24_or_25_hours(superuser: Connection) -> None:
    bounds = "select metering.report_bounds(%s, %s, %s, 'Europe/Berlin')"
    for day, hours in ((date(2026, 3, 29), 23), (date(2026, 3, 30), 24), (date(2026, 10, 25), 25)):
        zone = ZoneInfo("Europe/Berlin")
        start, end = begins(day, zone), begins(day + timedelta(days=1), zone)
        assert value(superuser, bounds, start, end, "day") == [start, end]
        found = value(superuser, bounds, start, end, "hour")
        assert len(found) == hours + 1
        assert {after - before for before, after in pairwise(found)} == {timedelta(hours=1)}


def test_clocks_that_move_by_half_an_hour_make_one_hour_longer_or_shorter(superuser: Connection) -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    minutes = []
    for change in changes_of_clocks(zone):
        day = change.astimezone(zone).date()
        start, end = begins(day, zone), begins(day + timedelta(days=1), zone)
        found = value(superuser, "select metering.report_bounds(%s, %s, 'hour', 'Australia/Lord_Howe')", start, end)
        minutes += [(after - before) // timedelta(minutes=1) for before, after in pairwise(found)]
    assert set(minutes) == {30, 60, 90}


@dataclass(frozen=True)
class Question:
    granularity: str
    is_grouped: bool = False
    user: str | None = None
    pages: tuple[str, ...] = ()

    @property
    def arguments(self) -> Row:
        named = {"user_id": self.user, "page": list(self.pages)}
        return {
            "granularity": self.granularity,
            "group_by": ["page"] if self.is_grouped else [],
            "filter": {name: wanted for name, wanted in named.items() if wanted},
        }

    def is_about(self, user: str, page: str) -> bool:
        return self.user in (None, user) and (not self.pages or page in self.pages)


QUESTIONS = (
    Question("hour"),
    Question("hour", user="user-1"),
    Question("day", is_grouped=True),
    Question("day", is_grouped=True, user="user-1", pages=("page-0", "page-1")),
    Question("week", is_grouped=True),
    Question("month", pages=("page-2",)),
)


@pytest.mark.parametrize("timezone", ["Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"])
def test_a_report_is_what_the_rows_add_up_to(
    api: Connection, sidecar: Connection, superuser: Connection, make_organization: MakeOrganization,
    shared_database: Database, code: str, timezone: str,
) -> None:  # fmt: skip
    """Around a change of the clocks, rolled up and not."""
    organization, zone, chance = (
        make_organization(shared_database, timezone=timezone),
        ZoneInfo(timezone),
        random.Random(7),
    )
    middle = [*changes_of_clocks(zone), datetime.now(UTC) - timedelta(days=30)][0]
    start, end = middle - timedelta(days=3, minutes=7), middle + timedelta(days=4, minutes=11)
    events = [
        event(
            str(n), middle + timedelta(seconds=chance.randrange(-4 * 86400, 5 * 86400)), name=code,
            quantity=chance.randrange(100), user_id=f"user-{n % 3}", dimensions={"page": f"page-{n % 4}"},
        )
        for n in range(300)
    ]  # fmt: skip
    ingest(sidecar, events[:150], organization.id)
    roll_up_all(sidecar)
    ingest(sidecar, events[150:], organization.id)

    rows = superuser.execute(
        """
        select occurred_at, quantity, user_id, dimensions ->> 'page'
        from metering.usage_events where organization_id = %s
        """,
        [organization.id],
    ).fetchall()
    for _ in range(2):
        for question in QUESTIONS:
            bounds = calendar(start, end, question.granularity, zone)
            sums: Counter[tuple[int, str | None]] = Counter()
            counts: Counter[tuple[int, str | None]] = Counter()
            for at, quantity, user, page in rows:
                if bounds[0] <= at < bounds[-1] and question.is_about(user, page):
                    key = bisect_right(bounds, at), page if question.is_grouped else None
                    sums[key] += quantity
                    counts[key] += 1
            expected = [
                (begin, finish, code, "unit", page, counts[n, page], sums[n, page])
                for n, (begin, finish) in enumerate(pairwise(bounds), 1)
                for page in sorted({page for _, page in counts}, key=str)
            ]
            found = [
                (*list(row.values())[:4], row["groups"].get("page"), row["events"], row["quantity"])
                for row in report(api, organization, start, end, **question.arguments)
            ]
            assert found == expected
        roll_up_all(sidecar)


def test_dates_and_times_are_those_of_the_timezone(
    api: Connection, sidecar: Connection, make_organization: MakeOrganization, shared_database: Database, code: str
) -> None:
    organization = make_organization(shared_database, timezone="Asia/Kolkata")
    ingest(sidecar, [event("one", moment(1, days=4, hours=12), name=code)], organization.id)
    day = month(1) + timedelta(days=4)

    def buckets(start: str, end: str, granularity: str) -> list[tuple[datetime, datetime]]:
        rows = report(api, organization, start, end, granularity=granularity)
        return [(row["bucket_start"], row["bucket_end"]) for row in rows]

    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo("Asia/Kolkata"))
    whole_day = [(midnight, midnight + timedelta(days=1))]
    assert buckets(f"{day}", f"{day + timedelta(days=1)}", "day") == whole_day
    assert buckets(f"{day}T23:59:59", f"{day + timedelta(days=1)}T00:00:00", "day") == whole_day
    assert buckets(f"{day}T10:00:00Z", f"{day}T10:00:00.000001Z", "day") == whole_day
    hour = midnight + timedelta(hours=17)
    whole_hour = [(hour, hour + timedelta(hours=1))]
    assert buckets(f"{day}T17:29:00", f"{day}T17:31:00", "hour") == whole_hour
    # In the query of a URL a plus is a blank.
    assert buckets(f"{day}T17:29:00 05:30", f"{day}T17:31:00+05:30", "hour") == whole_hour


def test_what_was_not_used_in_the_whole_time_has_no_row(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    ingest(sidecar, [event("one", moment(2, days=1), name=code)], organization.id)
    ingest(sidecar, [event("none", moment(1, days=1), name="without.meter", quantity=3)], organization.id)
    rows = report(api, organization, month(1), month(0), granularity="month")
    assert [(row["meter"], row["unit"], row["quantity"]) for row in rows] == [("without.meter", None, 3)]
    rows = report(api, organization, month(2), month(0), granularity="month")
    assert [(row["meter"], row["quantity"]) for row in rows] == [
        (code, 1), ("without.meter", 0), (code, 0), ("without.meter", 3),
    ]  # fmt: skip
    assert report(api, organization, month(3), month(2)) == []


def test_filters_name_meters_workspaces_and_who_pays(
    api: Connection, sidecar: Connection, superuser: Connection, make_organization: MakeOrganization,
    shared_database: Database, code: str,
) -> None:  # fmt: skip
    """Of a personal organization that was converted in the middle of a month."""
    organization = make_organization(shared_database, kind="personal")
    owner = str(organization["owner"].id)
    days = {"a": 2, "b": 3, "c": 20}

    def send(*keys: str) -> None:
        events = [
            event(key, moment(1, days=days[key]), name=code, quantity=days[key], workspace_id=f"room {key}")
            for key in keys
        ]
        assert ingest(sidecar, events, organization.id).accepted == len(keys)

    send("a", "b")
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [moment(1, days=10), organization.id],
    )
    send("c")
    for filter_, expected in (
        ({"meter": [code, "api.request"]}, 25),
        ({"workspace_id": ["room a", "room c"]}, 22),
        ({"billing_entity_type": "user"}, 5),
        ({"billing_entity_type": "organization"}, 20),
        ({"billing_entity_id": owner, "workspace_id": "room b"}, 3),
        ({"billing_entity_id": [owner, str(organization.id)]}, 25),
        ({"workspace_id": "nowhere"}, 0),
    ):
        for _ in range(2):
            found = report(api, organization, month(1), month(0), granularity="month", filter=filter_)
            assert sum(row["quantity"] for row in found) == expected, filter_
            summary = by_member(api, organization, "usage_summary", period_start=month(1), filter=filter_)
            assert sum(row["quantity"] for row in summary) == expected, filter_
            roll_up_all(sidecar)


def test_parts_of_a_bill_add_up_to_it(
    api: Connection, sidecar: Connection, superuser: Connection, organization: Organization, code: str
) -> None:
    """Exactly, before and after the period is finalized, whatever became of the price since."""
    price = "insert into billing.prices values (%s, 'usd', %s, %s)"
    superuser.execute(price, [code, "2000-01-01Z", "0.333"])
    ingest(
        sidecar,
        [
            event(str(n), moment(1, days=n), name=code, quantity=n, dimensions={"page": "xyz"[n % 3]})
            for n in range(1, 9)
        ],
        organization.id,
    )

    def parts(**arguments: object) -> list[Row]:
        rows = by_member(api, organization, "usage_summary", period_start=month(1), **arguments)
        assert {row["unit_amount_cents"] for row in rows} == {value(superuser, "select 0.333")}
        return rows

    for is_finalized in (False, True):
        if is_finalized:
            finalize(superuser, organization.id, month(1))
            with superuser.transaction():
                superuser.execute("set local session_replication_role = replica")
                superuser.execute(price, [code, moment(2), "9"])
        (whole,) = parts()
        assert whole["amount_cents"] == 12  # 36 units at 0.333, rounded once
        assert sum(row["amount_cents"] for row in parts(group_by=["page"])) == value(superuser, "select 36 * 0.333")
        (one,) = parts(filter={"page": "x"})
        assert (one["quantity"], one["amount_cents"]) == (9, value(superuser, "select 9 * 0.333"))


@pytest.mark.parametrize("others", [2, None], ids=["with a default", "without a default"])
def test_what_has_a_price_of_its_own_costs_that(
    api: Connection,
    sidecar: Connection,
    superuser: Connection,
    organization: Organization,
    code: str,
    others: int | None,
) -> None:
    """Not the average of the meter; and what has none costs nothing, and is usage all the same."""
    for amount, page in ((10, "x"), (others, None)):
        if amount:
            superuser.execute(
                """
                insert into billing.prices
                  (meter_code, currency, effective_from, unit_amount_cents, dimension, dimension_value)
                values (%s, 'usd', '2000-01-01Z', %s, %s, %s)
                """,
                [code, amount, page and "page", page],
            )
    ingest(
        sidecar,
        [
            event(page, moment(1, days=1), name=code, quantity=quantity, dimensions={"page": page})
            for page, quantity in (("x", 100), ("y", 900))
        ],
        organization.id,
    )

    def costs(**arguments: object) -> list[tuple[object, ...]]:
        rows = by_member(api, organization, "usage_summary", period_start=month(1), **arguments)
        return [(row["quantity"], row["unit_amount_cents"], row["amount_cents"]) for row in rows]

    rest = 900 * (others or 0)
    for is_finalized in (False, True):
        if is_finalized:
            finalize(superuser, organization.id, month(1))
        assert costs() == costs(filter={"meter": code}) == [(1000, None, 1000 + rest)]
        assert costs(group_by=["page"]) == [(100, 10, 1000), (900, others, rest)]
        assert costs(filter={"page": "x"}) == costs(filter={"page": ["x", "z"]}) == [(100, 10, 1000)]
        assert costs(filter={"page": "y"}) == costs(filter={"page": "y"}, group_by=["user_id"]) == [(900, others, rest)]


def test_a_minimum_that_nobody_used_is_in_every_view_of_its_meter(
    api: Connection, superuser: Connection, organization: Organization, code: str
) -> None:
    superuser.execute("insert into billing.plans (code, name) values ('least', 'Least')")
    superuser.execute("update tenancy.organizations set plan = 'least' where id = %s", [organization.id])
    for minimum, page in ((500, "x"), (70, None)):
        superuser.execute(
            """
            insert into billing.prices (
              meter_code, plan_code, currency, effective_from, unit_amount_cents, minimum_cents, dimension,
              dimension_value
            )
            values (%s, 'least', 'usd', '2000-01-01Z', 1, %s, %s, %s)
            """,
            [code, minimum, page and "page", page],
        )

    def costs(**arguments: object) -> list[object]:
        rows = by_member(api, organization, "usage_summary", period_start=month(1), **arguments)
        return [row["amount_cents"] for row in rows if row["meter"] == code]

    for is_finalized in (False, True):
        if is_finalized:
            finalize(superuser, organization.id, month(1))
        assert costs() == costs(filter={"meter": code}) == [570]
        assert sorted(costs(group_by=["page"], filter={"meter": [code]}), key=str) == [500, 70]
        assert costs(filter={"page": "x"}) == [500]
        assert costs(filter={"meter": "api.request"}) == []


def test_a_meter_that_does_not_keep_a_dimension_has_null_there(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    events = [event(name, name=name, dimensions={"page": "x"}) for name in (code, "doc.upload")]
    ingest(sidecar, events, organization.id)
    rows = by_member(api, organization, "usage_summary", group_by=["page", "page"])
    assert [(row["meter"], row["groups"]) for row in rows] == [("doc.upload", {"page": None}), (code, {"page": "x"})]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no date": ({"from": "2026-02-30"}, "INVALID_RANGE: from '2026-02-30' is neither"),
    "no time": ({"to": "tomorrow"}, "INVALID_RANGE: to 'tomorrow' is neither"),
    "null": ({"from": None}, "INVALID_RANGE: from"),
    "backwards": ({"from": "2026-02-01", "to": "2026-01-01"}, "INVALID_RANGE: from 2026-02-01 is not before to"),
    "granularity": ({"granularity": "minute"}, "INVALID_GRANULARITY: there is no granularity minute"),
    "too long": ({"from": "2020-01-01", "granularity": "hour"}, "REPORT_TOO_LONG: it would have 52632 hours, and 2300"),
    "from the beginning of time": ({"from": "0001-01-01"}, "REPORT_TOO_LONG: "),
    "group": ({"group_by": ["color"]}, "INVALID_GROUP_BY: no meter keeps a dimension color"),
    "group of a meter": (
        {"group_by": ["endpoint"], "filter": {"meter": "doc.upload"}},
        "INVALID_GROUP_BY: none of doc.upload keeps a dimension endpoint",
    ),
    "meter": ({"filter": {"meter": ["api.request", "nothing"]}}, "INVALID_FILTER: there is no meter nothing"),
    "null in filter": ({"filter": {"user_id": None}}, "INVALID_FILTER: user_id needs a text"),
    "object in filter": ({"filter": {"user_id": {"a": "b"}}}, "INVALID_FILTER: user_id needs a text"),
    "nothing in filter": ({"filter": {"user_id": []}}, "INVALID_FILTER: user_id needs a value"),
    "name in filter": ({"filter": {"a b": "c"}}, "INVALID_FILTER: 'a b' is no name"),
    "names in filter": (
        {"filter": {f"d{n}": "x" for n in range(33)}},
        "INVALID_FILTER: it has 33 names, and 32 is the most",
    ),
    "payer": ({"filter": {"billing_entity_id": "ada"}}, "INVALID_FILTER: billing_entity_id needs"),
    "kind of payer": ({"filter": {"billing_entity_type": "bank"}}, "INVALID_FILTER: billing_entity_type is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_in_one_line(api: Connection, organization: Organization, name: str) -> None:
    arguments, problem = REFUSED[name]
    with pytest.raises(psycopg.Error) as refused:
        by_member(api, organization, "usage_report", **{"from": "2026-01-01", "to": "2026-01-02"} | arguments)
    assert refused.value.sqlstate == "PT400"
    assert str(refused.value.diag.message_primary).startswith(problem)


def test_rows_are_bounded_too(api: Connection, sidecar: Connection, organization: Organization, code: str) -> None:
    events = [event(str(n), moment(1, days=1), name=code, dimensions={"page": f"{n}"}) for n in range(150)]
    ingest(sidecar, events, organization.id)
    start, end = moment(1), moment(1, days=28)
    with pytest.raises(psycopg.Error, match=r"^REPORT_TOO_LONG: it would have 100800 rows, and 100000 is the most"):
        report(api, organization, start, end, granularity="hour", group_by=["page"])
    assert len(report(api, organization, start, end, group_by=["page"])) == 28 * 150


def test_only_who_may_read_usage_reads_it(api: Connection, organization: Organization) -> None:
    for caller in (Caller("service", "backend", str(organization.id)), Caller("anon")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), request(api, caller):
            api.execute("select api.usage_report('2026-01-01', '2026-01-02')")

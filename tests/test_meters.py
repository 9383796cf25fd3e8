"""Meters are what is counted: each aggregation, value, filter and group through the whole path, from the event to what
a member reads. Compared with sums made here, of the events as they were sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization
from tests.meters import Row, by_member, by_staff, roll_up_all, void
from tests.sql_requests import Caller, request, run
from tests.usage import Connection, event, ingest, moment, month, value

NEXT = count(1)
END = moment(0)  # of last month


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def code() -> str:
    """A code of a meter, and the name of an event, that no other test has."""
    return f"test.{next(NEXT)}"


def define(api: Connection, code: str, /, **rest: object) -> Row:
    return by_staff(
        api, "create_meter", **{"code": code, "unit": "unit", "description": "Test", "event_name": code} | rest
    )


# What it counts


@dataclass(frozen=True)
class Sent:
    key: str
    at: datetime
    quantity: int
    user: str
    model: str
    tokens: int


SENT = [
    Sent(
        str(n),
        moment(1, days=n % 20, hours=n % 7, minutes=n),
        10 + n * 7 % 31,
        f"user-{n % 4}",
        "abc"[n % 3],
        n * 13 % 50,
    )
    for n in range(36)
]
VOIDED = {"5", "18", "30"}
LEFT = [one for one in SENT if one.key not in VOIDED]

Reference = Callable[[Sequence[Sent]], Decimal | int]


def level_over_time(events: Sequence[Sent]) -> Decimal:
    return sum((Decimal(one.quantity) * ((END - one.at) // timedelta(seconds=1)) / 3600 for one in events), Decimal(0))


def latest(events: Sequence[Sent]) -> int:
    return max(events, key=lambda one: one.at).quantity


AGGREGATIONS: dict[str, tuple[Row, Reference]] = {
    "sum": ({}, lambda events: sum(one.quantity for one in events)),
    "sum of a dimension": ({"value": "dimensions.tokens"}, lambda events: sum(one.tokens for one in events)),
    "sum in larger units": ({"unit_size": 8}, lambda events: Decimal(sum(one.quantity for one in events)) / 8),
    "count": ({"aggregation": "count"}, len),
    "max": ({"aggregation": "max"}, lambda events: max(one.quantity for one in events)),
    "min": ({"aggregation": "min"}, lambda events: min(one.quantity for one in events)),
    "latest": ({"aggregation": "latest"}, latest),
    "unique": ({"aggregation": "unique", "value": "user_id"}, lambda events: len({one.user for one in events})),
    "unique of a dimension": (
        {"aggregation": "unique", "value": "dimensions.tokens"},
        lambda events: len({one.tokens for one in events}),
    ),
    "weighted_sum": ({"aggregation": "weighted_sum"}, level_over_time),
    "filtered": (
        {"filter": {"model": ["a", "b"], "user_id": "user-1"}},
        lambda events: sum(one.quantity for one in events if one.model in "ab" and one.user == "user-1"),
    ),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_an_aggregation_from_the_event_to_the_reader(
    api: Connection, sidecar: Connection, organization: Organization, code: str, name: str
) -> None:
    """While it is not rolled up, while half of it is, and when all of it is; with voided events."""
    properties, reference = AGGREGATIONS[name]
    define(api, code, group_by=["model"], **properties)
    events = [
        event(
            one.key,
            one.at,
            name=code,
            quantity=one.quantity,
            user_id=one.user,
            dimensions={"model": one.model, "tokens": one.tokens},
        )
        for one in SENT
    ]

    def read(**arguments: object) -> dict[str | None, Decimal]:
        rows = by_member(api, organization, "usage_summary", period_start=month(1), **arguments)
        return {
            row["groups"].get("model"): round(row["quantity"], 6)
            for row in rows
            if (row["meter"], row["unit"]) == (code, "unit")
        }

    def check() -> None:
        assert read() == {None: expected(reference, LEFT)}
        assert read(group_by=["model"]) == {
            model: found
            for model in "abc"
            if (found := expected(reference, [one for one in LEFT if one.model == model]))
        }
        assert read(filter={"meter": code, "model": ["a", "c"]}) == {
            None: expected(reference, [one for one in LEFT if one.model in "ac"])
        }
        assert read(filter={"meter": code, "user_id": "user-1"}) == {
            None: expected(reference, [one for one in LEFT if one.user == "user-1"])
        }

    assert ingest(sidecar, events[:20], organization.id).accepted == 20
    void(sidecar, organization.id, "5")
    roll_up_all(sidecar)
    ingest(sidecar, events[20:], organization.id)
    for key in VOIDED - {"5"}:
        void(sidecar, organization.id, key)
    check()
    roll_up_all(sidecar)
    check()


def expected(reference: Reference, events: Sequence[Sent]) -> Decimal:
    return round(Decimal(reference(events)), 6)


def test_groups_beyond_the_bound_are_other(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    define(api, code, group_by=["page"], max_groups=2)
    for n, page in enumerate("xyzxz"):
        ingest(sidecar, [event(str(n), name=code, quantity=n + 1, dimensions={"page": page})], organization.id)
        roll_up_all(sidecar)
    rows = by_member(api, organization, "usage_summary", group_by=["page"], filter={"meter": code})
    assert {row["groups"]["page"]: row["quantity"] for row in rows} == {"x": 5, "y": 2, "other": 8}


def test_a_value_of_any_length_is_a_group(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    """What a sender wrote into a dimension holds nobody's rollup up, and stays apart from what begins alike."""
    names = [f"page{n}" for n in range(8)]
    define(api, code, group_by=names)
    long = {end: "".join(chr(0x10000 + n * 97 % 60000) for n in range(100)) + end for end in "ab"}
    values = {"short": "x" * 200, **long}

    def check() -> None:
        for name, quantity in (("short", 1), ("a", 2), ("b", 4)):
            asked = {"meter": code, "page7": values[name]}
            (row,) = by_member(api, organization, "usage_summary", group_by=["page7"], filter=asked)
            assert row["quantity"] == quantity
            kept = row["groups"]["page7"]
            assert len(kept.encode()) <= 200
            assert kept[:40] == values[name][:40]
            (row,) = by_member(api, organization, "usage_summary", filter={"meter": code, "page7": kept})
            assert row["quantity"] == quantity
        assert len(by_member(api, organization, "usage_summary", group_by=names, filter={"meter": code})) == 3

    for quantity, name in ((1, "short"), (2, "a"), (4, "b")):
        dimensions = dict.fromkeys(names, values[name])
        ingest(sidecar, [event(name, name=code, quantity=quantity, dimensions=dimensions)], organization.id)
    check()
    roll_up_all(sidecar)
    check()


def test_several_meters_read_one_event_and_one_reads_all_that_weigh_something(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    by_staff(api, "set_operation_weight", operation=code, weight=Decimal("2.5"))
    define(api, code)
    define(api, f"{code}.users", event_name=code, aggregation="unique", value="user_id")
    ingest(sidecar, [event(str(n), name=code, quantity=4, user_id="ada") for n in range(3)], organization.id)
    ingest(sidecar, [event("other", name="nothing.weighs", quantity=9)], organization.id)
    rows = {row["meter"]: row["quantity"] for row in by_member(api, organization, "usage_summary")}
    assert rows == {code: 12, f"{code}.users": 1, "compute.units": 30, "nothing.weighs": 9}


def test_a_new_meter_counts_what_is_recorded_from_then_on(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    at = moment(1, days=3)
    ingest(sidecar, [event("before", at, name=code, quantity=5)], organization.id)
    define(api, code)
    ingest(sidecar, [event("after", at, name=code, quantity=7)], organization.id)
    for _ in range(2):
        rows = by_member(api, organization, "usage_summary", period_start=month(1))
        assert [(row["meter"], row["unit"], row["quantity"]) for row in rows] == [(code, "unit", 7), (code, None, 5)]
        roll_up_all(sidecar)


def test_a_deleted_meter_counts_nothing_that_is_recorded_later(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    """Not even what happened before, or before a change that is still to come."""
    define(api, code)
    by_staff(api, "change_meter", code=code, filter={"x": "y"}, effective_from="2099-01-01Z")
    ingest(sidecar, [event("before", moment(1, days=3), name=code, quantity=5)], organization.id)
    deleted = by_staff(api, "delete_meter", code=code)
    assert deleted["deleted_at"] is not None
    ingest(sidecar, [event("after", moment(1, days=2), name=code, quantity=7)], organization.id)
    for _ in range(2):
        rows = by_member(api, organization, "usage_summary", period_start=month(1))
        assert [(row["meter"], row["unit"], row["quantity"]) for row in rows] == [(code, "unit", 5), (code, None, 7)]
        roll_up_all(sidecar)
    with pytest.raises(psycopg.Error, match=r"^METER_EXISTS: "):
        define(api, code)
    with pytest.raises(psycopg.Error, match=r"^METER_NOT_FOUND: "):
        by_staff(api, "change_meter", code=code, group_by=["x"])


def test_what_is_taken_away_is_never_shown_below_zero(
    api: Connection, sidecar: Connection, organization: Organization, code: str
) -> None:
    define(api, code, allow_negative=True)
    ingest(sidecar, [event("less", name=code, quantity=-5)], organization.id)
    (row,) = by_member(api, organization, "usage_summary", filter={"meter": code})
    assert (row["events"], row["quantity"]) == (1, 0)
    ingest(sidecar, [event("more", name=code, quantity=7)], organization.id)
    (row,) = by_member(api, organization, "usage_summary", filter={"meter": code})
    assert row["quantity"] == 2, "what is stored was not cut off"


# Who defines it, and what is refused


@pytest.mark.parametrize(
    "call",
    [
        "api.create_meter('mine', 'u', 'd', 'mine')",
        "api.change_meter('doc.upload', group_by => '{x}')",
        "api.delete_meter('doc.upload')",
        "api.set_operation_weight('task_create', 3)",
    ],
)
def test_only_the_providers_staff_defines(api: Connection, organization: Organization, call: str) -> None:
    callers = [Caller("member", organization[role].subject) for role in ROLES] + [Caller("service", "backend")]
    for caller in callers:
        with pytest.raises(psycopg.Error, match=r"^ROLE_REQUIRED: only platform_admin "), request(api, caller):
            run(api, f"select {call}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), request(api, Caller("anon")):
        run(api, f"select {call}")


@pytest.mark.parametrize("caller", [Caller("service", "backend"), Caller("platform_admin", "staff"), None])
def test_everybody_with_a_token_reads_them(api: Connection, organization: Organization, caller: Caller | None) -> None:
    with request(api, caller or Caller("member", organization["viewer"].subject)):
        assert value(api, "select array_agg(code) from api.meters")[:1] != []


INVALID: dict[str, tuple[Row, str]] = {
    "code": ({"code": "Has Blanks"}, "a code has"),
    "aggregation": ({"aggregation": "median"}, "there is no aggregation median"),
    "value": ({"value": "price"}, "no event has a value price"),
    "no event": ({"event_name": None}, "a meter counts the events of a name"),
    "event": ({"event_name": "has blanks"}, "the name of an event"),
    "unique number": ({"aggregation": "unique"}, "quantity is a number"),
    "sum of texts": ({"value": "user_id"}, "sum needs numbers, and user_id is a text"),
    "unit": ({"unit": " "}, "a unit has"),
    "description": ({"description": "x" * 201}, "a description has"),
    "unit_size": ({"unit_size": 0}, "unit_size is"),
    "endless unit_size": ({"unit_size": Decimal("NaN")}, "unit_size is"),
    "max_groups": ({"max_groups": 0}, "max_groups is"),
    "many groups": ({"group_by": list("abcdefghi")}, "at most 8"),
    "group twice": ({"group_by": ["a", "a"]}, "group_by names a twice"),
    "group": ({"group_by": ["a b"]}, "'a b' is no name of a dimension"),
    "number in filter": ({"filter": {"status": 200}}, "status needs a text"),
    "numbers in filter": ({"filter": {"status": ["200", 201]}}, "status needs a text"),
    "empty filter": ({"filter": {"status": []}}, "status needs a text"),
    "name in filter": ({"filter": {"": "x"}}, "is no name of a dimension"),
    "null": ({"filter": None}, "filter is an object"),
    "never": ({"effective_from": "infinity"}, "effective_from is never"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_makes_no_sense_is_refused_in_one_line(api: Connection, code: str, name: str) -> None:
    properties, problem = INVALID[name]
    with pytest.raises(psycopg.Error) as refused:
        define(api, code, **properties)
    assert refused.value.sqlstate == "PT400"
    assert str(refused.value.diag.message_primary).startswith("INVALID_METER: ")
    assert problem in str(refused.value.diag.message_primary)


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        ("update metering.meters set code = 'other.code' where code = %(code)s", "METER_FIXED: code of"),
        (
            "update metering.meters set aggregation = 'max', unit = 'x' where code = %(code)s",
            "METER_FIXED: aggregation, unit of",
        ),
        ("update metering.meters set unit_size = 2 where code = %(code)s", "METER_FIXED: unit_size of"),
        ("update metering.meters set version = 9 where code = %(code)s", "METER_FIXED: version of"),
        ("delete from metering.meters where code = %(code)s", "METER_FIXED: .* stays"),
        ("update metering.meters set value = 'user_id' where code = %(code)s", "INVALID_METER: .*: sum needs numbers"),
        (
            "update metering.meters set group_by = '{a}', effective_from = '2020-01-01Z' where code = %(code)s",
            "INVALID_METER: .* is not ahead",
        ),
    ],
)
def test_whoever_writes_sql_obeys_too(
    api: Connection, superuser: Connection, code: str, statement: str, refusal: str
) -> None:
    define(api, code)
    with pytest.raises(psycopg.Error, match=f"^{refusal}"):
        run(superuser, statement, {"code": code})


def test_staff_reads_what_meters_were(api: Connection, organization: Organization, code: str) -> None:
    define(api, code)
    by_staff(api, "change_meter", code=code, group_by=["x"])
    query: Any = f"select version, group_by, counts from api.meter_versions where meter = '{code}' order by version"
    with request(api, Caller("platform_admin", "staff")):
        assert run(api, query).fetchall() == [(1, [], True), (2, ["x"], True)]
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege),
        request(api, Caller("member", organization["owner"].subject)),
    ):
        run(api, query)

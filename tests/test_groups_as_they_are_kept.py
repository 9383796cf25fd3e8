"""Groups of no dimension to eight, with values that are missing, long, or what is kept of a long one. Events are
added up by what they say, groups by what is kept of it: that equals a plain aggregate, rolled up or not.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
from tests.usage import Connection, event, ingest

AGGREGATIONS = ("sum", "max", "latest", "unique", "weighted_sum")
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAY = TODAY - timedelta(days=1)

Group = tuple[str | None, ...]
Found = dict[Group, tuple[int, Decimal]]


def kept(text: str) -> str:
    if len(text.encode()) <= 200:
        return text
    return f"{text[:40]}…{UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])}"


LONG = "x" * 201
VALUES: tuple[object, ...] = (
    *(None, None, "", "a", "b", "null", "{}", "other", "y" * 200),
    *(LONG, LONG, kept(LONG), LONG + "!", "é" * 101, "z" * 900, 5, True),
)


@dataclass(frozen=True)
class Sent:
    key: str
    at: datetime
    quantity: int
    user: str | None
    group: Group


def as_kept(value: object) -> str | None:
    if value is None:
        return None
    return kept(value if isinstance(value, str) else str(value).lower())


def plain(aggregation: str, events: Sequence[Sent]) -> Found:
    groups: dict[Group, list[Sent]] = defaultdict(list)
    for one in events:
        if aggregation != "unique" or one.user is not None:
            groups[one.group].append(one)
    result: Found = {}
    for group, members in groups.items():
        quantities = [one.quantity for one in members]
        match aggregation:
            case "sum":
                quantity = Decimal(sum(quantities))
            case "max":
                quantity = Decimal(max(quantities))
            case "latest":
                quantity = Decimal(max(members, key=lambda one: one.at).quantity)
            case "unique":
                quantity = Decimal(len({one.user for one in members}))
            case _:
                seconds = sum(one.quantity * int((TODAY - one.at).total_seconds()) for one in members)
                quantity = round(Decimal(seconds) / 3600, 6)
        result[group] = len(members), quantity
    return result


def measured(connection: Connection, organization: UUID, meter: str, names: Sequence[str]) -> Found:
    rows = connection.execute(
        """
        select array(select groups ->> n from unnest(%s::text[]) n), events, quantity
        from metering.measure(%s, %s, %s, jsonb_build_object('meter', %s::text))
        """,
        [list(names), organization, [DAY, TODAY], list(names), meter],
    ).fetchall()
    found = {tuple(group): (events, round(quantity, 6)) for group, events, quantity in rows}
    assert len(found) == len(rows), "a group is one row"
    return found


@pytest.mark.parametrize("dimensions", range(9))
def test_they_are_those_of_a_plain_aggregate(
    shared_database: Database,
    superuser: Connection,
    sidecar: Connection,
    make_organization: MakeOrganization,
    dimensions: int,
) -> None:
    organization = make_organization(shared_database, roles=("owner",)).id
    meters = f"kept.{dimensions}"
    names = ["d1", "resource_id", *(f"d{number}" for number in range(3, 9))][:dimensions]
    for aggregation in AGGREGATIONS:
        superuser.execute(
            "insert into metering.meters (code, event_name, aggregation, value, group_by, unit, description)"
            " values (%s, %s, %s, %s, %s, 'unit', 'test')",
            [
                f"{meters}.{aggregation}",
                meters,
                aggregation,
                "user_id" if aggregation == "unique" else "quantity",
                names,
            ],
        )
    chance = random.Random(dimensions)
    everything: list[Sent] = []

    def send(number: int) -> None:
        batch = []
        for n in range(number):
            # Few values of a few dimensions, so that groups have more than one event.
            values: dict[str, Any] = {
                name: chance.choice(VALUES if place < 2 else VALUES[:3]) for place, name in enumerate(names)
            }
            resource = values.pop("resource_id", None)
            resource = None if resource is None else str(resource)[:256]
            sent = Sent(
                f"{len(everything)}",
                DAY + timedelta(minutes=len(everything)),
                chance.randrange(1, 100),
                chance.choice([None, "ann", "bob"]),
                tuple(as_kept(resource if name == "resource_id" else values[name]) for name in names),
            )
            everything.append(sent)
            said = {name: value for name, value in values.items() if value is not None or n % 2}
            batch.append(
                event(sent.key, sent.at, name=meters, quantity=sent.quantity, dimensions=said)
                | {"user_id": sent.user, "resource_id": resource}
            )
        assert ingest(sidecar, batch, organization).accepted == number

    def agree() -> None:
        for aggregation in AGGREGATIONS:
            found = measured(superuser, organization, f"{meters}.{aggregation}", names)
            assert found == plain(aggregation, everything)

    send(60)
    agree()
    roll_up_all(sidecar)
    agree()
    send(60)
    agree()
    roll_up_all(sidecar)
    agree()


def test_a_long_value_that_has_a_place_is_not_folded_before_it_is_rolled_up(
    shared_database: Database, superuser: Connection, sidecar: Connection, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, roles=("owner",)).id
    superuser.execute(
        "insert into metering.meters (code, event_name, aggregation, value, group_by, max_groups, unit, description)"
        " values ('narrow', 'narrow', 'sum', 'quantity', '{k}', 1, 'unit', 'test')"
    )

    def send(key: str, k: str) -> None:
        ingest(sidecar, [event(key, DAY, name="narrow", dimensions={"k": k})], organization)

    send("1", LONG)
    roll_up_all(sidecar)
    send("2", LONG)
    send("3", kept(LONG))
    send("4", LONG + "!")
    for _ in range(2):
        assert measured(superuser, organization, "narrow", ["k"]) == {
            (kept(LONG),): (3, Decimal(3)),
            ("other",): (1, Decimal(1)),
        }
        roll_up_all(sidecar)

"""What the tests of metering and billing say again and again: send usage, close a period, do it all at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from threading import Barrier
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from tests.harness import Database

Connection = psycopg.Connection[tuple[Any, ...]]
Event = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    id: str | None
    code: str
    message: str
    index: int


@dataclass(frozen=True)
class Answer:
    """What metering.ingest_events() said about a batch."""

    accepted: int
    duplicates: int
    conflicts: tuple[Refusal, ...]
    rejected: tuple[Refusal, ...]

    @property
    def answered(self) -> int:
        return self.accepted + self.duplicates + len(self.conflicts) + len(self.rejected)


@dataclass(frozen=True)
class Invoice:
    id: UUID
    number: str
    total_cents: Decimal


def event(
    key: str, time: datetime | None = None, *, name: str = "api.request", quantity: float = 1, **rest: object
) -> Event:
    made: Event = {"id": key, "event": name, "quantity": quantity, **rest}
    if time is not None:
        made["time"] = time.isoformat()
    return made


def ingest(
    connection: Connection,
    events: Sequence[object] | str,
    organization: UUID | None = None,
    *,
    source: str = "api",
    late: str = "reject",
) -> Answer:
    """Send a batch, as JSON text where Python's numbers are not exact enough."""
    body = events if isinstance(events, str) else json.dumps(events)
    found = connection.execute(
        "select metering.ingest_events(%s::jsonb, %s, %s, %s)", [body, organization, source, late]
    ).fetchone()
    assert found
    answer: Mapping[str, Any] = found[0]
    return Answer(
        answer["accepted"],
        answer["duplicates"],
        tuple(Refusal(**conflict) for conflict in answer["conflicts"]),
        tuple(Refusal(**rejection) for rejection in answer["rejected"]),
    )


def finalize(connection: Connection, organization: UUID, first_day: date) -> Invoice:
    found = connection.execute(
        "select id, number, total_cents from billing.finalize_period(%s, %s)", [organization, first_day]
    ).fetchone()
    assert found
    return Invoice(*found)


def value(connection: Connection, query: str, *parameters: object) -> Any:
    """The one value that the query returns."""
    found = connection.execute(query, parameters).fetchone()
    assert found
    return found[0]


def month(months_ago: int = 0) -> date:
    """First day of the month so long ago (UTC): the period of an organization in UTC."""
    today = datetime.now(UTC).date()
    months = today.year * 12 + today.month - 1 - months_ago
    return date(months // 12, months % 12 + 1, 1)


def moment(months_ago: int = 0, **into: float) -> datetime:
    """A moment of that month, so much time after it began."""
    first = month(months_ago)
    return datetime(first.year, first.month, 1, tzinfo=UTC) + timedelta(**into)


def race(database: Database, actions: Sequence[Callable[[Connection], T]], role: str = "sidecar") -> list[T]:
    """Start all actions at the same moment, each on a connection of its own. The first error is raised."""
    barrier = Barrier(len(actions))

    def run(action: Callable[[Connection], T]) -> T:
        with database.connect(role) as connection:
            barrier.wait(60)
            return action(connection)

    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(run, action) for action in actions]]

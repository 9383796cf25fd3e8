"""What tests of the sidecar say about its answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
from psycopg import sql

from api.stack.state import StateDir
from tests.harness import Database, RunningStack
from tests.sql_requests import Connection

SHAPE = {"code", "message", "details", "hint"}

Value = TypeVar("Value")


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    """The one error shape, with the stable code in front of the message, and a request id to ask about."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == SHAPE
    assert body["code"] == f"PT{status}"
    assert re.match(rf"{code}: \S", body["message"]), body
    assert response.headers["X-Request-ID"]
    assert response.headers["Content-Type"].startswith("application/json")


def eventually(read: Callable[[], Value], holds: Callable[[Value], bool], seconds: float = 60) -> Value:
    """Read until it holds, and return what was read last: the assertion is the caller's."""
    deadline = time.monotonic() + seconds
    while True:
        value = read()
        if holds(value) or time.monotonic() > deadline:
            return value
        time.sleep(0.02)


def gateway_events(stack: RunningStack, organization_id: UUID) -> list[dict[str, Any]]:
    """The requests that an organization is billed for, in the order in which they arrived in Postgres."""
    with stack.database.connect() as connection:
        rows = connection.execute(
            """
            select request_id, event_name, quantity, unit, user_id, resource_id, dimensions, occurred_at
            from metering.usage_events
            where organization_id = %s and source = 'gateway' and event_name = 'api.request'
            order by occurred_at, idempotency_key
            """,
            [organization_id],
        ).fetchall()
    names = ("request_id", "event", "quantity", "unit", "user_id", "resource_id", "dimensions", "occurred_at")
    return [dict(zip(names, row, strict=True)) for row in rows]


def metered_since(stack: RunningStack, client: httpx.Client, organization_id: UUID) -> list[dict[str, Any]]:
    """All that was metered up to now. A last billable request goes behind the others: once it is there, all are."""
    marker = f"marker-{uuid4()}"
    assert client.get("/api/v1/cases?limit=0", headers={"X-Request-ID": marker}).status_code == 200

    def arrived(events: list[dict[str, Any]]) -> bool:
        return any(event["request_id"] == marker for event in events)

    events = eventually(lambda: gateway_events(stack, organization_id), arrived)
    assert arrived(events), "the marker never arrived"
    return [event for event in events if not event["request_id"].startswith("marker-")]


def metered_ids(stack: RunningStack, organization_id: UUID) -> list[str]:
    """The request ids that the gateway has metered."""
    return [event["request_id"] for event in gateway_events(stack, organization_id)]


def spool_state(stack: RunningStack) -> dict[str, Any]:
    response = httpx.get(f"{stack.gateway_url}/health", trust_env=False)
    state: dict[str, Any] = json.loads(response.text)["spool"]
    return state


def await_block(observer: Connection, waiting: Connection, holder: Connection) -> None:
    """Until the one connection waits for a lock that the other one holds."""

    def blocking() -> list[int]:
        query = "select pg_blocking_pids(%s)"
        pids: list[int] = observer.execute(query, [waiting.info.backend_pid]).fetchall()[0][0]
        return pids

    assert holder.info.backend_pid in eventually(blocking, lambda pids: holder.info.backend_pid in pids, seconds=60)


def wait_until_shipped(state: StateDir) -> None:
    """Postgres has what was asked before. Looked up on disk, since asking how much is left leaves a record itself."""
    assert eventually(lambda: list(state.spool.glob("*.spool")), lambda left: not left) == []


@contextmanager
def database_away(database: Database) -> Iterator[None]:
    """Cut all connections to a database and let nobody in, as when Postgres is down; other databases go on."""
    name = sql.Identifier(database.name)
    with replace(database, name="postgres").connect() as superuser:
        superuser.execute(sql.SQL("alter database {} with allow_connections false").format(name))
        superuser.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [database.name])
        try:
            yield
        finally:
            superuser.execute(sql.SQL("alter database {} with allow_connections true").format(name))

"""The outbox seen from the command line: what waits, what is dead, and sending it again.

What replaying is says sql/notifications/replay_webhooks.sql. `url` is that of goldleaves_migrator, or of a superuser.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import class_row

STATUSES: Final = ("pending", "delivered", "dead")
LOOK_SECONDS: Final = 0.2


class OutboxError(Exception):
    """What was asked cannot be done: the reason, in one line."""


@dataclass(frozen=True)
class Message:
    id: UUID
    organization: str
    type: str
    status: str
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


_MESSAGES: Final = """
  select m.id, coalesce(o.slug, m.organization_id::text) as organization, m.type, m.status, m.attempts,
    m.next_attempt_at, m.last_status, m.last_error, m.created_at, m.delivered_at
  from notifications.webhook_messages m
  left join tenancy.organizations o on o.id = m.organization_id
"""
_OF_STATUS: Final = """
  where %(status)s::text is null or m.status = %(status)s
  order by m.created_at desc, m.id
  limit %(most)s
"""


def messages(url: str, status: str | None, most: int) -> list[Message]:
    """The newest ones first. Raises OutboxError for a status that there is not."""
    if status is not None and status not in STATUSES:
        raise OutboxError(f"{status!r} is no status of messages. Take pending, delivered or dead.")
    with _kernel(url) as conn, conn.cursor(row_factory=class_row(Message)) as cursor:
        return cursor.execute(
            _MESSAGES + _OF_STATUS,
            {"status": status, "most": most},
        ).fetchall()


def replay(url: str, ids: Sequence[UUID]) -> int:
    """All of them, or none. Raises psycopg.Error for one that there is not."""
    with _kernel(url) as conn:
        for one in ids:
            conn.execute("select notifications.replay_webhook(null, %s)", [one])
    return len(ids)


def replay_dead(url: str, since: datetime | None) -> int:
    with _kernel(url) as conn:
        row = conn.execute("select notifications.replay_webhooks(null, 'dead', %s)", [since]).fetchone()
    assert row is not None  # noqa: S101 - the function returns one row
    return int(row[0])


def send_test(url: str, seconds: float) -> Message:
    """Write a message that says nothing, and wait for what becomes of its first attempt, or for so long."""
    with _kernel(url) as conn:
        row = conn.execute("select notifications.send_test_webhook()").fetchone()
    assert row is not None  # noqa: S101 - the function returns one row
    deadline = time.monotonic() + seconds
    while True:
        with _kernel(url) as conn, conn.cursor(row_factory=class_row(Message)) as cursor:
            message = cursor.execute(_MESSAGES + "where m.id = %s", [row[0]]).fetchone()
        assert message is not None  # noqa: S101 - it stays for a month
        if message.attempts or time.monotonic() > deadline:
            return message
        time.sleep(LOOK_SECONDS)


@contextmanager
def _kernel(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One transaction, in UTC, as the role that owns these functions. Raises OutboxError where there are none yet."""
    with psycopg.connect(url, application_name="goldleaves webhooks") as conn:
        row = conn.execute("select to_regprocedure('notifications.replay_webhook(uuid, uuid)') is not null").fetchone()
        if not row or not row[0]:
            raise OutboxError("This database sends no messages yet. Run `goldleaves migrate` first.")
        conn.execute("set local timezone = 'UTC'")
        conn.execute("set local role goldleaves_kernel")
        yield conn

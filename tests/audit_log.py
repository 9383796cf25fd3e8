"""What tests of the audit log say about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from tests.harness import Database
from tests.sql_requests import Connection

PLATFORM = UUID(int=0)
CHAINED = ("audit.log", "audit.heads", "audit.personal")


@dataclass(frozen=True)
class Entry:
    position: int
    id: UUID
    actor_type: str
    actor_id: str | None
    email: str | None
    ip: str | None
    request_id: str | None
    action: str
    target_id: str | None
    changed_columns: list[str]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def entries(connection: Connection, organization_id: UUID, after: int = 0) -> list[Entry]:
    """The log of an organization, as whoever is connected sees it."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        return cursor.execute(
            """
            select position, id, actor_type, actor_id, email, ip, request_id, action, target_id, changed_columns,
              before, after
            from api.audit_log
            where organization_id = %s and position > %s
            order by position
            """,
            [organization_id, after],
        ).fetchall()


def length(connection: Connection, organization_id: UUID) -> int:
    found = connection.execute(
        "select count(*) from audit.log where organization_id = %s", [organization_id]
    ).fetchone()
    assert found
    return int(found[0])


def broken(connection: Connection, organization_id: UUID | None = None) -> list[tuple[Any, ...]]:
    """What audit.verify() says: position, id and problem of the first broken entry of each chain."""
    return connection.execute(
        "select position, id, problem from audit.verify(%s) order by organization_id", [organization_id]
    ).fetchall()


@contextmanager
def tampering(database: Database) -> Iterator[Connection]:
    """A superuser who has disabled every trigger of the log. What they do is undone at the end."""
    with database.connect() as superuser, superuser.transaction(force_rollback=True):
        for table in CHAINED:
            superuser.execute(f"alter table {table} disable trigger all".encode())
        yield superuser

"""Requests as PostgREST makes them, at the level of SQL: one transaction as `authenticator`, the role of the token, the
claims and headers as settings, the pre-request, then the statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeAlias, cast

import psycopg
from psycopg import sql

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Statement: TypeAlias = str | sql.SQL | sql.Composed

_CONTEXT = """
  select
    set_config('role', %(role)s, true),
    set_config('request.jwt.claims', %(claims)s, true),
    set_config('request.headers', %(headers)s, true),
    set_config('request.method', 'GET', true),
    set_config('request.path', %(path)s, true)
"""


@dataclass(frozen=True)
class Caller:
    """Who sends a request, and how. Without `pre_request` nothing has set a tenant context."""

    role: str
    subject: str | None = None
    organization: str | None = None  # X-Organization-ID
    path: str = "/cases"
    claims: Mapping[str, object] = field(default_factory=dict)
    pre_request: bool = True


@contextmanager
def request(connection: Connection, caller: Caller) -> Iterator[Connection]:
    """The transaction of one request, rolled back at its end."""
    with connection.transaction(force_rollback=True):
        enter(connection, caller)
        yield connection


def enter(connection: Connection, caller: Caller) -> None:
    """What PostgREST does first in the transaction of a request."""
    claims = {"sub": caller.subject, "role": caller.role, **caller.claims}
    headers = {"x-organization-id": caller.organization}
    connection.execute(
        _CONTEXT,
        {
            "role": caller.role,
            "claims": json.dumps({name: value for name, value in claims.items() if value is not None}),
            "headers": json.dumps({name: value for name, value in headers.items() if value is not None}),
            "path": caller.path,
        },
    )
    if caller.pre_request:
        connection.execute("select tenancy.pre_request()")


def run(connection: Connection, statement: Statement, parameters: object = None) -> psycopg.Cursor[tuple[Any, ...]]:
    """Execute text made by a test: there is no input here that could be hostile."""
    return connection.execute(cast(LiteralString, statement), cast(Any, parameters))


def refusal_or_count(connection: Connection, statement: Statement, parameters: object = None) -> psycopg.Error | int:
    """How many rows the statement touched or returned, or how Postgres refused it. Its effect is undone."""
    try:
        with connection.transaction(force_rollback=True):
            return run(connection, statement, parameters).rowcount
    except psycopg.Error as error:
        return error

"""What the tests of meters and reports say again and again: ask schema api as staff, or as a member."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.harness import Organization
from tests.sql_requests import Caller, enter, request
from tests.usage import Connection

Row = dict[str, Any]


def _call(connection: Connection, function: str, arguments: Row) -> list[Row]:
    query = sql.SQL("select * from api.{}({})").format(
        sql.Identifier(function),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
        ),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        adapted = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in arguments.items()}
        return cursor.execute(query, adapted).fetchall()


def by_staff(connection: Connection, function: str, **arguments: object) -> Row:
    """Call a function of schema api as platform_admin, on a connection of `authenticator`. It is committed."""
    with connection.transaction():
        enter(connection, Caller("platform_admin", "staff", path=f"/rpc/{function}"))
        (row,) = _call(connection, function, arguments)
    return row


def by_member(connection: Connection, organization: Organization, function: str, **arguments: object) -> list[Row]:
    """Call a function of schema api that reads, on a connection of `authenticator`."""
    with request(connection, Caller("member", organization["viewer"].subject, path=f"/rpc/{function}")):
        return _call(connection, function, arguments)


def roll_up_all(connection: Connection) -> None:
    """Until there is nothing left to roll up, on a connection of `sidecar`."""
    while True:
        found = connection.execute("select metering.roll_up()").fetchone()
        assert found
        if found[0].get("events") == 0:
            return


def void(connection: Connection, organization: UUID, key: str) -> None:
    connection.execute("select metering.void_event(%s, %s)", [organization, key])

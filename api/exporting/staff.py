"""A connection that reads schema api as the provider's staff does: as platform_admin, entered as by PostgREST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from api.exporting.errors import ExportFailed
from api.policies.trial import allow_roles
from api.release.catalog import Connection
from api.release.loader import begin
from api.said_by_postgres import said_by_postgres

_ROLE: Final = "platform_admin"


@contextmanager
def staff_snapshot(url: str) -> Iterator[Connection]:
    """One read-only snapshot of the whole database, as platform_admin, in UTC. Raises ExportFailed.

    It has no transaction id, however long it lasts, so that it keeps no rollup waiting.
    """
    try:
        with psycopg.connect(
            url, autocommit=True, prepare_threshold=None, application_name="goldleaves export"
        ) as connection:
            _become_staff(connection)
            connection.execute("set timezone = 'UTC'")
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction():
                yield connection
    except psycopg.Error as error:
        raise ExportFailed(said_by_postgres(error)) from error


def enter(connection: Connection, organization: str | None) -> None:
    """Act for an organization, by id or slug, or for none."""
    headers = {"x-organization-id": organization} if organization is not None else {}
    connection.execute(
        """
        select
          set_config('request.jwt.claims', %s, true),
          set_config('request.headers', %s, true),
          set_config('request.path', '/export', true)
        """,
        [json.dumps({"role": _ROLE}), json.dumps(headers)],
    )
    connection.execute("select tenancy.pre_request()")


def _become_staff(connection: Connection) -> None:
    """The right to become platform_admin is there for a moment only, and the role stays until the session ends: what
    `set role` says counts from the commit on, when `set local role` is over.
    """
    with connection.transaction():
        begin(connection)
        granted = allow_roles(connection, [_ROLE])
        connection.execute(f"set role {_ROLE}".encode())
        connection.execute("set local role none")
        if granted:
            connection.execute(f"revoke {_ROLE} from current_user".encode())

"""A transaction that is always rolled back, in which the DBA's tools may try anything as anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.release.loader import LOCK_TIMEOUT, begin

_PATIENCE = "10s"


@contextmanager
def trial(url: str) -> Iterator[Connection]:
    """A connection inside a transaction with an empty search_path and a low lock_timeout. Nothing of it stays."""
    with (
        psycopg.connect(url, autocommit=True, prepare_threshold=None, application_name="goldleaves policies") as conn,
        conn.transaction(force_rollback=True),
    ):
        begin(conn)
        yield conn


def allow_roles(conn: Connection, roles: list[str]) -> list[str]:
    """Let this transaction `set local role` to these. Raises MigrationError when whoever connects may not.

    Returns those that it had to grant.

    Two trials that grant the same role wait for each other: the grant of the first is not yet undone.
    """
    become = "set" if conn.info.server_version >= 160000 else "member"
    granted = []
    for role in roles:
        may = conn.execute("select pg_has_role(oid, %s) from pg_roles where rolname = %s", [become, role]).fetchone()
        if may is None:
            raise MigrationError(f"there is no role {role}")
        if may[0]:
            continue
        try:
            with conn.transaction():
                conn.execute(f"set local lock_timeout = '{_PATIENCE}'".encode())
                conn.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(role)))
                conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'".encode())
            granted.append(role)
        except psycopg.errors.InsufficientPrivilege as error:
            raise MigrationError(
                f"{conn.info.user} may not act as {role}: as a superuser, "
                f"grant {role} to {conn.info.user} with admin option"
            ) from error
        except psycopg.errors.LockNotAvailable as error:
            raise MigrationError(
                f"another command is trying things as {role} at this moment: run this again when it is done"
            ) from error
    return granted

"""What only a superuser can do, once a cluster: make the migrator and its database, and give login roles passwords.

Everything else is done by migrations, as `goldleaves_migrator`. Passwords reach the server as SCRAM verifiers only, so
that no statement log ever holds one.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import Connection, sql

MIGRATOR = "goldleaves_migrator"
DATABASE = "goldleaves"


def create_migrator(server_url: str, password: str) -> None:
    """Make the role that migrates, or set its password when it is there. `server_url` is a superuser's."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        if connection.execute("select from pg_roles where rolname = %s", [MIGRATOR]).rowcount == 0:
            connection.execute(sql.SQL("create role {} login createrole").format(sql.Identifier(MIGRATOR)))
        _set_password(connection, MIGRATOR, password)


def create_database(server_url: str, database: str = DATABASE) -> None:
    """Make the database unless it is there. Nobody may connect but the migrator, who passes that right on."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        name, migrator = sql.Identifier(database), sql.Identifier(MIGRATOR)
        if connection.execute("select from pg_database where datname = %s", [database]).rowcount == 0:
            # A cluster made without a locale would give SQL_ASCII, which holds text of any encoding and none.
            connection.execute(sql.SQL("create database {} template template0 encoding 'UTF8'").format(name))
        connection.execute(sql.SQL("revoke all on database {} from public").format(name))
        connection.execute(sql.SQL("grant create on database {} to {}").format(name, migrator))
        connection.execute(sql.SQL("grant connect on database {} to {} with grant option").format(name, migrator))


def set_passwords(server_url: str, passwords: Mapping[str, str]) -> None:
    """Give login roles, which the migrations made without one, their passwords."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        for role, password in passwords.items():
            _set_password(connection, role, password)


def _set_password(connection: Connection, role: str, password: str) -> None:
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(verifier)))

"""What migrations cannot do themselves: make the migrator and its database, and give login roles passwords.

The first two need a server's admin: a superuser, or on a managed server the role with CREATEROLE and CREATEDB that one
is given there. Passwords reach the server as SCRAM verifiers only, so that no statement log ever holds one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from api.migrations import MigrationReport, migrate
from api.settings import Settings, SettingsError
from api.stack.endpoints import DATABASE, MIGRATOR

_TRY_LOCK = "select pg_try_advisory_lock(hashtextextended('goldleaves.bootstrap', 0))"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """What `goldleaves bootstrap` is told. `services` are the passwords of the roles that the migrations make."""

    admin_url: str = field(repr=False)
    migrator_url: str = field(repr=False)
    migrator_password: str = field(repr=False)
    database: str
    services: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Plan:
        """Raises SettingsError when a variable is missing, or names another migrator than ours."""
        admin_url, migrator_url = settings.require("admin_database_url"), settings.require("migration_database_url")
        migrator = conninfo_to_dict(migrator_url)
        if migrator.get("user") != MIGRATOR:
            raise SettingsError(
                f"MIGRATION_DATABASE_URL is malformed: its role has to be {MIGRATOR}. See .env.example."
            )
        return cls(
            admin_url=admin_url,
            migrator_url=migrator_url,
            migrator_password=str(migrator.get("password") or settings.require("migrator_password")),
            database=str(migrator.get("dbname") or MIGRATOR),  # libpq's own default
            services={
                "authenticator": settings.require("authenticator_password"),
                "sidecar": settings.require("sidecar_password"),
                # Nobody has to watch the database with a role of its own.
                **({} if settings.monitor_password is None else {"monitor": settings.require("monitor_password")}),
            },
        )


def bootstrap(plan: Plan, settings: Settings) -> MigrationReport:
    """From an empty server to one that PostgREST and the sidecar can use. Safe to repeat; sets all passwords again.

    The passwords of the services are set by the migrator, who made their roles: an admin who is no superuser may not.
    """
    with _alone(plan.admin_url):
        create_migrator(plan.admin_url, plan.migrator_password)
        create_database(plan.admin_url, plan.database)
        report = migrate(plan.migrator_url, settings)
        set_passwords(plan.migrator_url, plan.services)
        return report


def create_migrator(server_url: str, password: str) -> None:
    """Make the role that migrates, or set its password when it is there. `server_url` is the admin's."""
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


def set_passwords(url: str, passwords: Mapping[str, str]) -> None:
    """Give login roles, made without one by migrations, their passwords. `url` is the admin's or the migrator's."""
    with psycopg.connect(url, autocommit=True) as connection:
        for role, password in passwords.items():
            _set_password(connection, role, password)


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Two deploys may begin at the same moment, and Postgres refuses concurrent changes of one role or database.

    Polls instead of waiting in the server, like the migrate that may go on meanwhile.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set idle_session_timeout = 0")
        while connection.execute(_TRY_LOCK).fetchone() == (False,):
            time.sleep(_POLL_SECONDS)
        yield


def _set_password(connection: Connection, role: str, password: str) -> None:
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(verifier)))

"""What the fixtures hand out: a database of one's own, a running stack on it, organizations with people."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import httpx
import jwt
import psutil
import psycopg
from psycopg import sql

from api.stack.endpoints import MIGRATOR, SUPERUSER, postgres_url
from api.stack.processes import Part, await_end, members, start, stop, wait_until_ready
from api.stack.state import Secrets, StateDir

ROLES = ("owner", "admin", "member", "viewer", "billing")


# Below the range that outgoing connections take theirs from, and each worker of a parallel run has its own thousands: a
# port that was free a moment ago stays so until somebody listens on it.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = (20_000 + 2_000 * (_WORKER % 6) + (os.getpid() + number) % 2_000 for number in count())


def free_port() -> int:
    """A port of loopback that nobody listens on, another one each time."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Database:
    """One database of the test cluster, as each of the login roles connects to it."""

    name: str
    host: str
    port: int
    secrets: Secrets = field(repr=False)

    def url(self, role: str) -> str:
        return postgres_url(role, getattr(self.secrets, role), self.host, self.port, self.name)

    @property
    def superuser(self) -> str:
        return self.url(SUPERUSER)

    @property
    def migrator(self) -> str:
        return self.url(MIGRATOR)

    @property
    def sidecar(self) -> str:
        return self.url("sidecar")

    @property
    def authenticator(self) -> str:
        return self.url("authenticator")

    @property
    def monitor(self) -> str:
        return self.url("monitor")

    def connect(self, role: str = SUPERUSER, *, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url(role), autocommit=autocommit)


@dataclass(frozen=True)
class Cluster:
    """The Postgres of the test run. `template` is a migrated database that new ones are copied from."""

    host: str
    port: int
    secrets: Secrets = field(repr=False)

    def database(self, name: str) -> Database:
        return Database(name, self.host, self.port, self.secrets)

    @property
    def server_url(self) -> str:
        return self.database("postgres").superuser

    def copy(self, template: Database, name: str) -> Database:
        """A copy of the template with its grants, which CREATE DATABASE forgets. Nobody may be connected to it."""
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template.name))
            )
            connection.execute(sql.SQL("revoke all on database {} from public").format(sql.Identifier(name)))
            grants = connection.execute(
                """
                select format(
                  'grant %%s on database %%I to %%I%%s',
                  privilege_type, %(name)s::text, pg_get_userbyid(grantee),
                  case when is_grantable then ' with grant option' end
                )
                from pg_database, aclexplode(datacl)
                where datname = %(template)s and grantee <> 0
                """,
                {"name": name, "template": template.name},
            ).fetchall()
            for (grant,) in grants:
                connection.execute(grant)
        return self.database(name)

    def drop(self, database: Database) -> None:
        with psycopg.connect(self.server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(database.name)))


@dataclass(frozen=True)
class RunningStack:
    """Real PostgREST and a real sidecar on a database of their own."""

    gateway_url: str
    postgrest_url: str
    database: Database
    jwt_secret: str = field(repr=False)
    state: StateDir
    parts: Mapping[str, Part]
    audience: str | None = None

    def token(
        self,
        sub: str | None,
        *,
        role: str | None = "member",
        org: str | UUID | None = None,
        email: str | None = None,
        **claims: object,
    ) -> str:
        """A token signed with the stack's secret. A claim that is None is left out; `claims` override any other."""
        now = int(time.time())
        everything: dict[str, object] = {
            "sub": sub,
            "role": role,
            "org_id": str(org) if org else None,
            "email": email,
            "aud": self.audience,
            "iat": now,
            "exp": now + 3600,
            **claims,
        }
        payload = {name: value for name, value in everything.items() if value is not None}
        return jwt.encode(payload, self.jwt_secret, algorithm="HS256")

    def client(self, sub: str, *, org: str | UUID | None = None, **token: Any) -> httpx.Client:
        """An HTTP client of the gateway that is signed in as `sub`, in organization `org` by header. Close it."""
        headers = {"Authorization": f"Bearer {self.token(sub, **token)}"}
        if org is not None:
            headers["X-Organization-ID"] = str(org)
        return httpx.Client(base_url=self.gateway_url, headers=headers, timeout=30, trust_env=False)

    def kill(self, name: str = "sidecar") -> None:
        """kill -9 the part with every process it has."""
        processes = members(name, self.state)
        assert processes, f"{name} does not run"
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        await_end(processes)  # only then is what they held free
        stop(name, self.state)  # takes note of the dead and removes the record

    def start(self, name: str = "sidecar") -> None:
        """Start the part again, on the same port, database and spool, and wait until it is healthy."""
        wait_until_ready(self.parts[name], self.launch(name), self.state)

    def launch(self, name: str = "sidecar") -> psutil.Process:
        """Start the part again, and wait for nothing."""
        return start(self.parts[name], self.state)

    def stop(self, name: str = "sidecar") -> None:
        """Stop the part as an orderly shutdown would."""
        stop(name, self.state)


@dataclass(frozen=True)
class Member:
    id: UUID
    subject: str
    email: str
    role: str


@dataclass(frozen=True)
class Organization:
    """An organization with one member a role: `organization["viewer"].subject`."""

    id: UUID
    slug: str
    members: Mapping[str, Member]

    def __getitem__(self, role: str) -> Member:
        return self.members[role]


def insert_organization(
    database: Database,
    slug: str,
    *,
    kind: str = "organization",
    name: str | None = None,
    timezone: str = "UTC",
    roles: tuple[str, ...] = ROLES,
) -> Organization:
    """Write an organization with its members straight into the tables, as superuser: no code under test takes part.
    Kind `personal`: its owner's, who pays.
    """
    if "owner" not in roles:
        raise ValueError("an organization has an owner")
    people: dict[str, Member] = {}
    with database.connect(autocommit=False) as connection:
        for role in roles:
            subject, email = f"{slug}|{role}", f"{role}@{slug}.example"
            found = connection.execute(
                "insert into tenancy.users (subject, email) values (%s, %s) returning id", [subject, email]
            ).fetchone()
            assert found
            people[role] = Member(found[0], subject, email, role)
        found = connection.execute(
            """
            insert into tenancy.organizations (kind, name, slug, billing_timezone, owner_user_id, billing_user_id)
            values (%(kind)s, %(name)s, %(slug)s, %(timezone)s, %(owner)s,
              case %(kind)s when 'personal' then %(owner)s end)
            returning id
            """,
            {
                "kind": kind,
                "name": name or slug.title(),
                "slug": slug,
                "timezone": timezone,
                "owner": people["owner"].id,
            },
        ).fetchone()
        assert found
        for member in people.values():
            connection.execute(
                "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, %s)",
                [found[0], member.id, member.role],
            )
            connection.execute(
                "update tenancy.users set default_organization_id = %s where id = %s", [found[0], member.id]
            )
    return Organization(found[0], slug, people)

"""Requests about people, as they reach Postgres, alone or two at the same moment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeAlias
from uuid import UUID

import psycopg

from api.stack.endpoints import SUPERUSER
from tests.harness import Database, Member
from tests.sql_requests import Caller, Connection, enter, run

CREATE = "select id, code from api.create_invitation(%(email)s, %(role)s)"
RESEND = "select code from api.resend_invitation(%(id)s)"
REVOKE = "select id from api.revoke_invitation(%(id)s)"
ACCEPT = "select id from api.accept_invitation(%(code)s)"
CHANGE = "select role from api.change_member_role(%(user)s, %(role)s)"
REMOVE = "select role from api.remove_member(%(user)s)"
LEAVE = "select role from api.leave_organization()"
TRANSFER = "select role from api.transfer_ownership(%(user)s)"
PATCH = "update api.memberships set role = %(role)s where user_id = %(user)s"
DIRECT = "update tenancy.memberships set role = %(role)s where user_id = %(user)s"
DELETE = "delete from api.memberships where user_id = %(user)s"

Outcome = str  # "ok", "nothing" or the stable code of the refusal


def person(member: Member, organization: UUID | str | None = None) -> Caller:
    return Caller("member", member.subject, None if organization is None else str(organization))


def guest(subject: str, email: str | None, **claims: object) -> Caller:
    """Somebody who accepts an invitation, known or not."""
    return Caller("member", subject, path="/rpc/accept_invitation", claims={"email": email, **claims})


def ask(database: Database, caller: Caller, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
    """One request that is committed, and the rows that it returned."""
    with database.connect("authenticator", autocommit=False) as connection:
        enter(connection, caller)
        cursor = run(connection, statement, parameters)
        return cursor.fetchall() if cursor.description else []


def refusal(database: Database, caller: Caller, statement: str, **parameters: object) -> Outcome:
    with database.connect("authenticator", autocommit=False) as connection:
        enter(connection, caller)
        return attempt(connection, statement, parameters)


def attempt(connection: Connection, statement: str, parameters: object = None) -> Outcome:
    """Run the statement and commit."""
    try:
        rows = run(connection, statement, parameters).rowcount
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        return outcome_of(error)
    return outcome_of(rows)


def outcome_of(result: psycopg.Error | int) -> Outcome:
    if isinstance(result, int):
        return "ok" if result else "nothing"
    found = re.match(r"([A-Z]+(?:_[A-Z]+)+): ", result.diag.message_primary or "")
    return found[1] if found else str(result.sqlstate)


Racer: TypeAlias = tuple[Caller | None, str, Mapping[str, object]]


def race(database: Database, *racers: Racer) -> list[Outcome]:
    """All at once: each has entered, with the role that it has then, before any does anything. None: direct SQL."""
    barrier = Barrier(len(racers))

    def run_one(racer: Racer) -> Outcome:
        caller, statement, parameters = racer
        with database.connect(SUPERUSER if caller is None else "authenticator", autocommit=False) as connection:
            if caller is not None:
                enter(connection, caller)
            barrier.wait(60)
            return attempt(connection, statement, parameters)

    with ThreadPoolExecutor(len(racers)) as pool:
        return list(pool.map(run_one, racers))


def roles_of(database: Database, organization_id: UUID) -> dict[UUID, str]:
    with database.connect() as superuser:
        rows = superuser.execute(
            "select user_id, role from tenancy.memberships where organization_id = %s", [organization_id]
        ).fetchall()
    return dict(rows)


def scalar(database: Database, query: str, parameters: Sequence[object] | None = None) -> Any:
    with database.connect() as superuser:
        found = run(superuser, query, parameters).fetchone()
    return found[0] if found else None

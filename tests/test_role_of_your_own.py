"""A role that a migration adds to those inside organizations: people give it and have it as any other, and it may do
what policies name it for and nothing else.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.people import ACCEPT, CHANGE, CREATE, ask, guest, person, refusal
from tests.sql_requests import Caller, Connection, enter, refusal_or_count, request, run

_ADD = """
  set role goldleaves_owner;
  alter table tenancy.{table} drop constraint {table}_role_check,
    add constraint {table}_role_check check (role in ('owner', 'admin', 'member', 'viewer', 'billing', 'auditor'));
  reset role;
"""
_READ_CASES = """
  alter policy cases_read on app.cases
  using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'auditor', 'data:read'))
"""
THEIR_OWN = {"organizations": 1, "memberships": 2}  # one is of their personal organization
EVERYBODYS = ("meters", "operation_weights", "plans", "currencies")
AUDITOR = guest("aud|1", "aud@example.com")


@pytest.fixture(scope="module")
def database(shared_database: Database) -> Database:
    with shared_database.connect("goldleaves_migrator") as connection:
        for table in ("memberships", "invitations"):
            run(connection, _ADD.format(table=table))
    return shared_database


@pytest.fixture(scope="module")
def firm(database: Database, make_organization: MakeOrganization) -> Organization:
    """With somebody who was invited to be auditor, and a row of most things."""
    firm = make_organization(database, "audited")
    owner = person(firm["owner"])
    ((_, code),) = ask(database, owner, CREATE, email="aud@example.com", role="auditor")
    assert ask(database, AUDITOR, ACCEPT, code=code) == [(firm.id,)]
    ask(database, owner, "insert into api.clients (name) values ('Acme')")
    ask(database, owner, "insert into api.cases (title) values ('Merger')")
    ask(database, owner, "insert into api.documents (title) values ('Contract')")
    ask(database, owner, "insert into api.workspaces (name) values ('Room')")
    ask(database, owner, CREATE, email="bob@example.com", role="viewer")
    return firm


def auditor(firm: Organization) -> Caller:
    return Caller("member", AUDITOR.subject, str(firm.id))


def readable(connection: Connection) -> dict[str, int | psycopg.Error]:
    """Rows of each view of the API."""
    views = run(connection, "select viewname from pg_views where schemaname = 'api'").fetchall()
    return {view: refusal_or_count(connection, f"select 1 from api.{view}") for (view,) in views}


def read(found: dict[str, int | psycopg.Error]) -> dict[str, int]:
    return {name: rows for name, rows in found.items() if isinstance(rows, int) and rows and name not in EVERYBODYS}


def test_it_reads_nothing_that_no_policy_names_it_for(database: Database, firm: Organization) -> None:
    with database.connect("authenticator", autocommit=False) as connection:
        with request(connection, person(firm["owner"])):
            by_owner = readable(connection)
        with request(connection, auditor(firm)):
            by_auditor = readable(connection)
    assert {name for name, rows in by_owner.items() if rows} >= {
        *(
            "cases",
            "clients",
            "documents",
            "workspaces",
            "memberships",
            "pending_invitations",
            "usage_events",
            "audit_log",
        )
    }
    assert read(by_auditor) == THEIR_OWN


@pytest.mark.parametrize(
    "statement",
    [
        "insert into api.cases (title) values ('Mine')",
        "select from api.usage_summary()",
        "select api.create_invitation('eve@example.com', 'viewer')",
        "select api.create_api_key('mine', array['data:read'])",
    ],
)
def test_it_writes_and_calls_nothing(database: Database, firm: Organization, statement: str) -> None:
    assert refusal(database, auditor(firm), statement) not in ("ok", "nothing")


def test_what_a_policy_names_it_for(database: Database, firm: Organization) -> None:
    with database.connect(autocommit=False) as connection:
        run(connection, _READ_CASES)
        enter(connection, auditor(firm))
        by_auditor = readable(connection)
        connection.rollback()
    assert read(by_auditor) == {**THEIR_OWN, "cases": 1}


@pytest.mark.parametrize(
    ("manager", "role", "outcome"),
    [
        ("owner", "auditor", "ok"),
        ("admin", "auditor", "ok"),
        ("admin", "owner", "ROLE_REQUIRED"),
        ("member", "auditor", "ROLE_REQUIRED"),
        ("owner", "boss", "INVALID_ROLE"),
    ],
)
def test_who_gives_it(
    database: Database, make_organization: MakeOrganization, manager: str, role: str, outcome: str
) -> None:
    firm = make_organization(database)
    assert refusal(database, person(firm[manager]), CHANGE, user=firm["viewer"].id, role=role) == outcome


def test_nobody_gives_roles_when_the_check_is_no_list(database: Database, firm: Organization) -> None:
    """An admin would make owners, if no list meant no limit."""
    with database.connect(autocommit=False) as connection:
        run(connection, "alter table tenancy.memberships drop constraint memberships_role_check")
        for role in ("owner", "viewer"):
            with connection.transaction(force_rollback=True):
                enter(connection, person(firm["admin"]))
                statement = "select api.change_member_role(%(user)s, %(role)s)"
                found = refusal_or_count(connection, statement, {"user": firm["viewer"].id, "role": role})
                assert "ROLE_REQUIRED" in str(found)
        connection.rollback()

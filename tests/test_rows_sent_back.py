"""Clients read a row, change a field and send the whole row back. It works, and changes nothing that is not theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem

NEW_ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("clients", {"name": "Ann"}, {"name": "Anna", "email": "anna@example.com"}),
    ("cases", {"title": "Ann v. Bob"}, {"title": "Anna v. Bob", "status": "closed"}),
    ("documents", {"title": "Claim"}, {"title": "Claim 2", "size_bytes": 5}),
]
MERGE = "resolution=merge-duplicates,return=representation"


@dataclass(frozen=True)
class Firm:
    organization: Organization
    stack: RunningStack
    http: httpx.Client

    def make(self, table: str, row: dict[str, Any]) -> dict[str, Any]:
        return self.rows("POST", table, row)[0]

    def rows(
        self, method: str, target: str, body: object = None, prefer: str = "return=representation"
    ) -> list[dict[str, Any]]:
        answer = self.http.request(method, f"/api/v1/{target}", json=body, headers={"Prefer": prefer})
        assert answer.is_success, answer.text
        rows: list[dict[str, Any]] = answer.json()
        return rows


@pytest.fixture
def firm(stack: RunningStack, make_organization: MakeOrganization) -> Iterator[Firm]:
    organization = make_organization(stack.database)
    with stack.client(organization["member"].subject) as http:
        yield Firm(organization, stack, http)


def document_events(stack: RunningStack, resource: str) -> list[str]:
    with stack.database.connect() as superuser:
        found = superuser.execute(
            "select event_name from metering.usage_events where resource_id = %s order by recorded_at, event_name",
            [resource],
        )
        return [name for (name,) in found]


@pytest.mark.parametrize(("table", "row", "change"), NEW_ROWS)
def test_a_whole_row_is_sent_back(firm: Firm, table: str, row: dict[str, Any], change: dict[str, Any]) -> None:
    made = firm.make(table, row)
    changed = made | change
    assert firm.rows("POST", table, changed, MERGE) == [changed]
    assert firm.rows("PATCH", f"{table}?id=eq.{made['id']}", made) == [made]


@pytest.mark.parametrize(("table", "row", "change"), NEW_ROWS)
def test_an_upsert_may_name_the_id_alone(firm: Firm, table: str, row: dict[str, Any], change: dict[str, Any]) -> None:
    made = firm.make(table, row)
    assert firm.rows("POST", table, {"id": made["id"], **change}, MERGE) == [made | change]
    new = str(uuid4())
    assert [row["id"] for row in firm.rows("POST", table, [{"id": new, **row}], MERGE)] == [new]
    ignored = firm.rows("POST", table, {"id": made["id"], **row}, "resolution=ignore-duplicates,return=representation")
    assert ignored == []


@pytest.mark.parametrize(("table", "row", "_"), NEW_ROWS)
def test_an_id_is_fixed(firm: Firm, table: str, row: dict[str, Any], _: object) -> None:
    made = firm.make(table, row)
    refused = firm.http.patch(f"/api/v1/{table}?id=eq.{made['id']}", json={"id": str(uuid4())})
    assert_problem(refused, 409, "ID_IS_FIXED")
    with firm.stack.database.connect() as superuser, pytest.raises(Exception, match="ID_IS_FIXED"):
        superuser.execute(f"update app.{table} set id = gen_random_uuid()")


@pytest.mark.parametrize(("table", "row", "_"), NEW_ROWS)
def test_stamps_are_ours(firm: Firm, table: str, row: dict[str, Any], _: object) -> None:
    wrong = {"created_by": str(firm.organization["owner"].id), "created_at": "1999-01-01T00:00:00+00:00"}
    made = firm.make(table, row | wrong)
    assert made["created_by"] == str(firm.organization["member"].id)
    assert made["created_at"] > "2020"
    with firm.stack.client(firm.organization["owner"].subject) as owner:
        later = owner.patch(
            f"/api/v1/{table}?id=eq.{made['id']}", json=wrong, headers={"Prefer": "return=representation"}
        ).json()
    assert later == [made]


@pytest.mark.parametrize(("table", "row", "_"), NEW_ROWS)
def test_whoever_imports_brings_the_stamps(firm: Firm, table: str, row: dict[str, Any], _: object) -> None:
    column = next(iter(row))
    with firm.stack.database.connect() as superuser:
        superuser.execute(
            f"""
            insert into app.{table} (organization_id, {column}, created_by, created_at)
            values (%s, 'Imported', %s, '2001-02-03Z')
            """,
            [firm.organization.id, firm.organization["admin"].id],
        )
    (imported,) = firm.rows("GET", f"{table}?{column}=eq.Imported")
    assert imported["created_by"] == str(firm.organization["admin"].id)
    assert imported["created_at"] == "2001-02-03T00:00:00+00:00"


@pytest.mark.parametrize(("table", "row", "_"), NEW_ROWS)
def test_a_row_does_not_move_to_another_organization(
    firm: Firm, make_organization: MakeOrganization, table: str, row: dict[str, Any], _: object
) -> None:
    """Not even to one that the person belongs to as well: only the current organization is written."""
    other = make_organization(firm.stack.database)
    with firm.stack.database.connect() as superuser:
        superuser.execute(
            "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, 'owner')",
            [other.id, firm.organization["member"].id],
        )
    made = firm.make(table, row)
    moved = made | {"organization_id": str(other.id)}
    for refused in (
        firm.http.patch(f"/api/v1/{table}?id=eq.{made['id']}", json=moved),
        firm.http.post(f"/api/v1/{table}", json=moved, headers={"Prefer": MERGE}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "42501")
    assert firm.rows("GET", f"{table}?id=eq.{made['id']}") == [made]


def test_upserts_are_metered_as_what_they_do(firm: Firm) -> None:
    made = firm.make("documents", {"title": "Claim"})
    assert document_events(firm.stack, made["id"]) == ["doc.upload"]
    processed = made | {"status": "processed"}
    for _ in range(2):
        firm.rows("POST", "documents", processed, MERGE)
    assert document_events(firm.stack, made["id"]) == ["doc.upload", "doc.processed"]

    new = str(uuid4())
    firm.rows("POST", "documents", [made, made | {"id": new}], MERGE)
    assert document_events(firm.stack, made["id"]) == ["doc.upload", "doc.processed"]
    assert document_events(firm.stack, new) == ["doc.upload"]


def test_those_who_only_read_upsert_nothing(firm: Firm) -> None:
    made = firm.make("cases", {"title": "Theirs"})
    for role in ("viewer", "billing"):
        with firm.stack.client(firm.organization[role].subject) as http:
            refused = http.post("/api/v1/cases", json=made | {"title": "Mine"}, headers={"Prefer": MERGE})
            assert refused.status_code == 403
    assert firm.rows("GET", f"cases?id=eq.{made['id']}") == [made]


def test_what_members_may_send_back_is_kept_on_every_table(stack: RunningStack) -> None:
    """Also on those that adopters add: a grant on a column that is not theirs to change comes with its trigger."""
    with stack.database.connect() as superuser:
        unguarded = superuser.execute(
            """
            select c.oid::regclass::text, kept.column_name
            from pg_class c
            join (values ('id', 'refuse_new_id'), ('created_by', 'keep_stamps'), ('created_at', 'keep_stamps'))
              as kept (column_name, trigger_name) on true
            join pg_attribute a on a.attrelid = c.oid and a.attname = kept.column_name
            where c.relnamespace = any ('{app,tenancy}'::regnamespace[]) and c.relkind in ('r', 'p')
              and has_column_privilege('member', c.oid, a.attnum, 'update')
              and not exists (
                select from pg_trigger t
                where t.tgrelid = c.oid and t.tgname = kept.trigger_name and t.tgenabled in ('O', 'A')
              )
            """
        ).fetchall()
    assert unguarded == []

"""What the generated test of a table of your own asks: two organizations with a row, and who may do what with it."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg

from api.policies.declared import declared
from api.settings import PROJECT
from tests.audit_log import entries, length
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database
from tests.own_tables import OwnTable
from tests.sql_requests import Caller, Connection, refusal_or_count, request, run
from tests.test_isolation import World, fill, tenant_relations


def two_organizations(database: Database, make_organization: MakeOrganization, table: OwnTable) -> World:
    """Each with a row of the table, and of all that it may refer to."""
    attacker, victim = (make_organization(database, f"{who}-{uuid4().hex}") for who in ("attacker", "victim"))
    with database.connect() as superuser:
        relations = tenant_relations(superuser)
    own, foreign = (fill(database, organization, relations) for organization in (attacker, victim))
    mine = tuple(relation for relation in relations if relation.name in (table.name, table.view))
    assert {relation.name for relation in mine} == {table.name, table.view}, "is it migrated?"
    return World(database, attacker, victim, own, foreign, mine)


def declared_roles(table: OwnTable, verb: str) -> frozenset[str]:
    """Roles inside an organization that the header of the policy file lets do it."""
    path = f"policies/{table.name}.sql"
    found = declared(path, (PROJECT / path).read_text())
    assert found, f"{path} declares nobody: -- may select: owner, …"
    return found.own.get(verb, frozenset()) & set(ROLES)


def roles_that_may(world: World, connection: Connection, table: OwnTable, relation: str, verb: str) -> frozenset[str]:
    """Tried as each role, with the row of its own organization."""
    return frozenset(role for role in ROLES if _may(world, connection, table, relation, verb, role))


def _may(world: World, connection: Connection, table: OwnTable, relation: str, verb: str, role: str) -> bool:
    statement = {
        "select": f"select 1 from {relation}",
        "insert": table.row.replace(f"into {table.name} ", f"into {relation} "),
        "update": f"update {relation} set id = id",
        "delete": f"delete from {relation}",
    }[verb]
    values = {"org": world.attacker.id, "id": world.attacker_row_id}
    with request(connection, Caller("member", world.attacker[role].subject)):
        outcome = refusal_or_count(connection, statement, values)
    # It is the row that is there already: that it is a duplicate is said to those only whom the policies let insert.
    if isinstance(outcome, psycopg.errors.UniqueViolation):
        return True
    if isinstance(outcome, psycopg.Error) and not isinstance(outcome, psycopg.errors.InsufficientPrivilege):
        raise outcome
    return isinstance(outcome, int) and outcome > 0


def changes_told(world: World, table: OwnTable) -> set[str]:
    """What the audit log says when a row is made, changed and removed, whoever does it."""
    values: dict[str, UUID] = {"org": world.attacker.id, "id": world.attacker_row_id}
    row = f"{table.name} where organization_id = %(org)s and id = %(id)s"
    with world.database.connect() as superuser, superuser.transaction(force_rollback=True):
        superuser.execute("set constraints all immediate")
        so_far = length(superuser, world.attacker.id)
        run(superuser, f"delete from {row}", values)
        run(superuser, table.row, values)
        run(superuser, f"update {table.name} set created_at = '2000-01-01Z' {row.removeprefix(table.name)}", values)
        told = entries(superuser, world.attacker.id, so_far)
    target = table.name.replace(".", "_")
    return {entry.action.removeprefix(f"{target}.") for entry in told if entry.action.startswith(f"{target}.")}

"""What a key with each scope may do with everything in schema api. The list of that comes from the catalog: what is new
is closed to keys, or fails here until it says which scope opens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.own_tables import own_tables
from tests.sql_requests import Caller, Connection, refusal_or_count, request
from tests.test_isolation import fill, tenant_relations

SCOPES = ("usage:read", "data:read", "data:write")
VERBS = ("select", "insert", "update", "delete")

# The view, the verb, and the scopes that do. A key needs data:read as well to change what it has to find first.
_DATA = {"select": {"data:read"}, "insert": {"data:write"}, "update": {"data:write"}}
VIEWS: Mapping[str, Mapping[str, set[str]]] = {
    "cases": _DATA,
    "clients": _DATA,
    "documents": _DATA,
    "usage_events": {"select": {"usage:read"}},
    "billing_events": {"select": {"usage:read"}},
    "storage_snapshots": {"select": {"usage:read"}},
    "entitlements": {"select": {"usage:read"}},
    "operation_weights": {"select": set(SCOPES)},  # those for all organizations
    "meters": {"select": set(SCOPES)},  # the same for everybody
    "plans": {"select": set(SCOPES)},  # everybody's, also without a key
    "currencies": {"select": set(SCOPES)},
    "organizations": {"select": set(SCOPES)},  # its own: what it is for is no secret to a key
}
FUNCTIONS: Mapping[str, set[str]] = {
    "usage_summary": {"usage:read"},
    "usage_report": {"usage:read"},
    "has_feature": set(SCOPES),  # so that an integration knows what it may use
    "health": set(SCOPES),
}
# What they are called with, where nothing but nulls would be no question.
ARGUMENTS: Mapping[str, str] = {"usage_report": "'2020-01-01', '2100-01-01', 'month'"}
# What a key is told where it may not. 42501 is the word of Postgres itself.
REFUSALS = {"PT403", "42501"}

_VIEWS = """
  select c.relname,
    coalesce((
      select min(a.attname) from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and has_column_privilege('member', c.oid, a.attname, 'update')
    ), (select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum = 1))
  from pg_class c
  where c.relnamespace = 'api'::regnamespace and c.relkind = 'v'
  order by 1
"""
_FUNCTIONS = """
  select p.proname, (select string_agg(format('null::%s', t::regtype), ', ') from unnest(p.proargtypes) as t)
  from pg_proc p
  where p.pronamespace = 'api'::regnamespace
  order by 1
"""
_MAKE_KEY = """
  insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
  values ('organization', %s, 'k', left(md5(random()::text), 12), sha256('x'), %s)
  returning id
"""


@dataclass(frozen=True)
class World:
    database: Database
    organization: Organization
    keys: Mapping[tuple[str, ...], UUID]


@pytest.fixture(scope="module")
def world(shared_database: Database, make_organization: MakeOrganization) -> World:
    """An organization with a row of everything, and a key with each scope, and with all of them."""
    with shared_database.connect("sidecar") as sidecar:
        sidecar.execute("select ops.maintain()")
    organization = make_organization(shared_database)
    keys = {}
    with shared_database.connect() as superuser:
        fill(shared_database, organization, tenant_relations(superuser))
        for scopes in (*((scope,) for scope in SCOPES), SCOPES):
            found = superuser.execute(_MAKE_KEY, [organization.id, list(scopes)]).fetchone()
            assert found
            keys[scopes] = found[0]
    return World(shared_database, organization, keys)


@pytest.fixture
def connection(world: World) -> Iterator[Connection]:
    with world.database.connect("authenticator") as opened:
        yield opened


def in_api(world: World, query: str) -> list[tuple[str, str]]:
    with world.database.connect() as superuser:
        return [(name, detail or "") for name, detail in superuser.execute(query.encode()).fetchall()]


def caller(world: World, scopes: tuple[str, ...]) -> Caller:
    return Caller("member", claims={"goldleaves_key": str(world.keys[scopes])})


def refused(outcome: psycopg.Error | int) -> bool:
    return outcome == 0 or (isinstance(outcome, psycopg.Error) and outcome.sqlstate in REFUSALS)


def statement(view: str, verb: str, column: str) -> str:
    title = "name" if view in ("clients", "workspaces") else "title"
    return {
        "select": f"select 1 from api.{view}",
        "insert": f"insert into api.{view} ({title}) values ('New')"
        if view in ("cases", "clients", "documents", "workspaces")
        else f"insert into api.{view} default values",
        "update": f"update api.{view} set {column} = {column}",
        "delete": f"delete from api.{view}",
    }[verb]


def may(allowed: set[str], verb: str, scopes: tuple[str, ...]) -> bool:
    """An update reads the columns that it writes, for which Postgres asks the policy for reading too."""
    needed = allowed & set(scopes)
    return bool(needed) and (verb != "update" or "data:read" in scopes)


@pytest.mark.parametrize("scopes", [*((scope,) for scope in SCOPES), SCOPES], ids=" ".join)
def test_views(world: World, connection: Connection, scopes: tuple[str, ...]) -> None:
    wrong = []
    known = {**VIEWS, **dict.fromkeys((table.view.removeprefix("api.") for table in own_tables()), _DATA)}
    with request(connection, caller(world, scopes)):
        for view, column in in_api(world, _VIEWS):
            for verb in VERBS:
                outcome = refusal_or_count(connection, statement(view, verb, column))
                expected = may(known.get(view, {}).get(verb, set()), verb, scopes)
                if isinstance(outcome, psycopg.errors.IntegrityError):
                    outcome = 1  # a row without values may be wrong, but the policies had let it pass
                if refused(outcome) == expected or (isinstance(outcome, psycopg.Error) and not refused(outcome)):
                    wrong.append(f"{statement(view, verb, column)}: {outcome}, expected {expected}")
    assert wrong == []


@pytest.mark.parametrize("scopes", [*((scope,) for scope in SCOPES), SCOPES], ids=" ".join)
def test_functions(world: World, connection: Connection, scopes: tuple[str, ...]) -> None:
    wrong = []
    for name, arguments in in_api(world, _FUNCTIONS):
        call = f"select * from api.{name}({ARGUMENTS.get(name, arguments)})"
        path = f"/rpc/{name}"
        with request(connection, Caller("member", path=path, claims=caller(world, scopes).claims)):
            outcome = refusal_or_count(connection, call)
        expected = bool(FUNCTIONS.get(name, set()) & set(scopes))
        if (refused(outcome) == expected) or (isinstance(outcome, psycopg.Error) and not refused(outcome)):
            wrong.append(f"{call}: {outcome}, expected {expected}")
    assert wrong == []


def test_the_lists_name_what_is_there(world: World) -> None:
    assert set(VIEWS) <= {name for name, _ in in_api(world, _VIEWS)}
    assert set(FUNCTIONS) <= {name for name, _ in in_api(world, _FUNCTIONS)}


@pytest.mark.parametrize("role", ["member", "service", "platform_admin", "anon"])
def test_a_key_is_good_for_role_member_alone(world: World, connection: Connection, role: str) -> None:
    """The claim in a token of another role is nothing: nobody gets the context of a key with more rights than it."""
    everything = world.keys[SCOPES]
    with request(connection, Caller(role, "somebody", claims={"goldleaves_key": str(everything)}, pre_request=False)):
        try:
            with connection.transaction(force_rollback=True):
                connection.execute("select tenancy.pre_request()")
                found = connection.execute("select current_setting('app.current_org_role', true)").fetchone()
        except psycopg.Error as error:
            found = (error.sqlstate,)
    assert found is not None
    assert (found[0] == ",".join(SCOPES)) == (role == "member")

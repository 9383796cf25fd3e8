"""A malicious owner, with a good token of one organization and everything that the contract lists to try it on: nothing
of another organization is read, guessed or changed, nothing that is sent is run, and nothing internal is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from psycopg import sql

from api.contract import DOCUMENT
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.meters import roll_up_all
from tests.observe import metered_since
from tests.sql_requests import Connection, run
from tests.test_isolation import Relation, fill, tenant_relations

CONTRACT: Mapping[str, Any] = json.loads(DOCUMENT.read_text())
PATHS: Mapping[str, Mapping[str, Any]] = {
    path.removeprefix("/api/v1/"): methods for path, methods in CONTRACT["paths"].items() if path.startswith("/api/v1/")
}
# Views of the provider's staff alone.
STAFFS = (
    *("meter_versions", "prices", "rejected_events", "webhook_messages"),
    *("stripe_webhook_events", "stripe_meter_event_reports", "stripe_reconciliations"),
    "stripe_invoice_items",
)
VIEWS = [path for path in PATHS if "/" not in path and path not in STAFFS]
FUNCTIONS = [path for path in PATHS if path.startswith("rpc/")]
FOR_EVERYBODY = ("rpc/accept_invitation", "rpc/health")  # whatever organization is named

PAYLOADS = (
    "' or 1=1 --",
    "x'); create table public.pwned (a int); --",
    "x\\'; update tenancy.memberships set role = 'owner'; --",
    "$$ || (select string_agg(title, ',') from app.cases) || $$",
    '"; reset role; select * from tenancy.users; --',
    "1) or exists (select from tenancy.users",
    "*) or (true",
)

# What Postgres says when text of a client has become part of a statement, or when something is broken.
RUN_AS_SQL = re.compile(r"42601|42P0[2-9]|XX\d{3}|syntax error|unterminated|internal_error", re.IGNORECASE)


@dataclass(frozen=True)
class World:
    stack: RunningStack
    attacker: Organization
    victim: Organization
    victims_row: UUID  # has the same id in every table
    tables: tuple[Relation, ...]
    secrets: frozenset[str] = field(repr=False)


@pytest.fixture(scope="module")
def world(stack: RunningStack, make_organization: MakeOrganization) -> World:
    attacker = make_organization(stack.database, "attacker")
    victim = make_organization(stack.database, "victim-of-it")
    with stack.database.connect() as superuser:
        relations = tenant_relations(superuser)
        row_id = fill(stack.database, victim, relations)
        superuser.execute("select ops.maintain()")
        # As the sidecar does meanwhile, which makes rollups, and marks the period that has ended as closing.
        roll_up_all(superuser)
        superuser.execute("select billing.due_periods('1 hour', 100000)")
        for statement in (
            "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'Mine')",
            "insert into app.clients (organization_id, name) values (%(org)s, 'Mine')",
            "insert into app.cases (organization_id, title) values (%(org)s, 'Mine')",
            "insert into app.documents (organization_id, title) values (%(org)s, 'Mine')",
        ):
            superuser.execute(statement, {"org": attacker.id})
    people = victim.members.values()
    secrets = {str(victim.id), victim.slug, str(row_id), "secret"}
    secrets |= {text for member in people for text in (str(member.id), member.subject, member.email)}
    tables = tuple(each for each in relations if each.kind == "r")
    return World(stack, attacker, victim, row_id, tables, frozenset(secrets))


@pytest.fixture(scope="module", autouse=True)
def nothing_of_the_victim_changes(world: World) -> Iterator[None]:
    with world.stack.database.connect() as superuser:
        before = everything_of(superuser, world)
        yield
        assert everything_of(superuser, world) == before


def everything_of(superuser: Connection, world: World) -> dict[str, list[Any]]:
    """The victim's rows, but for the queue that the sidecar empties, and what there is in the database beside rows."""
    found = {}
    for table in (each for each in world.tables if each.name != "billing.alert_queue"):
        query = sql.SQL("select to_jsonb(t) from {} t where {} = %s order by to_jsonb(t)::text").format(
            table.identifier, sql.Identifier(table.key)
        )
        found[table.name] = run(superuser, query, [world.victim.id]).fetchall()
    found["roles"] = superuser.execute("select rolname, rolconfig from pg_roles order by 1").fetchall()
    found["objects"] = superuser.execute(
        "select oid::regclass::text from pg_class where relnamespace <> 'pg_toast'::regnamespace order by 1"
    ).fetchall()
    return found


@dataclass(frozen=True)
class Attacker:
    world: World
    http: httpx.Client

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request, whose answer has nothing of the victim in it but what was sent, and is no failure of ours."""
        asked = self.http.build_request(method, f"/api/v1/{path}", **request)
        sent = f"{httpx.QueryParams(asked.url.query)} {asked.url.path} {asked.content!r} {asked.headers!r}"
        answer = self.http.send(asked)
        shown = f"{answer.text} {answer.headers!r}".casefold()
        told = {secret for secret in self.world.secrets if secret.casefold() in shown and secret not in sent}
        what = f"{method} {asked.url}: {answer.status_code} {answer.text}"
        assert not told, f"{what} tells {told}"
        assert answer.status_code < 500, what
        assert answer.is_success or not RUN_AS_SQL.search(answer.text), what
        return answer

    def rows(self, path: str, **request: Any) -> list[dict[str, Any]]:
        answer = self.send("GET", path, **request)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found


@pytest.fixture
def attacker(world: World) -> Iterator[Attacker]:
    with world.stack.client(world.attacker["owner"].subject) as http:
        yield Attacker(world, http)


def columns(view: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = CONTRACT["components"]["schemas"][view]["properties"]
    return found


def arguments_of(function: str) -> Mapping[str, Any]:
    described = PATHS[function]["post"].get("requestBody", {"content": {"application/json": {"schema": {}}}})
    found: Mapping[str, Any] = described["content"]["application/json"]["schema"].get("properties", {})
    return found


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A body with a value for each, that some may not take."""
    return {name: ["x"] if schema.get("type") == "array" else "x" for name, schema in arguments.items()}


def key(view: str) -> str:
    own = {
        "organizations": "id",
        "usage_events": "tenant_id",
        "meters": "code",
        "plans": "code",
        "currencies": "code",
        "entitlements": "feature",
    }
    return own.get(view, "organization_id")


@pytest.mark.parametrize("view", STAFFS)
def test_views_of_the_staff_are_refused(attacker: Attacker, view: str) -> None:
    for params in ({}, {"select": "*"}, {"limit": "0"}, {"select": "' or 1=1 --"}):
        assert attacker.send("GET", view, params=params).status_code in (400, 403)


# SQL in every parameter


@pytest.mark.parametrize("view", VIEWS)
def test_sql_in_every_filter_is_text(attacker: Attacker, view: str) -> None:
    most = 0
    for number, column in enumerate(columns(view)):
        payload, other = (PAYLOADS[(number + more) % len(PAYLOADS)] for more in (0, 3))
        quoted = payload.replace("\\", "\\\\").replace('"', '\\"')
        for filters in (
            {column: f"eq.{payload}"},
            {column: f'not.in.("{quoted}",{other})'},
            {"or": f'({column}.like."{quoted}*",{column}.eq."{quoted}")'},
            {f"{column}->>{payload}": "eq.1"},
        ):
            answer = attacker.send("GET", view, params={**filters, "select": key(view)})
            assert answer.status_code in (200, 400, 404), answer.text
            most = max(most, len(answer.json()) if answer.is_success else 0)
    # Counted afterwards: usage is still being recorded.
    assert most <= len(attacker.rows(view, params={"select": key(view)}))


@pytest.mark.parametrize("view", VIEWS)
def test_sql_in_every_other_parameter_is_refused(attacker: Attacker, view: str) -> None:
    for number, payload in enumerate(PAYLOADS):
        for name in (("select", "order", "limit", "offset")[number % 4], payload):
            assert attacker.send("GET", view, params={name: payload}).status_code in (200, 400, 404, 416)
    if "post" in PATHS[view]:
        for name in ("columns", "on_conflict", "select"):
            refused = attacker.send("POST", view, params={name: PAYLOADS[1]}, json=[{"x": 1}])
            assert refused.status_code in (400, 404), refused.text


@pytest.mark.parametrize("function", FUNCTIONS)
def test_sql_in_every_argument_is_text(attacker: Attacker, function: str) -> None:
    arguments = arguments_of(function)
    body = plain(arguments)
    for payload in PAYLOADS[FUNCTIONS.index(function) % 3 :: 3]:
        attacker.send("POST", function, params={"select": payload, "order": payload}, json={})
        for argument in arguments:
            answer = attacker.send("POST", function, json=body | {argument: payload})
            assert answer.status_code in (200, 400, 403, 404, 409), answer.text
            attacker.send("GET", function, params={argument: payload})


# What names or means somebody else


FORGED: tuple[Mapping[str, str], ...] = (
    {"Role": "platform_admin"},
    {"X-Role": "service", "X-User-ID": "%(owner)s", "X-Hasura-Role": "platform_admin"},
    {"app.current_org": "%(id)s", "App-Current-Org": "%(id)s", "X-Organization": "%(id)s"},
    {"X-Forwarded-For": "127.0.0.1, ' or 1=1 --", "Forwarded": 'for="%(id)s"', "X-Real-IP": "::1"},
    {"X-Forwarded-User": "%(subject)s", "X-Remote-User": "%(subject)s", "From": "%(email)s"},
    {"X-Request-ID": "'; set role platform_admin; --"},
    {"X-Request-ID": "%(id)s"},
    {"X-HTTP-Method-Override": "DELETE", "X-HTTP-Method": "DELETE", "X-Method-Override": "DELETE"},
    {"X-Original-URL": "/rpc/finalize_period", "X-Rewrite-URL": "/rpc/finalize_period"},
    {"Prefer": "tx=rollback"},
    {"Range": "0-999999", "Range-Unit": "items"},
)


@pytest.mark.parametrize("forged", FORGED, ids=lambda headers: " ".join(headers))
def test_forged_headers_change_nothing(world: World, attacker: Attacker, forged: Mapping[str, str]) -> None:
    owner = world.victim["owner"]
    names = {"id": world.victim.id, "owner": owner.id, "subject": owner.subject, "email": owner.email}
    headers = {name: value % names for name, value in forged.items()}
    for view in ("documents", "memberships", "organizations", "workspaces"):
        assert attacker.rows(view, headers=headers) == attacker.rows(view)
    refused = attacker.send("POST", "rpc/finalize_period", json={"period_start": "2020-01-01"}, headers=headers)
    assert (refused.status_code, refused.json()["message"][:13]) == (403, "ROLE_REQUIRED")


@pytest.mark.parametrize("profile", ["tenancy", "metering", "audit", "billing", "pg_catalog", "public", "'; --"])
def test_only_the_one_schema_is_there(attacker: Attacker, profile: str) -> None:
    for method, header in (("GET", "Accept-Profile"), ("POST", "Content-Profile")):
        for path in ("users", "rpc/provision_user"):
            refused = attacker.send(method, path, headers={header: profile}, json={} if method == "POST" else None)
            assert refused.status_code in (404, 405, 406), refused.text


INTERNAL = (
    "users",
    "tenancy.users",
    "pg_class",
    "pg_roles",
    "pg_stat_activity",
    "_yoyo_migration",
    "generations",
    "log",
    "rpc/nextval",
    "rpc/set_config",
    "rpc/pg_sleep",
    "rpc/current_setting",
    "rpc/pre_request",
    "rpc/set_context",
    "rpc/enter",
    "rpc/provision_user",
    "rpc/start_billing",
    "rpc/append",
)


@pytest.mark.parametrize("path", INTERNAL)
def test_nothing_internal_is_exposed(attacker: Attacker, path: str) -> None:
    for request in ({"method": "GET"}, {"method": "POST", "json": {}}):
        assert attacker.send(path=path, **request).status_code == 404


def test_the_description_is_the_same_for_everybody(
    world: World, attacker: Attacker, make_organization: MakeOrganization
) -> None:
    with world.stack.client(make_organization(world.stack.database)["viewer"].subject) as http:
        assert http.get("/api/v1/").text == attacker.send("GET", "").text


# Embedding


@pytest.mark.parametrize("view", VIEWS)
def test_embedding_shows_own_rows_alone(world: World, attacker: Attacker, view: str) -> None:
    victim = f"eq.{world.victim.id}"
    for other in VIEWS:
        embedded = attacker.send("GET", view, params={"select": f"*,{other}(*)"})
        # 300: there are several ways from one to the other; 403: it leads over a view of the provider's staff.
        assert embedded.status_code in (200, 300, 400, 403), embedded.text
        if embedded.status_code != 200:
            continue
        for params in (
            {"select": f"{key(view)},{other}!inner({key(other)})", f"{other}.{key(other)}": victim},
            {"select": f"{key(view)},...{other}(theirs:{key(other)})", f"{other}.{key(other)}": victim},
            {"select": key(view), "order": f"{other}({key(other)})"},
        ):
            answer = attacker.send("GET", view, params=params)
            assert answer.status_code in (200, 400), answer.text
            if "!inner" in params["select"]:
                assert answer.json() == []


# A token that is still good


@pytest.mark.parametrize("named", ["header", "claim"])
def test_somebody_removed_gets_nothing(world: World, make_organization: MakeOrganization, named: str) -> None:
    firm = make_organization(world.stack.database)
    gone = firm["admin"]
    token = world.stack.token(gone.subject, email=gone.email, org=firm.id if named == "claim" else None)
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Organization-ID": firm.slug} if named == "header" else {})
    gateway, postgrest = f"{world.stack.gateway_url}/api/v1", world.stack.postgrest_url
    attempts: list[tuple[str, str, dict[str, Any]]] = [(method, view, {}) for view in VIEWS for method in PATHS[view]]
    attempts += [("post", each, plain(arguments_of(each))) for each in FUNCTIONS if each not in FOR_EVERYBODY]
    with httpx.Client(headers=headers, timeout=30, trust_env=False) as http:
        assert http.get(f"{gateway}/cases").status_code == 200  # the gateway remembers it
        with world.stack.client(firm["owner"].subject) as owner:
            removed = owner.post("/api/v1/rpc/remove_member", json={"user_id": str(gone.id)})
        assert removed.status_code == 200, removed.text
        for method, path, body in attempts:
            for base in (gateway, postgrest):
                answer = http.request(method, f"{base}/{path}", json=None if method == "get" else body)
                assert answer.status_code == 403, f"{method} {path}: {answer.text}"
                assert answer.json()["message"].startswith("NOT_A_MEMBER: "), f"{method} {path}: {answer.text}"


@pytest.mark.parametrize("credential", ["token", "API key"])
def test_who_is_out_runs_up_no_bill(world: World, make_organization: MakeOrganization, credential: str) -> None:
    """Nor by what PostgREST turns down before it asks the database, while the gateway remembers them."""
    firm = make_organization(world.stack.database)
    with world.stack.client(firm["owner"].subject) as owner:
        if credential == "token":
            bearer = world.stack.token(firm["viewer"].subject)
            end = ("remove_member", {"user_id": str(firm["viewer"].id)})
        else:
            made = owner.post("/api/v1/rpc/create_api_key", json={"name": "Stolen", "scopes": ["data:read"]}).json()
            bearer = made["key"]
            end = ("revoke_api_key", {"id": made["id"]})
        headers = {"Authorization": f"Bearer {bearer}"}
        with httpx.Client(base_url=world.stack.gateway_url, headers=headers, timeout=30, trust_env=False) as http:
            assert http.get("/api/v1/cases").status_code == 200
            ended = owner.post(f"/api/v1/rpc/{end[0]}", json=end[1])
            assert ended.status_code == 200, ended.text
            before = len(metered_since(world.stack, owner, firm.id))
            answers = [http.get("/api/v1/cases?title=no.such.operator").status_code for _ in range(10)]
        assert len(metered_since(world.stack, owner, firm.id)) - before <= 1
        assert set(answers[1:]) <= {401, 403}


# Somebody else's looks like nobody's


def assert_same(foreign: httpx.Response, absent: httpx.Response, named: tuple[str, str] = ("", "")) -> None:
    """But for what was `named` in the one request and in the other, and the ids, times and codes of what was made."""
    told = [
        re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[^\"]*", "…", text)
        for text in (foreign.text.replace(*named) if named[0] else foreign.text, absent.text)
    ]
    assert told[0] == told[1]
    assert foreign.status_code == absent.status_code
    assert foreign.headers.get("content-range") == absent.headers.get("content-range")


@pytest.mark.parametrize("view", VIEWS)
def test_foreign_ids_in_filters_look_like_absent_ones(world: World, attacker: Attacker, view: str) -> None:
    theirs = (world.victims_row, world.victim.id, world.victim["owner"].id)
    for column, schema in columns(view).items():
        if schema.get("format") != "uuid":
            continue
        for method in ("GET", "PATCH", "DELETE"):
            if method.lower() not in PATHS[view]:
                continue
            body = {"name": "x"} if "name" in columns(view) else {"title": "x"} if "title" in columns(view) else {}
            foreign, absent = (
                attacker.send(
                    method,
                    view,
                    params={column: f"in.({','.join(map(str, ids))})"},
                    json=(body or {"role": "viewer"}) if method == "PATCH" else None,
                    headers={"Prefer": "count=exact,return=representation"},
                )
                for ids in (theirs, (uuid4(), uuid4(), uuid4()))
            )
            assert_same(foreign, absent)


def forge(attacker: Attacker, view: str, row: Mapping[str, str], resolution: str) -> httpx.Response:
    """What the attempt is answered. The row is gone afterwards, if it was made."""
    answer = attacker.send("POST", view, json=row, headers={"Prefer": f"return=representation{resolution}"})
    text, named = next(iter(row.items()))
    attacker.send("DELETE", view, params={text: f"eq.{named}"})
    return answer


@pytest.mark.parametrize("resolution", ["", ",resolution=merge-duplicates", ",resolution=ignore-duplicates"])
@pytest.mark.parametrize("view", [view for view in VIEWS if "post" in PATHS[view]])
def test_foreign_ids_in_rows_look_like_absent_ones(
    world: World, attacker: Attacker, view: str, resolution: str
) -> None:
    text = "name" if "name" in columns(view) else "title"
    for column, schema in columns(view).items():
        if schema.get("format") != "uuid":
            continue
        for theirs in (world.victims_row, world.victim.id):
            foreign, absent = (
                forge(attacker, view, {text: "Forged", column: str(target)}, resolution) for target in (theirs, uuid4())
            )
            assert_same(foreign, absent)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_foreign_ids_and_names_as_arguments_look_like_absent_ones(
    world: World, attacker: Attacker, function: str
) -> None:
    arguments = arguments_of(function)
    owner = world.victim["owner"]
    for argument, schema in arguments.items():
        if schema.get("format") == "uuid":
            pairs = [(str(theirs), str(uuid4())) for theirs in (world.victims_row, owner.id, world.victim.id)]
        elif argument == "email":
            pairs = [(owner.email, "nobody@nowhere.example")]
        else:
            continue
        rest = {name: "viewer" if name == "role" else "x" for name in arguments if name not in (argument, "overlap")}
        for theirs, absent in pairs:
            told, untold = (
                attacker.send("POST", function, json=rest | {argument: value}) for value in (theirs, absent)
            )
            assert_same(told, untold, (theirs, absent))


# Preferences and representations


def test_preferences_give_away_nothing(attacker: Attacker) -> None:
    for preference in (
        "handling=strict, tx=rollback",
        "handling=lenient, timezone='; reset role; --",
        "handling=strict, timezone=Europe/Vienna",
        "handling=strict, max-affected=0",
        "params=single-object",
        "params=multiple-objects",
        "missing=default, return=headers-only",
        "return=minimal, resolution='; --",
    ):
        answer = attacker.send("GET", "documents", headers={"Prefer": preference})
        assert answer.status_code in (200, 400), answer.text
    for counted in ("planned", "estimated", '"planned"', "exact, count=planned", "estimated , return=minimal"):
        refused = attacker.send("GET", "documents", headers={"Prefer": f"count={counted}"})
        assert refused.status_code == 400, counted


def test_a_request_is_not_rolled_back_on_demand(attacker: Attacker) -> None:
    """What it would have told, and cost, would be taken back."""
    name = f"rolled back {uuid4()}"
    answer = attacker.send("POST", "clients", json={"name": name}, headers={"Prefer": "tx=rollback"})
    assert answer.status_code == 201
    assert len(attacker.rows("clients", params={"name": f"eq.{name}"})) == 1


@pytest.mark.parametrize(
    "accept",
    [
        "application/vnd.pgrst.plan",
        "application/vnd.pgrst.plan+json; options=analyze|verbose|settings|buffers|wal",
        'application/vnd.pgrst.plan+text; for="application/json"',
        "application/octet-stream",
        "text/xml",
        "application/geo+json",
    ],
)
def test_plans_and_other_representations_are_not_shown(attacker: Attacker, accept: str) -> None:
    assert attacker.send("GET", "documents?title=eq.Secret", headers={"Accept": accept}).status_code in (404, 406, 415)


CASTS = ("regclass", "regrole", "regproc", "xml", "pg_node_tree", "tenancy.users", "pg_authid")


@pytest.mark.parametrize("cast", CASTS)
def test_casts_reach_nothing(attacker: Attacker, cast: str) -> None:
    answer = attacker.send("GET", "clients", params={"select": f"name::{cast}"})
    assert answer.status_code >= 400, answer.text


def test_aggregates_and_functions_are_not_run(attacker: Attacker) -> None:
    for select in ("count()", "id.count()", "pg_sleep(1)", "name,current_user", "ctid", "xmin", "tableoid"):
        answer = attacker.send("GET", "clients", params={"select": select})
        assert answer.status_code in (400, 404), (select, answer.text)

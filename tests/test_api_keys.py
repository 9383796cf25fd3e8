"""API keys: services come in with them, do what their scopes say for one organization, and are out from the moment that
a key is revoked, whatever the gateway remembers.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from threading import Barrier
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.auth import ApiKey, Principal
from api.database import Database as SidecarDatabase
from api.errors import Problem
from api.keys import LOOKUPS_AT_ONCE, MAX_REMEMBERED, NOTE_SECONDS, TOKEN_LIFETIME, ApiKeys, looks_like_a_key
from api.tenants import Tenants
from api.tokens import KEY_CLAIM, Exchange
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Organization, RunningStack
from tests.observe import assert_problem, database_away, eventually, metered_since
from tests.sql_requests import run
from tests.usage import Connection, event, value

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # what httpx makes for each client takes longer than a request
SCOPES = ["data:read", "data:write", "usage:read"]
NEVER_WAS = f"gl_{'0' * 12}_{'0' * 64}"

Made = dict[str, Any]


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def anonymous(stack: RunningStack, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=60, trust_env=False, verify=NO_TLS)


def bearing(stack: RunningStack, credential: str, **headers: str) -> httpx.Client:
    return anonymous(stack, Authorization=f"Bearer {credential}", **headers)


def get(stack: RunningStack, credential: str, path: str = "/api/v1/cases", **headers: str) -> httpx.Response:
    with bearing(stack, credential, **headers) as client:
        return client.get(path)


def call(stack: RunningStack, token: str, function: str, **arguments: object) -> httpx.Response:
    organization = arguments.pop("organization", None)
    headers = {"X-Organization-ID": str(organization)} if organization is not None else {}
    with bearing(stack, token, **headers) as client:
        return client.post(f"/api/v1/rpc/{function}", json=arguments)


def make_key(stack: RunningStack, organization: Organization, *scopes: str, **details: object) -> Made:
    """A key of the organization; without scopes one that has them all."""
    token = stack.token(organization["owner"].subject)
    answer = call(stack, token, "create_api_key", name="A service", scopes=list(scopes) or SCOPES, **details)
    assert answer.status_code == 200, answer.text
    made: Made = answer.json()
    return made


def staff(stack: RunningStack) -> str:
    return stack.token("staff", role="platform_admin")


def make_providers_key(stack: RunningStack, organization: Organization | None = None) -> Made:
    answer = call(
        stack,
        staff(stack),
        "create_api_key",
        name="Backend",
        scopes=["events:write"],
        organization=organization.id if organization is not None else None,
    )
    assert answer.status_code == 200, answer.text
    made: Made = answer.json()
    return made


def send(stack: RunningStack, key: str, *events: object, organization: object = None) -> httpx.Response:
    headers = {"X-Organization-ID": str(organization)} if organization is not None else {}
    with bearing(stack, key, **headers) as client:
        return client.post("/v1/events", json=list(events))


def end_now(stack: RunningStack, made: Made) -> None:
    """What time would do."""
    with stack.database.connect() as superuser:
        superuser.execute("update tenancy.api_keys set expires_at = now() where id = %s", [made["id"]])


def last_used(stack: RunningStack, made: Made) -> datetime | None:
    with stack.database.connect() as superuser:
        used: datetime | None = value(superuser, "select last_used_at from tenancy.api_keys where id = %s", made["id"])
    return used


# Making them.


def test_a_key_is_shown_once(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization, "data:read", "data:read", expires_at="2099-01-01T00:00:00Z")
    assert set(made) == {"id", "key", "prefix", "organization_id", "name", "scopes", "created_at", "expires_at"}
    assert made["key"].startswith(f"gl_{made['prefix']}_") and len(made["key"]) == 3 + 12 + 1 + 64
    assert (made["scopes"], made["organization_id"]) == (["data:read"], str(organization.id))

    [shown] = get(stack, stack.token(organization["admin"].subject), "/api/v1/api_keys").json()
    assert "key" not in shown and "key_sha256" not in shown
    assert {name: shown[name] for name in made if name != "key"} == {n: v for n, v in made.items() if n != "key"}
    assert shown["created_by"] == str(organization["owner"].id)
    assert (shown["revoked_at"], shown["last_used_at"]) == (None, None)


def test_only_its_hash_is_kept(stack: RunningStack, organization: Organization) -> None:
    """In no table, no log and no spool, also when it was sent where it is refused or not understood."""
    key = make_key(stack, organization, "data:read")["key"]
    secret = key.rpartition("_")[2]
    assert get(stack, key).status_code == 200
    assert get(stack, key, "/nothing/here").status_code == 404
    assert get(stack, key + "0").status_code == 401
    assert get(stack, f"gl_{secret}").status_code == 401
    assert send(stack, key, event("one")).status_code == 403
    with bearing(stack, key) as client:
        metered_since(stack, client, organization.id)

    with stack.database.connect() as superuser:
        tables = superuser.execute(
            """
            select c.oid::regclass::text from pg_class c
            where c.relkind = 'r' and c.relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
            """
        ).fetchall()
        holding = [
            table
            for (table,) in tables
            if run(superuser, f"select from {table} t where strpos(t::text, %s) > 0", [secret]).fetchall()
        ]
        kept = value(superuser, "select key_sha256 from tenancy.api_keys where prefix = %s", key[3:15])
    assert len(tables) > 10 and holding == []
    assert bytes(kept) == sha256(key.encode()).digest()
    stack.stop()  # else files of the spool go while they are read
    files = {path: path.read_bytes() for path in stack.state.root.rglob("*") if path.is_file()}
    stack.start()
    assert any(b"sidecar_started" in content for content in files.values()), "the log is among them"
    assert [path for path, content in files.items() if secret.encode() in content] == []


@pytest.mark.parametrize("role", ROLES)
def test_owners_and_admins_manage_keys(stack: RunningStack, organization: Organization, role: str) -> None:
    made = make_key(stack, organization)
    token = stack.token(organization[role].subject)
    created = call(stack, token, "create_api_key", name="x", scopes=["data:read"])
    rotated = call(stack, token, "rotate_api_key", id=made["id"])
    revoked = call(stack, token, "revoke_api_key", id=made["id"])
    shown = get(stack, token, "/api/v1/api_keys").json()
    if role in ("owner", "admin"):
        assert [created.status_code, rotated.status_code, revoked.status_code] == [200, 200, 200]
        assert len(shown) == 3
    else:
        for answer in (created, rotated, revoked):
            assert_problem(answer, 403, "ROLE_REQUIRED")
        assert shown == []


def test_nobody_else_makes_keys(stack: RunningStack, organization: Organization) -> None:
    details = {"name": "x", "scopes": ["data:read"]}
    for credential in (make_key(stack, organization)["key"], stack.token("backend", role="service")):
        assert_problem(call(stack, credential, "create_api_key", **details), 403, "ROLE_REQUIRED")
    assert_problem(call(stack, make_providers_key(stack)["key"], "create_api_key", **details), 403, "SCOPE_REQUIRED")
    with anonymous(stack) as nobody:
        assert nobody.post("/api/v1/rpc/create_api_key", json=details).status_code == 401


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ({"name": " "}, "INVALID_NAME"),
        ({"name": None}, "INVALID_NAME"),
        ({"name": "x" * 201}, "INVALID_NAME"),
        ({"scopes": []}, "INVALID_SCOPE"),
        ({"scopes": None}, "INVALID_SCOPE"),
        ({"scopes": [None]}, "INVALID_SCOPE"),
        ({"scopes": ["data:read", "events:write"]}, "INVALID_SCOPE"),
        ({"scopes": ["owner"]}, "INVALID_SCOPE"),
        ({"scopes": ["data:read,owner"]}, "INVALID_SCOPE"),
        ({"expires_at": "2020-01-01"}, "INVALID_EXPIRY"),
        ({"expires_at": "now"}, "INVALID_EXPIRY"),
        ({"expires_at": "infinity"}, "INVALID_EXPIRY"),
        ({"expires_at": "-infinity"}, "INVALID_EXPIRY"),
    ],
)
def test_what_a_key_cannot_be(
    stack: RunningStack, organization: Organization, details: dict[str, object], code: str
) -> None:
    token = stack.token(organization["owner"].subject)
    answer = call(stack, token, "create_api_key", **{"name": "x", "scopes": ["data:read"], **details})
    assert_problem(answer, 400, code)


def test_the_providers_staff_makes_the_providers_keys(stack: RunningStack, organization: Organization) -> None:
    for scopes in (["data:read"], ["events:write", "data:read"]):
        refused = call(stack, staff(stack), "create_api_key", name="x", scopes=scopes)
        assert_problem(refused, 400, "INVALID_SCOPE")
    one, every = make_providers_key(stack, organization), make_providers_key(stack)
    assert (one["organization_id"], every["organization_id"]) == (str(organization.id), None)

    mine = make_key(stack, organization)
    shown = {key["id"]: key for key in get(stack, staff(stack), "/api/v1/api_keys").json()}
    assert [shown[made["id"]]["kind"] for made in (one, every, mine)] == ["provider", "provider", "organization"]
    tenants = get(stack, stack.token(organization["owner"].subject), "/api/v1/api_keys").json()
    assert [key["id"] for key in tenants] == [mine["id"]]
    owner = stack.token(organization["owner"].subject)
    for function in ("rotate_api_key", "revoke_api_key"):
        assert_problem(call(stack, owner, function, id=one["id"]), 404, "API_KEY_NOT_FOUND")


def test_staff_revokes_the_key_of_an_organization_and_never_gets_one(
    stack: RunningStack, organization: Organization
) -> None:
    made = make_key(stack, organization)
    assert_problem(call(stack, staff(stack), "rotate_api_key", id=made["id"]), 403, "ROLE_REQUIRED")
    assert call(stack, staff(stack), "revoke_api_key", id=made["id"]).status_code == 200
    assert_problem(get(stack, made["key"]), 401, "INVALID_API_KEY")


def test_keys_of_others_are_not_there(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    foreign = make_key(stack, make_organization(stack.database))
    owner = stack.token(organization["owner"].subject)
    for function in ("rotate_api_key", "revoke_api_key"):
        answers = [call(stack, owner, function, id=key_id) for key_id in (foreign["id"], str(uuid4()))]
        for answer in answers:
            assert_problem(answer, 404, "API_KEY_NOT_FOUND")
    assert get(stack, foreign["key"]).status_code == 200


# Using them.


def test_a_key_acts_for_its_organization(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization)
    with bearing(stack, made["key"], Prefer="return=representation") as service:
        [case] = service.post("/api/v1/cases", json={"title": "By a service"}).json()
        assert (case["organization_id"], case["created_by"]) == (str(organization.id), None)
        assert [row["id"] for row in service.get("/api/v1/organizations").json()] == [str(organization.id)]
        assert service.get("/api/v1/memberships").json() == []
        assert service.post("/api/v1/documents", json={"title": "Uploaded"}).status_code == 201
        [uploaded] = service.get("/api/v1/usage_events?event_name=eq.doc.upload").json()
        assert uploaded["user_id"] is None
        metered = metered_since(stack, service, organization.id)
    assert {(one["event"], one["user_id"], one["dimensions"]["api_key_id"]) for one in metered} == {
        ("api.request", None, made["id"])
    }
    assert len(metered) == 2


def test_requests_of_two_keys_are_no_retries_of_each_other(stack: RunningStack, organization: Organization) -> None:
    first, second = (make_key(stack, organization, "data:read")["key"] for _ in range(2))
    for key in (first, first, second):
        assert get(stack, key, "/api/v1/cases?limit=1", **{"X-Request-ID": "the-same"}).status_code == 200
    with bearing(stack, first) as client:
        assert len(metered_since(stack, client, organization.id)) == 2


@pytest.mark.parametrize("named", ["id", "ID", "slug"])
def test_its_organization_may_be_named(stack: RunningStack, organization: Organization, named: str) -> None:
    key = make_key(stack, organization, "data:read")["key"]
    name = {"id": str(organization.id), "ID": str(organization.id).upper(), "slug": organization.slug}[named]
    assert get(stack, key, **{"X-Organization-ID": name}).status_code == 200


def test_another_organization_may_not(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    key = make_key(stack, organization)["key"]
    other = make_organization(stack.database)
    answers = set()  # of the gateway where the request is billed, else of PostgREST
    for path in ("/api/v1/cases", "/api/v1/rpc/usage_summary"):
        for name in (str(other.id), other.slug, "nowhere", str(uuid4())):
            answer = get(stack, key, path, **{"X-Organization-ID": name})
            assert_problem(answer, 403, "NOT_A_MEMBER")
            answers.add((answer.json()["message"].replace(name, "…"), answer.json()["hint"]))
    assert len(answers) == 1, "they tell which organizations are there"


def test_scopes_over_http(stack: RunningStack, organization: Organization) -> None:
    reads, writes, sums = (make_key(stack, organization, scope)["key"] for scope in SCOPES)
    owner = stack.token(organization["owner"].subject)
    with bearing(stack, owner) as client:
        assert client.post("/api/v1/cases", json={"title": "Mine"}).status_code == 201
    mine = "/api/v1/cases?title=eq.Mine"
    for key, sees, inserts, may_sum in ((reads, 1, 403, 403), (writes, 0, 201, 403), (sums, 0, 403, 200)):
        with bearing(stack, key, Prefer="count=exact") as service:
            assert len(service.get(mine).json()) == sees
            assert service.post("/api/v1/cases", json={"title": "New"}).status_code == inserts
            assert service.delete(mine).headers["Content-Range"] == "*/0"
            summary = service.get("/api/v1/rpc/usage_summary")
        assert summary.status_code == may_sum
        if may_sum == 403:
            assert_problem(summary, 403, "SCOPE_REQUIRED")
    assert len(get(stack, owner, mine).json()) == 1
    both = make_key(stack, organization, "data:read", "data:write")["key"]
    with bearing(stack, both, Prefer="return=representation") as service:
        [row] = service.get(mine).json()
        [changed] = service.patch(mine, json={**row, "status": "closed"}).json()
    assert changed == {**row, "status": "closed"}


def test_a_key_outlives_who_made_it(stack: RunningStack, organization: Organization) -> None:
    token = stack.token(organization["admin"].subject)
    made = call(stack, token, "create_api_key", name="Stays", scopes=["data:read"]).json()
    with stack.database.connect() as superuser:
        superuser.execute(
            "delete from tenancy.memberships where organization_id = %s and user_id = %s",
            [organization.id, organization["admin"].id],
        )
    assert get(stack, made["key"]).status_code == 200


# Ending them.


@pytest.mark.parametrize("path", ["/api/v1/cases", "/api/v1/organizations", "/api/v1/rpc/usage_summary"])
def test_a_revoked_key_is_out_with_the_next_request(stack: RunningStack, organization: Organization, path: str) -> None:
    made = make_key(stack, organization)
    assert get(stack, made["key"], path).status_code == 200  # from now on the gateway remembers it
    owner = stack.token(organization["owner"].subject)
    revoked, again = (call(stack, owner, "revoke_api_key", id=made["id"]).json() for _ in range(2))
    assert revoked == again and revoked["revoked_at"] is not None
    answer = get(stack, made["key"], path)
    assert_problem(answer, 401, "INVALID_API_KEY")
    assert get(stack, owner, f"/api/v1/api_keys?id=eq.{made['id']}").json()[0]["revoked_at"] == revoked["revoked_at"]


def test_an_expired_key_is_out_with_the_next_request(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization, expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    unused = make_key(stack, organization)
    assert get(stack, made["key"]).status_code == 200
    for ended in (made, unused):
        end_now(stack, ended)
        assert_problem(get(stack, ended["key"]), 401, "INVALID_API_KEY")


def test_a_revoked_or_expired_key_of_the_provider_stores_nothing(
    stack: RunningStack, organization: Organization
) -> None:
    revoked, expired = make_providers_key(stack, organization), make_providers_key(stack, organization)
    for made in (revoked, expired):
        assert send(stack, made["key"], event(str(uuid4()))).json()["accepted"] == 1
    assert call(stack, staff(stack), "revoke_api_key", id=revoked["id"]).status_code == 200
    end_now(stack, expired)
    for made in (revoked, expired):
        assert_problem(send(stack, made["key"], event(str(uuid4()))), 401, "INVALID_API_KEY")
    with stack.database.connect() as superuser:
        stored = "select count(*) from metering.usage_events where organization_id = %s"
        assert value(superuser, stored, organization.id) == 2


def test_a_rotated_key_goes_on_for_the_overlap(stack: RunningStack, organization: Organization) -> None:
    old = make_key(stack, organization, "data:read", expires_at="2099-01-01T00:00:00+00:00")
    owner = stack.token(organization["owner"].subject)
    new = call(stack, owner, "rotate_api_key", id=old["id"]).json()
    assert new["rotated_from"] == old["id"] and new["key"] != old["key"] and new["id"] != old["id"]
    same = ("name", "scopes", "expires_at", "organization_id")
    assert [new[name] for name in same] == [old[name] for name in same]
    for made in (old, new):
        assert get(stack, made["key"]).status_code == 200
    with stack.database.connect() as superuser:
        left = value(superuser, "select expires_at - now() from tenancy.api_keys where id = %s", old["id"])
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    end_now(stack, old)
    assert_problem(get(stack, old["key"]), 401, "INVALID_API_KEY")
    assert get(stack, new["key"]).status_code == 200


def test_an_overlap_never_makes_a_key_live_longer(stack: RunningStack, organization: Organization) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    old = make_key(stack, organization, "data:read", expires_at=soon)
    owner = stack.token(organization["owner"].subject)
    new = call(stack, owner, "rotate_api_key", id=old["id"], overlap="7 days").json()
    [shown] = get(stack, owner, f"/api/v1/api_keys?id=eq.{old['id']}").json()
    assert shown["expires_at"] == old["expires_at"] == new["expires_at"]


def test_without_overlap_the_old_key_is_out_at_once(stack: RunningStack, organization: Organization) -> None:
    old = make_key(stack, organization, "data:read")
    assert get(stack, old["key"]).status_code == 200
    owner = stack.token(organization["owner"].subject)
    new = call(stack, owner, "rotate_api_key", id=old["id"], overlap="0").json()
    assert_problem(get(stack, old["key"]), 401, "INVALID_API_KEY")
    assert get(stack, new["key"]).status_code == 200


def test_what_cannot_be_rotated(stack: RunningStack, organization: Organization) -> None:
    owner = stack.token(organization["owner"].subject)
    live, revoked, expired = (make_key(stack, organization) for _ in range(3))
    for overlap in ("-1 second", "31 days", None):
        refused = call(stack, owner, "rotate_api_key", id=live["id"], overlap=overlap)
        assert_problem(refused, 400, "INVALID_EXPIRY")
    call(stack, owner, "revoke_api_key", id=revoked["id"])
    end_now(stack, expired)
    for made in (revoked, expired):
        assert_problem(call(stack, owner, "rotate_api_key", id=made["id"]), 404, "API_KEY_NOT_FOUND")
    assert get(stack, live["key"]).status_code == 200


def test_of_two_who_rotate_a_key_at_once_one_does(stack: RunningStack, organization: Organization) -> None:
    owner = stack.token(organization["owner"].subject)
    for _ in range(3):
        made = make_key(stack, organization, "data:read")
        barrier = Barrier(3)

        def rotate(key_id: str, start: Barrier) -> int:
            start.wait(60)
            return call(stack, owner, "rotate_api_key", id=key_id).status_code

        with ThreadPoolExecutor(3) as pool:
            outcomes = sorted(pool.map(rotate, [made["id"]] * 3, [barrier] * 3))
        assert outcomes == [200, 409, 409]


# Keys of the provider.


def test_a_key_for_one_organization_sends_its_usage(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    key, other = make_providers_key(stack, organization)["key"], make_organization(stack.database)
    events = [
        event("plain"),
        event("named", organization_id=str(organization.id)),
        event("foreign", organization_id=str(other.id)),
        event("nowhere", organization_id=str(uuid4())),
    ]
    outcome = send(stack, key, *events).json()
    assert outcome["accepted"] == 2
    assert {(one["id"], one["code"]) for one in outcome["rejected"]} == {
        ("foreign", "INVALID_EVENT"),
        ("nowhere", "INVALID_EVENT"),
    }
    assert len({one["message"].partition(":")[2] for one in outcome["rejected"]}) == 1
    for name in (organization.id, organization.slug):
        assert send(stack, key, event("plain"), organization=name).json()["duplicates"] == 1
    texts = set()
    for name in (other.id, other.slug, "nowhere"):
        refused = send(stack, key, event("x"), organization=name)
        assert_problem(refused, 403, "NOT_A_MEMBER")
        texts.add(refused.text)
    assert len(texts) == 1


def test_a_key_for_all_organizations_sends_the_usage_of_any(
    stack: RunningStack, organization: Organization, make_organization: MakeOrganization
) -> None:
    key, other = make_providers_key(stack)["key"], make_organization(stack.database)
    batch = [event("1", organization_id=str(organization.id)), event("2", organization_id=str(other.id)), event("3")]
    outcome = send(stack, key, *batch).json()
    assert (outcome["accepted"], [one["id"] for one in outcome["rejected"]]) == (2, ["3"])
    assert send(stack, key, event("4"), organization=other.slug).json()["accepted"] == 1
    assert_problem(send(stack, key, event("5"), organization="nowhere"), 404, "ORGANIZATION_NOT_FOUND")


def test_each_kind_of_key_has_its_own_way_in(stack: RunningStack, organization: Organization) -> None:
    assert_problem(send(stack, make_key(stack, organization)["key"], event("x")), 403, "SCOPE_REQUIRED")
    for made in (make_providers_key(stack), make_providers_key(stack, organization)):
        for path in ("/api/v1/cases", "/api/v1/organizations", "/api/v1/rpc/health", "/api/v1/api_keys", "/api/v1/"):
            assert_problem(get(stack, made["key"], path), 403, "SCOPE_REQUIRED")
        named = {"X-Organization-ID": str(organization.id)}
        assert_problem(get(stack, made["key"], **named), 403, "SCOPE_REQUIRED")
    with stack.database.connect() as superuser, pytest.raises(Exception, match="INVALID_API_KEY"):
        superuser.execute("select tenancy.enter_with_key(%s, null, null)", [make_providers_key(stack)["id"]])


# Guessing, and other nonsense.


def test_prefix_and_secret_have_to_belong_together(stack: RunningStack, organization: Organization) -> None:
    first, second = (make_key(stack, organization)["key"] for _ in range(2))
    for guess in (
        first[:16] + second[16:],
        first[:-1] + ("0" if first[-1] != "0" else "1"),
        first.upper(),
        first[:16] + first[16:].upper(),
        first[:16] + sha256(first.encode()).hexdigest(),
        NEVER_WAS,
    ):
        assert_problem(get(stack, guess), 401, "INVALID_API_KEY")
    assert get(stack, first).status_code == 200


GARBAGE = [
    "gl_",
    "gl__",
    "gl_0",
    "GL_" + NEVER_WAS[3:],
    NEVER_WAS[:-1],
    NEVER_WAS + "0",
    NEVER_WAS.replace("0", "g"),
    NEVER_WAS + " " + NEVER_WAS,
    NEVER_WAS + "," + NEVER_WAS,
    NEVER_WAS + "\tx",
    "gl_' or true --_" + "0" * 64,
    "gl_%00_" + "0" * 64,
    "gl_" + "9" * 5000,
    "gl_\xe9" + NEVER_WAS[4:],
    "gl_eyJhbGciOiJub25lIn0.e30.",
]


def test_what_is_no_key_is_refused_without_asking(stack: RunningStack, organization: Organization) -> None:
    """Postgres is away: only what could be a key makes the sidecar notice, unless it remembers it as none."""
    key = make_key(stack, organization)["key"]
    unknown = f"gl_{uuid4().hex[:12]}_{'0' * 64}"
    assert_problem(get(stack, unknown), 401, "INVALID_API_KEY")
    with database_away(stack.database):
        assert_problem(get(stack, unknown), 401, "INVALID_API_KEY")
        for garbage in GARBAGE:
            authorization = f"Bearer {garbage}".encode("latin-1")
            with anonymous(stack) as client:
                answer = client.get("/api/v1/cases", headers=[(b"Authorization", authorization)])
            assert_problem(answer, 401, "INVALID_API_KEY")
        assert_problem(get(stack, key), 503, "DATABASE_UNAVAILABLE")
    assert eventually(lambda: get(stack, key).status_code, lambda status: status == 200, seconds=60) == 200


def test_only_one_form_is_asked_about(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else begins like a key, byte by byte, is refused as what it is."""
    asked = []

    async def find(_: SidecarDatabase, prefix: str, digest: bytes) -> None:
        asked.append((prefix, digest))

    monkeypatch.setattr(SidecarDatabase, "find_api_key", find)

    @settings(max_examples=200, deadline=None, database=None)
    @given(at=st.integers(0, len(NEVER_WAS)), old=st.integers(0, 3), new=st.binary(max_size=4))
    def refuse(at: int, old: int, new: bytes) -> None:
        key = NEVER_WAS.encode()
        sent = b"Bearer gl_" + (key[:at] + new + key[at + old :])[3:]
        assert looks_like_a_key(sent)
        asked.clear()

        async def test(keys: ApiKeys) -> None:
            with pytest.raises(Problem, match="INVALID_API_KEY"):
                await keys.principal(sent)

        on_keys(stack, test)
        well_formed = re.fullmatch(rb"Bearer gl_[0-9a-f]{12}_[0-9a-f]{64} *", sent) is not None
        assert len(asked) == well_formed

    refuse()


def test_a_token_of_our_own_that_names_a_key_is_none(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization)
    for claims in ({}, {"sub": organization["owner"].subject}):
        forged = stack.token(claims.get("sub"), **{KEY_CLAIM: made["id"]})
        assert_problem(get(stack, forged), 401, "INVALID_TOKEN")


# What the sidecar remembers, on its own: the class that the middleware uses, with the sidecar's rights in the database.


def on_keys(stack: RunningStack, test: Callable[[ApiKeys], Awaitable[None]]) -> None:
    async def on_database() -> None:
        database = SidecarDatabase(stack.database.sidecar, 4)
        try:
            await test(ApiKeys(database, Exchange(stack.jwt_secret, "HS256")))
        finally:
            await database.close()

    asyncio.run(on_database())


def test_what_is_remembered_tells_no_key_which_organizations_are_there(
    stack: RunningStack,
    organization: Organization,
    make_organization: MakeOrganization,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that comes from memory comes sooner."""
    asked: list[str | None] = []
    identify = SidecarDatabase.identify

    async def noted(self: SidecarDatabase, subject: str | None, email: str | None, role: str, named: str | None) -> Any:
        asked.append(named)
        return await identify(self, subject, email, role, named)

    monkeypatch.setattr(SidecarDatabase, "identify", noted)
    principal = Principal("member", key=ApiKey(uuid4(), is_providers=False, organization_id=organization.id))
    other = make_organization(stack.database).slug

    async def test() -> None:
        database = SidecarDatabase(stack.database.sidecar, 4)
        try:
            tenants = Tenants(database)
            for named in (other, "nowhere", organization.slug) * 3:
                await tenants.resolve(principal, named)
        finally:
            await database.close()

    asyncio.run(test())
    assert Counter(asked) == {other: 3, "nowhere": 3, organization.slug: 1}


def header(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_postgrest_is_shown_a_token_of_a_minute(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization)

    async def test(keys: ApiKeys) -> None:
        principal = await keys.principal(header(made["key"]))
        assert principal.token is not None
        claims = jwt.decode(principal.token, stack.jwt_secret, algorithms=["HS256"])
        expires = claims.pop("exp")
        assert claims == {"role": "member", KEY_CLAIM: made["id"]}
        assert expires <= time.time() + TOKEN_LIFETIME.total_seconds()
        assert (await keys.principal(header(made["key"]))) is principal

    on_keys(stack, test)


def test_guessing_costs_little(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess is asked about once, few at a time, and what is remembered of guesses does not grow for ever."""
    asked, at_once, most = 0, 0, 0
    find = SidecarDatabase.find_api_key

    async def counted(self: SidecarDatabase, prefix: str, digest: bytes) -> Any:
        nonlocal asked, at_once, most
        asked, at_once = asked + 1, at_once + 1
        most = max(most, at_once)
        try:
            return await find(self, prefix, digest)
        finally:
            at_once -= 1

    monkeypatch.setattr(SidecarDatabase, "find_api_key", counted)
    monkeypatch.setattr("api.keys.MAX_REMEMBERED", 20)
    monkeypatch.setattr("api.keys.WAIT_SECONDS", 60)  # however slow the machine is
    guesses = [f"gl_{number:012x}_{'0' * 64}" for number in range(50)]

    async def test(keys: ApiKeys) -> None:
        for _ in range(3):
            same = [keys.principal(header(guesses[0])) for _ in range(10)]
            refused = await asyncio.gather(*same, return_exceptions=True)
            assert all("INVALID_API_KEY" in str(error) for error in refused)
        assert asked <= LOOKUPS_AT_ONCE
        before = asked
        await asyncio.gather(*(keys.principal(header(guess)) for guess in guesses[1:]), return_exceptions=True)
        assert asked == before + len(guesses) - 1 and most == LOOKUPS_AT_ONCE
        assert len(keys._bad._entries) == 20 < MAX_REMEMBERED

    on_keys(stack, test)


# When they were last used.


COUNT_WRITES = """
  create sequence public.key_writes;
  create function public.count_key_writes() returns trigger language plpgsql security definer
    as 'begin perform nextval(''public.key_writes''); return null; end';
  create trigger count_key_writes after update on tenancy.api_keys execute function public.count_key_writes();
"""


def test_using_a_key_writes_nothing_and_stopping_notes_it(stack: RunningStack, organization: Organization) -> None:
    made = make_key(stack, organization, "data:read")
    requests, begun = 30, time.monotonic()
    with stack.database.connect() as superuser:
        superuser.execute(COUNT_WRITES)
        with bearing(stack, made["key"]) as service:
            for _ in range(requests):
                assert service.get("/api/v1/cases?limit=1").status_code == 200
        stack.stop()
        try:
            used = last_used(stack, made)
        finally:
            stack.start()
        writes = value(superuser, "select nextval('public.key_writes') - 1")
        superuser.execute("drop trigger count_key_writes on tenancy.api_keys")
    in_between = (time.monotonic() - begun) // NOTE_SECONDS + 1  # when the sidecar began to count is not known
    assert 1 <= writes <= 1 + in_between < requests
    assert used is not None and datetime.now(UTC) - used < timedelta(minutes=5)


def test_uses_are_noted_once_in_a_while(
    stack: RunningStack, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together, and also when Postgres was away the first time."""
    first, second = (make_key(stack, organization) for _ in range(2))
    monkeypatch.setattr("api.keys.NOTE_SECONDS", 0.05)

    async def test(keys: ApiKeys) -> None:
        for made in (first, second):
            await keys.principal(header(made["key"]))
        with database_away(stack.database):
            await keys.note_uses()
        noting = asyncio.create_task(keys.run())
        for made in (first, second):
            assert await asyncio.to_thread(eventually, partial(last_used, stack, made), bool) is not None
        keys.close()
        await noting

    on_keys(stack, test)


def test_the_last_use_only_moves_forward(stack: RunningStack, organization: Organization) -> None:
    made, revoked = make_key(stack, organization), make_key(stack, organization)
    now = datetime.now(UTC)
    with stack.database.connect() as superuser, stack.database.connect("sidecar") as sidecar:
        superuser.execute("update tenancy.api_keys set revoked_at = %s where id = %s", [now, revoked["id"]])
        for used, expected in (
            (now - timedelta(minutes=2), now - timedelta(minutes=2)),
            (now - timedelta(minutes=5), now - timedelta(minutes=2)),
            (now - timedelta(minutes=1), now - timedelta(minutes=1)),
        ):
            note(sidecar, {made["id"]: used, str(uuid4()): used})
            assert last_used(stack, made) == expected
        note(sidecar, {made["id"]: now + timedelta(days=1), revoked["id"]: now + timedelta(seconds=1)})
        latest = last_used(stack, made)
        assert latest is not None and now < latest < now + timedelta(hours=1), "a clock that is wrong"
        assert last_used(stack, revoked) is None, "what is refused is no use"


def note(sidecar: Connection, uses: dict[str, datetime]) -> None:
    times = {key: used.isoformat() for key, used in uses.items()}
    sidecar.execute("select tenancy.note_key_use(%s::jsonb)", [json.dumps(times)])

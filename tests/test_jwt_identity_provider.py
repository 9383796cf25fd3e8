"""Tokens that an identity provider signs with keys of its own are good at the gateway; PostgREST is shown another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from api.auth import EXCHANGED_SECONDS, IdentityProvider, TokenVerifier
from api.errors import Problem
from api.jwks import KeySet
from api.settings import PROJECT
from api.tokens import Exchange
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack, free_port
from tests.identity_provider import KeyServer, SigningKey, key_server, key_set, signing_key
from tests.observe import assert_problem, eventually
from tests.test_tokens_forged import signed

AUDIENCE = "https://api.goldleaves.example"
ROLE_CLAIM = "https://goldleaves.example/role"
SECRET = "0f8a6d1c47b29e35" * 2

RSA, EC, ED = signing_key("RS256", "rsa"), signing_key("ES256", "ec"), signing_key("EdDSA", "ed")
PSS = replace(signing_key("RS256", "pss"), algorithm="PS384")
PUBLISHED = (RSA, EC, ED, PSS)


@dataclass(frozen=True)
class World:
    stack: RunningStack
    server: KeyServer
    organization: Organization

    def get(self, token: str, path: str = "/cases", *, direct: bool = False) -> httpx.Response:
        base = self.stack.postgrest_url if direct else f"{self.stack.gateway_url}/api/v1"
        return httpx.get(base + path, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False)

    def status(self, token: str) -> int:
        return self.get(token).status_code

    def token(self, key: SigningKey = RSA, **claims: Any) -> str:
        return key.token(self.organization["member"].subject, **{"aud": AUDIENCE, **claims})

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.stack.gateway_url}/health", timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def world(open_stack: OpenStack, make_organization: MakeOrganization) -> Iterator[World]:
    with (
        key_server(key_set(*PUBLISHED)) as server,
        open_stack(
            jwt_jwks_url=server.url,
            jwt_jwks_refresh_seconds=0.1,
            jwt_audience=AUDIENCE,
            jwt_role_claim=ROLE_CLAIM,
        ) as stack,
    ):
        yield World(stack, server, make_organization(stack.database))


@pytest.mark.parametrize("key", PUBLISHED, ids=lambda key: key.algorithm)
def test_a_person_reads_and_writes_with_a_token_of_theirs(world: World, key: SigningKey) -> None:
    headers = {"Authorization": f"Bearer {world.token(key)}", "Prefer": "return=representation"}
    with httpx.Client(base_url=world.stack.gateway_url, headers=headers, timeout=30, trust_env=False) as client:
        made = client.post("/api/v1/cases", json={"title": key.algorithm})
        assert made.status_code == 201, made.text
        assert client.get("/api/v1/cases", params={"id": f"eq.{made.json()[0]['id']}"}).json() == made.json()


def test_somebody_new_gets_an_organization_of_their_own(world: World) -> None:
    token = EC.token(f"somebody|{uuid4()}", aud=AUDIENCE, email="some.body@example.com")
    assert [one["kind"] for one in world.get(token, "/organizations").json()] == ["personal"]


def test_postgrest_alone_refuses_what_the_gateway_exchanges(world: World) -> None:
    assert world.get(world.token(), direct=True).status_code == 401


def test_who_signs_in_is_a_member_unless_the_provider_says_otherwise(world: World) -> None:
    def sent(**claims: Any) -> int:
        headers = {"Authorization": f"Bearer {world.token(**claims)}", "X-Organization-ID": world.organization.slug}
        url = f"{world.stack.gateway_url}/v1/events"
        return httpx.post(url, headers=headers, json=[], trust_env=False).status_code

    assert sent() == 403
    assert sent(role="service") == 403, "another claim was set to be the one"
    assert sent(**{ROLE_CLAIM: "service"}) == 200
    for foreign in ("authenticated", "postgres", ["service"], 7):
        assert sent(**{ROLE_CLAIM: foreign}) == 401


def test_the_secret_still_signs_for_the_providers_backend(world: World) -> None:
    token = world.stack.token(world.organization["member"].subject)
    assert world.status(token) == world.get(token, direct=True).status_code == 200


def public_pem(key: SigningKey) -> bytes:
    pem: bytes = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def another(key: SigningKey) -> SigningKey:
    """Somebody else's key that calls itself like one of the provider's."""
    return replace(signing_key(key.algorithm, f"another {key.id}"), id=key.id)


Forge = Callable[[World], str]
FORGED: dict[str, Forge] = {
    "another key of that name": lambda world: world.token(another(RSA)),
    "another curve key of that name": lambda world: world.token(another(EC)),
    "a key that is not published": lambda world: world.token(signing_key("ES256", "unpublished")),
    "no kid, and several keys": lambda world: world.token(replace(RSA, id=None)),
    "the name of a key of another type": lambda world: world.token(replace(RSA, id="ec")),
    "the name of another key of its type": lambda world: world.token(replace(RSA, id="pss")),
    "kid is a path": lambda world: world.token(replace(RSA, id="../../dev/null")),
    "kid is a number": lambda world: forged_header(world, {"alg": "RS256", "kid": 7}),
    "kid is null": lambda world: forged_header(world, {"alg": "RS256", "kid": None}),
    "alg none with a kid": lambda world: forged_header(world, {"alg": "none", "kid": "rsa"}),
    "HMAC with the public key": lambda world: hmac_with(world, public_pem(RSA).decode()),
    "HMAC with the modulus": lambda world: hmac_with(world, RSA.jwk()["n"]),
    "HMAC with the point": lambda world: hmac_with(world, EC.jwk()["x"]),
    "RS256 that is an HMAC": lambda world: forged_header(world, {"alg": "RS256", "kid": "rsa"}),
    "jwk in the header": lambda world: another(RSA).token(
        world.organization["member"].subject, aud=AUDIENCE, header={"jwk": another(RSA).jwk()}
    ),
    "jku in the header": lambda world: another(RSA).token(
        world.organization["member"].subject, aud=AUDIENCE, header={"jku": world.server.url + "?jku", "kid": "jku"}
    ),
    "x5u in the header": lambda world: another(RSA).token(
        world.organization["member"].subject, aud=AUDIENCE, header={"x5u": world.server.url + "?x5u"}
    ),
    "no audience": lambda world: world.token(aud=None),
    "another audience": lambda world: world.token(aud="https://api.somebody.example"),
    "expired": lambda world: world.token(exp=int(time.time()) - 120),
    "without an end": lambda world: world.token(exp=None),
    "not yet": lambda world: world.token(nbf=int(time.time()) + 3600),
    "no sub": lambda world: RSA.token(None, aud=AUDIENCE),
    "names an API key": lambda world: world.token(goldleaves_key=str(uuid4())),
    "cut short": lambda world: world.token()[:-4],
}


def forged_header(world: World, header: dict[str, object]) -> str:
    claims = {"sub": world.organization["owner"].subject, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    return signed(header, claims, world.stack.jwt_secret)


def hmac_with(world: World, secret: str) -> str:
    claims = {
        "sub": world.organization["owner"].subject,
        "role": "member",
        "aud": AUDIENCE,
        "exp": time.time() // 1 + 60,
    }
    return signed({"alg": "HS256", "kid": "rsa"}, claims, secret)


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_refused(world: World, forge: Forge) -> None:
    assert_problem(world.get(forge(world)), 401, "INVALID_TOKEN")


def test_nothing_that_a_token_names_is_fetched(world: World) -> None:
    with key_server(key_set(another(RSA).jwk(kid="mine"))) as attacker:
        header = {"jku": attacker.url, "x5u": attacker.url, "kid": "mine"}
        token = another(RSA).token(world.organization["owner"].subject, aud=AUDIENCE, header=header)
        assert world.status(token) == 401
        assert attacker.requests == 0


def test_keys_are_rotated_without_a_restart(world: World) -> None:
    old, new = signing_key("ES256", "2026-01"), signing_key("ES256", "2026-02")
    before, after = world.token(old), world.token(new)
    try:
        world.server.document = key_set(*PUBLISHED, old)
        assert eventually(lambda: world.status(before), lambda status: status == 200) == 200
        assert world.status(after) == 401
        world.server.document = key_set(*PUBLISHED, old, new)
        assert eventually(lambda: world.status(after), lambda status: status == 200) == 200
        assert world.status(before) == 200
        world.server.document = key_set(*PUBLISHED, new)
        assert eventually(lambda: world.status(before), lambda status: status == 401) == 401, "although it was verified"
        assert world.status(after) == 200
    finally:
        world.server.document = key_set(*PUBLISHED)


def test_the_last_keys_stay_while_the_provider_is_away_and_health_says_so(world: World) -> None:
    def keys() -> str:
        answer = world.health()
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["identity_keys"]["status"]
        return found

    assert eventually(keys, lambda status: status == "ok") == "ok"
    world.server.status = 500
    try:
        assert eventually(keys, lambda status: status == "stale") == "stale"
        assert world.status(world.token()) == 200
    finally:
        world.server.status = 200
    assert eventually(keys, lambda status: status == "ok") == "ok"


def test_a_sidecar_starts_without_the_provider(world: World) -> None:
    world.server.status = 503
    try:
        world.stack.stop()
        world.stack.start()  # as `goldleaves up` does, which waits until it is ready
        assert world.health().status_code == 503
        assert world.health().json()["identity_keys"] == {"status": "down", "keys": 0, "age_seconds": None}
        assert_problem(world.get(world.token()), 503, "JWKS_UNAVAILABLE")
        assert world.status(world.stack.token(world.organization["member"].subject)) == 200
    finally:
        world.server.status = 200
    assert eventually(lambda: world.status(world.token()), lambda status: status == 200) == 200
    assert world.health().status_code == 200


def verifier(path: Path, *keys: SigningKey) -> TokenVerifier:
    path.write_bytes(key_set(*keys))
    provider = IdentityProvider(KeySet(str(path), 300), Exchange(SECRET, "HS256", AUDIENCE), "role")
    return TokenVerifier(SECRET, "HS256", AUDIENCE, provider)


async def test_what_postgrest_is_shown(tmp_path: Path) -> None:
    checks = verifier(tmp_path / "jwks.json", RSA)
    now = int(time.time())

    async def shown(**claims: Any) -> dict[str, object]:
        principal = await checks.principal(f"Bearer {RSA.token('ann', aud=['x', AUDIENCE], **claims)}".encode())
        assert principal.token
        found: dict[str, object] = jwt.decode(
            principal.token, SECRET, algorithms=["HS256"], audience=AUDIENCE, leeway=30
        )
        return found

    long = await shown(exp=now + 86400, iat=now - 60, email="ann@example.com", org_id="acme", team={"id": [1, "ü"]})
    assert now + EXCHANGED_SECONDS <= long.pop("exp") <= time.time() + EXCHANGED_SECONDS + 1  # type: ignore[operator]
    assert long == {
        "sub": "ann",
        "role": "member",
        "aud": AUDIENCE,
        "iat": now - 60,
        "email": "ann@example.com",
        "org_id": "acme",
        "team": {"id": [1, "ü"]},
    }
    assert (await shown(exp=now + 60))["exp"] == now + 60
    assert (await shown(exp=now - 10))["exp"] == now - 10, "the leeway is PostgREST's to give"


async def test_a_claim_that_is_null_is_none(tmp_path: Path) -> None:
    registered = dict.fromkeys(("iss", "jti", "nbf", "iat", "email", "org_id", "role", "team"))
    claims = {"sub": "ann", "aud": AUDIENCE, "exp": int(time.time()) + 60, **registered}
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), RSA.private, algorithm="RS256", headers={"kid": RSA.id})
    principal = await verifier(tmp_path / "jwks.json", RSA).principal(f"Bearer {token}".encode())
    shown = jwt.decode(principal.token or "", SECRET, algorithms=["HS256"], audience=AUDIENCE)
    assert shown == {"sub": "ann", "aud": AUDIENCE, "exp": claims["exp"], "role": "member"}


async def test_an_exchanged_token_is_renewed_before_postgrest_would_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = verifier(tmp_path / "jwks.json", RSA)
    bearer = f"Bearer {RSA.token('ann', aud=AUDIENCE)}".encode()
    first = await checks.principal(bearer)
    assert await checks.principal(bearer) is first
    later = time.time() + EXCHANGED_SECONDS + 1
    monkeypatch.setattr("api.auth.time", lambda: later)
    second = await checks.principal(bearer)
    assert second.token != first.token
    assert jwt.decode(second.token or "", options={"verify_signature": False})["exp"] > later


async def test_without_a_provider_its_algorithms_are_not_taken() -> None:
    with pytest.raises(Problem, match="INVALID_TOKEN: the token is signed by another algorithm"):
        await TokenVerifier(SECRET, "HS256").principal(f"Bearer {RSA.token('ann')}".encode())


def test_a_bad_file_stops_the_start_with_one_line(world: World, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text("<html>")
    settings = dict(world.stack.parts["sidecar"].environment)
    settings |= {"JWT_JWKS_URL": str(path), "GATEWAY_PORT": str(free_port()), "SPOOL_DIR": str(tmp_path / "spool")}
    command = [sys.executable, "-m", "api.serve"]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f'JWT_JWKS_URL is {path}: this is no JWKS: expected {{"keys": […]}}.\n'

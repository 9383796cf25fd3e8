"""A token that is not ours, or no longer, opens nothing: neither at the gateway nor at PostgREST behind it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import pytest

from api.auth import TokenVerifier
from api.errors import Problem
from tests.conftest import MakeOrganization
from tests.harness import RunningStack
from tests.observe import assert_problem

Claims = dict[str, Any]
Forge = Callable[[Claims, str], str]


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: object, payload: object, secret: str, digest: str = "sha256") -> str:
    """A token put together by hand: a library would refuse to make these."""
    content = f"{encoded(header)}.{encoded(payload)}"
    return f"{content}.{encoded(hmac.new(secret.encode(), content.encode(), digest).digest())}"


HS256 = {"alg": "HS256", "typ": "JWT"}


def escalated(claims: Claims, secret: str) -> str:
    """A member's valid token with another role written into it."""
    header, _, signature = jwt.encode(claims, secret).split(".")
    return f"{header}.{encoded({**claims, 'role': 'platform_admin'})}.{signature}"


def changed(**changes: object) -> Forge:
    def forge(claims: Claims, secret: str) -> str:
        made = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return signed(HS256, made, secret)

    return forge


FORGED: dict[str, Forge] = {
    "alg none": lambda claims, _: f"{encoded({'alg': 'none'})}.{encoded(claims)}.",
    "alg None, signed": lambda claims, secret: signed({"alg": "None"}, claims, secret),
    "alg empty": lambda claims, secret: signed({"alg": ""}, claims, secret),
    "no alg": lambda claims, secret: signed({"typ": "JWT"}, claims, secret),
    "alg is a list": lambda claims, secret: signed({"alg": ["HS256"]}, claims, secret),
    "no signature": lambda claims, secret: jwt.encode(claims, secret).rpartition(".")[0] + ".",
    "another secret": lambda claims, _: signed(HS256, claims, "x" * 40),
    "empty secret": lambda claims, _: signed(HS256, claims, ""),
    "HS512 with our secret": lambda claims, secret: signed({"alg": "HS512"}, claims, secret, "sha512"),
    "RS256 that is an HMAC": lambda claims, secret: signed({"alg": "RS256"}, claims, secret),
    "HS256 signed as HS512": lambda claims, secret: signed(HS256, claims, secret, "sha512"),
    "key of its own": lambda claims, _: signed(
        {**HS256, "jwk": {"kty": "oct", "k": encoded(b"k" * 32)}}, claims, "k" * 32
    ),
    "unknown crit": lambda claims, secret: signed({**HS256, "crit": ["x"], "x": 1}, claims, secret),
    "role raised": escalated,
    "cut short": lambda claims, secret: jwt.encode(claims, secret)[:-4],
    "two tokens": lambda claims, secret: f"{jwt.encode(claims, secret)},{jwt.encode(claims, secret)}",
    "payload is a list": lambda claims, secret: signed(HS256, [claims], secret),
    "payload is no JSON": lambda _, secret: signed(HS256, b"{", secret),
    "header is no JSON": lambda claims, secret: signed(b"{", claims, secret),
    "header is deep": lambda claims, secret: signed(b'{"alg":' + b"[" * 5000, claims, secret),
    "dots": lambda *_: "..",
    "huge": lambda claims, secret: jwt.encode({**claims, "pad": "x" * 20_000}, secret),
    "expired": changed(exp=int(time.time()) - 120),
    "expired long ago": changed(exp=1),
    "exp is a text": changed(exp="tomorrow"),
    "exp is infinite": changed(exp=float("inf")),
    "not yet valid": changed(nbf=int(time.time()) + 3600),
    "issued in the future": changed(iat=int(time.time()) + 3600),
    "no sub": changed(sub=None),
    "empty sub": changed(sub=""),
    "sub is a number": changed(sub=7),
    "sub with a NUL": changed(sub="a\0b"),
    "sub with a lone surrogate": changed(sub="\ud800"),
    "sub too long": changed(sub="x" * 5000),
    "no role": changed(role=None),
    "role of the database": changed(role="goldleaves_owner"),
    "role postgres": changed(role="postgres"),
    "role authenticator": changed(role="authenticator"),
    "role is a list": changed(role=["member"]),
    "org_id is a list": changed(org_id=["x"]),
}


@pytest.fixture(scope="module")
def claims(stack: RunningStack, make_organization: MakeOrganization) -> Claims:
    """Those of a real person: only the forgery is wrong."""
    owner = make_organization(stack.database)["owner"]
    return {"sub": owner.subject, "role": "member", "exp": int(time.time()) + 3600, "iat": int(time.time())}


def get(url: str, authorization: str, path: str = "/cases") -> httpx.Response:
    return httpx.get(url + path, headers={"Authorization": authorization}, trust_env=False)


def test_the_same_claims_signed_properly_are_let_in(stack: RunningStack, claims: Claims) -> None:
    token = jwt.encode(claims, stack.jwt_secret)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert get(stack.gateway_url, f"{scheme} {token}", "/api/v1/cases").status_code == 200


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_refused(stack: RunningStack, claims: Claims, forge: Forge) -> None:
    token = forge(claims, stack.jwt_secret)
    for path in ("/api/v1/cases", "/api/v1/rpc/sign_in", "/api/v1/clients", "/v1/events"):
        method = "POST" if path == "/v1/events" else "GET"
        response = httpx.request(
            method, stack.gateway_url + path, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        assert_problem(response, 401, "INVALID_TOKEN")
        assert response.headers["WWW-Authenticate"] == "Bearer"


# What PostgREST lets pass by its own rules; the gateway, the only public way in, is stricter.
STRICTER_THAN_POSTGREST = {"HS512 with our secret", "unknown crit", "huge"}


@pytest.mark.parametrize("name", sorted(FORGED.keys() - STRICTER_THAN_POSTGREST))
def test_postgrest_refuses_it_as_well(stack: RunningStack, claims: Claims, name: str) -> None:
    response = get(stack.postgrest_url, f"Bearer {FORGED[name](claims, stack.jwt_secret)}")
    assert response.status_code in (400, 401, 403), response.text


@pytest.mark.parametrize("authorization", ["Basic dXNlcjpwYXNz", "Token abc", "Bearer", "garbage", "Bearer a b c"])
def test_another_kind_of_credential_is_refused(stack: RunningStack, authorization: str) -> None:
    assert_problem(get(stack.gateway_url, authorization, "/api/v1/cases"), 401, "INVALID_TOKEN")


def test_a_token_anywhere_else_is_no_token(stack: RunningStack, claims: Claims) -> None:
    token = jwt.encode(claims, stack.jwt_secret)
    url = f"{stack.gateway_url}/api/v1/cases"
    for headers in ({"apikey": token}, {"Cookie": f"token={token}"}, {"X-Authorization": f"Bearer {token}"}):
        assert httpx.get(url, headers=headers, trust_env=False).status_code == 401
    assert httpx.get(f"{url}?access_token={token}", trust_env=False).status_code in (400, 401)


def test_the_clocks_may_differ_by_half_a_minute(stack: RunningStack, claims: Claims) -> None:
    for name, seconds in (("exp", -5), ("nbf", 20), ("iat", 20)):
        token = jwt.encode({**claims, name: int(time.time()) + seconds}, stack.jwt_secret)
        assert get(stack.gateway_url, f"Bearer {token}", "/api/v1/cases").status_code == 200
    for name, seconds in (("exp", -31), ("nbf", 60), ("iat", 60)):
        token = jwt.encode({**claims, name: int(time.time()) + seconds}, stack.jwt_secret)
        assert_problem(get(stack.gateway_url, f"Bearer {token}", "/api/v1/cases"), 401, "INVALID_TOKEN")


async def test_a_token_that_was_good_is_refused_once_it_has_expired(
    stack: RunningStack, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was just seen and is remembered. The clock is put forward, for a token says nothing of that."""
    verifier = TokenVerifier(stack.jwt_secret, "HS256")
    bearer = f"Bearer {jwt.encode(claims, stack.jwt_secret)}".encode()
    for _ in range(2):
        assert (await verifier.principal(bearer)).subject == claims["sub"]
    later = time.time() + 4000
    for module in ("auth", "claims"):
        monkeypatch.setattr(f"api.{module}.time", lambda: later)
    with pytest.raises(Problem, match="INVALID_TOKEN: the token has expired"):
        await verifier.principal(bearer)


def test_no_token_and_no_body_is_ever_logged(stack: RunningStack, claims: Claims) -> None:
    token = jwt.encode(claims, stack.jwt_secret)
    forged = jwt.encode(claims, hashlib.sha256(b"other").hexdigest())
    get(stack.gateway_url, f"Bearer {token}", "/api/v1/cases")
    get(stack.gateway_url, f"Bearer {forged}", "/api/v1/cases")
    log = "".join(path.read_text() for path in stack.state.root.rglob("*sidecar*.log"))
    assert "sidecar_started" in log, "this is the log"
    for part in (*token.split(".")[1:], *forged.split(".")[1:], stack.jwt_secret):
        assert part not in log

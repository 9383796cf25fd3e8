"""The keys of an identity provider: which of a JWKS are used and for what, when they are asked for again, and what
becomes of those that were taken back.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from api import jwks
from api.errors import Problem
from api.jwks import JwksError, KeySet, parse_keys
from tests.harness import free_port
from tests.identity_provider import Jwk, SigningKey, key_server, key_set, signing_key

RSA = signing_key("RS256", "rsa")
P256, P384, P521 = signing_key("ES256", "p256"), signing_key("ES384", "p384"), signing_key("ES512", "p521")
ED25519 = signing_key("EdDSA", "ed25519")
ALL_RSA = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


@pytest.mark.parametrize(
    ("published", "algorithms"),
    [
        (RSA.jwk(), ALL_RSA),
        (RSA.jwk(use=None), ALL_RSA),
        (RSA.jwk(key_ops=["verify"]), ALL_RSA),
        (RSA.jwk(alg="PS256"), {"PS256"}),
        (P256.jwk(), {"ES256"}),
        (P384.jwk(), {"ES384"}),
        (P521.jwk(), {"ES512"}),
        (ED25519.jwk(), {"EdDSA"}),
    ],
)
def test_a_key_is_for_the_algorithms_of_its_type(published: Jwk, algorithms: set[str]) -> None:
    (key,) = parse_keys(key_set(published))
    assert key.algorithms == algorithms


@pytest.mark.parametrize(
    "published",
    [
        {"kty": "oct", "kid": "rsa", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"},
        RSA.jwk(use="enc"),
        RSA.jwk(key_ops=["encrypt"]),
        RSA.jwk(key_ops="verify!"),
        RSA.jwk(alg="HS256"),
        RSA.jwk(alg="none"),
        RSA.jwk(alg="ES256"),
        RSA.jwk(alg="RSA-OAEP"),
        RSA.jwk(alg=["RS256"]),
        RSA.jwk(kty="oct"),
        RSA.jwk(kty="EC"),
        RSA.jwk(kty=["RSA"]),
        RSA.jwk(kid=7),
        RSA.jwk(n=None),
        RSA.jwk(n="%"),
        RSA.jwk(e="AQ"),
        RSA.jwk(d="AQAB"),
        signing_key("RS256", "short", bits=1024).jwk(),
        P256.jwk(crv="P-384"),
        P256.jwk(crv="secp256k1"),
        P256.jwk(crv=None),
        P256.jwk(alg="ES384"),
        P256.jwk(y=P256.jwk()["x"]),
        ED25519.jwk(crv="X25519"),
        ED25519.jwk(x="AA"),
        "rsa",
        None,
    ],
)
def test_what_verifies_no_token_is_left_out_and_the_others_stay(published: Any) -> None:
    keys = parse_keys(json.dumps({"keys": [published, P384.jwk()]}).encode())
    assert [key.id for key in keys] == ["p384"]


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": null}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_set_is_said_to_be_none(document: bytes) -> None:
    with pytest.raises(JwksError, match="this is no JWKS"):
        parse_keys(document)


async def ids(keys: KeySet, *names: tuple[str | None, str]) -> list[bool]:
    return [await keys.find(key_id, algorithm) is not None for key_id, algorithm in names]


def file_with(path: Path, *keys: SigningKey | Jwk) -> str:
    path.write_bytes(key_set(*keys))
    return str(path)


async def test_a_token_has_to_name_its_key_unless_there_is_only_one(tmp_path: Path) -> None:
    several = KeySet(file_with(tmp_path / "several", RSA, P256), 300)
    assert await ids(
        several, ("rsa", "RS256"), ("p256", "ES256"), (None, "RS256"), ("else", "RS256"), ("", "RS256")
    ) == [
        True,
        True,
        False,
        False,
        False,
    ]
    only = KeySet(file_with(tmp_path / "only", RSA.jwk(kid=None)), 300)
    assert await ids(only, (None, "RS256"), (None, "ES256"), ("rsa", "RS256")) == [True, False, False]


async def test_of_keys_with_one_id_the_algorithm_decides_and_else_nobody(tmp_path: Path) -> None:
    """RFC 7517, 4.5: keys of different types may share an id."""
    another = signing_key("ES256", "another")
    keys = KeySet(file_with(tmp_path / "keys", RSA, P256.jwk(kid="rsa"), P256.jwk(kid="x"), another.jwk(kid="x")), 300)
    assert await ids(keys, ("rsa", "RS256"), ("rsa", "ES256"), ("x", "ES256")) == [True, True, False]
    twice = KeySet(file_with(tmp_path / "twice", RSA, RSA), 300)
    assert await ids(twice, ("rsa", "RS256"), (None, "RS256")) == [True, True]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"keys", "this is no JWKS"),
        (key_set(RSA.jwk(use="enc")), "no key in it can verify tokens"),
        (b" " * (jwks.MAX_BYTES + 1), "more than 262144 bytes"),
    ],
)
def test_a_file_has_to_be_good_at_the_start(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JwksError, match=said):
        KeySet(str(path), 300)


async def test_a_file_that_is_damaged_later_changes_nothing_and_an_empty_one_takes_all_back(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    keys = KeySet(file_with(path, RSA), 300)
    before = keys.generation
    for damaged in (b"", b"{", b'{"keys": 1}'):
        path.write_bytes(damaged)
        await keys.refresh()
        assert keys.state()["status"] == "stale"
        assert await ids(keys, ("rsa", "RS256")) == [True]
    assert keys.generation == before
    path.write_bytes(key_set())
    await keys.refresh()
    assert await ids(keys, ("rsa", "RS256")) == [False]
    assert keys.generation == before + 1
    assert keys.state()["status"] == "ok"


def stand_still(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stop the clock of key sets, and say what it shows."""
    now = monotonic()
    monkeypatch.setattr(jwks, "monotonic", lambda: now)
    return now


async def test_a_new_key_is_looked_for_at_once_but_not_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    now = stand_still(monkeypatch)
    with key_server(key_set(RSA)) as server:
        keys = KeySet(server.url, 300)
        await keys.refresh()
        server.document = key_set(RSA, P256)
        assert await ids(keys, ("p256", "ES256")) == [True]
        assert server.requests == 2

        flood = [keys.find(f"guess-{number}", "RS256") for number in range(500)]
        assert not any(await asyncio.gather(*flood))
        assert server.requests == 2, "they came within the seconds in which nobody looks again"
        assert await ids(keys, ("rsa", "RS256"), ("p256", "ES256")) == [True, True]

        monkeypatch.setattr(jwks, "monotonic", lambda: now + jwks.UNKNOWN_KEY_SECONDS)
        await asyncio.gather(*(keys.find(f"guess-{number}", "RS256") for number in range(500)))
        assert server.requests == 3, "all of them waited for one look"


async def test_a_url_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_still(monkeypatch)
    port = free_port()
    keys = KeySet(f"http://127.0.0.1:{port}/jwks.json", 300)
    with pytest.raises(Problem, match="JWKS_UNAVAILABLE"):
        await keys.find("rsa", "RS256")
    assert keys.state()["status"] == "down"
    with key_server(key_set(RSA), port) as server:
        with pytest.raises(Problem, match="JWKS_UNAVAILABLE"):
            await keys.find("rsa", "RS256")
        assert server.requests == 0, "not with each token"
        await keys.refresh()
        assert await ids(keys, ("rsa", "RS256")) == [True]
    await keys.refresh()
    assert keys.state()["status"] == "stale"
    assert await ids(keys, ("rsa", "RS256")) == [True], "the last good keys stay"


async def test_only_what_the_url_itself_answers_counts() -> None:
    with key_server(key_set(P256)) as elsewhere, key_server(key_set(RSA)) as server:
        keys = KeySet(server.url, 300)
        await keys.refresh()
        server.status, server.location = 302, elsewhere.url
        await keys.refresh()
        server.status = 500
        await keys.refresh()
        server.status, server.document = 200, key_set(P256) + b" " * jwks.MAX_BYTES
        await keys.refresh()
        assert await ids(keys, ("rsa", "RS256"), ("p256", "ES256")) == [True, False]
        assert elsewhere.requests == 0


async def test_a_url_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.2)

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        keys = KeySet(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", 300)
        with pytest.raises(Problem, match="JWKS_UNAVAILABLE"):
            await keys.find("rsa", "RS256")


async def test_who_hangs_up_does_not_end_the_look_for_the_others() -> None:
    with key_server(key_set(RSA)) as server:
        keys = KeySet(server.url, 300)
        impatient = asyncio.create_task(keys.find("rsa", "RS256"))
        patient = asyncio.create_task(keys.find("rsa", "RS256"))
        await asyncio.sleep(0)
        impatient.cancel()
        found = await patient
        assert found is not None
        assert found.id == "rsa"
        assert server.requests == 1

"""The public keys of an identity provider (a JWKS, RFC 7517), from a URL or a file. They are renewed while we run, so
that the provider can rotate them; when it cannot be reached, the last ones stay.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx
import jwt
import structlog

from api.errors import problem

log = structlog.get_logger(__name__)

FETCH_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 10.0
UNKNOWN_KEY_SECONDS: Final = 10.0  # between two looks for keys that a token named and the set has not
MAX_BYTES: Final = 256 * 1024
SHORTEST_RSA_BITS: Final = 2048  # RFC 7518, 3.3

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# What a key may be used with, by its type and curve: never what a token says, and nothing that would take a public key
# for a secret.
_ALGORITHMS: Final[dict[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ASYMMETRIC: Final = frozenset(name for names in _ALGORITHMS.values() for name in names)


class JwksError(Exception):
    """The set cannot be had, or is none. One line."""


@dataclass(frozen=True, slots=True)
class Key:
    id: str | None
    algorithms: frozenset[str]
    public: Any  # a public key of `cryptography`


class KeySet:
    """The keys that are published now. `generation` changes with each change of them: what was verified by an earlier
    one has to be verified again.
    """

    def __init__(self, source: str, refresh_seconds: float) -> None:
        """`source` is a URL or a path. Raises JwksError for a file without good keys; a URL may be away for now."""
        self._source = source
        self._shown = re.sub("//[^/]*@", "//", source.partition("?")[0])  # without what may be a password
        self._file = None if "://" in source else Path(source)
        self._tls = httpx.create_ssl_context()  # once: it takes long enough to be felt
        self._refresh_seconds = refresh_seconds
        self._keys: tuple[Key, ...] | None = None
        self._loaded_at = 0.0
        self._failure: str | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._searched_at = float("-inf")
        self.generation = 0
        if self._file is not None:
            keys = parse_keys(_read(self._file))
            if not keys:
                raise JwksError("no key in it can verify tokens")
            self._keep(keys)

    async def find(self, key_id: str | None, algorithm: str) -> Key | None:
        """The key that a token names. Asks the provider again when there is none, but not as often as tokens come.

        Raises JWKS_UNAVAILABLE (503) when there has never been a set.
        """
        key = self._match(key_id, algorithm)
        if key is None and self._may_search():
            await self.refresh()
            key = self._match(key_id, algorithm)
        if self._keys is None:
            raise problem("JWKS_UNAVAILABLE", "the keys of the identity provider cannot be had")
        return key

    async def keep_fresh(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(min(RETRY_SECONDS, self._refresh_seconds) if self._failure else self._refresh_seconds)

    @property
    def are_known(self) -> bool:
        return self._keys is not None

    def state(self) -> dict[str, object]:
        """For /health. `stale`: the last attempt failed, and the keys from before it are in use."""
        if self._keys is None:
            return {"status": "down", "keys": 0, "age_seconds": None}
        age = round(monotonic() - self._loaded_at, 1)
        return {"status": "stale" if self._failure else "ok", "keys": len(self._keys), "age_seconds": age}

    def _match(self, key_id: str | None, algorithm: str) -> Key | None:
        keys = self._keys or ()
        if key_id is not None:
            keys = tuple(key for key in keys if key.id == key_id)
        elif len(keys) > 1:  # a token that names none leaves no choice
            return None
        fitting = [key for key in keys if algorithm in key.algorithms]
        return fitting[0] if len(fitting) == 1 else None

    def _may_search(self) -> bool:
        if self._refreshing is not None and not self._refreshing.done():
            return True  # and wait for what comes anyhow
        if monotonic() - self._searched_at < UNKNOWN_KEY_SECONDS:
            return False
        self._searched_at = monotonic()
        return True

    async def refresh(self) -> None:
        """Read them again: once for all who ask meanwhile. A client that hangs up does not end it for the others."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._load())
        await asyncio.shield(self._refreshing)

    async def _load(self) -> None:
        try:
            self._keep(parse_keys(await self._document()))
        except JwksError as error:
            self._failure = str(error)
            log.warning("jwks_not_renewed", source=self._shown, error=self._failure, keys=len(self._keys or ()))

    async def _document(self) -> bytes:
        if self._file is not None:
            return await asyncio.to_thread(_read, self._file)
        return await _fetch(self._source, self._tls)

    def _keep(self, keys: tuple[Key, ...]) -> None:
        self._failure = None
        self._loaded_at = monotonic()
        if keys != self._keys:
            self._keys = keys
            self.generation += 1
            log.info("jwks_loaded", keys=[key.id for key in keys])


def parse_keys(document: bytes) -> tuple[Key, ...]:
    """The keys of a set that tokens can be verified with. Others in it are for somebody else. Raises JwksError."""
    try:
        published = json.loads(document)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        published = None
    if not isinstance(published, list):
        raise JwksError('this is no JWKS: expected {"keys": […]}')
    keys: list[Key] = []
    for number, data in enumerate(published):
        found = _parse_key(data)
        if isinstance(found, str):
            log.warning("jwks_key_ignored", position=number, reason=found)
        elif found not in keys:
            keys.append(found)
    return tuple(keys)


def _parse_key(data: Any) -> Key | str:
    """A key, or why it is not used."""
    if not isinstance(data, dict):
        return "it is no object"
    kind, key_id = data.get("kty"), data.get("kid")
    curve = None if kind == "RSA" else data.get("crv")
    algorithms = next((names for type_and_curve, names in _ALGORITHMS.items() if type_and_curve == (kind, curve)), None)
    if algorithms is None:
        return "it is of no type that verifies tokens by a public key"
    if data.get("use", "sig") != "sig" or not _may_verify(data.get("key_ops")):
        return "it is not for signatures"
    if data.get("alg") is not None:
        algorithms = tuple(name for name in algorithms if name == data["alg"])
        if not algorithms:
            return "its alg does not fit its type"
    if key_id is not None and not isinstance(key_id, str):
        return "its kid is no text"
    if "d" in data:
        return "it is a private key, and must be published to nobody"
    try:
        public = jwt.PyJWK(data, algorithms[0]).key
    except jwt.PyJWTError:
        return "it is malformed"
    if kind == "RSA" and public.key_size < SHORTEST_RSA_BITS:
        return f"it is shorter than {SHORTEST_RSA_BITS} bits"
    return Key(key_id, frozenset(algorithms), public)


def _may_verify(operations: object) -> bool:
    return operations is None or (isinstance(operations, list) and "verify" in operations)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            document = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JwksError(error.strerror or "it cannot be read") from None
    return _bounded(document)


async def _fetch(url: str, tls: ssl.SSLContext) -> bytes:
    """What the URL answers itself: a redirect could lead anywhere, and what is compressed is larger than it looks."""
    headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
    document = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx.AsyncClient(verify=tls, timeout=FETCH_SECONDS, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                raise JwksError(f"it answered {answer.status_code}")
            async for chunk in answer.aiter_raw():
                document += chunk
                _bounded(document)
    except TimeoutError:
        raise JwksError(f"no answer within {FETCH_SECONDS:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise JwksError(str(error) or type(error).__name__) from None
    return bytes(document)


def _bounded(document: bytes | bytearray) -> bytes:
    if len(document) > MAX_BYTES:
        raise JwksError(f"more than {MAX_BYTES} bytes, which no JWKS has")
    return bytes(document)

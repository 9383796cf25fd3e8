"""Bearer tokens. The sidecar checks them before PostgREST does, by the same rules or stricter ones, so that what is
metered is attributed to the subject that PostgREST serves.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Final, Literal, get_args
from uuid import UUID

import jwt

from api.claims import LEEWAY_SECONDS, Claims, ClaimsError, read_claims, text_claim
from api.errors import Problem, problem
from api.jwks import ASYMMETRIC, KeySet
from api.tokens import KEY_CLAIM, Exchange

Role = Literal["anon", "member", "service", "platform_admin"]

MAX_TOKEN_LENGTH: Final = 8192
EXCHANGED_SECONDS: Final = 300.0  # for so long a token of the gateway is good, and is not made anew
_CACHED_TOKENS: Final = 4096
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*) *", re.IGNORECASE)
_ROLES: Final = frozenset(get_args(Role))
# The last two: headers that are JSON, but of a shape that PyJWT did not think of.
_UNREADABLE: Final = (jwt.InvalidTokenError, jwt.InvalidKeyError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of an organization, or of the provider: that one is for an organization too, or with None for all."""

    id: UUID
    is_providers: bool
    organization_id: UUID | None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Without a token: role `anon` and nothing else."""

    role: Role
    subject: str | None = None
    email: str | None = None
    organization: str | None = None  # claim org_id
    token: str | None = field(default=None, repr=False)  # what PostgREST is shown
    key: ApiKey | None = None


ANONYMOUS: Final = Principal("anon")


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """Signs with keys of its own. PostgREST knows the secret alone, so it is shown a token that `exchange` signs."""

    keys: KeySet
    exchange: Exchange
    role_claim: str


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    expires: float
    generation: int | None  # of the keys; None when it was signed with the secret


class TokenVerifier:
    """Checks tokens that are signed with the secret, by its one algorithm, and those of an identity provider, each by
    an algorithm of the key that it names.

    Verified tokens are remembered until they expire, since clients send the same one thousands of times.
    """

    def __init__(
        self, secret: str, algorithm: str, audience: str | None = None, provider: IdentityProvider | None = None
    ) -> None:
        self._secret = secret
        self._algorithm = algorithm
        self._audience = audience
        self._provider = provider
        self._signatures = jwt.PyJWS()
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def principal(self, authorization: bytes | None) -> Principal:
        """The principal of an Authorization header. Raises INVALID_TOKEN (401) and JWKS_UNAVAILABLE (503)."""
        if authorization is None:
            return ANONYMOUS
        known = self._verified.get(authorization)
        if known is not None and self._still_holds(known):
            self._verified.move_to_end(authorization)
            return known.principal
        self._verified.pop(authorization, None)
        try:
            verified = await self._verify(authorization)
        except ClaimsError as error:
            raise _invalid(str(error)) from None
        self._verified[authorization] = verified
        if len(self._verified) > _CACHED_TOKENS:
            self._verified.popitem(last=False)
        return verified.principal

    def _still_holds(self, known: _Verified) -> bool:
        keys_are_the_same = known.generation is None or (
            self._provider is not None and known.generation == self._provider.keys.generation
        )
        return keys_are_the_same and time() < known.expires

    async def _verify(self, authorization: bytes) -> _Verified:
        match = _BEARER.fullmatch(authorization) if len(authorization) <= MAX_TOKEN_LENGTH else None
        if match is None:
            raise _invalid("the Authorization header is not a Bearer token")
        token = match[1].decode("ascii")
        try:
            header = jwt.get_unverified_header(token)
        except _UNREADABLE:
            raise _invalid("the token is malformed") from None
        algorithm = header.get("alg")
        if algorithm == self._algorithm:
            claims = read_claims(self._payload(token, self._secret, algorithm), self._audience)
            return _Verified(_principal(claims, claims.get("role"), token), _end(claims), None)
        if self._provider is not None and isinstance(algorithm, str) and algorithm in ASYMMETRIC:
            return await self._verify_by_key(token, header.get("kid"), algorithm, self._provider)
        raise _invalid("the token is signed by another algorithm than ours")

    async def _verify_by_key(
        self, token: str, key_id: str | None, algorithm: str, provider: IdentityProvider
    ) -> _Verified:
        key = await provider.keys.find(key_id, algorithm)
        generation = provider.keys.generation
        if key is None:
            raise _invalid("the token is signed with a key that the identity provider does not publish")
        claims = read_claims(self._payload(token, key.public, algorithm), self._audience)
        if claims.get("exp") is None:
            raise _invalid("the token never expires (exp), as only those signed with the secret may")
        # Who signs in at the identity provider is a person, unless it says otherwise.
        role = claims.get(provider.role_claim) or "member"
        renewed = time() + EXCHANGED_SECONDS
        expires = datetime.fromtimestamp(min(claims["exp"], renewed), UTC)
        said = {name: value for name, value in claims.items() if value is not None}  # PyJWT writes no iss that is null
        exchanged = provider.exchange.sign({**said, "role": role}, expires)
        return _Verified(_principal(claims, role, exchanged), min(_end(claims), renewed), generation)

    def _payload(self, token: str, key: object, algorithm: str) -> bytes:
        try:
            payload: bytes = self._signatures.decode(token, key, algorithms=[algorithm])  # type: ignore[arg-type]
        except _UNREADABLE:
            raise _invalid("the token is malformed, or not signed by us") from None
        return payload


def _end(claims: Claims) -> float:
    return float("inf") if claims.get("exp") is None else float(claims["exp"]) + LEEWAY_SECONDS


def _principal(claims: Claims, role: object, token: str) -> Principal:
    if not isinstance(role, str) or role not in _ROLES:
        raise _invalid("the role claim is not one of ours")
    if KEY_CLAIM in claims:
        raise _invalid(f"the {KEY_CLAIM} claim is for the gateway to write")
    subject = text_claim(claims, "sub")
    if role == "member" and not subject:
        raise _invalid("the sub claim is missing")
    return Principal(
        role=role,  # type: ignore[arg-type]  # checked against _ROLES above
        subject=subject,
        email=text_claim(claims, "email"),
        organization=text_claim(claims, "org_id") or None,
        token=token,
    )


def _invalid(text: str) -> Problem:
    return problem("INVALID_TOKEN", text, hint="Send a token of ours as 'Authorization: Bearer <token>'.")

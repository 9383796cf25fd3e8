"""Bearer tokens. The sidecar checks them before PostgREST does, by the same rules or stricter ones, so that what is
metered is attributed to the subject that PostgREST serves.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from time import time
from typing import Any, Final, Literal, get_args

import jwt

from api.errors import Problem, problem

Role = Literal["anon", "member", "service", "platform_admin"]

LEEWAY_SECONDS: Final = 30  # what PostgREST allows for clocks that differ
MAX_TOKEN_LENGTH: Final = 8192
MAX_CLAIM_LENGTH: Final = 1024
_CACHED_TOKENS: Final = 4096
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*) *", re.IGNORECASE)
_ROLES: Final = frozenset(get_args(Role))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. Without a token: role `anon` and nothing else."""

    role: Role
    subject: str | None = None
    email: str | None = None
    organization: str | None = None  # claim org_id
    token: str | None = field(default=None, repr=False)


ANONYMOUS: Final = Principal("anon")


class TokenVerifier:
    """Checks signature and times of a token by one algorithm. `alg` in the token is never what decides.

    Verified tokens are remembered until they expire, since clients send the same one thousands of times.
    """

    def __init__(self, secret: str, algorithm: str) -> None:
        self._secret = secret
        self._algorithm = algorithm
        self._verified: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    def principal(self, authorization: bytes | None) -> Principal:
        """The principal of an Authorization header. Raises INVALID_TOKEN (401)."""
        if authorization is None:
            return ANONYMOUS
        known = self._verified.get(authorization)
        if known is not None:
            principal, expires = known
            if time() < expires:
                self._verified.move_to_end(authorization)
                return principal
            del self._verified[authorization]
        principal, expires = self._verify(authorization)
        self._verified[authorization] = principal, expires
        if len(self._verified) > _CACHED_TOKENS:
            self._verified.popitem(last=False)
        return principal

    def _verify(self, authorization: bytes) -> tuple[Principal, float]:
        match = _BEARER.fullmatch(authorization) if len(authorization) <= MAX_TOKEN_LENGTH else None
        if match is None:
            raise _invalid("the Authorization header is not a Bearer token")
        token = match[1].decode("ascii")
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[self._algorithm],
                leeway=LEEWAY_SECONDS,
                options={"verify_aud": False, "verify_iss": False},
            )
            expires = float(claims["exp"]) + LEEWAY_SECONDS if "exp" in claims else float("inf")
        except jwt.ExpiredSignatureError:
            raise _invalid("the token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
            # The last four: header and claims that are JSON, but of a shape that PyJWT did not think of.
            raise _invalid("the token is malformed, not yet valid, or not signed by us") from None
        return _principal(claims, token), expires


def _principal(claims: dict[str, Any], token: str) -> Principal:
    role = claims.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _invalid("the role claim is not one of ours")
    subject = _text_claim(claims, "sub")
    if role == "member" and not subject:
        raise _invalid("the sub claim is missing")
    return Principal(
        role=role,  # type: ignore[arg-type]  # checked against _ROLES above
        subject=subject,
        email=_text_claim(claims, "email"),
        organization=_text_claim(claims, "org_id") or None,
        token=token,
    )


def _text_claim(claims: dict[str, Any], name: str) -> str | None:
    """A claim as text that Postgres can store: no NUL, no lone surrogates, of a sane length."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_CLAIM_LENGTH or not value.isprintable():
        raise _invalid(f"the {name} claim is not a plain text")
    return value


def _invalid(text: str) -> Problem:
    return problem("INVALID_TOKEN", text, hint="Send a token of ours as 'Authorization: Bearer <token>'.")

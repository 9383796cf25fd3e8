"""What a token says, whoever signed it. tenancy.claims_fault() holds requests to PostgREST to the same rules, because
its own differ from version to version: one takes a fraction of a second for 1970, another refuses a `sub` with a colon
that is no URI.
"""

from __future__ import annotations

import json
import re
from time import time
from typing import Any, Final

Claims = dict[str, Any]

LEEWAY_SECONDS: Final = 30  # what PostgREST allows for clocks that differ
MAX_CLAIM_LENGTH: Final = 1024
LATEST: Final = 253_402_300_799  # the last second of the year 9999

# RFC 7519, StringOrURI: text with a colon in it has to be a URI.
_CHARACTER: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_URI: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*:"
    rf"(?://(?:(?:{_CHARACTER}|:)*@)?{_CHARACTER}*(?::[0-9]*)?(?:/(?:{_CHARACTER}|[:@/])*)?"
    rf"|/?(?:(?:{_CHARACTER}|[:@])(?:{_CHARACTER}|[:@/])*)?)"
    rf"(?:\?(?:{_CHARACTER}|[:@/?])*)?"
    rf"(?:#(?:{_CHARACTER}|[:@/?])*)?"
)
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class ClaimsError(Exception):
    """A token with a good signature that is not for us, or not now. The text says why."""


def read_claims(payload: bytes, audience: str | None) -> Claims:
    """The claims of a verified token that is valid now and, where `audience` is given, meant for it."""
    claims = _parse(payload)
    now = time()
    times = {name: _time(claims, name) for name in ("exp", "nbf", "iat")}
    if times["exp"] is not None and times["exp"] <= now - LEEWAY_SECONDS:
        raise ClaimsError("the token has expired")
    for name in ("nbf", "iat"):
        if (begins := times[name]) is not None and begins > now + LEEWAY_SECONDS:
            raise ClaimsError(f"the token is not yet valid: its {name} is in the future")
    for name in ("sub", "iss"):
        if (value := claims.get(name)) is not None and not is_string_or_uri(value):
            raise ClaimsError(f"the {name} claim is neither a text without colon nor a URI")
    if not isinstance(claims.get("jti", ""), str | None):
        raise ClaimsError("the jti claim is not a text")
    _require_audience(claims.get("aud"), audience)
    return claims


def text_claim(claims: Claims, name: str) -> str | None:
    """A claim as text that Postgres can store: no NUL, no lone surrogates, of a sane length."""
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_CLAIM_LENGTH or not value.isprintable():
        raise ClaimsError(f"the {name} claim is not a plain text")
    return value


def is_string_or_uri(value: object) -> bool:
    return isinstance(value, str) and (":" not in value or _URI.fullmatch(value) is not None)


def _parse(payload: bytes) -> Claims:
    try:
        claims = json.loads(payload, object_pairs_hook=_unique)
        # NaN and lone surrogates are JSON for Python and for nobody else.
        json.dumps(claims, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict) or _NUL.search(payload):
        raise ClaimsError("the claims are not a JSON object that Postgres can hold")
    return claims


def _unique(pairs: list[tuple[str, Any]]) -> Claims:
    """Of a name that comes twice, PostgREST takes the first and Python the last: two people in one token."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate names")
    return found


def _time(claims: Claims, name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if not whole or not 0 <= value <= LATEST:
        raise ClaimsError(f"the {name} claim is not a time in whole seconds")
    return int(value)


def _require_audience(claimed: object, audience: str | None) -> None:
    if claimed is None:
        if audience is not None:
            raise ClaimsError("the token has no audience (aud), and has to be for this one")
        return
    audiences = claimed if isinstance(claimed, list) else [claimed]
    if not audiences or not all(is_string_or_uri(one) for one in audiences):
        raise ClaimsError("the aud claim is neither a text or URI nor a list of them")
    if audience is not None and audience not in audiences:
        raise ClaimsError("the token is for another audience")

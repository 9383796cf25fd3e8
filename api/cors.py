"""Which web pages may read our answers in a browser: those whose origin is in ALLOWED_ORIGINS.

Tokens travel in a header and never in a cookie, so no answer allows credentials. Source: fetch.spec.whatwg.org, "CORS
protocol".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

Headers = list[tuple[bytes, bytes]]

ANY: Final = "*"
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED: Final = (
    b"Content-Disposition, Content-Location, Content-Range, Location, Preference-Applied, RateLimit, RateLimit-Limit, "
    b"RateLimit-Policy, RateLimit-Remaining, RateLimit-Reset, Range-Unit, Retry-After, WWW-Authenticate, X-Request-ID"
)
PREFLIGHT_SECONDS: Final = b"7200"  # what Chromium takes at most

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def parse_origin(text: str) -> str:
    """An origin as browsers send it, lowercase and without its scheme's port; or `*`. Raises ValueError."""
    origin = text.strip().lower()
    if origin == ANY:
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"{text.strip()!r} is no origin; write https://app.example.com, without a path or final slash")
    scheme = origin.partition(":")[0]
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, ""))


class AllowedOrigins:
    """What answers say to browsers."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = ANY.encode() in self._origins

    def allow(self, origin: bytes) -> bool:
        return self._any or origin in self._origins

    def headers(self, origin: bytes | None) -> Headers:
        """For every answer, also one that no page asked for: a cache between must not hand it to a page as it is."""
        if not self._origins:
            return []
        vary = [] if self._any else [(b"vary", b"Origin")]
        if origin is None or not self.allow(origin):
            return vary
        allowed = ANY.encode() if self._any else origin
        return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED), *vary]

    def preflight_headers(self, origin: bytes, wanted: bytes | None) -> Headers:
        """For the question that a browser asks before it sends a page's request. `wanted`: headers of that request."""
        headers = [
            *(header for header in self.headers(origin) if header[0] != b"access-control-expose-headers"),
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]
        return [*headers, (b"access-control-allow-headers", wanted)] if wanted else headers

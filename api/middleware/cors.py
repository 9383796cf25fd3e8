"""Tells browsers which pages may read an answer, and answers what they ask beforehand.

Not Starlette's own: that one leaves `Vary` out where no page asked, and a cache would hand such an answer to a page.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.context import context_of
from api.cors import AllowedOrigins
from api.errors import problem

ORIGIN: Final = b"origin"
REQUESTED_METHOD: Final = b"access-control-request-method"
REQUESTED_HEADERS: Final = b"access-control-request-headers"


class Cors:
    """Preflights end here: no token, no PostgREST, no usage. One from another origin is ORIGIN_NOT_ALLOWED (403)."""

    def __init__(self, app: ASGIApp, allowed: AllowedOrigins) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = _header(scope, ORIGIN)
        if origin is not None and scope["method"] == "OPTIONS" and _header(scope, REQUESTED_METHOD) is not None:
            await self._preflight(scope, origin)(scope, receive, send)
            return
        context_of(scope).headers += self._allowed.headers(origin)
        await self._app(scope, receive, send)

    def _preflight(self, scope: Scope, origin: bytes) -> Response:
        if not self._allowed.allow(origin):
            name = origin.decode("ascii", "replace")[:80]
            answer = problem(
                "ORIGIN_NOT_ALLOWED",
                f"pages of {name} may not call this API from a browser",
                hint="Operators list the origins of their pages in ALLOWED_ORIGINS.",
            ).response()
            answer.raw_headers += self._allowed.headers(None)
            return answer
        answer = Response(status_code=204)
        answer.raw_headers += self._allowed.preflight_headers(origin, _header(scope, REQUESTED_HEADERS))
        return answer


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)

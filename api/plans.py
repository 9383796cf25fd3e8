"""GET /api/billing/plans: what can be had, and what it costs, for everybody. The view plans, as PostgREST answers it,
with what caches want to know.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.gateway_answer import ask
from api.routes import PLANS_ROUTES

# Not `public`: what is asked with a token, by which staff sees more, is kept by no cache that others share then
# (RFC 9111, 3.5).
CACHING: Final = {"Cache-Control": "max-age=60", "Vary": "Authorization"}


def plans_routes(gateway: ASGIApp) -> list[Route]:
    return [Route(path, Plans(gateway), methods=["GET"]) for path in PLANS_ROUTES]


class Plans:
    """An ASGI application."""

    def __init__(self, gateway: ASGIApp) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await ask(self._gateway, scope, receive, scope["query_string"])
        if answer is None:
            return
        if answer.status != 200:
            await answer.passed_on()(scope, receive, send)
            return
        headers = {"ETag": f'"{sha256(answer.body).hexdigest()[:32]}"', **CACHING}
        if _knows(Request(scope), headers["ETag"]):
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(answer.body, headers=headers, media_type="application/json; charset=utf-8")
        await response(scope, receive, send)


def _knows(request: Request, etag: str) -> bool:
    """Whether the client has this answer: a weak comparison (RFC 9110, 13.1.2)."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return bool(known & {etag, "*"})

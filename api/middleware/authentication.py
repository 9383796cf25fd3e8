"""Finds out who asks. Having no token is fine here: PostgREST or the route decides what anonymous may do."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import TokenVerifier
from api.context import context_of, single_header
from api.metrics import METRICS_PATH


class Authentication:
    """Sets the principal. An Authorization header that is not a valid token of ours is INVALID_TOKEN (401)."""

    def __init__(self, app: ASGIApp, verifier: TokenVerifier) -> None:
        self._app = app
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != METRICS_PATH:  # that one has a token of its own
            context_of(scope).principal = await self._verifier.principal(single_header(scope, b"authorization"))
        await self._app(scope, receive, send)

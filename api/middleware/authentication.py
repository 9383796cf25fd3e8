"""Finds out who asks. Having no token is fine here: PostgREST or the route decides what anonymous may do."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import TokenVerifier
from api.context import context_of, single_header
from api.keys import ApiKeys, looks_like_a_key
from api.metrics import METRICS_PATH
from api.middleware.tenant import UNASKED
from api.routes import STRIPE_WEBHOOK_ROUTES

# That have tokens, or signatures, of their own.
NOT_OURS: Final = frozenset({METRICS_PATH, *STRIPE_WEBHOOK_ROUTES})


class Authentication:
    """Sets the principal. An Authorization header that is neither a valid token of ours nor an API key is INVALID_TOKEN
    or INVALID_API_KEY (401).
    """

    def __init__(self, app: ASGIApp, verifier: TokenVerifier, keys: ApiKeys) -> None:
        self._app = app
        self._verifier = verifier
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        if scope["path"] in NOT_OURS:
            await self._app(scope, receive, send)
            return
        authorization = single_header(scope, b"authorization")
        if authorization is None or not looks_like_a_key(authorization):
            context.principal = await self._verifier.principal(authorization)
            await self._app(scope, receive, send)
            return
        context.principal = await self._keys.principal(authorization)
        try:
            await self._app(scope, receive, send)
        finally:
            if context.status in UNASKED:
                self._keys.forget(authorization)

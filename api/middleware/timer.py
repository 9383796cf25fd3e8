"""Says when a request arrived, and how long its answer took."""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from api.context import context_of

log = structlog.get_logger(__name__)


class Timer:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        context.received_at = datetime.now(UTC)
        context.started = perf_counter()
        try:
            await self._app(scope, receive, send)
        finally:
            log.debug(
                "request",
                request_id=context.request_id,
                method=scope["method"],
                path=scope["path"],
                duration_ms=context.elapsed_ms(),
            )

"""Answers for what went wrong in the layers inside, in the one error shape."""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import context_of
from api.errors import Problem, problem

log = structlog.get_logger(__name__)


class Failures:
    """A Problem is answered as it says, and anything else is logged and answered INTERNAL_ERROR (500)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note_start)
        except Exception as error:
            answer = error if isinstance(error, Problem) else None
            if answer is None:
                request_id = context_of(scope).request_id
                log.exception("request_failed", request_id=request_id, method=scope["method"], path=scope["path"])
                answer = problem("INTERNAL_ERROR", "something went wrong on our side", details=f"request {request_id}")
            if started:
                raise  # the server cuts the connection: the client must not take half an answer for a whole one
            await answer.response()(scope, receive, send)

"""The outermost layer: it names each request, and answers for what went wrong inside, so that errors are named too."""

from __future__ import annotations

import re
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from api.context import RequestContext, set_context
from api.errors import Problem, problem

log = structlog.get_logger(__name__)

HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class CorrelationId:
    """Keeps a sane X-Request-ID, else makes one (UUIDv7), and returns it with every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == HEADER]
        sane = len(sent) == 1 and _SANE.fullmatch(sent[0]) is not None
        request_id = sent[0].decode("ascii") if sane else str(uuid7())
        set_context(scope, RequestContext(request_id, sent_by_client=sane))
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [header for header in message.get("headers", ()) if header[0] != HEADER]
                message = {**message, "headers": [*headers, (HEADER, request_id.encode("ascii"))]}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            answer = error if isinstance(error, Problem) else None
            if answer is None:
                log.exception("request_failed", request_id=request_id, method=scope["method"], path=scope["path"])
                answer = problem("INTERNAL_ERROR", "something went wrong on our side", details=f"request {request_id}")
            if started:
                raise  # the server cuts the connection: the client must not take half an answer for a whole one
            await answer.response()(scope, receive, send_named)

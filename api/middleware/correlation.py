"""The outermost layer: it names each request, so that every answer is named, errors too."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from api.context import RequestContext, set_context

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
        name = (HEADER, request_id.encode("ascii"))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message.get("headers", ()) if header[0] != HEADER]
                message = {**message, "headers": [*headers, name]}
            await send(message)

        await self._app(scope, receive, send_named)

"""One answer on its way out. What is to be metered of it is on record before its last byte leaves."""

from __future__ import annotations

from typing import Final, Protocol

from starlette.types import Message, Receive, Scope, Send

from api.context import RequestContext
from api.correlation import HEADER as REQUEST_ID
from api.wire import BODILESS_STATUSES, answer_head, answer_piece, request_head

MOST_ERROR_BYTES: Final = 16 * 1024  # kept of an error's body


class Meter(Protocol):
    def record(self, answer: Answer) -> None: ...


class Answer:
    """Gets the headers of the context, is counted, and recorded once: before its end, or when it is cut short."""

    __slots__ = (
        "_complete_at",
        "_is_chunked",
        "_is_recorded",
        "_meter",
        "_receive",
        "_send",
        "_start",
        "body_bytes",
        "bytes_received",
        "bytes_sent",
        "context",
        "error",
        "scope",
        "was_answered",
    )

    def __init__(self, scope: Scope, context: RequestContext, receive: Receive, send: Send, meter: Meter) -> None:
        self.scope = scope
        self.context = context
        self.error = b""
        self.body_bytes = 0
        self.bytes_received = request_head(scope)
        self.bytes_sent = 0
        self.was_answered = False  # or is at once: the first of it goes out with what is recorded
        self._receive = receive
        self._send = send
        self._meter = meter
        self._start: Message | None = None  # held back, since an answer without a body ends with its headers
        self._complete_at: int | None = None  # bytes of the body
        self._is_chunked = False
        self._is_recorded = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
            return
        body = message.get("body", b"")
        is_last = not message.get("more_body", False)
        self._count(body, is_last)
        self.was_answered = True
        if is_last or self.body_bytes == self._complete_at:
            self._record()
        if self._start is not None:
            start, self._start = self._start, None
            self.context.answer_began = True
            await self._send(start)
        await self._send(message)

    def end(self) -> None:
        """Nothing more comes: it is complete, or the client hung up, or PostgREST went away in the middle."""
        self._record()

    def _begin(self, message: Message) -> None:
        """Not sent yet, so that another one may take its place."""
        context = self.context
        headers = [header for header in message.get("headers", ()) if header[0] != REQUEST_ID]
        headers += context.headers
        self._start = {**message, "headers": headers}
        context.status = message["status"]
        self._complete_at = self._declared_length(headers)
        has_no_body = self.scope["method"] == "HEAD" or context.status in BODILESS_STATUSES
        self._is_chunked = self._complete_at is None and not has_no_body
        if has_no_body:
            self._complete_at = 0
        self.bytes_sent = answer_head(self.scope, self._start, is_chunked=self._is_chunked)

    def _declared_length(self, headers: list[tuple[bytes, bytes]]) -> int | None:
        for name, value in headers:
            if name == b"content-length" and value.isdigit():
                return int(value)
        return None

    def _count(self, body: bytes, is_last: bool) -> None:
        if self.context.status >= 400 and len(self.error) < MOST_ERROR_BYTES:
            self.error += body[: MOST_ERROR_BYTES - len(self.error)]
        self.body_bytes += len(body)
        if self.scope["method"] != "HEAD":
            self.bytes_sent += answer_piece(body, is_chunked=self._is_chunked, is_last=is_last)

    def _record(self) -> None:
        if not self._is_recorded:
            self._is_recorded = True
            self._meter.record(self)

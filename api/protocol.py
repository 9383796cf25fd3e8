"""uvicorn's HTTP protocol, with limits on what a client can take before anybody knows who it is."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.cors import AllowedOrigins
from api.errors import Problem, problem

MAX_HEAD_BYTES: Final = 64 * 1024


class LimitedProtocol(HttpToolsProtocol):
    """Refuses heads (and trailers) without end, connections beyond `max_connections`, and upgrades with a body."""

    max_connections: int
    allowed_origins: AllowedOrigins

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unfinished = 0  # bytes since the parser last had something whole: a head, or a piece of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        # A connection on which nothing is ever asked is closed like one on which nothing more is.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished > MAX_HEAD_BYTES:
            self._refuse(_too_large())

    def on_headers_complete(self) -> None:
        refusal = self._refusal()
        self._unfinished = 0
        if refusal is not None:
            self._refuse(refusal)
        elif not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def _refusal(self) -> Problem | None:
        if self._unfinished > MAX_HEAD_BYTES:  # of which a part may be what follows the head
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                return _too_large()
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):  # the parser would leave the body out
            return problem("INVALID_BODY", "a request that asks for an upgrade has no body", hint="Leave Upgrade out.")
        return None

    def _refuse(self, refusal: Problem) -> None:
        """Hang up, and say why unless another answer is under way."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        response = refusal.response()
        head = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
        origin = next((value for name, value in self.headers or () if name == b"origin"), None)
        headers = response.raw_headers + self.allowed_origins.headers(origin)
        head += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(response.body)]))
        self.transport.close()


def limited_protocol(max_connections: int, allowed_origins: AllowedOrigins) -> type[LimitedProtocol]:
    """A class, since uvicorn makes the instances itself."""
    limits = {"max_connections": max_connections, "allowed_origins": allowed_origins}
    return type("Protocol", (LimitedProtocol,), limits)


def _too_large() -> Problem:
    return problem("HEADERS_TOO_LARGE", f"the head of a request has at most {MAX_HEAD_BYTES} bytes")

"""A small HTTP/1.1 client for one server, PostgREST: kept-alive connections, bytes in and bytes out.

Why not a library: what the gateway forwards has to go out as it came in, while general clients normalize URLs and
headers, and the one we tried took half of the processor time of a request. httptools parses, as it does for uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_SECONDS: Final = 2.0
IDLE_SECONDS: Final = 15.0  # PostgREST closes a connection that was idle for 30 s
READ_AHEAD_BYTES: Final = 256 * 1024
REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

Headers = list[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """The server cannot be reached, went away, or does not speak HTTP."""


@dataclass(frozen=True, slots=True)
class Body:
    """What to send. `length` None: not known beforehand, so it goes out chunked."""

    chunks: AsyncIterator[bytes]
    length: int | None


class Upstream:
    """Raises UpstreamError from whatever it does."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._ssl = parts.scheme == "https"
        self._port = parts.port or (443 if self._ssl else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._authority = parts.netloc.rpartition("@")[2].encode()
        self._idle: deque[Connection] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, target: bytes, headers: Headers, body: bytes | Body | None = None
    ) -> AsyncIterator[Connection]:
        """Send a request and wait for the head of its response. Leaving early abandons the connection."""
        connection = await self.begin(method, target, headers, body)
        try:
            yield connection
        finally:
            self.end(connection)

    async def begin(self, method: str, target: bytes, headers: Headers, body: bytes | Body | None = None) -> Connection:
        """An exchange without the costs of a context manager: `end` has to follow."""
        return await self._begin(method, self._head(method, target, headers, body), body)

    def end(self, connection: Connection) -> None:
        if connection.end():
            self._idle.append(connection)

    async def _begin(self, method: str, head: bytes, body: bytes | Body | None) -> Connection:
        while True:
            connection, is_new = self._take_idle(), False
            if connection is None:
                connection, is_new = await self._connect(), True
            try:
                connection.begin(method, head, body)
                await connection.wait_for_head()
            except BaseException as error:
                connection.abort()
                # The server may close an idle connection at the moment it is used: ask again where that does no harm.
                if isinstance(error, UpstreamError) and not is_new and method in REPEATABLE and body is None:
                    continue
                raise
            return connection

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and monotonic() - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl or None)
        except OSError as error:  # TimeoutError is one
            raise UpstreamError(str(error)) from None
        return connection

    def _head(self, method: str, target: bytes, headers: Headers, body: bytes | Body | None) -> bytes:
        """The request line and headers. Those about framing are made here, never passed on."""
        lines = [method.encode("ascii") + b" " + self._prefix + target + b" HTTP/1.1", b"host: " + self._authority]
        lines += [name + b": " + value for name, value in headers]
        length = len(body) if isinstance(body, bytes) else body.length if body is not None else 0
        if length is None:
            lines.append(b"transfer-encoding: chunked")
        elif body is not None or method in WITH_BODY:
            lines.append(b"content-length: %d" % length)
        return b"\r\n".join(lines) + b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection, with one exchange at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self.idle_since = 0.0
        self.status = 0
        self.headers: Headers = []
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._has_no_body = False
        self._head_done = False
        self._complete = True
        self._keep_alive = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._sending: asyncio.Task[None] | None = None

    # The exchange

    def begin(self, method: str, head: bytes, body: bytes | Body | None) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._has_no_body = method == "HEAD"
        self._head_done = self._complete = False
        self.status, self.headers = 0, []
        if isinstance(body, Body):
            self._transport.write(head)
            self._sending = asyncio.get_running_loop().create_task(self._send(body))
        else:
            self._transport.write(head + body if body else head)

    async def wait_for_head(self) -> None:
        while not self._head_done:
            await self._wait()

    async def read(self) -> tuple[bytes, bool]:
        """What has arrived of the body, and whether more will come."""
        while not self._chunks and not self._complete:
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._buffered = [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data, not self._complete

    def end(self) -> bool:
        """The exchange is over. Whether the connection can be used for another one; if not, it is gone."""
        if self._sending is not None and not self._sending.done():
            self._complete = False  # answered before everything was sent: the rest would be taken for the next request
        reusable = self.is_open and self._complete and not self._chunks and self._error is None
        self._sending_over()
        if not reusable or not self._keep_alive:
            self.abort()
            return False
        self.idle_since = monotonic()
        return True

    def abort(self) -> None:
        self.is_open = False
        self._sending_over()
        self._transport.abort()

    async def _send(self, body: Body) -> None:
        try:
            async for chunk in body.chunks:
                self._transport.write(chunk if body.length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if self._writable is not None:
                    await self._writable
            if body.length is None:
                self._transport.write(b"0\r\n\r\n")
        except Exception as error:
            self._fail(error)

    def _sending_over(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self.resume_writing()
        if not self._complete:
            self._fail(UpstreamError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self.abort()  # nobody asked for this
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._complete:
                self._fail(UpstreamError(str(error)))
            self.abort()
        if self._buffered > READ_AHEAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # an interim answer: the real one follows
            self.headers = []
            return
        self._head_done = True
        # False after most HEADs: PostgREST's server closes the connection when the head says no length.
        self._keep_alive = self._parser.should_keep_alive()
        self._complete = self._has_no_body

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True

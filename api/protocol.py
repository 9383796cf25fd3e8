"""uvicorn's HTTP protocol, with limits on what a client can take before anybody knows who it is, and with every answer
that is not the application's in the one error shape.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

from uuid_utils import uuid7
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.cors import AllowedOrigins
from api.errors import Problem, problem

MAX_HEAD_BYTES: Final = 48 * 1024  # PostgREST's own server takes 50 KiB, and the gateway adds a few headers
BODY_BYTES_PER_SECOND: Final = 500  # each so many bytes are worth one more second
LINGER_SECONDS: Final = (
    10.0  # for the rest of a body whose request is answered, and for a client to take its last answer
)
STALL_SECONDS: Final = 60.0  # for a client that reads nothing of its answer


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int
    head_seconds: float  # from the first byte of a head to its end
    body_seconds: float  # for a body, and one second more for each BODY_BYTES_PER_SECOND of it that have come


class Phase(Enum):
    """What the client is in the middle of sending."""

    NOTHING = auto()
    HEAD = auto()
    BODY = auto()


class HeadWithBody(asyncio.Transport):
    """What an answer is written to: its head waits for the first of its body, which the application sends right behind
    it. The two are one write for us, and one read for the client.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._head: bytes | None = None
        self._is_past = False

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        if self._is_past:
            self._transport.write(data)
        elif self._head is not None:
            self._is_past = True
            self._transport.write(self._head + data)
        elif self._cycle.response_started:
            self._head = bytes(data)
        else:  # 100 Continue
            self._transport.write(data)

    def close(self) -> None:
        if self._head is not None and not self._is_past:
            self._is_past = True
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class LimitedProtocol(HttpToolsProtocol):
    """Refuses heads (and trailers) without end, upgrades with a body, and clients that send or read too slowly.

    When there are too many connections, the one that has waited longest for its next head makes room.
    """

    limits: Limits
    allowed_origins: AllowedOrigins
    refused: Callable[[str], None]  # told the code of each refusal here, of which the application knows nothing
    waiting: OrderedDict[LimitedProtocol, None]  # connections without a request, the longest first

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unfinished = 0  # bytes since the parser last had something whole: a head, or a piece of a body
        self._phase = Phase.NOTHING
        self._patience: asyncio.TimerHandle | None = None  # only while something is unfinished
        self._deadline = 0.0
        self._stalled: asyncio.TimerHandle | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            if not self.waiting:
                transport.abort()
                return
            self.waiting.popitem(last=False)[0].transport.abort()
        self.waiting[self] = None
        # A connection on which nothing is ever asked is closed like one on which nothing more is.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        self._be_patient()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unfinished += len(data)
        super().data_received(data)
        if self._phase is Phase.BODY:
            self._deadline += len(data) / BODY_BYTES_PER_SECOND
        if self._unfinished > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif self._patience is None and (self._unfinished or self._phase is not Phase.NOTHING):
            self._expect_the_rest()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()
        self._wait_for_a_head()

    # What the parser calls

    def on_message_begin(self) -> None:
        self._phase = Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        refusal = self._refusal()
        if refusal is not None:
            self._refuse(refusal)
        if self.transport.is_closing():
            return
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # whose answers end with their heads
            self.cycle.transport = HeadWithBody(self.transport, self.cycle)
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser takes whatever follows for another protocol
        self._unfinished = 0
        self._phase = Phase.BODY
        self._be_patient()
        self.waiting.pop(self, None)

    def on_body(self, body: bytes) -> None:
        self._unfinished = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished = 0
        self._phase = Phase.NOTHING
        self._be_patient()
        if not self.transport.is_closing():
            super().on_message_complete()

    # What uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._hang_up()
        elif not self.cycle.response_complete:
            return  # the next request is here already
        elif self._phase is Phase.BODY:  # nobody will read the rest of it
            self._be_patient()
            self._patience = self.loop.call_later(LINGER_SECONDS, self._hang_up)
        else:
            self._wait_for_a_head()

    def timeout_keep_alive_handler(self) -> None:
        self._hang_up()

    def send_400_response(self, msg: str) -> None:
        hint = "Send HTTP/1.1, with one Content-Length or chunked, and everything else in a URL percent-encoded."
        self._refuse(problem("MALFORMED_REQUEST", "this is not an HTTP request that can be read", hint=hint))

    # Patience

    def _wait_for_a_head(self) -> None:
        """Once the client has its answer: one on its way to it may not be cut off to make room."""
        idle = self.cycle is not None and self.cycle.response_complete and self._phase is not Phase.BODY
        if idle and not self.flow.write_paused and not self.transport.is_closing():
            self.waiting[self] = None

    def _expect_the_rest(self) -> None:
        seconds = self.limits.body_seconds if self._phase is Phase.BODY else self.limits.head_seconds
        self._deadline = self.loop.time() + seconds
        self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        now = self.loop.time()
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (under_way and self._phase is not Phase.BODY):
            self._expect_the_rest()  # we do not read, or answer an earlier request: not the client's fault
        elif now < self._deadline:
            self._patience = self.loop.call_later(self._deadline - now, self._lose_patience)
        else:
            part = "body" if self._phase is Phase.BODY else "head"
            hint = "Send it without pauses, and large bodies in smaller pieces; a fresh connection may help."
            self._refuse(problem("REQUEST_TIMEOUT", f"the {part} of the request came too slowly", hint=hint))

    def _expect_reading(self) -> None:
        if self._stalled is None:
            left = self.transport.get_write_buffer_size()
            self._stalled = self.loop.call_later(STALL_SECONDS, self._give_up_if_nothing_was_read, left)

    def _give_up_if_nothing_was_read(self, before: int) -> None:
        self._stalled = None
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self._expect_reading()

    # Refusals

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
        """Hang up, and say why unless an answer is under way."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and self._phase is Phase.BODY:
            self._hang_up()  # its request was answered before
            return
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline or self._phase is not Phase.BODY:
                self.transport.abort()
                return
            cycle.disconnected = True  # for the application its client has gone
            cycle.message_event.set()
        type(self).refused(refusal.message.partition(":")[0])
        response = refusal.response()
        head = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
        origin = next((value for name, value in self.headers or () if name == b"origin"), None)
        headers = response.raw_headers + self.allowed_origins.headers(origin)
        head += [name + b": " + value for name, value in headers]
        head += [b"x-request-id: " + str(uuid7()).encode(), b"connection: close", b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(head))
        self._hang_up()

    def _hang_up(self) -> None:
        """Close when the client has taken what is still to be written, or does not take it."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._expect_reading()


def limited_protocol(
    limits: Limits, allowed_origins: AllowedOrigins, refused: Callable[[str], None]
) -> type[LimitedProtocol]:
    """A class, since uvicorn makes the instances itself."""
    return type(
        "Protocol",
        (LimitedProtocol,),
        {"limits": limits, "allowed_origins": allowed_origins, "refused": refused, "waiting": OrderedDict()},
    )


def _too_large() -> Problem:
    return problem(
        "HEADERS_TOO_LARGE",
        f"the head of a request has at most {MAX_HEAD_BYTES} bytes",
        hint="Send a shorter URL, or fewer and shorter headers.",
    )

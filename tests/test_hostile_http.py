"""Whatever bytes arrive, the answer is a clear 4xx in the error shape, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from threading import Thread
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.cors import AllowedOrigins
from api.protocol import MAX_HEAD_BYTES, Limits, limited_protocol
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import RunningStack, free_port
from tests.observe import SHAPE, eventually

SLOW_SECONDS = 0.5


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    """Less patient than usual, so that the tests need not wait as long as clients may take."""
    with open_stack(request_head_seconds=SLOW_SECONDS, request_body_seconds=SLOW_SECONDS) as running:
        yield running


@dataclass(frozen=True)
class Server:
    """The gateway as a socket sees it, with tokens to put into what is sent: {member} and {service}."""

    host: str
    port: int
    tokens: dict[bytes, bytes]

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def fill(self, sent: bytes) -> bytes:
        for name, line in self.tokens.items():
            sent = sent.replace(name, line)
        return sent

    def answer(self, sent: bytes) -> tuple[int, httpx.Response]:
        with self.connect() as raw:
            raw.sendall(self.fill(sent))
            return read_answer(raw)


def read_answer(raw: socket.socket) -> tuple[int, httpx.Response]:
    response = HTTPResponse(raw)
    response.begin()
    headers = response.getheaders()
    return response.status, httpx.Response(response.status, headers=headers, content=response.read())


@pytest.fixture
def server(stack: RunningStack, make_organization: MakeOrganization) -> Server:
    url = urlsplit(stack.gateway_url)
    assert url.hostname and url.port
    member = stack.token(make_organization(stack.database)["owner"].subject)
    service = stack.token("backend", role="service")
    return Server(
        url.hostname,
        url.port,
        {
            b"{member}": f"Host: x\r\nAuthorization: Bearer {member}\r\n".encode(),
            b"{service}": f"Host: x\r\nAuthorization: Bearer {service}\r\nContent-Type: application/json\r\n".encode(),
        },
    )


EVENTS = b"POST /v1/events HTTP/1.1\r\n{service}"
CASES = b"GET /api/v1/cases HTTP/1.1\r\n{member}"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no HTTP": (b"\x00\x01garbage\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400, "MALFORMED_REQUEST"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "HTTP/9": (b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "method in lower case": (b"get /health HTTP/1.1\r\nHost: x\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "TRACE": (b"TRACE /v1/events HTTP/1.1\r\n{service}\r\n", 405, "METHOD_NOT_ALLOWED"),
    "PROPFIND": (b"PROPFIND /health HTTP/1.1\r\nHost: x\r\n\r\n", 405, "METHOD_NOT_ALLOWED"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "ROUTE_NOT_FOUND"),
    "raw bytes in the path": (b"GET /api/v1/c\xc3\xa4ses HTTP/1.1\r\n{member}\r\n", 400, "MALFORMED_REQUEST"),
    "raw bytes in the query": (b"GET /api/v1/cases?a=\xff HTTP/1.1\r\n{member}\r\n", 400, "MALFORMED_REQUEST"),
    "query that is not UTF-8": (b"GET /api/v1/cases?title=eq.%FF HTTP/1.1\r\n{member}\r\n", 400, "INVALID_ENCODING"),
    "surrogate in the query": (b"GET /api/v1/cases?a=%ED%A0%80 HTTP/1.1\r\n{member}\r\n", 400, "INVALID_ENCODING"),
    "two halves of a letter": (b"GET /api/v1/cases?a=%C3&%A9 HTTP/1.1\r\n{member}\r\n", 400, "INVALID_ENCODING"),
    "Prefer that is not UTF-8": (CASES + b"Prefer: \xed\xa0\x80\r\n\r\n", 400, "INVALID_ENCODING"),
    "Cookie that is not UTF-8": (CASES + b"Cookie: a=\xff\r\n\r\n", 400, "INVALID_ENCODING"),
    "Accept that is not UTF-8": (CASES + b"Accept: \xff\r\n\r\n", 400, "INVALID_ENCODING"),
    "NUL in the path": (b"GET /api/v1/cases%00 HTTP/1.1\r\n{member}\r\n", 400, "INVALID_PATH"),
    "CR LF in the path": (b"GET /api/v1/cases%0D%0AX:%20y HTTP/1.1\r\n{member}\r\n", 400, "INVALID_PATH"),
    "space in the request line": (b"GET /api/v1/cases?a= b HTTP/1.1\r\n{member}\r\n", 400, "MALFORMED_REQUEST"),
    "line feeds alone": (b"GET /health HTTP/1.1\nHost: x\n\n", 400, "MALFORMED_REQUEST"),
    "header without a colon": (HEALTH + b"broken\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "space behind a header's name": (HEALTH + b"X : y\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "CR in a header": (HEALTH + b"X-A: a\rX-B: b\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "NUL in a header": (HEALTH + b"X-A: a\x00b\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "folded header": (HEALTH + b"X-A: a\r\n b\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "two lengths": (EVENTS + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n[]x", 400, "MALFORMED_REQUEST"),
    "the same length twice": (EVENTS + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n[]", 400, "MALFORMED_REQUEST"),
    "length and chunks": (EVENTS + CHUNKED + b"Content-Length: 2\r\n\r\n0\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "chunks and length": (EVENTS + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "odd coding": (EVENTS + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "negative length": (EVENTS + b"Content-Length: -1\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "signed length": (EVENTS + b"Content-Length: +2\r\n\r\n[]", 400, "MALFORMED_REQUEST"),
    "length beyond 64 bits": (EVENTS + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "length of a terabyte": (EVENTS + b"Content-Length: 1000000000000\r\n\r\n", 413, "BODY_TOO_LARGE"),
    "no chunk": (EVENTS + CHUNKED + b"\r\nzz\r\n[]\r\n0\r\n\r\n", 400, "MALFORMED_REQUEST"),
    "chunk beyond 64 bits": (EVENTS + CHUNKED + b"\r\n" + b"f" * 20 + b"\r\n", 400, "MALFORMED_REQUEST"),
    "chunk that promises more": (EVENTS + CHUNKED + b"\r\nffffffff\r\n[]", 408, "REQUEST_TIMEOUT"),
    "length that promises more": (EVENTS + b"Content-Length: 9\r\n\r\n[]", 408, "REQUEST_TIMEOUT"),
    "upgrade with a body": (
        EVENTS + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n[]",
        400,
        "INVALID_BODY",
    ),
    "request line of 100 kB": (b"GET /api/v1/cases?a=" + b"a" * 100_000 + b" HTTP/1.1\r\n", 431, "HEADERS_TOO_LARGE"),
    "header of 100 kB": (CASES + b"X: " + b"y" * 100_000, 431, "HEADERS_TOO_LARGE"),
    "name of 100 kB": (CASES + b"X" * 100_000, 431, "HEADERS_TOO_LARGE"),
    "10,000 headers": (CASES + b"X-Filler: y\r\n" * 10_000, 431, "HEADERS_TOO_LARGE"),
    "endless chunk extension": (EVENTS + CHUNKED + b"\r\n2;" + b"x" * 500_000, 431, "HEADERS_TOO_LARGE"),
    "endless trailer": (EVENTS + CHUNKED + b"\r\n0\r\nX: " + b"x" * 500_000, 431, "HEADERS_TOO_LARGE"),
    "endless token": (HEALTH + b"Authorization: Bearer " + b"a.b." * 10_000 + b"\r\n\r\n", 401, "INVALID_TOKEN"),
    "token without an algorithm": (
        HEALTH + b"Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.\r\n\r\n",
        401,
        "INVALID_TOKEN",
    ),
    "token of lists": (HEALTH + b"Authorization: Bearer " + b"W1tb" * 999 + b".e30.x\r\n\r\n", 401, "INVALID_TOKEN"),
    "token of raw bytes": (HEALTH + b"Authorization: Bearer \xff.\xfe.\xfd\r\n\r\n", 401, "INVALID_TOKEN"),
    "two tokens": (CASES + b"Authorization: Bearer a.b.c\r\n\r\n", 400, "AMBIGUOUS_HEADER"),
    "organization of surrogates": (CASES + b"X-Organization-ID: \xed\xa0\x80\r\n\r\n", 403, "NOT_A_MEMBER"),
    "organization of SQL": (CASES + b"X-Organization-ID: ' or '1'='1\r\n\r\n", 403, "NOT_A_MEMBER"),
    "service for surrogates": (
        EVENTS + b"X-Organization-ID: \xed\xa0\x80\r\nContent-Length: 2\r\n\r\n[]",
        404,
        "ORGANIZATION_NOT_FOUND",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_says_why_in_the_error_shape(server: Server, sent: bytes, status: int, code: str) -> None:
    answered, response = server.answer(sent)
    assert (answered, response.json()["code"]) == (status, f"PT{status}")
    body = response.json()
    assert set(body) == SHAPE
    assert re.match(rf"{code}: \S", body["message"]), body
    assert body["hint"], "what to do"
    assert response.headers["X-Request-ID"]
    assert response.headers["Content-Type"].startswith("application/json")
    assert server.answer(HEALTH + b"\r\n")[0] == 200


SURVIVED: dict[str, tuple[bytes, int]] = {
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 200),
    "absolute target": (b"GET http://evil.example/health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "blank lines first": (b"\r\n\r\n" + HEALTH + b"\r\n", 200),
    "WebSocket": (CASES + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n", 200),
    "4,000 headers": (CASES + b"X:y\r\n" * 4000 + b"\r\n", 200),
    "a head just below the limit": (CASES + b"X: " + b"y" * (MAX_HEAD_BYTES - 1500) + b"\r\n\r\n", 200),
    "a URL just below the limit": (b"GET /api/v1/cases?title=eq." + b"a" * 45_000 + b" HTTP/1.1\r\n{member}\r\n", 200),
    "bad percent signs": (b"GET /api/v1/cases?title=eq.%zz%f HTTP/1.1\r\n{member}\r\n", 200),
    "bytes in the path": (b"GET /api/v1/%FF%FE HTTP/1.1\r\n{member}\r\n", 404),
    "dots": (b"GET /api/v1/../../health HTTP/1.1\r\n{member}\r\n", 404),
    "hidden dots": (b"GET /api/v1/%2e%2e/health HTTP/1.1\r\n{member}\r\n", 404),
    "unknown method": (b"PROPFIND /api/v1/cases HTTP/1.1\r\n{member}\r\n", 405),
    "trace": (b"TRACE /api/v1/cases HTTP/1.1\r\n{member}\r\n", 405),
    "odd header names": (CASES + b"!#$%&'*+.^_`|~: y\r\n\r\n", 200),
    "odd request id": (HEALTH + b"X-Request-ID: \xff\"'<>;\r\n\r\n", 200),
    "limit beyond 64 bits": (b"GET /api/v1/cases?limit=99999999999999999999 HTTP/1.1\r\n{member}\r\n", 400),
    "range beyond 64 bits": (CASES + b"Range: 0-99999999999999999999999\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), SURVIVED.values(), ids=SURVIVED.keys())
def test_what_is_only_odd_is_answered(server: Server, sent: bytes, status: int) -> None:
    answered, response = server.answer(sent)
    assert answered == status, response.text
    assert response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "day",
    ["infinity", "-infinity", "9999-12-31", "5874897-12-31", "4713-01-01%20BC", "0001-01-01", "2026-02-30", "x", "%00"],
)
def test_no_day_breaks_the_summary(server: Server, day: str) -> None:
    status, response = server.answer(
        f"GET /api/v1/rpc/usage_summary?period_start={day} HTTP/1.1\r\n{{member}}\r\n".encode()
    )
    assert status in (400, 404), response.text
    assert set(response.json()) == SHAPE


def test_what_follows_an_upgrade_is_not_read_as_a_request(server: Server) -> None:
    upgrade = HEALTH + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with server.connect() as raw:
        raw.sendall(upgrade + b"GET /nowhere HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        answers = b"".join(iter(lambda: raw.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200"]
    assert b"connection: close" in answers


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    with server.connect() as raw:
        events = EVENTS + b"Content-Length: 2\r\n\r\n[]"
        raw.sendall(server.fill(HEALTH + b"\r\n" + events + b"GET /nowhere HTTP/1.0\r\n\r\n"))
        answers = b"".join(iter(lambda: raw.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200", b"404"]


SLOW: dict[str, bytes] = {
    "a head": b"GET /health HTTP/1.1\r\nX-Slow: ",
    "blank lines": b"\r\n",
    "a body of events": EVENTS + b"Content-Length: 1000\r\n\r\n",
    "a body for PostgREST": b"POST /api/v1/cases HTTP/1.1\r\n{member}Content-Length: 1000\r\n\r\n",
    "a large body for PostgREST": b"POST /api/v1/cases HTTP/1.1\r\n{member}Content-Length: 1000000\r\n\r\n",
    "chunks for PostgREST": b"POST /api/v1/cases HTTP/1.1\r\n{member}" + CHUNKED + b"\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW.keys())
def test_who_sends_a_byte_now_and_then_is_cut_off(server: Server, sent: bytes) -> None:
    drop = b"\r\n" if sent == b"\r\n" else b"1\r\nx\r\n" if CHUNKED in sent else b"x"
    with server.connect() as raw:
        raw.sendall(server.fill(sent))
        raw.settimeout(0.2)
        answer = b""
        for _ in range(100):
            try:
                answer = raw.recv(65536)
                break
            except TimeoutError:
                raw.sendall(drop)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"REQUEST_TIMEOUT: " in answer


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (EVENTS, {"events": []}),
        (b"POST /api/v1/cases HTTP/1.1\r\n{member}Content-Type: application/json\r\n", {"title": "slow"}),
    ],
)
def test_a_slow_upload_that_makes_progress_is_none_of_them(
    server: Server, head: bytes, content: dict[str, object]
) -> None:
    body = json.dumps(content).encode().ljust(4000)
    with server.connect() as raw:
        raw.sendall(server.fill(head) + b"Content-Length: 4000\r\n\r\n")
        began = time.monotonic()
        for start in range(0, 4000, 200):
            time.sleep(SLOW_SECONDS / 10)
            raw.sendall(body[start : start + 200])
        assert time.monotonic() - began > SLOW_SECONDS
        status, response = read_answer(raw)
    assert status in (200, 201), response.text


def test_many_slow_clients_keep_nobody_else_waiting(stack: RunningStack, server: Server) -> None:
    starts = list(SLOW.values())
    with ExitStack() as connections:
        slow = [connections.enter_context(server.connect()) for _ in range(300)]
        for number, raw in enumerate(slow):
            raw.sendall(server.fill(starts[number % len(starts)]))
        for _ in range(10):
            assert server.answer(CASES + b"\r\n")[0] == 200
            assert server.answer(EVENTS + b"Content-Length: 2\r\n\r\n[]")[0] == 200
        for raw in slow:
            assert b"REQUEST_TIMEOUT" in b"".join(iter(lambda raw=raw: raw.recv(65536), b""))  # type: ignore[misc]
    with stack.client("later", role="service") as client:
        assert client.post("/v1/events", json=[]).status_code == 200


ANSWER_BYTES = 24_000_000  # more than sockets take in that nobody reads


async def _answer_at_length(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"x" * ANSWER_BYTES)(scope, receive, send)


def received_of(raw: socket.socket) -> bytes:
    """What comes until the other side hangs up, in whatever way."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while chunk := raw.recv(1024 * 1024):
            received += chunk
    return bytes(received)


@contextmanager
def serving(limits: Limits) -> Iterator[Callable[[], socket.socket]]:
    """The protocol by itself, with limits that are reached soon. Gives what makes a connection."""
    port = free_port()
    config = uvicorn.Config(
        _answer_at_length,
        port=port,
        http=limited_protocol(limits, AllowedOrigins(()), refused=lambda _: None),
        timeout_keep_alive=1,
        lifespan="off",
        log_config=None,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        assert eventually(lambda: server.started, bool)
        yield lambda: socket.create_connection(("127.0.0.1", port), timeout=20)
    finally:
        server.should_exit = True
        thread.join()


def test_who_waits_longest_makes_room() -> None:
    with serving(Limits(connections=3, head_seconds=60, body_seconds=60)) as connect, ExitStack() as open_ones:

        def one(sent: bytes) -> socket.socket:
            raw = open_ones.enter_context(closing(connect()))
            raw.sendall(sent)
            return raw

        busy = one(HEALTH + b"\r\n")
        assert busy.recv(12) == b"HTTP/1.1 200"  # and reads no further
        half_a_head, _silent = one(b"GET / HT"), one(b"")
        served = one(HEALTH + b"\r\n")
        assert served.recv(12) == b"HTTP/1.1 200"
        assert received_of(half_a_head) == b""
        assert len(received_of(busy)) > ANSWER_BYTES, "who has asked is not sent away"


def test_who_reads_nothing_is_sent_away_and_who_reads_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.protocol.STALL_SECONDS", 0.5)
    with (
        serving(Limits(connections=3, head_seconds=60, body_seconds=60)) as connect,
        connect() as slow,
        connect() as stalled,
    ):
        for raw in (slow, stalled):
            raw.sendall(HEALTH + b"\r\n")
        taken = 0
        for _ in range(20):  # as long as several of the other's chances, and longer than a connection is kept
            time.sleep(0.1)
            taken += len(slow.recv(1024 * 1024))
        assert len(received_of(stalled)) < ANSWER_BYTES
        assert taken + len(received_of(slow)) > ANSWER_BYTES

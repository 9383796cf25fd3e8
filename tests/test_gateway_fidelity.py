"""The gateway answers as PostgREST does: same status, headers and body for every request of tests/gateway_requests.py.

One PostgREST is asked through its gateway and another directly, on two databases that are the same row by row, and to
which the same is done. What differs on purpose is listed here and, for people, in docs/gateway.md.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from urllib.parse import urlsplit

import pytest

from api.settings import PROJECT
from api.stack.processes import members
from tests.conftest import OpenStack
from tests.gateway_requests import EVERYTHING, ORGANIZATION, SEED, Ask, new
from tests.harness import RunningStack
from tests.observe import eventually

PREFIX = "/api/v1"

# Headers that are of one connection or one server: each has its own.
OWN_FRAMING = {"transfer-encoding", "connection", "keep-alive", "date", "content-length"}
# Said by the gateway alone: which request it was, and who may read it in a browser.
SAID_BY_THE_GATEWAY = {"x-request-id", "vary"}
# PostgREST invites every page; through the gateway, ALLOWED_ORIGINS decides.
NOT_PASSED_ON = {"access-control-allow-origin", "access-control-expose-headers"}
# Paths of PostgREST become paths of the gateway.
RELATIVE = {"location", "content-location"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Pair:
    """A gateway, and a PostgREST beside it that went through the same."""

    gateway: RunningStack
    twin: RunningStack

    def through(self, ask: Ask) -> Answer:
        return send(self.gateway.gateway_url, PREFIX, ask, self.token(ask))

    def direct(self, ask: Ask) -> Answer:
        return send(self.twin.postgrest_url, "", ask, self.token(ask))

    def token(self, ask: Ask) -> str | None:
        if ask.who == "nobody":
            return None
        if ask.who == "backend":
            return self.twin.token("backend", role="service", iat=1, exp=4102444800)
        return self.twin.token(f"firm|{ask.who}", org=ORGANIZATION, iat=1, exp=4102444800)


def send(url: str, prefix: str, ask: Ask, token: str | None) -> Answer:
    """Byte for byte as it is written, which no HTTP client promises."""
    address = urlsplit(url)
    lines = [f"{ask.method} {prefix}{ask.target} HTTP/1.1", "Host: firm.example", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in ask.headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    body = ask.body or b""
    if ask.chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]) if part) + b"0\r\n\r\n"
    elif ask.body is not None:
        lines.append(f"Content-Length: {len(body)}")
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        with http.client.HTTPResponse(connection, method=ask.method) as response:
            response.begin()
            return Answer(response.status, response.getheaders(), response.read())


def anonymous(body: bytes, stack: RunningStack) -> bytes:
    """PostgREST's description of itself says where its gateway is."""
    return body.replace(urlsplit(stack.gateway_url).netloc.encode(), b"gateway")


def comparable(headers: list[tuple[str, str]], prefix: str, left_out: set[str]) -> list[tuple[str, str]]:
    kept = []
    for name, value in headers:
        name = name.lower()
        if name in left_out:
            continue
        if name in RELATIVE and value.startswith("/"):
            assert value.startswith(prefix + "/"), f"{name}: {value}"
            value = value.removeprefix(prefix)
        kept.append((name, value))
    return kept


@pytest.fixture(scope="module")
def pair(open_stack: OpenStack) -> Iterator[Pair]:
    with open_stack() as gateway, open_stack() as twin:
        for stack in (gateway, twin):
            with stack.database.connect() as superuser:
                superuser.execute(SEED.encode())
                superuser.execute("notify pgrst, 'reload schema'")
        pair = Pair(gateway, twin)
        reloaded = Ask("GET", "/rpc/add?a=1", 200)
        deadline = time.monotonic() + 20
        while {pair.through(reloaded).status, pair.direct(reloaded).status} != {200}:
            assert time.monotonic() < deadline, "PostgREST did not reload its schema"
            time.sleep(0.05)
        yield pair


@pytest.mark.parametrize("ask", EVERYTHING, ids=[f"{number:03} {ask}" for number, ask in enumerate(EVERYTHING)])
def test_same_answer(pair: Pair, ask: Ask) -> None:
    through, direct = pair.through(ask), pair.direct(ask)
    assert direct.status == ask.status, direct.body
    assert through.status == direct.status, through.body
    assert anonymous(through.body, pair.gateway) == anonymous(direct.body, pair.twin)
    assert comparable(through.headers, PREFIX, OWN_FRAMING | SAID_BY_THE_GATEWAY) == comparable(
        direct.headers, "", OWN_FRAMING | NOT_PASSED_ON
    )


# What differs on purpose


def test_a_token_that_is_not_ours_is_refused_by_the_gateway(pair: Pair) -> None:
    """PostgREST has codes of its own for what we call INVALID_TOKEN."""
    ask = Ask("GET", "/cases", 401)
    through = send(pair.gateway.gateway_url, PREFIX, ask, "no.to.ken")
    direct = send(pair.twin.postgrest_url, "", ask, "no.to.ken")
    assert (through.status, direct.status) == (401, 401)
    assert json.loads(through.body)["message"].startswith("INVALID_TOKEN: ")
    assert json.loads(direct.body)["code"] == "PGRST301"
    challenges = [value.partition(" ")[0] for name, value in through.headers if name.lower() == "www-authenticate"]
    assert challenges == ["Bearer"]


@pytest.mark.parametrize(("target", "status"), [("/nothing", 404), ("/cases?nothing=eq.1", 400)])
def test_a_head_that_fails_is_answered_like_its_get(pair: Pair, target: str, status: int) -> None:
    """PostgREST sends the body too, against RFC 9110, 9.3.2: over a direct connection the next answer is garbage."""
    through = pair.through(Ask("HEAD", target, status))
    like = pair.through(Ask("GET", target, status))
    assert (through.status, through.body) == (status, b"")
    left_out = OWN_FRAMING | SAID_BY_THE_GATEWAY
    assert comparable(through.headers, PREFIX, left_out) == comparable(like.headers, PREFIX, left_out)


def test_text_in_another_encoding_is_refused_by_the_gateway(pair: Pair) -> None:
    """PostgREST answers 500 in plain text."""
    ask = Ask("GET", "/cases?title=eq.%FF%FE", 500)
    through, direct = pair.through(ask), pair.direct(ask)
    assert (through.status, direct.status) == (400, 500)
    assert json.loads(through.body)["message"].startswith("INVALID_ENCODING: ")


@pytest.mark.parametrize("control", ["%00", "%00x", "%1f", "%7F", "%0d", "%00%0dX-Injected:1", "%09"])
def test_no_path_has_control_characters(pair: Pair, control: str) -> None:
    """PostgREST takes `cases%00…` for `cases`: unnamed, so unbilled. It writes the rest into its headers."""
    made = "ee000000-0000-4000-8000-00000000dead"
    row = json.dumps({"id": made, "title": "Kept"}).encode()
    as_json = (("Content-Type", "application/json"), ("Prefer", "resolution=merge-duplicates"))
    assert pair.through(Ask("POST", "/cases", 201, as_json, row)).status in (200, 201)
    for method in ("GET", "HEAD", "DELETE"):
        refused = pair.through(Ask(method, f"/cases{control}?id=eq.{made}", 400))
        assert refused.status == 400
        assert method == "HEAD" or json.loads(refused.body)["message"].startswith("INVALID_PATH: ")
    kept = pair.through(Ask("GET", f"/cases?id=eq.{made}&select=title", 200))
    assert json.loads(kept.body) == [{"title": "Kept"}]
    pair.through(Ask("DELETE", f"/cases?id=eq.{made}", 204))


@pytest.mark.parametrize("state", ["57P01", "57P02", "57P03", "08006", "53300"])
def test_a_lost_connection_is_the_database_away(pair: Pair, state: str) -> None:
    """PostgREST answers with what the server said while it stopped, started, or lost one of its processes."""
    ask = Ask("GET", f"/rpc/fail?state={state}", 503)
    through, direct = pair.through(ask), pair.direct(ask)
    assert direct.status in (500, 503)
    assert (through.status, json.loads(direct.body)["code"]) == (503, state)
    assert json.loads(through.body)["message"].startswith("DATABASE_UNAVAILABLE: ")


def test_every_difference_is_in_the_guide() -> None:
    said = (PROJECT / "docs" / "gateway.md").read_text().lower()
    headers = (OWN_FRAMING | SAID_BY_THE_GATEWAY | NOT_PASSED_ON | RELATIVE) - {"connection"}
    assert [name for name in sorted(headers) if name not in said] == []


# What is large, and who does not wait for it

MEGABYTE = 1024 * 1024


@contextmanager
def most_memory(stack: RunningStack) -> Iterator[list[int]]:
    """How many bytes of memory the sidecar had at most more than before, once this is over."""
    (process,) = members("sidecar", stack.state)
    before = process.memory_info().rss
    seen = [0]
    done = Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], process.memory_info().rss - before)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            done.set()
            watching.result()


def test_large_answers_are_streamed(pair: Pair) -> None:
    ask = Ask("GET", "/rpc/large?megabytes=20", 200)
    pair.through(ask)  # what is allocated once, whoever asks
    with most_memory(pair.gateway) as growth:
        through = pair.through(ask)
    assert len(through.body) == 20 * MEGABYTE + len('""')
    assert through.body == pair.direct(ask).body
    assert growth[0] < 10 * MEGABYTE


def test_large_bodies_are_streamed(pair: Pair) -> None:
    row = [{"id": new(50), "title": "Large", "storage_key": "é" * 10 * MEGABYTE}]
    body = json.dumps(row, ensure_ascii=False).encode()
    headers = (("Content-Type", "application/json"), ("Prefer", "resolution=merge-duplicates"))
    for in_chunks in (False, True):
        ask = Ask("POST", "/documents", 201, headers, body, chunked=in_chunks)
        with most_memory(pair.gateway) as growth:
            assert pair.through(ask).status in (200, 201)
        assert growth[0] < 10 * MEGABYTE
    stored = pair.through(Ask("GET", f"/documents?id=eq.{new(50)}&select=storage_key", 200))
    assert json.loads(stored.body) == [{"storage_key": row[0]["storage_key"]}]


def test_slow_and_gone_readers_leave_nothing_behind(pair: Pair) -> None:
    """Five at a time are owed 100 MB, of which the sidecar keeps a little each, and then nothing."""
    url = urlsplit(pair.gateway.gateway_url)
    (process,) = members("sidecar", pair.gateway.state)
    port = urlsplit(pair.gateway.postgrest_url).port

    def upstream() -> int:
        return sum(1 for one in process.net_connections("tcp") if one.raddr and one.raddr[1] == port)

    token = pair.token(Ask("GET", "/", 200))
    request = (
        f"GET {PREFIX}/rpc/large?megabytes=20 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    pair.through(Ask("GET", "/rpc/large?megabytes=20", 200))
    idle = upstream()
    with most_memory(pair.gateway) as growth:
        for _ in range(4):
            readers = []
            for _ in range(5):
                reader = socket.socket()
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect((url.hostname, url.port))
                reader.sendall(request)
                readers.append(reader)
            for reader in readers:
                assert reader.recv(64).startswith(b"HTTP/1.1 200 ")
            assert upstream() >= len(readers)
            for reader in readers:
                reader.close()
            assert eventually(upstream, lambda left: left <= idle) <= idle
    assert growth[0] < 20 * MEGABYTE
    assert pair.through(Ask("GET", "/cases?limit=1", 200)).status == 200

"""The gateway answers as PostgREST does: same status, headers and body for every request of tests/gateway_requests.py.

One PostgREST is asked through its gateway and another directly, on two databases that are the same row by row, and to
which the same is done. What differs on purpose is listed here and, for people, in docs/gateway.md.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.conftest import OpenStack
from tests.gateway_requests import EVERYTHING, ORGANIZATION, SEED, Ask
from tests.harness import RunningStack

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
        return send(self.gateway.gateway_url, PREFIX, ask, self._token(ask))

    def direct(self, ask: Ask) -> Answer:
        return send(self.twin.postgrest_url, "", ask, self._token(ask))

    def _token(self, ask: Ask) -> str | None:
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
    """PostgREST's description of itself says where it listens."""
    return body.replace(urlsplit(stack.postgrest_url).netloc.encode(), b"postgrest")


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

"""The gateway streams both ways, says which request it was, and meters what is billable, once.

That it answers as PostgREST does is proved in test_gateway_fidelity.py.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psutil
import pytest
from starlette.types import Message

from api.errors import Problem
from api.gateway import RequestBody
from api.stack.processes import members
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Database, Organization, RunningStack
from tests.observe import assert_problem, database_away, eventually, gateway_events, metered_since


@dataclass(frozen=True)
class Firm:
    """An organization, and its owner at the gateway."""

    organization: Organization
    stack: RunningStack
    gateway: httpx.Client


@pytest.fixture
def firm(stack: RunningStack, make_organization: MakeOrganization) -> Iterator[Firm]:
    organization = make_organization(stack.database)
    headers = {
        "Authorization": f"Bearer {stack.token(organization['owner'].subject)}",
        "X-Organization-ID": str(organization.id),
        "Accept-Encoding": "identity",
    }
    with httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=30, trust_env=False) as gateway:
        yield Firm(organization, stack, gateway)


def test_writes_and_the_location_of_what_they_made(firm: Firm) -> None:
    created = firm.gateway.post("/api/v1/clients", json={"name": "Zoë"}, headers={"Prefer": "return=headers-only"})
    assert created.status_code == 201
    found = firm.gateway.get(created.headers["Location"])
    assert found.status_code == 200, "the location is one of the gateway"
    assert [row["name"] for row in found.json()] == ["Zoë"]

    target = f"/api/v1/clients?id=eq.{found.json()[0]['id']}"
    changed = firm.gateway.patch(target, json={"name": "Zoe"}, headers={"Prefer": "return=representation"})
    assert [row["name"] for row in changed.json()] == ["Zoe"]
    assert firm.gateway.delete(target).status_code == 204
    assert firm.gateway.get(target).json() == []


def test_connections_to_postgrest_are_used_again(firm: Firm) -> None:
    def in_use() -> set[int]:
        return {connection.laddr[1] for connection in upstream_connections(firm.stack)}

    firm.gateway.get("/api/v1/cases")
    before = in_use()
    assert before
    for _ in range(3):
        firm.gateway.get("/api/v1/cases")
        firm.gateway.get("/api/v1/nothing")
        firm.gateway.post("/api/v1/cases", json={"title": "one"})
        firm.gateway.delete("/api/v1/cases?title=eq.one")
    assert in_use() == before


def test_a_write_never_goes_out_on_a_connection_that_postgrest_is_closing(firm: Firm) -> None:
    """PostgREST's server closes the connection after a HEAD, and a write cannot be tried twice."""
    for _ in range(50):
        assert firm.gateway.head("/api/v1/cases").status_code == 200
        assert firm.gateway.post("/api/v1/cases", json={"title": "after a HEAD"}).status_code == 201


def upstream_connections(stack: RunningStack) -> list[Any]:
    port = urlsplit(stack.postgrest_url).port
    connections = sidecar_process(stack).net_connections("tcp")
    return [c for c in connections if c.raddr and c.raddr[1] == port and c.status == psutil.CONN_ESTABLISHED]


async def test_chunks_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.gateway.MOST_CHUNKED_BYTES", 1000)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 300, "more_body": True}

    body = RequestBody({"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}, receive)
    with pytest.raises(Problem) as refusal:
        await body.to_send()
    assert (refusal.value.status, refusal.value.message.partition(":")[0]) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
def test_large_bodies_stream_both_ways(firm: Firm, chunked: bool) -> None:
    rows = [{"title": f"{number:06d} " + "é" * 90} for number in range(5000)]
    body = json.dumps(rows).encode()
    pieces = (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    headers = {"Content-Type": "application/json", "Prefer": "return=minimal"}
    created = firm.gateway.post("/api/v1/cases", content=pieces if chunked else body, headers=headers)
    assert created.status_code == 201, created.text
    read = firm.gateway.get("/api/v1/cases?select=title&order=title")
    assert read.json() == rows


def test_an_answer_that_comes_before_all_was_sent(firm: Firm) -> None:
    """The rest of the body must not be taken for the next request, neither here nor by PostgREST."""
    for _ in range(3):
        pieces = (b"x" * 65536 for _ in range(80))
        refused = firm.gateway.post("/api/v1/cases", content=pieces, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400
        assert firm.gateway.post("/api/v1/cases", json={"title": "next"}).status_code == 201


def test_requests_one_after_the_other_on_one_connection(firm: Firm) -> None:
    """A body that the gateway has no use for must not be taken for the next request."""
    with socket.create_connection((firm.gateway.base_url.host, firm.gateway.base_url.port or 80), timeout=10) as raw:
        head = b"POST /api/v1/cases HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer broken\r\nContent-Length: 40\r\n\r\n"
        body = b"GET /health HTTP/1.1\r\nHost: smuggled\r\n\r\n"
        assert len(body) == 40
        raw.sendall(head + body)
        raw.sendall(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = b"".join(iter(lambda: raw.recv(65536), b""))
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"401", b"404"]


SANE = ("order-17:retry.2", "a" * 128)
NOT_SANE = ("a" * 129, "has space", "<script>", "")


@pytest.mark.parametrize(("sent", "kept"), [(sent, sent in SANE) for sent in SANE + NOT_SANE])
def test_request_id_is_kept_when_sane(firm: Firm, sent: str, kept: bool) -> None:
    returned = firm.gateway.get("/api/v1/cases", headers={"X-Request-ID": sent}).headers.get_list("X-Request-ID")
    assert len(returned) == 1
    assert (returned[0] == sent) is kept
    if not kept:
        assert returned[0].count("-") == 4


def test_request_id_comes_back_with_errors_too(stack: RunningStack) -> None:
    with httpx.Client(base_url=stack.gateway_url, trust_env=False) as client:
        for path, status in (("/nowhere", 404), ("/api/v1/cases", 401), ("/api/v2/cases", 404), ("/v1/events", 405)):
            response = client.get(path, headers={"X-Request-ID": "find-me"})
            assert (response.status_code, response.headers["X-Request-ID"]) == (status, "find-me")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/api",
        "/api/v1",
        "/api/v1x/cases",
        "/api/v2/cases",
        "/api%2Fv1/cases",
        "/%61pi/v1/cases",
        "/health/",
        "/v1/events/",
        "/openapi.json/",
    ],
)
def test_what_is_not_there_is_not_found(stack: RunningStack, path: str) -> None:
    assert_problem(httpx.get(stack.gateway_url + path, trust_env=False), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize("name", ["X-Organization-ID", "Authorization"])
def test_a_header_that_decides_may_come_only_once(firm: Firm, name: str) -> None:
    headers = [*firm.gateway.headers.multi_items(), (name, firm.gateway.headers[name])]
    assert_problem(httpx.get(f"{firm.stack.gateway_url}/api/v1/cases", headers=headers), 400, "AMBIGUOUS_HEADER")


def test_a_stranger_is_made_known_on_the_first_request(stack: RunningStack) -> None:
    with stack.client(f"auth0|{uuid4()}", email="nora@example.com") as nora:
        response = nora.get("/api/v1/organizations")
        assert response.status_code == 200
        assert [row["kind"] for row in response.json()] == ["personal"]


def test_membership_is_not_decided_by_what_the_gateway_remembers(firm: Firm) -> None:
    member = firm.organization["member"]
    with firm.stack.client(member.subject, org=firm.organization.slug) as client:
        assert client.get("/api/v1/cases").status_code == 200
        with firm.stack.database.connect() as connection:
            connection.execute("delete from tenancy.memberships where user_id = %s", [member.id])
        refused = client.get("/api/v1/cases")
    assert_problem(refused, 403, "NOT_A_MEMBER")


def test_a_new_organization_can_be_used_at_once(stack: RunningStack) -> None:
    slug = f"new-{uuid4().hex[:8]}"
    with stack.client(f"founder-{slug}") as founder:
        assert_problem(founder.get("/api/v1/cases", headers={"X-Organization-ID": slug}), 403, "NOT_A_MEMBER")
        made = founder.post("/api/v1/rpc/create_organization", json={"name": "New", "slug": slug, "timezone": "UTC"})
        assert made.status_code == 200, made.text
        assert founder.get("/api/v1/cases", headers={"X-Organization-ID": slug}).status_code == 200


def test_what_is_metered_says_what_was_done(firm: Firm) -> None:
    before = datetime.now(UTC)
    headers = {"X-Request-ID": "req-1", "User-Agent": "tests/1.0 (Ünïcode)", "X-Forwarded-For": "203.0.113.9"}
    response = firm.gateway.get("/api/v1/cases?select=id", headers=httpx.Headers(headers, encoding="utf-8"))
    assert response.status_code == 200
    (event,) = metered_since(firm.stack, firm.gateway, firm.organization.id)
    dimensions = event["dimensions"]
    duration = dimensions.pop("duration_ms")
    assert 0 < duration < 30_000
    assert dimensions == {
        "endpoint": "/api/v1/cases",
        "method": "GET",
        "status_code": 200,
        "response_size": len(response.content),
        "ip": "127.0.0.0",
        "user_agent": "tests/1.0 (Ünïcode)",
    }
    assert before <= event["occurred_at"] <= datetime.now(UTC)
    assert (event["request_id"], event["event"], event["quantity"], event["unit"], event["resource_id"]) == (
        ("req-1", "api.request", 1, "request", None)
    )
    assert event["user_id"] == str(firm.organization["owner"].id)


BILLABLE: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/api/v1/cases", {}, 200),
    ("HEAD", "/api/v1/cases", {}, 200),
    ("GET", "/api/v1/c%61ses", {}, 200),
    ("GET", "/api/v1/documents?limit=1", {}, 200),
    ("GET", "/api/v1/clients?select=name,cases(title)", {}, 200),
    ("POST", "/api/v1/clients", {"json": {"name": "Ann"}}, 201),
    ("POST", "/api/v1/cases", {"json": {"title": ""}}, 400),
    ("DELETE", "/api/v1/cases?id=eq.00000000-0000-0000-0000-000000000000", {}, 204),
    ("GET", "/api/v1/cases?nothing=eq.1", {}, 400),
    ("GET", "/api/v1/cases/1", {}, 404),
    ("GET", "/api/v1/search", {}, 404),
]


def test_billable_requests_are_metered_each_once(firm: Firm) -> None:
    for method, target, content, status in BILLABLE:
        response = firm.gateway.request(method, target, **content)
        assert response.status_code == status, response.text
    events = metered_since(firm.stack, firm.gateway, firm.organization.id)
    metered = [(e["dimensions"]["method"], e["dimensions"]["endpoint"], e["dimensions"]["status_code"]) for e in events]
    routes = ("documents", "clients", "search")
    assert metered == [
        (method, "/api/v1/" + next((route for route in routes if f"/{route}" in target), "cases"), status)
        for method, target, _, status in BILLABLE
    ]


def test_what_is_not_billable_is_not_metered(firm: Firm) -> None:
    firm.gateway.options("/api/v1/cases")
    for path in ("cases2", "organizations", "usage_events", "rpc/usage_summary", "", "cases%2F1"):
        firm.gateway.get(f"/api/v1/{path}")
    firm.gateway.get("/health")
    firm.gateway.get("/nowhere")
    billing = firm.organization["billing"].subject
    with firm.stack.client(billing, org=firm.organization.id) as client:
        assert client.post("/api/v1/cases", json={"title": "not theirs to write"}).status_code == 403
    with httpx.Client(base_url=firm.stack.gateway_url, trust_env=False) as anonymous:
        assert anonymous.get("/api/v1/cases").status_code == 401
    for role in ("platform_admin", "service"):
        with firm.stack.client("staff", role=role, org=firm.organization.id) as staff:
            staff.get("/api/v1/cases")
    assert metered_since(firm.stack, firm.gateway, firm.organization.id) == []


def test_the_default_organization_pays_when_none_is_named(firm: Firm) -> None:
    with firm.stack.client(firm.organization["member"].subject) as client:
        assert client.get("/api/v1/cases").status_code == 200
    assert len(metered_since(firm.stack, firm.gateway, firm.organization.id)) == 1


def test_a_retry_is_billed_once_but_a_constant_header_is_not_free(firm: Firm) -> None:
    for _ in range(3):
        firm.gateway.get("/api/v1/cases", headers={"X-Request-ID": "same"})
    assert len(metered_since(firm.stack, firm.gateway, firm.organization.id)) == 1

    firm.gateway.get("/api/v1/cases", headers={"X-Request-ID": "same"})
    firm.gateway.get("/api/v1/cases?limit=1", headers={"X-Request-ID": "same"})
    firm.gateway.head("/api/v1/cases", headers={"X-Request-ID": "same"})
    with firm.stack.client(firm.organization["member"].subject, org=firm.organization.id) as colleague:
        colleague.get("/api/v1/cases", headers={"X-Request-ID": "same"})
    assert len(metered_since(firm.stack, firm.gateway, firm.organization.id)) == 5


def test_requests_without_an_id_are_never_merged(firm: Firm) -> None:
    for _ in range(5):
        firm.gateway.get("/api/v1/cases")
    assert len(metered_since(firm.stack, firm.gateway, firm.organization.id)) == 5


def test_a_client_that_hangs_up_in_the_middle_pays_for_what_it_got(firm: Firm) -> None:
    rows = [{"title": f"{number} " + "x" * 190} for number in range(20_000)]
    assert firm.gateway.post("/api/v1/cases", json=rows, headers={"X-Request-ID": "load"}).status_code == 201
    whole = len(firm.gateway.get("/api/v1/cases").content)
    url = urlsplit(firm.stack.gateway_url)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the answer cannot all be on its way already
        raw.connect((url.hostname, url.port))
        raw.sendall(
            f"GET /api/v1/cases HTTP/1.1\r\nHost: x\r\nX-Request-ID: cut\r\n"
            f"Authorization: {firm.gateway.headers['Authorization']}\r\n\r\n".encode()
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 200 OK")
    events = eventually(
        lambda: [e for e in gateway_events(firm.stack, firm.organization.id) if e["request_id"] == "cut"], bool
    )
    assert [event["dimensions"]["status_code"] for event in events] == [200]
    assert events[0]["dimensions"]["response_size"] < whole


def test_nobody_waits_upstream_for_a_client_that_hung_up(firm: Firm) -> None:
    gateway = urlsplit(firm.stack.gateway_url)

    def upstream() -> list[Any]:
        return upstream_connections(firm.stack)

    with firm.stack.database.connect(autocommit=False) as blocker:
        blocker.execute("lock table app.cases in access exclusive mode")
        idle = len(upstream())
        hanging = [socket.create_connection((gateway.hostname, gateway.port)) for _ in range(8)]
        request = (
            f"GET /api/v1/cases HTTP/1.1\r\nHost: x\r\nAuthorization: {firm.gateway.headers['Authorization']}\r\n\r\n"
        )
        for connection in hanging:
            connection.sendall(request.encode())
        assert len(eventually(upstream, lambda open_now: len(open_now) >= 8)) >= 8
        for connection in hanging:
            connection.close()
        assert len(eventually(upstream, lambda open_now: len(open_now) <= idle)) <= idle
        blocker.rollback()
    assert metered_since(firm.stack, firm.gateway, firm.organization.id) == [], "nothing was sent, nothing is billed"


def test_postgrest_away_is_said_in_the_error_shape(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack() as stack:
        owner = make_organization(stack.database)["owner"]
        with stack.client(owner.subject) as client:
            assert client.get("/api/v1/cases").status_code == 200
            stack.kill("postgrest")
            away = client.get("/api/v1/cases")
            assert_problem(away, 503, "POSTGREST_UNAVAILABLE")
            assert away.headers["Retry-After"]
            health = client.get("/health")
            assert health.status_code == 503
            assert health.json()["postgrest"] == {"status": "down"}
            assert health.json()["database"] == {"status": "ok"}
            stack.start("postgrest")
            assert client.get("/api/v1/cases").status_code == 200
            assert client.get("/health").status_code == 200


def test_database_away_is_said_in_the_error_shape(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack() as stack:
        organization = make_organization(stack.database)
        backend = {"Authorization": f"Bearer {stack.token('backend', role='service')}"}
        with stack.client(organization["owner"].subject) as client:
            assert client.get("/api/v1/cases").status_code == 200
            with database_away(stack.database):
                unknown = client.get("/api/v1/cases", headers={"X-Organization-ID": "somewhere-else"})
                assert_problem(unknown, 503, "DATABASE_UNAVAILABLE")
                events = client.post("/v1/events", json={"events": []}, headers=backend)
                assert_problem(events, 503, "DATABASE_UNAVAILABLE")
                assert events.headers["Retry-After"]
                health = client.get("/health")
                assert (health.status_code, health.json()["database"]) == (503, {"status": "down"})
            back = eventually(lambda: client.get("/api/v1/cases").status_code, lambda status: status == 200)
            assert back == 200
            assert eventually(lambda: client.get("/health").status_code, lambda status: status == 200) == 200
            assert len(metered_since(stack, client, organization.id)) == 2, (
                "both answers, before and after, are on record"
            )


def test_a_drained_sidecar_answers_what_it_began_and_ships_what_it_has(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack:
        organization = make_organization(stack.database)
        with (
            stack.client(organization["owner"].subject) as client,
            stack.database.connect(autocommit=False) as blocker,
            ThreadPoolExecutor(1) as pool,
        ):
            blocker.execute("lock table app.cases in access exclusive mode")
            asking = pool.submit(client.get, "/api/v1/cases")
            assert eventually(lambda: waits_for_a_lock(stack.database), bool)
            process = sidecar_process(stack)
            process.terminate()
            refused = eventually(lambda: refuses(stack.gateway_url), bool)
            assert refused, "a draining sidecar takes no new connections"
            assert process.is_running()
            blocker.rollback()
            answer = asking.result(timeout=20)
            assert (answer.status_code, answer.json()) == (200, [])
        process.wait(timeout=20)
        assert len(gateway_events(stack, organization.id)) == 1
        assert list(stack.state.spool.glob("*.spool")) == []


def waits_for_a_lock(database: Database) -> bool:
    """Whether a request has got so far."""
    with database.connect() as operator:
        waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return operator.execute(waiting).rowcount > 0


def sidecar_process(stack: RunningStack) -> psutil.Process:
    (process,) = members("sidecar", stack.state)
    return process


def refuses(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False

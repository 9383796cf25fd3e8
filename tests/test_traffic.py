"""Every request is metered in bytes, whoever asks for what and whatever becomes of it. What is billed is one more."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from api.usage import PLATFORM, address_shown
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually

PLATFORM_ID = PLATFORM.organization_id
TENANT = "tenant"


@dataclass(frozen=True)
class World:
    stack: RunningStack
    organization: Organization
    stranger: Organization

    def token(self, who: str) -> str:
        if who in ("service", "platform_admin"):
            return self.stack.token(f"the-{who}", role=who)
        return self.stack.token(self.organization[who].subject)

    def traffic(self, *request_ids: str) -> list[dict[str, Any]]:
        """Once there is an event for each, in their order."""
        found = eventually(
            lambda: self._events("traffic.bytes", request_ids), lambda rows: len(rows) >= len(request_ids)
        )
        assert len(found) == len(request_ids)
        return found

    def billed(self, *request_ids: str) -> list[dict[str, Any]]:
        return self._events("api.request", request_ids)

    def _events(self, name: str, request_ids: tuple[str, ...]) -> list[dict[str, Any]]:
        with self.stack.database.connect() as superuser:
            rows = superuser.execute(
                """
                select to_jsonb(e) from metering.usage_events e
                where event_name = %s and request_id = any (%s) order by array_position(%s, request_id)
                """,
                [name, list(request_ids), list(request_ids)],
            ).fetchall()
        return [row for (row,) in rows]


@pytest.fixture(scope="module")
def world(stack: RunningStack, make_organization: MakeOrganization) -> World:
    made = World(stack, make_organization(stack.database), make_organization(stack.database))
    with stack.client(made.organization["owner"].subject) as client:
        # Names are read from the catalog at the start, which may still go on.
        assert eventually(lambda: endpoint_of(made, client, "/api/v1/memberships?x=1"), lambda one: one != "other")
    return made


def endpoint_of(world: World, client: httpx.Client, path: str) -> str:
    name = str(uuid4())
    client.get(path, headers={"X-Request-ID": name})
    (event,) = world.traffic(name)
    return str(event["dimensions"]["endpoint"])


@dataclass(frozen=True)
class Sent:
    """One request as it goes over the wire, and what is to be recorded of it."""

    line: str
    status: int
    endpoint: str
    who: str | None = "owner"
    organization: str = TENANT
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    version: str = "1.1"
    is_billed: bool = False
    context: str | None = None

    def raw(self, world: World, request_id: str) -> bytes:
        named = {"Host": "x", "X-Request-ID": request_id, **self.headers}
        if self.who is not None and "Authorization" not in named:
            named["Authorization"] = f"Bearer {world.token(self.who)}"
        if self.body:
            named |= {"Content-Type": "application/json", "Content-Length": str(len(self.body))}
        lines = [f"{self.line} HTTP/{self.version}", *(f"{name}: {value}" for name, value in named.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


CASE = b'{"title": "A case"}'
BILLED: dict[str, Any] = {"endpoint": "/api/v1/cases", "is_billed": True}
PLATFORMS: dict[str, Any] = {"organization": "platform"}
ADMINS: dict[str, Any] = {**PLATFORMS, "context": "admin"}
NOBODYS: dict[str, Any] = {**PLATFORMS, "who": None}

REQUESTS = {
    "billed": Sent("GET /api/v1/cases?select=id,title", 200, **BILLED),
    "billed, in other letters": Sent("GET /api/v1/c%61ses?limit=1", 200, **BILLED),
    "written": Sent("POST /api/v1/cases", 201, body=CASE, **BILLED),
    "answered at length": Sent("GET /api/v1/cases?select=title,organization_id,id,created_at,status", 200, **BILLED),
    "refused for what it asks": Sent("GET /api/v1/cases?select=nothing", 400, **BILLED),
    "without a body": Sent("HEAD /api/v1/cases", 200, **BILLED, headers={"Connection": "close"}),
    "of an old client": Sent("GET /api/v1/cases?limit=1", 200, version="1.0", **BILLED),
    "the last on its connection": Sent("GET /api/v1/cases?limit=1", 200, headers={"Connection": "close"}, **BILLED),
    "free": Sent("GET /api/v1/organizations", 200, "/api/v1/organizations"),
    "to a function": Sent("POST /api/v1/rpc/usage_summary", 200, "/api/v1/rpc/usage_summary", body=b"{}"),
    "to the root": Sent("GET /api/v1/", 200, "/api/v1/"),
    "not preflight": Sent("OPTIONS /api/v1/cases", 200, "/api/v1/cases"),
    "for what is not there": Sent("GET /api/v1/made_up", 404, "other"),
    "below what is there": Sent("GET /api/v1/organizations/1/2", 404, "other"),
    "by another method": Sent("PURGE /api/v1/organizations", 405, "/api/v1/organizations"),
    "not allowed to": Sent("POST /api/v1/cases", 403, "/api/v1/cases", "viewer", body=CASE),
    "of a report": Sent("GET /billing/usage-summary/SLUG", 200, "/billing/usage-summary/{tenant_id}"),
    "of a document": Sent("GET /billing/preview-invoice.html", 200, "/billing/preview-invoice.html"),
    "of none": Sent("GET /api/billing/invoices/1.csv", 404, "/api/billing/invoices/{invoice_id}.csv"),
    "with a bad token": Sent(
        "GET /api/v1/cases", 401, "/api/v1/cases", headers={"Authorization": "Bearer x.y.z"}, **PLATFORMS
    ),
    "for others": Sent(
        "GET /api/v1/memberships", 403, "/api/v1/memberships", headers={"X-Organization-ID": "STRANGER"}, **PLATFORMS
    ),
    "of staff": Sent("GET /api/v1/organizations", 200, "/api/v1/organizations", "platform_admin", **ADMINS),
    "of the backend": Sent("GET /api/v1/cases", 403, "/api/v1/cases", "service", **ADMINS),
    "with events": Sent("POST /v1/events", 200, "/v1/events", "service", body=b"[]", **ADMINS),
    "with no events": Sent("GET /v1/events", 405, "/v1/events", **NOBODYS),
    "preflight": Sent(
        "OPTIONS /api/v1/cases", 403, "/api/v1/cases",
        headers={"Origin": "https://x.example", "Access-Control-Request-Method": "GET"}, **NOBODYS,
    ),
    "unauthenticated": Sent("GET /api/v1/cases", 401, "/api/v1/cases", **NOBODYS),
    "about health": Sent("GET /health", 200, "/health", **NOBODYS),
    "about metrics": Sent("GET /metrics", 200, "/metrics", **NOBODYS),
    "about the contract": Sent("GET /openapi.json", 200, "/openapi.json", **NOBODYS),
    "for the documentation": Sent("GET /docs", 200, "/docs", **NOBODYS),
    "for a part of it": Sent("GET /docs/page.css", 200, "/docs/{name}", **NOBODYS),
    "for nothing of ours": Sent("GET /wp-login.php", 404, "other", **NOBODYS),
}  # fmt: skip


def test_every_request_is_metered_by_the_bytes_that_went_over_the_wire(world: World) -> None:
    sent = [(name, request, f"{uuid4()}") for name, request in REQUESTS.items()]
    expected, recorded = {}, {}
    for name, request, request_id in sent:
        raw = request.raw(world, request_id)
        for word, meant in (("SLUG", world.organization), ("STRANGER", world.stranger)):
            raw = raw.replace(word.encode(), meant.slug.encode())
        answer = exchange(world, raw, is_head=request.line.startswith("HEAD"))
        status = int(answer.split(b" ", 2)[1])
        organization = world.organization.id if request.organization == TENANT else PLATFORM_ID
        method = request.line.partition(" ")[0]
        expected[name] = (
            len(raw) + len(answer),
            request.status,
            request.endpoint,
            method if method != "PURGE" else "OTHER",
            str(organization),
            request.context,
            request.is_billed,
        )
        assert status == request.status, (name, answer)
    ids = [request_id for *_, request_id in sent]
    billed = {event["request_id"] for event in world.billed(*ids)}
    for (name, *_), event in zip(sent, world.traffic(*ids), strict=True):
        dimensions = event["dimensions"]
        recorded[name] = (
            event["quantity"],
            dimensions["status_code"],
            dimensions["endpoint"],
            dimensions["method"],
            event["organization_id"],
            event["context"] and event["context"]["type"],
            event["request_id"] in billed,
        )
        assert (event["unit"], dimensions["ip"]) == ("byte", "127.0.0.0")
        assert dimensions["duration_ms"] > 0
    assert recorded == expected


def exchange(world: World, raw: bytes, *, is_head: bool = False) -> bytes:
    """Everything that came back for one request, byte by byte as it came."""
    url = urlsplit(world.stack.gateway_url)
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(raw)
        answer = b""
        while not is_complete(answer, is_head):
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
    return answer


def is_complete(answer: bytes, is_head: bool) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if is_head or head.split(b" ", 2)[1] == b"204":
        return True
    if fields.get(b"transfer-encoding") == b"chunked":
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(fields[b"content-length"])


def test_endpoints_are_few_whatever_is_asked_for(world: World) -> None:
    ids = [str(uuid4()) for _ in range(40)]
    with world.stack.client(world.organization["owner"].subject) as client:
        for number, name in enumerate(ids):
            path = (
                f"/api/v1/{name}",
                f"/api/v1/rpc/{name}",
                f"/{name}",
                f"/docs/{name}",
                f"/billing/usage-summary/{name}",
            )
            client.get(path[number % len(path)], headers={"X-Request-ID": name, "User-Agent": name})
    endpoints = {event["dimensions"]["endpoint"] for event in world.traffic(*ids)}
    assert endpoints == {"other", "/docs/{name}", "/billing/usage-summary/{tenant_id}"}


def test_a_request_whose_client_hangs_up_is_metered(world: World) -> None:
    name = str(uuid4())
    url = urlsplit(world.stack.gateway_url)
    raw = Sent("GET /api/v1/cases", 499, "/api/v1/cases").raw(world, name)
    with world.stack.database.connect(autocommit=False) as blocker:
        blocker.execute("lock table app.cases in access exclusive mode")
        with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
            connection.sendall(raw)
            with world.stack.database.connect() as observer:
                waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                assert eventually(lambda: observer.execute(waiting).rowcount, bool)
        (event,) = world.traffic(name)
    assert (event["quantity"], event["dimensions"]["status_code"]) == (len(raw), 499)
    assert event["organization_id"] == str(world.organization.id)
    assert world.billed(name) == []


def test_retries_are_billed_once_and_each_is_traffic(world: World) -> None:
    name = str(uuid4())
    with world.stack.client(world.organization["owner"].subject) as client:
        for _ in range(3):
            assert client.get("/api/v1/cases?limit=1", headers={"X-Request-ID": name}).status_code == 200
    assert eventually(lambda: len(world._events("traffic.bytes", (name,))), lambda number: number >= 3) == 3
    assert len(world.billed(name)) == 1


@pytest.mark.parametrize("mount", ["/api/billing", "/billing"])
def test_reports_are_of_the_organization_in_their_path(world: World, mount: str) -> None:
    owner, stranger = world.organization["owner"], world.stranger
    path = f"{mount}/usage-summary/{world.organization.id}"
    elsewhere = {"org": stranger.slug}
    with world.stack.client(owner.subject) as client:
        there = client.get(path, headers={"X-Organization-ID": str(stranger.id)})
        by_slug = client.get(f"{mount}/usage-summary/{world.organization.slug}")
        assert there.status_code == by_slug.status_code == 200
        meters = {row["meter"] for row in there.json()}
        assert {"api.request", "traffic.bytes"} <= meters
        as_csv = client.get(path, headers={"Accept": "text/csv"})
        assert as_csv.text.startswith("meter,unit,") and as_csv.headers["Content-Type"].startswith("text/csv")
        assert client.get(f"{path}?meter=eq.traffic.bytes&select=meter").json() == [{"meter": "traffic.bytes"}]
        for groups in ("{endpoint,method}", "endpoint,method", "endpoint&group_by=method", "%7Bendpoint%2Cmethod%7D"):
            grouped = client.get(f"{path}?meter=eq.api.request&group_by={groups}&select=meter,groups")
            assert grouped.status_code == 200, grouped.text
            assert grouped.json()[0]["groups"].keys() == {"endpoint", "method"}, groups
        assert client.get(f"{path}?group_by=&select=groups&limit=1").json() == [{"groups": {}}]
        assert_problem(client.get(f"{path}?group_by=colour"), 400, "INVALID_GROUP_BY")
        over_time = path.replace("usage-summary", "usage-report")
        assert client.get(f"{over_time}?from=2026-01-01&to=2026-01-02&group_by=endpoint").status_code == 200
        for given, missing in (("", "from and to of the report are"), ("?from=2026-01-01", "to of the report is")):
            assert_problem(client.get(over_time + given), 400, "INVALID_RANGE")
            assert missing in client.get(over_time + given).json()["message"]
        assert_problem(client.get(f"{path}?period_start=2001-01-01"), 404, "PERIOD_NOT_FOUND")
        assert_problem(client.get(f"{mount}/usage-summary/{stranger.id}"), 403, "NOT_A_MEMBER")
        assert_problem(client.post(path), 405, "METHOD_NOT_ALLOWED")
        assert_problem(client.get(f"{mount}/usage-summary/%20"), 404, "ROUTE_NOT_FOUND")
        assert_problem(client.get(f"{mount}/usage-summary"), 404, "ROUTE_NOT_FOUND")
    claims = world.stack.token(owner.subject, **elsewhere)
    answer = httpx.get(world.stack.gateway_url + path, headers={"Authorization": f"Bearer {claims}"}, trust_env=False)
    assert answer.status_code == 200
    staff = world.token("platform_admin")
    by_staff = httpx.get(world.stack.gateway_url + path, headers={"Authorization": f"Bearer {staff}"}, trust_env=False)
    assert {row["meter"] for row in by_staff.json()} == meters


@pytest.mark.parametrize(
    ("address", "detail", "shown"),
    [
        ("203.0.113.77", "truncated", "203.0.113.0"),
        ("203.0.113.77", "full", "203.0.113.77"),
        ("203.0.113.77", "none", None),
        ("::ffff:203.0.113.77", "truncated", "203.0.113.0"),
        ("2001:db8:1:2:3:4:5:6", "truncated", "2001:db8:1::"),
        ("2001:DB8:1:2:3:4:5:6", "full", "2001:db8:1:2:3:4:5:6"),
        ("/run/socket", "full", None),
    ],
)
def test_addresses_are_cut_as_the_setting_says(address: str, detail: Any, shown: str | None) -> None:
    assert address_shown(address, detail) == shown


def test_what_fails_is_metered(world: World) -> None:
    """The last test: PostgREST is gone after it."""
    name = str(uuid4())
    world.stack.kill("postgrest")
    with world.stack.client(world.organization["owner"].subject) as client:
        answer = client.get("/api/v1/cases", headers={"X-Request-ID": name})
        assert_problem(answer, 503, "POSTGREST_UNAVAILABLE")
    (event,) = world.traffic(name)
    assert event["dimensions"]["status_code"] == 503
    assert event["organization_id"] == str(world.organization.id)
    assert world.billed(name) == []

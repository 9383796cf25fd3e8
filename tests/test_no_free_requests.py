"""Ways to get at billable data, or to write it, that once were on no bill: by embedding, by racing what the gateway
looked up, by hanging up. And the limits that keep one client from taking what all need.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest

from api.protocol import MAX_HEAD_BYTES
from api.retries import MAX_SHARED, WINDOW_SECONDS, RetryKeys
from api.routes import BillableRoutes
from api.stack.processes import start, stop, wait_until_ready
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually, metered_since


@dataclass(frozen=True)
class Firm:
    """An organization with a case, and its owner at the gateway."""

    organization: Organization
    stack: RunningStack
    gateway: httpx.Client

    def metered(self) -> list[tuple[str, str]]:
        events = metered_since(self.stack, self.gateway, self.organization.id)
        return [(event["dimensions"]["method"], event["dimensions"]["endpoint"]) for event in events]


@pytest.fixture
def firm(stack: RunningStack, make_organization: MakeOrganization) -> Iterator[Firm]:
    organization = make_organization(stack.database)
    with stack.database.connect() as superuser:
        superuser.execute("insert into app.cases (organization_id, title) values (%s, 'one')", [organization.id])
    with stack.client(organization["owner"].subject, org=organization.id) as gateway:
        yield Firm(organization, stack, gateway)


EMBEDDED = [
    "organizations?select=slug,cases(title)",
    "organizations?select=slug,%63ases(title)",
    "organizations?s%65lect=slug,mine:cases!inner(title)",
    "organizations?limit=1;select=slug,cases(title)",
    'organizations?select=slug,"c\\ases"(title)',
    "organizations?select=slug,+cases+(title)",
    "organizations?select=slug&select=slug,cases(title)",
    "organizations?select=slug,cases_organization_id_fkey(title)",
    "memberships?select=organizations(cases(title))",
    "memberships?select=...organizations(cases(title))",
]


@pytest.mark.parametrize("target", EMBEDDED)
def test_a_billable_table_is_billed_when_it_is_embedded(firm: Firm, target: str) -> None:
    """Whatever PostgREST takes for a way to write it. What it does not take is free to be billed or not."""
    path, _, query = target.partition("?")
    answer = firm.gateway.get(f"/api/v1/{path}?" + quote(query, safe="%=&;,:!()+.\\"))
    if answer.status_code == 200 and '"one"' in answer.text:
        assert firm.metered() == [("GET", "/api/v1/cases")]
    else:
        assert target not in EMBEDDED[:2], answer.text


def test_a_write_that_returns_a_billable_table_is_billed(firm: Firm) -> None:
    changed = firm.gateway.patch(
        f"/api/v1/organizations?id=eq.{firm.organization.id}&select=name,cases(title)",
        json={"name": "Renamed"},
        headers={"Prefer": "return=representation"},
    )
    assert changed.json() == [{"name": "Renamed", "cases": [{"title": "one"}]}]
    made = firm.gateway.post(
        "/api/v1/rpc/create_organization?select=slug,cases(title)",
        json={"name": "New", "slug": f"new-{uuid4().hex[:8]}", "timezone": "UTC"},
    )
    assert made.status_code == 200, made.text
    assert firm.metered() == [("PATCH", "/api/v1/cases"), ("POST", "/api/v1/cases")]


@pytest.mark.parametrize(
    "query", ["select=slug", "select=cases", "select=casesx(title)", "name=eq.cases(title)", "select=cases:name"]
)
def test_what_only_looks_like_embedding_is_free(firm: Firm, query: str) -> None:
    firm.gateway.get(f"/api/v1/organizations?{query}")
    assert firm.metered() == []


@pytest.mark.parametrize(
    ("query", "embeds"),
    [
        (b"select=cases(title)", True),
        (b"select=c%61ses%28title)", True),
        (b"select=+cases+(title)", True),
        (b"select=a:cases!inner!hint(title)", True),
        (b'select="x(":cases(title)', True),
        (b'select="ca\\ses"(title)', True),
        (b"select=...cases(title)", True),
        (b"select=a,b:other(x,cases(title))", True),
        (b"x=1;select=cases(title)", True),
        (b"select=other(cases)", False),
        (b"order=cases(title)", False),
        (b"select=id,cases::text", False),
        (b"", False),
    ],
)
def test_embedded_names_are_read_as_postgrest_reads_them(query: bytes, embeds: bool) -> None:
    match = BillableRoutes(["/api/v1/cases"]).match(b"/api/v1/organizations", query)
    assert match == ("/api/v1/cases" if embeds else None)


@contextmanager
def connected(firm: Firm) -> Iterator[socket.socket]:
    url = urlsplit(firm.stack.gateway_url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as raw:
        yield raw


def head_of(firm: Firm, method: str, path: str, **headers: object) -> bytes:
    named = {"Host": "x", "Authorization": firm.gateway.headers["Authorization"], "Content-Type": "application/json"}
    named |= {name.replace("_", "-"): str(value) for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def cases_of(firm: Firm, organization_id: UUID) -> list[str]:
    with firm.stack.database.connect() as superuser:
        rows = superuser.execute(
            "select title from app.cases where organization_id = %s order by title", [organization_id]
        ).fetchall()
    return [title for (title,) in rows]


SHAPE_ENDS = b"}"  # of an error, and of nothing that comes before it


def test_an_organization_made_while_the_body_is_held_back_is_not_free(firm: Firm) -> None:
    slug = f"late-{uuid4().hex[:8]}"
    body = json.dumps({"title": "free"}).encode()
    with connected(firm) as raw:
        # "100 Continue" says that the gateway has looked, and now waits for the body.
        raw.sendall(
            head_of(
                firm, "POST", "/api/v1/cases", Content_Length=len(body), X_Organization_ID=slug, Expect="100-continue"
            )
        )
        answer = raw.recv(65536)
        if answer.startswith(b"HTTP/1.1 100"):
            raw.sendall(body[:-1])
            made = firm.gateway.post(
                "/api/v1/rpc/create_organization", json={"name": "Late", "slug": slug, "timezone": "UTC"}
            )
            assert made.status_code == 200, made.text
            raw.sendall(body[-1:])
            answer = b""
        while SHAPE_ENDS not in answer:
            piece = raw.recv(65536)
            assert piece, answer
            answer += piece
    assert answer.startswith(b"HTTP/1.1 403")
    assert f'"NOT_A_MEMBER: you are not a member of organization {slug}"'.encode() in answer


@pytest.mark.parametrize("named", [True, False])
def test_who_has_no_default_organization_is_told_what_postgrest_would_say(firm: Firm, named: bool) -> None:
    subject = f"nobody-{uuid4()}"
    with firm.stack.database.connect() as superuser:
        superuser.execute(
            """
            with made as (insert into tenancy.users (subject) values (%s) returning id)
            insert into tenancy.memberships (organization_id, user_id, role) select %s, id, 'viewer' from made
            """,
            [subject, firm.organization.id],
        )
    with firm.stack.client(subject, org="x" * 100 if named else None) as gateway:
        refused = gateway.get("/api/v1/cases")
        said_by_postgrest = httpx.get(f"{firm.stack.postgrest_url}/cases", headers=gateway.headers, trust_env=False)
        assert gateway.get("/api/v1/organizations").status_code == (403 if named else 200)
    assert refused.json() == said_by_postgrest.json()
    assert_problem(refused, *((403, "NOT_A_MEMBER") if named else (400, "ORGANIZATION_REQUIRED")))


def waiting_for_a_lock(firm: Firm) -> bool:
    with firm.stack.database.connect() as operator:
        waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return operator.execute(waiting).rowcount > 0


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_write_is_billed_though_its_client_hung_up(firm: Firm, method: str) -> None:
    body = b"" if method == "DELETE" else json.dumps({"title": "written"}).encode()
    path = "/api/v1/cases" + ("" if method == "POST" else f"?organization_id=eq.{firm.organization.id}")
    with firm.stack.database.connect(autocommit=False) as blocker:
        blocker.execute("lock table app.cases in access exclusive mode")
        with connected(firm) as raw:
            raw.sendall(head_of(firm, method, path, Content_Length=len(body)) + body)
            assert eventually(lambda: waiting_for_a_lock(firm), bool)
            time.sleep(0.2)  # long enough for the gateway to watch for it
        time.sleep(0.3)
        blocker.rollback()
    written = {"POST": ["one", "written"], "PATCH": ["written"], "DELETE": []}[method]
    assert eventually(lambda: cases_of(firm, firm.organization.id), lambda titles: titles == written) == written
    assert eventually(firm.metered, bool) == [(method, "/api/v1/cases")]


@pytest.mark.parametrize("spaces", [10, 1_000_000], ids=["small", "streamed"])
def test_an_upload_that_breaks_off_writes_nothing(firm: Firm, spaces: int) -> None:
    """Though what came of it is whole JSON."""
    body = json.dumps({"title": "free"}).encode()
    with connected(firm) as raw:
        raw.sendall(head_of(firm, "POST", "/api/v1/cases", Content_Length=len(body) + spaces) + body)
        raw.sendall(b" " * (spaces // 2))
        time.sleep(0.3)
    time.sleep(0.3)
    assert firm.metered() == []
    assert cases_of(firm, firm.organization.id) == ["one"]


@pytest.mark.parametrize("spaces", [10, 3_000_000], ids=["small", "large"])
def test_chunks_that_break_off_write_nothing(firm: Firm, spaces: int) -> None:
    """Without a last one. PostgREST takes what it has got for all there is."""
    body = json.dumps({"title": "free"}).encode() + b" " * spaces
    with connected(firm) as raw:
        raw.sendall(head_of(firm, "POST", "/api/v1/cases", Transfer_Encoding="chunked"))
        raw.sendall(b"%x\r\n%b\r\n" % (len(body), body))
        time.sleep(0.3)
    time.sleep(0.3)
    assert firm.metered() == []
    assert cases_of(firm, firm.organization.id) == ["one"]


PREFERENCES = [["count=planned", "return=representation"], ["return=representation", "count=planned"]]


@pytest.mark.parametrize("preferences", PREFERENCES)
def test_preferences_in_two_headers_are_read_as_one(firm: Firm, preferences: list[str]) -> None:
    headers = [*firm.gateway.headers.multi_items(), *(("Prefer", value) for value in preferences)]
    answer = httpx.get(f"{firm.stack.gateway_url}/api/v1/cases", headers=headers, trust_env=False)
    assert_problem(answer, 400, "COUNT_NOT_EXACT")


def read_all(raw: socket.socket) -> bytes:
    return b"".join(iter(lambda: raw.recv(65536), b""))


@pytest.mark.parametrize("endless", ["header", "url", "many headers"])
def test_an_endless_head_is_refused(firm: Firm, endless: str) -> None:
    start = {"header": b"GET / HTTP/1.1\r\nX: ", "url": b"GET /", "many headers": b"GET / HTTP/1.1\r\n"}[endless]
    piece = b"X: yyyy\r\n" * 1000 if endless == "many headers" else b"y" * 9000
    with connected(firm) as raw:
        raw.settimeout(3)
        raw.sendall(start)
        answer = b""
        for _ in range(MAX_HEAD_BYTES // len(piece) + 1):  # the last one is too much
            raw.sendall(piece)
            time.sleep(0.02)
        answer = read_all(raw)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["message"].startswith("HEADERS_TOO_LARGE: ")


def test_a_long_body_is_no_head(firm: Firm) -> None:
    """The limit counts heads anew on a connection that is used again."""
    for _ in range(3):
        made = firm.gateway.post("/api/v1/cases", json={"title": "x" * 100_000})
        assert made.status_code in (201, 400), made.text
    assert firm.gateway.get("/api/v1/cases", headers={"X-Long": "y" * 30_000}).status_code == 200


def test_endless_trailers_are_cut_off(firm: Firm) -> None:
    """They come after the body, in a request that runs already."""
    with connected(firm) as raw:
        raw.settimeout(3)
        raw.sendall(head_of(firm, "POST", "/api/v1/cases", Transfer_Encoding="chunked") + b"2\r\n{}\r\n0\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(40):
                raw.sendall(b"X: yyyy\r\n" * 1000)
                time.sleep(0.02)


def test_an_upgrade_does_not_lose_a_body(firm: Firm) -> None:
    body = json.dumps({"title": "upgraded"}).encode()
    with connected(firm) as raw:
        raw.settimeout(5)
        head = head_of(
            firm, "POST", "/api/v1/cases", Connection="Upgrade", Upgrade="websocket", Content_Length=len(body)
        )
        raw.sendall(head + body)
        answer = read_all(raw)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"INVALID_BODY: " in answer


def test_retries_are_remembered_in_little_and_not_for_long() -> None:
    now = 0.0
    keys = RetryKeys(lambda: now)
    long = b"x" * 100_000
    first = keys.key_for(("tenant", long))
    assert [keys.key_for(("tenant", long)) for _ in range(MAX_SHARED - 1)] == [first] * (MAX_SHARED - 1)
    second = keys.key_for(("tenant", long))
    assert second != first
    assert keys.key_for(("tenant", long + b"y")) not in (first, second)
    assert all(isinstance(kept, bytes) and len(kept) == 16 for kept in keys._seen)
    assert len(keys) == 2
    now = WINDOW_SECONDS + 1
    third = keys.key_for(("somebody else", b""))
    assert len(keys) == 1, "what is older than the window is gone"
    assert third not in (first, second)


def test_idle_connections_leave_descriptors_for_the_spool(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack, ExitStack() as idle:
        organization = make_organization(stack.database)
        part = stack.parts["sidecar"]
        stack.stop()
        few = replace(part, command=("/bin/sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *part.command))
        wait_until_ready(few, start(few, stack.state), stack.state)
        try:
            token = {"Authorization": f"Bearer {stack.token(organization['owner'].subject)}"}
            clients = [
                idle.enter_context(httpx.Client(base_url=stack.gateway_url, headers=token, timeout=30, trust_env=False))
                for _ in range(8)
            ]
            for client in clients:
                assert client.get("/health").status_code == 200
            url = urlsplit(stack.gateway_url)
            for _ in range(220):
                idle.enter_context(socket.create_connection((url.hostname, url.port), timeout=5))
            with stack.database.connect(autocommit=False) as blocker, ThreadPoolExecutor(len(clients)) as pool:
                blocker.execute("lock table app.cases in access exclusive mode")
                asked = [pool.submit(client.get, "/api/v1/cases") for client in clients]
                time.sleep(0.5)  # all at once, so that each needs a connection to PostgREST
                blocker.rollback()
            assert [answer.result().status_code for answer in asked] == [200] * len(clients)
            assert clients[0].get("/health").status_code == 200
            assert len(metered_since(stack, clients[0], organization.id)) == len(clients)
        finally:
            stop(few.name, stack.state)


@pytest.mark.parametrize(
    ("role", "before", "within"),
    [("anon", "0", "30s"), ("member", "0", "30s"), ("member", "5min", "5min"), ("platform_admin", "0", "0")],
)
def test_no_customer_takes_postgrests_connections_for_ever(firm: Firm, role: str, before: str, within: str) -> None:
    """A query that its client no longer waits for runs on, and PostgREST has only so many connections."""
    claims = json.dumps({"sub": firm.organization["owner"].subject, "role": role})
    with firm.stack.database.connect(autocommit=False) as connection:
        connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        connection.execute("select set_config('statement_timeout', %s, true)", [before])
        connection.execute("select set_config('role', %s, true)", [role])
        connection.execute("select tenancy.pre_request()")
        assert connection.execute("select current_setting('statement_timeout')").fetchone() == (within,)


@pytest.mark.parametrize(
    ("path", "method", "within"),
    [
        ("/rpc/convert_to_organization", "POST", "5s"),  # writers of usage, also of others, wait for it
        ("/rpc/leave_organization", "POST", "5s"),  # who removes somebody waits for it
        ("/memberships", "DELETE", "5s"),
        ("/organizations", "DELETE", "5s"),
        ("/%6demberships", "PATCH", "5s"),  # PostgREST decodes it, and tells the database what came
        ("/%72pc/convert%5forganization", "POST", "5s"),
        ("/memberships", "GET", "30s"),
        ("/%6demberships", "GET", "30s"),
        ("/rpc/usage_summary", "POST", "30s"),
        ("/documents", "POST", "30s"),
    ],
)
def test_who_holds_up_others_is_done_soon(firm: Firm, path: str, method: str, within: str) -> None:
    """What is asked for beside the answer is read while the locks are held, and can be made to take very long."""
    claims = json.dumps({"sub": firm.organization["owner"].subject, "role": "member"})
    with firm.stack.database.connect(autocommit=False) as connection:
        # PostgREST asks for GET, and for functions that change nothing, in a transaction that cannot write.
        connection.read_only = method == "GET" or path == "/rpc/usage_summary"
        for name, setting in {"jwt.claims": claims, "path": path, "method": method}.items():
            connection.execute("select set_config(%s, %s, true)", [f"request.{name}", setting])
        connection.execute("set local role member")
        connection.execute("select tenancy.pre_request()")
        assert connection.execute("select current_setting('statement_timeout')").fetchone() == (within,)


def test_who_asks_for_health_takes_no_connections_from_customers(firm: Firm) -> None:
    """Anybody may ask, as often as they like."""
    gateway = urlsplit(firm.stack.gateway_url)
    assert firm.gateway.get("/api/v1/cases").status_code == 200
    with ExitStack() as stack:
        blocker = stack.enter_context(firm.stack.database.connect(autocommit=False))
        blocker.execute("lock table yoyo._yoyo_migration in access exclusive mode")
        for _ in range(20):
            asking = stack.enter_context(socket.create_connection((gateway.hostname, gateway.port)))
            asking.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        answer = firm.gateway.get("/api/v1/cases", headers={"X-Organization-ID": str(uuid4())})
        assert_problem(answer, 403, "NOT_A_MEMBER")
        assert answer.elapsed.total_seconds() < 1
        blocker.rollback()
    assert eventually(lambda: httpx.get(f"{firm.stack.gateway_url}/health").status_code, lambda status: status == 200)

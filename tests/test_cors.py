"""Pages of ALLOWED_ORIGINS, and no others, read our answers in a browser: from a browser's point of view."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from api.settings import Settings, SettingsError, load_settings
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, database_away, metered_since

APP = "https://app.example"
ADMIN = "http://localhost:5173"
STRANGER = "https://app.example.evil.example"
MAX_INGEST_BYTES = 4096

# What a browser shows a page without being told: fetch.spec.whatwg.org, "CORS-safelisted response-header name".
SAFELISTED = {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified"}
SIMPLE_METHODS = {"GET", "HEAD", "POST"}
NOT_SENT_UNASKED = {"authorization", "prefer", "range", "x-organization-id"}


class BlockedByBrowser(Exception):
    """What a page sees as `TypeError: Failed to fetch`."""


@dataclass(frozen=True)
class Page:
    """A page of `origin`, and `fetch` as its browser does it: ask first where it has to, show only what it may."""

    origin: str
    http: httpx.Client

    def fetch(self, method: str, path: str, **request: object) -> httpx.Response:
        sent = self.http.build_request(method, path, **request)  # type: ignore[arg-type]
        unsafe = sorted(name for name in sent.headers if name in NOT_SENT_UNASKED)
        if sent.headers.get("content-type") == "application/json":
            unsafe.append("content-type")
        if method not in SIMPLE_METHODS or unsafe:
            self._ask_first(method, path, unsafe)
        sent.headers["Origin"] = self.origin
        return self._shown(self.http.send(sent))

    def _ask_first(self, method: str, path: str, headers: list[str]) -> None:
        question = {"Origin": self.origin, "Access-Control-Request-Method": method}
        if headers:
            question["Access-Control-Request-Headers"] = ",".join(headers)
        base = self.http.base_url
        answer = httpx.options(base.join(path), headers=question, trust_env=False)  # never with the page's token
        self._check(answer)
        allowed = answer.headers.get("access-control-allow-headers", "").lower().replace(" ", "").split(",")
        if not answer.is_success or not set(headers) <= set(allowed):
            raise BlockedByBrowser(f"{answer.status_code} to the preflight")
        if method not in SIMPLE_METHODS | set(answer.headers["access-control-allow-methods"].split(", ")):
            raise BlockedByBrowser(f"{method} is not allowed")

    def _check(self, answer: httpx.Response) -> None:
        origins = answer.headers.get_list("access-control-allow-origin")
        if origins not in ([self.origin], ["*"]):  # also none, and several
            raise BlockedByBrowser(f"allowed are {origins}")

    def _shown(self, answer: httpx.Response) -> httpx.Response:
        self._check(answer)
        exposed = answer.headers.get("access-control-expose-headers", "").lower().split(", ")
        answer.headers = httpx.Headers(
            [(n, v) for n, v in answer.headers.multi_items() if n in SAFELISTED or n in exposed]
        )
        return answer


@pytest.fixture(scope="module")
def cors_stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(allowed_origins=(APP, ADMIN), max_ingest_bytes=MAX_INGEST_BYTES) as stack:
        yield stack


@pytest.fixture
def firm(cors_stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(cors_stack.database)


@pytest.fixture
def http(cors_stack: RunningStack, firm: Organization) -> Iterator[httpx.Client]:
    with cors_stack.client(firm["owner"].subject, org=firm.id) as client:
        yield client


@pytest.mark.parametrize("origin", [APP, ADMIN])
def test_a_page_works_as_if_it_were_ours(http: httpx.Client, origin: str) -> None:
    page = Page(origin, http)
    created = page.fetch("POST", "/api/v1/clients", json={"name": "Ann"}, headers={"Prefer": "return=headers-only"})
    assert created.status_code == 201
    assert created.headers["X-Request-ID"]
    target = created.headers["Location"]
    assert page.fetch("PATCH", target, json={"name": "Bob"}, headers={"Prefer": "tx=commit"}).status_code == 204
    listed = page.fetch("GET", "/api/v1/clients", headers={"Prefer": "count=exact", "Range": "0-0"})
    assert listed.headers["Content-Range"] == "0-0/1"
    assert [row["name"] for row in listed.json()] == ["Bob"]
    assert page.fetch("DELETE", target).status_code == 204
    assert page.fetch("GET", "/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    "origin", [STRANGER, "null", "https://APP.example", "https://app.example:444", "http://app.example"]
)
def test_pages_of_others_get_nothing(http: httpx.Client, origin: str) -> None:
    page = Page(origin, http)
    for method, path in (("GET", "/api/v1/cases"), ("POST", "/api/v1/cases"), ("GET", "/health")):
        with pytest.raises(BlockedByBrowser):
            page.fetch(method, path)


def test_a_refused_preflight_says_what_is_wrong(cors_stack: RunningStack) -> None:
    asked = {"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
    refused = httpx.options(f"{cors_stack.gateway_url}/api/v1/cases", headers=asked, trust_env=False)
    assert_problem(refused, 403, "ORIGIN_NOT_ALLOWED")
    assert STRANGER in refused.json()["message"]
    assert refused.headers["Vary"] == "Origin"


def test_preflights_are_answered_without_postgrest_token_or_bill(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    with open_stack(allowed_origins=(APP,)) as stack:
        organization = make_organization(stack.database)
        with stack.client(organization["owner"].subject) as http:
            for headers in (asked, asked | {"Authorization": "Bearer broken"}):
                answer = http.options("/api/v1/cases", headers=headers)
                assert (answer.status_code, answer.content) == (204, b"")
                assert answer.headers["X-Request-ID"]
            assert metered_since(stack, http, organization.id) == []
            stack.kill("postgrest")
            assert http.options("/api/v1/cases", headers=asked).status_code == 204
            away = Page(APP, http).fetch("GET", "/api/v1/cases")
            assert (away.status_code, away.json()["code"]) == (503, "PT503")
            assert away.headers["Retry-After"]


def test_an_options_that_is_no_preflight_is_postgrests_to_answer(http: httpx.Client) -> None:
    answer = http.options("/api/v1/cases")
    assert answer.status_code == 200
    assert "PATCH" in answer.headers["Allow"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_reads_errors_too(cors_stack: RunningStack, http: httpx.Client, firm: Organization) -> None:
    page = Page(APP, http)
    backend = {"Authorization": f"Bearer {cors_stack.token('backend', role='service')}"}
    large = {
        "content": b"[" + b" " * MAX_INGEST_BYTES + b"]",
        "headers": backend | {"Content-Type": "application/json"},
    }
    for status, answer in (
        (400, page.fetch("GET", "/api/v1/cases?nothing=eq.1")),
        (401, page.fetch("GET", "/api/v1/cases", headers={"Authorization": "Bearer broken"})),
        (403, page.fetch("GET", "/api/v1/cases", headers={"X-Organization-ID": "other"})),
        (404, page.fetch("GET", "/nowhere")),
        (404, page.fetch("GET", "/api/v1/nothing")),
        (405, page.fetch("GET", "/v1/events")),
        (413, page.fetch("POST", "/v1/events", **large)),
    ):
        assert answer.status_code == status
        assert set(answer.json()) == {"code", "message", "details", "hint"}
        assert answer.headers["X-Request-ID"]
    with database_away(cors_stack.database):
        away = page.fetch("GET", "/api/v1/cases", headers={"X-Organization-ID": "unheard-of"})
    assert (away.status_code, away.headers["Retry-After"]) == (503, "1")
    with cors_stack.database.connect() as superuser:
        superuser.execute("revoke execute on function tenancy.identify from sidecar")
        try:
            broken = page.fetch("GET", "/api/v1/cases", headers={"X-Organization-ID": "unheard-of-too"})
        finally:
            superuser.execute("grant execute on function tenancy.identify to sidecar")
    assert broken.status_code == 500
    assert broken.json()["message"].startswith("INTERNAL_ERROR: ")


def test_a_page_reads_that_its_head_was_too_large(cors_stack: RunningStack) -> None:
    """Said by the layer below the middlewares, which never see such a request."""
    url = urlsplit(cors_stack.gateway_url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as raw:
        raw.sendall(f"GET /health HTTP/1.1\r\nHost: x\r\nOrigin: {APP}\r\nX-Long: {'x' * 70_000}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b"")).decode().lower()
    assert answer.startswith("http/1.1 431 ")
    assert f"access-control-allow-origin: {APP}\r\n" in answer
    assert "vary: origin\r\n" in answer


@pytest.mark.parametrize("origin", [APP, STRANGER, None])
@pytest.mark.parametrize("path", ["/health", "/nowhere", "/api/v1/cases", "/api/v1/nothing"])
def test_caches_are_told_that_the_origin_matters(http: httpx.Client, path: str, origin: str | None) -> None:
    answer = http.get(path, headers={"Origin": origin} if origin else {})
    assert "Origin" in answer.headers.get_list("Vary")
    assert ("access-control-allow-origin" in answer.headers) is (origin == APP)


def test_nothing_that_postgrest_says_about_origins_comes_through(
    stack: RunningStack, make_organization: MakeOrganization
) -> None:
    """Without ALLOWED_ORIGINS there is no CORS at all, although PostgREST by itself invites every page."""
    owner = make_organization(stack.database)["owner"].subject
    direct = {"Authorization": f"Bearer {stack.token(owner)}", "Origin": APP}
    invited = httpx.get(f"{stack.postgrest_url}/cases", headers=direct, trust_env=False)
    assert invited.headers["access-control-allow-origin"] == "*"
    with stack.client(owner) as http:
        preflight = {"Origin": APP, "Access-Control-Request-Method": "GET"}
        assert_problem(http.options("/api/v1/cases", headers=preflight), 403, "ORIGIN_NOT_ALLOWED")
        for method in ("GET", "OPTIONS", "HEAD"):
            answer = http.request(method, "/api/v1/cases", headers={"Origin": APP})
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control-") or name == "vary"]


def test_a_star_is_any_origin(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack(allowed_origins=("*",)) as stack:
        owner = make_organization(stack.database)["owner"].subject
        with stack.client(owner) as http:
            for origin in (APP, STRANGER, "null"):
                assert Page(origin, http).fetch("GET", "/api/v1/cases", headers={"Prefer": "tx=commit"}).json() == []
            assert "vary" not in http.get("/api/v1/cases", headers={"Origin": APP}).headers


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("*", ("*",)),
        (" https://App.example , http://localhost:5173,", ("https://app.example", "http://localhost:5173")),
        ("https://app.example:443,http://[::1]:80", ("https://app.example", "http://[::1]")),
        ("capacitor://localhost", ("capacitor://localhost",)),
    ],
)
def test_origins_are_read_as_browsers_send_them(
    monkeypatch: pytest.MonkeyPatch, text: str, origins: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", text)
    assert Settings().allowed_origins == origins


@pytest.mark.parametrize(
    "text", ["app.example", "https://app.example/", "https://*.example", "https://ä.example", "null"]
)
def test_what_is_no_origin_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", f"https://app.example,{text}")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "ALLOWED_ORIGINS" in str(refused.value)
    assert repr(text) in str(refused.value)
    assert "\n" not in str(refused.value)

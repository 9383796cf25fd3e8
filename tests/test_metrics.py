"""GET /metrics: what operations watch, for those alone who have its token, and billed to nobody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.metrics import MOST_STEPS, Metrics
from api.settings import Settings
from api.spool import Spool
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually, metered_since

TOKEN: Final = "scrape-0f8a6d1c47b29e35"
UNITS: Final = ("_seconds", "_bytes", "_connections", "_in_use", "_total", "_alert", "_events", "_messages")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(stack: RunningStack) -> Samples:
    response = httpx.get(f"{stack.gateway_url}/metrics", trust_env=False)
    assert response.status_code == 200
    return read(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"goldleaves_{name}", frozenset(labels.items())), 0.0)


def grown(stack: RunningStack, before: Samples, name: str, **labels: str) -> float:
    """By how much, once it has: an answer is counted a moment after it was given."""

    def difference() -> float:
        return value(scrape(stack), name, **labels) - value(before, name, **labels)

    return eventually(difference, bool)


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture(scope="module")
def foreign(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def test_names_are_as_prometheus_wants_them(stack: RunningStack) -> None:
    response = httpx.get(f"{stack.gateway_url}/metrics", trust_env=False)
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    ours = [family for family in families if family.name.startswith("goldleaves_")]
    assert len(ours) >= 10
    for family in ours:
        assert family.documentation.endswith("."), family.name
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name.endswith(UNITS), name
    assert any(family.name == "process_resident_memory_bytes" for family in families)


def test_requests_are_counted_by_part_and_status(stack: RunningStack, organization: Organization) -> None:
    before = scrape(stack)
    url, owner = stack.gateway_url, organization["owner"].subject
    with stack.client(owner) as client:
        assert client.get("/api/v1/cases").status_code == 200
        assert client.get("/api/v1/nothing").status_code == 404
    assert httpx.post(f"{url}/v1/events", json=[], trust_env=False).status_code == 401
    assert httpx.get(f"{url}/nowhere", trust_env=False).status_code == 404
    for part, status in (("gateway", "2xx"), ("gateway", "4xx"), ("events", "4xx"), ("other", "4xx")):
        assert grown(stack, before, "request_duration_seconds_count", part=part, status=status) == 1, (part, status)
        assert grown(stack, before, "request_duration_seconds_sum", part=part, status=status) > 0


def test_spool_and_pool_are_shown(stack: RunningStack) -> None:
    samples = scrape(stack)
    assert value(samples, "database_pool_connections") == Settings().database_pool_size
    for name in ("spool_bytes", "spool_oldest_seconds", "spool_dropped_total", "database_pool_in_use"):
        assert (f"goldleaves_{name}", frozenset()) in samples, name


Send = Callable[[RunningStack, Organization, Organization], httpx.Response]


def as_role(role: str, method: str, path: str, *, foreign_organization: bool = False, **request: Any) -> Send:
    def send(stack: RunningStack, organization: Organization, foreign: Organization) -> httpx.Response:
        org = foreign.slug if foreign_organization else None
        with stack.client(organization[role].subject, org=org) as client:
            return client.request(method, path, **request)

    return send


def as_service(path: str, organization: str) -> Send:
    def send(stack: RunningStack, _: Organization, __: Organization) -> httpx.Response:
        with stack.client("backend", role="service", org=organization) as client:
            return client.post(path, json=[])

    return send


def forged(stack: RunningStack, _: Organization, __: Organization) -> httpx.Response:
    headers = {"Authorization": "Bearer a.b.c"}
    return httpx.get(f"{stack.gateway_url}/api/v1/cases", headers=headers, trust_env=False)


def without_token(stack: RunningStack, _: Organization, __: Organization) -> httpx.Response:
    return httpx.get(f"{stack.gateway_url}/api/v1/cases", trust_env=False)


def with_a_large_head(stack: RunningStack, _: Organization, __: Organization) -> httpx.Response:
    return httpx.get(f"{stack.gateway_url}/api/v1/cases", headers={"X-Long": "x" * 60_000}, trust_env=False)


def second_workspace(stack: RunningStack, _: Organization, __: Organization) -> httpx.Response:
    with stack.client("paula", email="paula@example.com") as client:
        assert client.post("/api/v1/workspaces", json={"name": "One"}).status_code == 201
        return client.post("/api/v1/workspaces", json={"name": "Two"})


REFUSED: Final[dict[str, tuple[Send, int, str]]] = {
    "forged token": (forged, 401, "INVALID_TOKEN"),
    "no token": (without_token, 401, "42501"),
    "foreign organization": (as_role("owner", "GET", "/api/v1/cases", foreign_organization=True), 403, "NOT_A_MEMBER"),
    "the same, billed to nobody": (
        as_role("owner", "GET", "/api/v1/invoices", foreign_organization=True),
        403,
        "NOT_A_MEMBER",
    ),
    "the same, without a body": (
        as_role("owner", "HEAD", "/api/v1/invoices", foreign_organization=True),
        403,
        "NOT_A_MEMBER",
    ),
    "no such organization": (as_service("/v1/events", "nowhere"), 404, "ORGANIZATION_NOT_FOUND"),
    "member sends usage": (as_role("owner", "POST", "/v1/events", json=[]), 403, "ROLE_REQUIRED"),
    "viewer writes": (as_role("viewer", "POST", "/api/v1/cases", json={"title": "x"}), 403, "42501"),
    "second workspace": (second_workspace, 403, "WORKSPACE_LIMIT"),
    "filter that is none": (as_role("owner", "GET", "/api/v1/cases?title=nonsense.x"), 400, "PGRST100"),
    "code that we do not list": (
        as_role("owner", "GET", "/api/v1/cases", headers={"Accept": "image/png"}),
        415,
        "other",
    ),
    "head that is too large": (with_a_large_head, 431, "HEADERS_TOO_LARGE"),
    "value in a long error": (
        as_role("owner", "POST", "/api/v1/cases", json={"title": "x" * 40_000}),
        400,
        "23514",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_counted_by_their_code(
    stack: RunningStack, organization: Organization, foreign: Organization, name: str
) -> None:
    send, status, code = REFUSED[name]
    before = scrape(stack)
    response = send(stack, organization, foreign)
    assert response.status_code == status, response.text
    assert grown(stack, before, "refusals_total", code=code) == 1


def test_conversions_are_counted_by_their_end(stack: RunningStack) -> None:
    before = scrape(stack)
    with stack.client("conny", email="conny@example.com") as client, stack.database.connect() as superuser:
        assert client.get("/api/v1/cases").status_code == 200
        superuser.execute(
            """
            create function public.fail() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
            create trigger fail before update on tenancy.organizations for each row execute function public.fail()
            """
        )
        new = {"name": "Conny & Co.", "slug": "conny-co"}
        refused = client.post("/api/v1/rpc/convert_to_organization", json=new)
        superuser.execute("drop trigger fail on tenancy.organizations; drop function public.fail()")
        assert refused.status_code == 500
        assert "CONVERSION_FAILED" in refused.text
        assert client.get("/api/v1/rpc/convert%5Fto_organization", params=new).status_code == 405
        assert client.post("/api/v1/rpc/convert%5Fto_organization", json=new).status_code == 200
    assert grown(stack, before, "conversions_total", outcome="failed", step="organization") == 1
    assert grown(stack, before, "refusals_total", code="CONVERSION_FAILED") == 1
    assert grown(stack, before, "conversions_total", outcome="succeeded", step="") == 1


def test_looking_is_billed_to_nobody(stack: RunningStack, organization: Organization) -> None:
    with stack.client(organization["admin"].subject) as client:
        assert client.get("/metrics").status_code == 200
        paths = {event["dimensions"]["endpoint"] for event in metered_since(stack, client, organization.id)}
    assert all(path.startswith("/api/v1/") for path in paths)


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Callable[..., httpx.AsyncClient]]:
    """The sidecar without a database, which /metrics does not need."""
    with Spool(tmp_path / "spool", 2**20) as spool:

        def open_one(**settings: Any) -> httpx.AsyncClient:
            made = Settings(
                database_url="postgresql://sidecar@127.0.0.1:1/x",
                postgrest_url="http://127.0.0.1:1",
                jwt_secret="0f8a6d1c47b29e35" * 2,  # type: ignore[arg-type]
                **settings,
            )
            transport = httpx.ASGITransport(create_app(made, spool))
            return httpx.AsyncClient(transport=transport, base_url="http://sidecar")

        yield open_one


@pytest.mark.parametrize("environment", ["development", "production"])
async def test_with_a_token_only_who_sends_it_may_look(application: Any, environment: str) -> None:
    async with application(metrics_token=TOKEN, environment=environment) as client:
        for authorization in (None, "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", TOKEN, "Bearer é"):
            headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
            refused = await client.get("/metrics", headers=headers)
            assert_problem(refused, 401, "INVALID_TOKEN")
            assert TOKEN not in refused.text
        for authorization in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
            shown = await client.get("/metrics", headers={"Authorization": authorization})
            assert shown.status_code == 200
            assert value(read(shown.text), "refusals_total", code="INVALID_TOKEN") == 7
        for_others = await client.get("/api/v1/cases", headers={"Authorization": f"Bearer {TOKEN}"})
        assert_problem(for_others, 401, "INVALID_TOKEN")


async def test_without_a_token_it_is_not_there_in_production(application: Any) -> None:
    async with application() as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.post("/metrics")).status_code == 405
    async with application(environment="production") as client:
        assert_problem(await client.get("/metrics"), 404, "ROUTE_NOT_FOUND")


def test_labels_have_few_values_whatever_comes(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 2**20) as spool:
        metrics = Metrics(spool, database=None)  # type: ignore[arg-type]  # nobody looks at the pool here
        for status in range(0, 1000, 99):
            metrics.request_ended("gateway", status, 0.1)
        for number in range(1000):
            metrics.refused(f"MADE_UP_{number}")
            metrics.conversion_failed("step: " + "abcdefghij"[number % 10] * (1 + number // 100))
            metrics.conversion_failed(f"step: \n{number}")
        counted = {family.name: family.samples for family in metrics._refusals.collect()}
        (codes,) = counted.values()
        assert {sample.labels["code"] for sample in codes} == {"other"}
        (steps,) = metrics._conversions.collect()
        assert len({sample.labels["step"] for sample in steps.samples}) <= MOST_STEPS + 2
        assert all(re.fullmatch("[a-z_]*", sample.labels["step"]) for sample in steps.samples)


def test_who_repeats_is_named(stack: RunningStack, organization: Organization) -> None:
    event = {"id": "again", "event": "job.done", "quantity": 1}
    with stack.client("backend", role="service", org=organization.id) as backend:
        for changes in ({}, {}, {}, {"quantity": 2}):
            assert backend.post("/v1/events", json={**event, **changes}).status_code == 200
    labels = {"organization": str(organization.id), "source": "api"}

    def repeats() -> tuple[float, float]:
        read = scrape(stack)
        return (
            value(read, "repeated_events", **labels, outcome="duplicate"),
            value(read, "repeated_events", **labels, outcome="conflict"),
        )

    assert eventually(repeats, (2, 1).__eq__) == (2, 1)

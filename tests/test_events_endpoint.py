"""POST /v1/events: the provider's backend sends usage. Whatever arrives, the answer is an outcome or a clear 4xx."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, eventually

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture
def backend(stack: RunningStack) -> Iterator[httpx.Client]:
    with stack.client("backend", role="service") as client:
        yield client


def usage(key: str, **changes: Any) -> dict[str, Any]:
    return {"id": key, "event": "api.request", "quantity": 1, **changes}


def stored(stack: RunningStack, organization: Organization) -> list[str]:
    with stack.database.connect() as connection:
        rows = connection.execute(
            """
            select idempotency_key
            from metering.usage_events
            where organization_id = %s and source = 'api'
            order by idempotency_key
            """,
            [organization.id],
        ).fetchall()
    return [key for (key,) in rows]


def outcome(accepted: int, duplicates: int = 0) -> dict[str, Any]:
    return {"accepted": accepted, "duplicates": duplicates, "conflicts": [], "rejected": []}


@pytest.mark.parametrize("named_by", ["id", "slug", "event", "claim"])
def test_events_are_stored_for_the_organization_that_is_named(
    stack: RunningStack, organization: Organization, named_by: str
) -> None:
    event, headers, claim = usage("one"), {}, None
    match named_by:
        case "id":
            headers = {"X-Organization-ID": str(organization.id)}
        case "slug":
            headers = {"X-Organization-ID": organization.slug}
        case "event":
            event["organization_id"] = str(organization.id)
        case _:
            claim = organization.id
    with stack.client("backend", role="service", **{"org_id": str(claim) if claim else None}) as client:
        for expected in (outcome(1), outcome(0, duplicates=1)):
            response = client.post("/v1/events", json={"events": [event]}, headers=headers)
            assert (response.status_code, response.json()) == (200, expected)
            assert response.headers["Content-Type"] == "application/json"
    assert stored(stack, organization) == ["one"]


def test_one_bad_event_does_not_cost_the_others(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    events = [usage("good"), usage("bad", quantity=-1), {"id": "empty"}, "no object", usage("good", quantity=2)]
    headers = {"X-Organization-ID": organization.slug}
    response = backend.post("/v1/events", json={"events": events}, headers=headers)
    assert response.status_code == 200
    body = response.json()
    assert body["accepted"] == 1
    assert [(e["id"], e["code"]) for e in body["rejected"]] == [
        ("bad", "INVALID_EVENT"),
        ("empty", "INVALID_EVENT"),
        (None, "INVALID_EVENT"),
    ]
    assert [(e["id"], e["code"]) for e in body["conflicts"]] == [("good", "IDEMPOTENCY_CONFLICT")]
    assert stored(stack, organization) == ["good"]


@pytest.mark.parametrize("role", ["member", "platform_admin", "anon"])
def test_only_the_service_role_sends_usage(stack: RunningStack, organization: Organization, role: str) -> None:
    with stack.client(organization["owner"].subject, role=role, org=organization.id) as client:
        refused = client.post("/v1/events", json={"events": [usage("x")]})
    assert_problem(refused, 403, "ROLE_REQUIRED")
    assert stored(stack, organization) == []


def test_without_a_token_there_is_nothing_to_send(stack: RunningStack) -> None:
    response = httpx.post(f"{stack.gateway_url}/v1/events", json={"events": []}, trust_env=False)
    assert_problem(response, 401, "INVALID_TOKEN")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "named", ["nobody", "00000000-0000-7000-8000-000000000000", "Ünknown", "' or true --", "x" * 5000, "%00"]
)
def test_an_unknown_organization_is_not_found(backend: httpx.Client, named: str) -> None:
    headers = {"X-Organization-ID": named.encode()}
    response = backend.post("/v1/events", json={"events": []}, headers=list(headers.items()))  # type: ignore[arg-type]
    assert_problem(response, 404, "ORGANIZATION_NOT_FOUND")


@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"]
)
def test_other_media_types_are_refused(backend: httpx.Client, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = backend.post("/v1/events", content=b'{"events": []}', headers=headers)
    assert_problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_json_is_json_however_it_is_written(backend: httpx.Client, media_type: str) -> None:
    response = backend.post("/v1/events", content=b'{"events": []}', headers={"Content-Type": media_type})
    assert (response.status_code, response.json()) == (200, outcome(0))


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "blank": b"   ",
    "not JSON": b"events",
    "cut off": b'{"events": [{"id": "a"',
    "trailing": b'{"events": []} {"events": []}',
    "single quotes": b"{'events': []}",
    "NaN": b'{"events": [{"quantity": NaN}]}',
    "comment": b'{"events": [] /* none */}',
    "byte order mark": b'\xef\xbb\xbf{"events": []}',
    "UTF-16": '{"events": []}'.encode("utf-16"),
    "Latin-1": '{"events": [], "x": "é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"events": [], "x": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"events": [], "x": "\xed\xa0\x80"}',
    "NUL byte": b'{"events": [], "x": "\x00"}',
    "NUL escape": rb'{"events": [], "x": "\u0000"}',
    "lone surrogate escape": rb'{"events": [], "x": "\ud800"}',
    "control character": b'{"events": [], "x": "\x01"}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "deep array": b'{"events": ' + b"[" * 200_000,
    "deep and closed": b'{"events": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "deep object": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "null": b"null",
    "a number": b"7",
    "a text": b'"events"',
    "an object without events": b"{}",
    "events is null": b'{"events": null}',
    "events is an object": b'{"events": {"id": "a"}}',
    "events is a text": b'{"events": "a"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_gets_a_clear_400(backend: httpx.Client, body: bytes) -> None:
    assert_problem(backend.post("/v1/events", content=body, headers=JSON), 400, "INVALID_BODY")


ODD_EVENTS: dict[str, object] = {
    "null": None,
    "a list": [],
    "a number": 1,
    "nested": usage("a", dimensions={"a": {"b": [1, {"c": None}]}}),
    "id is a number": usage("a", id=1),
    "id is empty": usage(""),
    "id is long": usage("x" * 10_000),
    "event is null": usage("a", event=None),
    "event has spaces": usage("a", event="two words"),
    "quantity is a text": usage("a", quantity="1"),
    "quantity is true": usage("a", quantity=True),
    "quantity is huge": usage("a", quantity=10**40),
    "quantity is tiny": usage("a", quantity=1e-300),
    "time is a number": usage("a", time=1),
    "time is nonsense": usage("a", time="yesterday"),
    "time has no offset": usage("a", time="2026-01-01T00:00:00"),
    "time overflows": usage("a", time="9999-12-31T23:59:59Z"),
    "time is in year 0": usage("a", time="0000-01-01T00:00:00Z"),
    "time on the 30th of February": usage("a", time="2026-02-30T00:00:00Z"),
    "time in a leap second": usage("a", time="2026-06-30T23:59:60Z"),
    "dimensions is a list": usage("a", dimensions=[1]),
    "dimensions is large": usage("a", dimensions={"x": "y" * 100_000}),
    "organization_id is nonsense": usage("a", organization_id="x"),
    "organization_id is another one": usage("a", organization_id=str(uuid4())),
    "user_id is a list": usage("a", user_id=[]),
    "resource_id is long": usage("a", resource_id="x" * 10_000),
    "unit is an object": usage("a", unit={}),
    "unknown field": usage("a", colour="red"),
}


@pytest.mark.parametrize("event", ODD_EVENTS.values(), ids=ODD_EVENTS.keys())
def test_an_odd_event_is_accepted_or_rejected_by_name(
    organization: Organization, backend: httpx.Client, event: object
) -> None:
    headers = {"X-Organization-ID": str(organization.id)}
    response = backend.post("/v1/events", json={"events": [event]}, headers=headers)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["accepted"] + len(body["rejected"]) == 1
    assert {entry["code"] for entry in body["rejected"]} <= {"INVALID_EVENT"}


def test_random_garbage_never_breaks_it(backend: httpx.Client, organization: Organization) -> None:
    seed = random.randrange(2**32)
    source = random.Random(seed)
    good = json.dumps({"events": [usage("a", time="2026-01-01T00:00:00Z", dimensions={"a": [1, "é\n"]})]}).encode()
    headers = {**JSON, "X-Organization-ID": str(organization.id)}
    for _ in range(300):
        body = bytearray(good)
        for _ in range(source.randint(1, 4)):
            body[source.randrange(len(body))] = source.randrange(256)
        response = backend.post("/v1/events", content=bytes(body), headers=headers)
        assert response.status_code in (200, 400), (seed, bytes(body), response.text)


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
def test_a_body_over_the_limit_is_refused(backend: httpx.Client, chunked: bool) -> None:
    size = 8 * 1024 * 1024 + 1
    content = (b" " * 65536 for _ in range(size // 65536 + 1)) if chunked else b" " * size
    assert_problem(backend.post("/v1/events", content=content, headers=JSON), 413, "BODY_TOO_LARGE")


def test_a_large_batch_below_the_limit_is_stored(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    keys = sorted(str(uuid4()) for _ in range(5000))
    response = backend.post(
        "/v1/events",
        json={"events": [usage(key, dimensions={"model": "x" * 200}) for key in keys]},
        headers={"X-Organization-ID": str(organization.id)},
    )
    assert (response.status_code, response.json()) == (200, outcome(5000))
    assert stored(stack, organization) == keys


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_not_allowed(backend: httpx.Client, method: str) -> None:
    response = backend.request(method, "/v1/events")
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["Allow"] == "POST"


def test_sending_usage_is_not_metered_as_a_request(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    backend.post("/v1/events", json={"events": []}, headers={"X-Organization-ID": organization.slug})
    with stack.database.connect() as connection:
        row = connection.execute(
            "select count(*) from metering.usage_events where organization_id = %s", [organization.id]
        ).fetchone()
    assert row == (0,)


def test_batches_leave_connections_to_everybody_else(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    """While they wait in Postgres, a member whom the sidecar has not seen yet is still let in."""
    waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    batch = {"events": [usage(str(uuid4()))]}
    headers = {"X-Organization-ID": str(organization.id)}
    with (
        stack.database.connect() as operator,
        stack.database.connect(autocommit=False) as blocker,
        ThreadPoolExecutor(8) as pool,
    ):
        blocker.execute("lock table metering.usage_events, metering.event_keys in access exclusive mode")
        sent = [pool.submit(backend.post, "/v1/events", json=batch, headers=headers) for _ in range(8)]
        try:
            assert eventually(lambda: operator.execute(waiting).rowcount, lambda count: count >= 2) >= 2
            with stack.client(organization["member"].subject) as member:
                answered = member.get("/api/v1/organizations").status_code
        finally:
            blocker.rollback()
        answers = [answer.result(timeout=30) for answer in sent]
    assert answered == 200
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert sum(answer.json()["accepted"] for answer in answers) == 1

"""POST /v1/events takes usage in the formats that backends have it in, and says what is wrong with any other body."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
CLOUD_EVENT = {"Content-Type": "application/cloudevents+json"}
CLOUD_EVENTS = {"Content-Type": "application/cloudevents-batch+json"}
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    with open_stack(event_max_future="PT2H") as running:
        yield running


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture(scope="module")
def backend(stack: RunningStack, organization: Organization) -> Iterator[httpx.Client]:
    with stack.client("backend", role="service", org=organization.id) as client:
        yield client


@pytest.fixture(scope="module")
def nobodys(stack: RunningStack) -> Iterator[httpx.Client]:
    """Without an organization of its own: events name theirs."""
    with stack.client("backend", role="service") as client:
        yield client


def usage(key: str | None = None, **changes: Any) -> dict[str, Any]:
    return {"id": key or str(uuid4()), "event": "pages.scanned", "quantity": 2, **changes}


def stored(stack: RunningStack, source: str, key: str) -> list[tuple[Any, ...]]:
    with stack.database.connect() as connection:
        return connection.execute(
            """
            select organization_id, event_name, quantity, unit, occurred_at, dimensions ->> 'model'
            from metering.usage_events
            where source = %s and idempotency_key = %s
            """,
            [source, key],
        ).fetchall()


def outcome(answer: httpx.Response) -> tuple[int, int, list[Any], list[Any]]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["accepted"], body["duplicates"], body["conflicts"], body["rejected"]


# JSON of ours


def test_one_event_needs_no_wrapping(stack: RunningStack, backend: httpx.Client) -> None:
    event = usage()
    assert outcome(backend.post("/v1/events", json=event)) == (1, 0, [], [])
    for wrapped in (event, [event], {"events": [event]}):
        assert outcome(backend.post("/v1/events", json=wrapped)) == (0, 1, [], [])
    assert len(stored(stack, "api", event["id"])) == 1


# CloudEvents, as the official SDK sends them


def cloud_event(organization: Organization, key: str, **data: Any) -> CloudEvent:
    attributes = {
        "id": key,
        "source": "https://scanner.example.com/é 1",
        "type": "pages.scanned",
        "subject": organization.slug,
        "time": datetime(2026, 11, 1, 9, 30, tzinfo=UTC),
        "datacontenttype": "application/json",
        "model": "large",
    }
    return CloudEvent(attributes, {"quantity": 3, "unit": "page", **data})


def post(client: httpx.Client, message: HTTPMessage) -> httpx.Response:
    return client.post("/v1/events", content=message.body, headers=message.headers)


@pytest.mark.parametrize("send", [to_structured_event, to_binary_event], ids=["structured", "binary"])
def test_the_official_sdk_is_a_client(
    stack: RunningStack, organization: Organization, nobodys: httpx.Client, send: Any
) -> None:
    key = str(uuid4())
    message = send(cloud_event(organization, key))
    assert outcome(post(nobodys, message)) == (1, 0, [], [])
    assert outcome(post(nobodys, message)) == (0, 1, [], [])
    [row] = stored(stack, "https://scanner.example.com/é 1", key)
    assert row == (organization.id, "pages.scanned", 3, "page", datetime(2026, 11, 1, 9, 30, tzinfo=UTC), "large")


def test_structured_and_binary_are_the_same_event(organization: Organization, nobodys: httpx.Client) -> None:
    key = str(uuid4())
    assert outcome(post(nobodys, to_structured_event(cloud_event(organization, key))))[0] == 1
    assert outcome(post(nobodys, to_binary_event(cloud_event(organization, key))))[1] == 1
    _, _, conflicts, _ = outcome(post(nobodys, to_binary_event(cloud_event(organization, key, quantity=4))))
    assert [conflict["code"] for conflict in conflicts] == ["IDEMPOTENCY_CONFLICT"]


def test_a_batch_is_an_array_of_structured_ones(organization: Organization, nobodys: httpx.Client) -> None:
    events = [to_structured_event(cloud_event(organization, str(uuid4()))).body for _ in range(3)]
    body = b"[%s]" % b",".join([*events, b'{"specversion": "0.3", "id": "old"}'])
    accepted, _, _, rejected = outcome(nobodys.post("/v1/events", content=body, headers=CLOUD_EVENTS))
    assert (accepted, [(event["index"], event["code"]) for event in rejected]) == (3, [(3, "INVALID_EVENT")])


BINARY = {"ce-specversion": "1.0", "ce-id": "b", "ce-source": "/b", "ce-type": "pages.scanned"}


def test_an_event_in_headers_may_have_no_data(stack: RunningStack, backend: httpx.Client) -> None:
    key = str(uuid4())
    assert outcome(backend.post("/v1/events", headers={**BINARY, "ce-id": key}))[0] == 1
    assert stored(stack, "/b", key)[0][2] == 1


HOSTILE_BINARY: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "data that ends the event": (JSON, b'1, "id": "other"', 400, "INVALID_BODY"),
    "data cut off": (JSON, b'{"quantity": ', 400, "INVALID_BODY"),
    "data that is deep": (JSON, b"[" * 15_000, 400, "INVALID_BODY"),
    "data of another type": ({"Content-Type": "text/plain"}, b"1", 415, "UNSUPPORTED_MEDIA_TYPE"),
    "NUL in a header": ({**JSON, "ce-model": "%00"}, b"1", 400, "INVALID_BODY"),
    "not UTF-8 in a header": ({**JSON, "ce-model": "%ff"}, b"1", 400, "INVALID_BODY"),
    "data in a header": ({**JSON, "ce-data": "1"}, b"1", 400, "INVALID_BODY"),
    "no attribute": ({**JSON, "ce-no_such": "1"}, b"1", 400, "INVALID_BODY"),
}


@pytest.mark.parametrize("name", HOSTILE_BINARY)
def test_headers_and_data_make_one_event_or_none(backend: httpx.Client, name: str) -> None:
    headers, body, status, code = HOSTILE_BINARY[name]
    assert_problem(backend.post("/v1/events", content=body, headers={**BINARY, **headers}), status, code)


def test_an_attribute_comes_once(backend: httpx.Client) -> None:
    headers = [*BINARY.items(), *JSON.items(), ("ce-id", "c")]
    assert_problem(backend.post("/v1/events", content=b"{}", headers=headers), 400, "AMBIGUOUS_HEADER")


# Compressed


def chunked(body: bytes, size: int) -> Iterable[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "identity, gzip"])
def test_bodies_may_be_compressed(stack: RunningStack, backend: httpx.Client, coding: str) -> None:
    events = [usage() for _ in range(50)]
    body = gzip.compress(json.dumps(events).encode())
    assert outcome(backend.post("/v1/events", content=body, headers={**JSON, "Content-Encoding": coding}))[0] == 50


def test_a_compressed_body_comes_in_any_pieces_and_members(backend: httpx.Client) -> None:
    text = json.dumps([usage() for _ in range(50)]).encode()
    body = gzip.compress(text[:1000]) + gzip.compress(text[1000:])
    for size in (1, 7, len(gzip.compress(text[:1000])), 100_000):
        answer = backend.post("/v1/events", content=chunked(body, size), headers={**JSON, "Content-Encoding": "gzip"})
        assert sum(outcome(answer)[:2]) == 50


WHOLE = gzip.compress(json.dumps({"events": []}).encode())
DAMAGED = {
    "empty": b"",
    "not gzip": b'{"events": []}',
    "zlib": zlib.compress(b'{"events": []}'),
    "cut off in the middle": WHOLE[:20],
    "checksum cut off": WHOLE[:-1],
    "checksum wrong": WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:],
    "something behind it": WHOLE + b"{}",
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("kind", [JSON, NDJSON], ids=["json", "ndjson"])
def test_damaged_gzip_is_said_to_be(backend: httpx.Client, body: bytes, kind: dict[str, str]) -> None:
    answer = backend.post("/v1/events", content=body, headers={**kind, "Content-Encoding": "gzip"})
    assert_problem(answer, 400, "INVALID_BODY")
    assert "gzip" in answer.json()["message"]


@pytest.mark.parametrize(("kind", "filling"), [(JSON, b" "), (NDJSON, b"\n"), (NDJSON, b" ")])
def test_a_bomb_is_no_larger_than_a_body(backend: httpx.Client, kind: dict[str, str], filling: bytes) -> None:
    bomb = gzip.compress(filling * 16 * MEGABYTE)
    assert len(bomb) < MEGABYTE / 10
    answer = backend.post("/v1/events", content=chunked(bomb, 4096), headers={**kind, "Content-Encoding": "gzip"})
    assert_problem(answer, 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "gzip, br", "nonsense"])
def test_other_codings_are_named_in_the_refusal(backend: httpx.Client, coding: str) -> None:
    answer = backend.post("/v1/events", content=b"[]", headers={**JSON, "Content-Encoding": coding})
    assert_problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert coding in answer.json()["message"]


def test_two_content_types_are_none(backend: httpx.Client) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", "application/x-ndjson")]
    assert_problem(backend.post("/v1/events", content=b"[]", headers=headers), 400, "AMBIGUOUS_HEADER")


# Time


def test_how_far_clocks_may_be_ahead_is_a_setting(stack: RunningStack, backend: httpx.Client) -> None:
    with stack.database.connect() as db:
        times = db.execute("select now() + interval '115 minutes', now() + interval '125 minutes'").fetchone()
    assert times is not None
    large = usage(dimensions={"x": "y" * 8000})
    for others in ([], [large, {**large, "id": "other"}]):  # too large a body to be stored in a group
        events = (usage(time=at.isoformat()) for at in times)
        soon, later = (backend.post("/v1/events", json=[event, *others]) for event in events)
        assert outcome(soon)[3] == []
        assert [event["message"] for event in outcome(later)[3]] == ["event 0: time is in the future"]

"""NDJSON goes to Postgres while it comes: of any length, in flat memory, and an error says how far it came."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.stack.processes import members
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem, database_away, eventually

NDJSON = {"Content-Type": "application/x-ndjson"}
MEGABYTE = 1024 * 1024
LINES = 200_000
DISTINCT = 5_000


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture
def backend(stack: RunningStack, organization: Organization) -> Iterator[httpx.Client]:
    with stack.client("backend", role="service", org=organization.id) as client:
        yield client


def line(key: object, quantity: object = 1) -> bytes:
    return json.dumps({"id": str(key), "event": "job.done", "quantity": quantity}).encode()


def stored(stack: RunningStack, organization: Organization) -> int:
    with stack.database.connect() as connection:
        found = connection.execute(
            "select count(*) from metering.usage_events where organization_id = %s and source = 'api'",
            [organization.id],
        ).fetchone()
    return int(found[0]) if found else 0


def test_each_line_is_judged_by_itself_and_named_by_its_number(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    lines = [
        line("a"),
        b"",
        b" \t\r",
        line("b", -1),
        b'{"id": "cut',
        line("a", 2),
        b'{"id": "\xff", "event": "job.done", "quantity": 1}',
        b'{"id": "\x00", "event": "job.done", "quantity": 1}',
        b'{"id": "\\u0000", "event": "job.done", "quantity": 1}',
        line("c") + b"," + line("d"),
        b"[" + line("e") + b"]",
        line("a") + b"\r",
        line("last, without a newline"),
    ]
    answer = backend.post("/v1/events", content=b"\n".join(lines), headers=NDJSON)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["accepted"], body["duplicates"], body["conflicts_total"], body["rejected_total"]) == (2, 1, 1, 7)
    assert [(event["line"], event["index"]) for event in body["conflicts"]] == [(6, 5)]
    assert [event["line"] for event in body["rejected"]] == [4, 5, 7, 8, 9, 10, 11]
    assert all(event["index"] == event["line"] - 1 for event in body["rejected"])
    assert all(event["message"].startswith(f"line {event['line']}: ") for event in body["rejected"])
    assert stored(stack, organization) == 2
    with stack.database.connect() as connection:
        kept = connection.execute("select count(*) from metering.rejected_events where source = 'api'").fetchone()
    assert kept is not None
    assert kept[0] >= 8


@pytest.mark.parametrize(
    "media_type", ["application/ndjson", "application/jsonl", "application/x-ndjson; charset=utf-8"]
)
def test_it_goes_by_several_names_and_may_be_compressed(backend: httpx.Client, media_type: str) -> None:
    body = gzip.compress(b"\n".join(line(uuid4()) for _ in range(2500)))
    headers = {"Content-Type": media_type, "Content-Encoding": "gzip"}
    answer = backend.post("/v1/events", content=body, headers=headers)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 2500)


@pytest.mark.parametrize("blank", [b"\n", b" \r\n", b"\t\t\t\n"])
def test_blank_lines_are_counted_and_nothing_else(backend: httpx.Client, blank: bytes) -> None:
    body = gzip.compress(blank * 150_000 + b"{}\n" + blank * 150_000 + b"  {}")
    answer = backend.post("/v1/events", content=body, headers={**NDJSON, "Content-Encoding": "gzip"}).json()
    assert [one["line"] for one in answer["rejected"]] == [150_001, 300_002]


def test_nothing_is_a_batch_too(backend: httpx.Client) -> None:
    for body in (b"", b"\n\n \n"):
        answer = backend.post("/v1/events", content=body, headers=NDJSON)
        assert (answer.status_code, answer.json()["accepted"]) == (200, 0)


def test_only_so_many_refusals_are_listed(backend: httpx.Client) -> None:
    answer = backend.post("/v1/events", content=b"\n".join([b"{}"] * 1500), headers=NDJSON).json()
    assert (len(answer["rejected"]), answer["rejected_total"]) == (1000, 1500)


def test_a_declared_length_has_the_limit_of_all_bodies(backend: httpx.Client) -> None:
    answer = backend.post("/v1/events", content=b"\n" * (8 * MEGABYTE + 1), headers=NDJSON)
    assert_problem(answer, 413, "BODY_TOO_LARGE")


def test_a_line_has_a_limit_and_what_came_before_it_counts(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    lines = [*(line(number) for number in range(1500)), b"[" + b" " * MEGABYTE + b"]", line("behind")]

    answer = backend.post("/v1/events", content=iter([b"\n".join(lines)]), headers=NDJSON)
    assert_problem(answer, 413, "BODY_TOO_LARGE")
    assert "line 1501" in answer.json()["message"]
    assert "1000 events were accepted" in answer.json()["details"]
    assert stored(stack, organization) == 1000


def resident_bytes(stack: RunningStack) -> int:
    return sum(int(process.memory_info().rss) for process in members("sidecar", stack.state))


def test_its_length_takes_no_memory(stack: RunningStack, organization: Organization, backend: httpx.Client) -> None:
    padding = b" " * 200

    def body(lines: int) -> Iterator[bytes]:
        for start in range(0, lines, 500):
            yield b"".join(line(number % DISTINCT) + padding + b"\n" for number in range(start, start + 500))

    assert backend.post("/v1/events", content=body(DISTINCT), headers=NDJSON).status_code == 200
    before, most, over = resident_bytes(stack), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.05):
            most = max(most, resident_bytes(stack))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        answer = backend.post("/v1/events", content=body(LINES), headers=NDJSON, timeout=300)
        over.set()
        watching.result()
    assert (answer.status_code, answer.json()["duplicates"]) == (200, LINES)
    assert most - before < 16 * MEGABYTE, "the body has more than 50 MB"
    assert stored(stack, organization) == DISTINCT


def test_when_postgres_goes_away_the_answer_says_how_far_it_came(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    lines = [line(number) + b"\n" for number in range(3000)]
    half_is_stored = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"".join(lines[:2500])
        assert eventually(lambda: stored(stack, organization), (2000).__eq__) == 2000
        half_is_stored.set()
        away.__enter__()
        yield b"".join(lines[2500:])

    away: Any = database_away(stack.database)
    try:
        answer = backend.post("/v1/events", content=body(), headers=NDJSON)
    finally:
        if half_is_stored.is_set():
            away.__exit__(None, None, None)
    assert_problem(answer, 503, "DATABASE_UNAVAILABLE")
    assert "2000 events were accepted" in answer.json()["details"]
    assert "Send all of it again" in answer.json()["hint"]

    def again() -> httpx.Response:
        return backend.post("/v1/events", content=b"".join(lines), headers=NDJSON)

    answer = eventually(again, lambda answer: answer.status_code == 200)
    assert (answer.json()["accepted"], answer.json()["duplicates"]) == (1000, 2000)

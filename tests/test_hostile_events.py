"""Whatever is sent as usage, each event gets one answer, what was refused is kept, and the next request works."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.stack.processes import members
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Database, RunningStack
from tests.observe import assert_problem, eventually
from tests.usage import Connection, value

JSON = {"Content-Type": "application/json"}
MEGABYTE = 1024 * 1024

SQL = ("'; drop table metering.usage_events; --", "$$ || pg_sleep(9) || $$", "%s %(a)s {} \\", "0' or '1'='1", "\ufeff")


@dataclass(frozen=True)
class Fragment:
    """An event as it is written in a body. `quantity` None: it is to be refused."""

    text: str
    id: str = ""
    quantity: Decimal | None = None


def good(id: str, quantity: str, rest: str = "") -> Fragment:
    text = f'{{"id": {json.dumps(id)}, "event": "x", "quantity": {quantity}{rest}}}'
    return Fragment(text, id, Decimal(quantity))


def bad(text: str) -> Fragment:
    return Fragment(text)


ids = st.one_of(st.sampled_from(["a", "b", "c", *SQL]), st.text('ab\n"\\é😀\u2028', min_size=1, max_size=4))
quantities = st.sampled_from(
    ["0", "-0", "-0.0", "1", "1.0", "1e0", "2", "2.50", "0.000000000000000001", "999999999999999999"]
)
welcome = st.builds(
    good,
    ids,
    quantities,
    st.sampled_from(
        [
            "",
            ', "unit": "\\u0041", "unknown": [[[1e400, -1e-400]]]',
            ', "unit": [], "unit": "the last one counts"',
            ', "dimensions": {"a": 1, "a": {"$where": "1"}, "": null, "\\ud83d\\ude00": "\\\\u0000"}',
            *(f', "user_id": {json.dumps(text)}, "resource_id": null' for text in SQL),
        ]
    ),
)
# What jsonb cannot hold at all, so that nothing of the event can be read.
UNREADABLE = (
    '{"id": "\\u0000", "event": "x", "quantity": 1}',
    '{"id": "nul", "event": "x", "quantity": 1, "dimensions": {"\\u0000": 1}}',
    '{"id": "half", "event": "x\\ud800", "quantity": 1}',
    '{"id": "other half", "event": "x", "quantity": 1, "unit": "\\udc00\\ud800"}',
    '{"id": "huge", "event": "x", "quantity": 1e999999}',
    '{"id": "tiny", "event": "x", "quantity": 1, "dimensions": {"a": [1e-999999]}}',
    '{"id": "long", "event": "x", "quantity": ' + "9" * 140_000 + "}",
    '"\\u0000"',
)
# What can be read, and is no event.
REFUSED = (
    "null",
    "true",
    "[]",
    "-0",
    '"an event"',
    "{}",
    '{"id": 1, "event": "x", "quantity": 1}',
    '{"id": "q", "event": "x", "quantity": "1"}',
    '{"id": "q", "event": "x", "quantity": true}',
    '{"id": "q", "event": "x", "quantity": 1e400}',
    '{"id": "q", "event": "x", "quantity": 9e131071}',
    '{"id": "q", "event": "x", "quantity": 1e-400}',
    '{"id": "q", "event": "x", "quantity": ' + "1" + "0" * 1000 + "}",
    '{"id": "q", "event": "x", "quantity": -1e-18}',
    '{"id": "q", "event": "x; drop table", "quantity": 1}',
    '{"id": "q", "event": "x", "quantity": 1, "quantity": null}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "0001-01-01T00:00:00Z"}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "9999-12-31T23:59:59-14:00"}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "99999-12-31T23:59:59Z"}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "-4713-01-01T00:00:00Z"}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "2026-01-01T00:00:00+99:99"}',
    '{"id": "q", "event": "x", "quantity": 1, "time": "infinity"}',
    '{"id": "q", "event": "x", "quantity": 1, "dimensions": {"a": [' + ",".join(["9e131071"] * 100) + "]}}",
    '{"id": "q", "event": "x", "quantity": 1, "dimensions": ' + '{"a":' * 3000 + "1" + "}" * 3000 + "}",
)
fragments = st.one_of(welcome, welcome, st.sampled_from(UNREADABLE).map(bad), st.sampled_from(REFUSED).map(bad))


@dataclass
class Model:
    """What a ledger would say about the same events, without Postgres."""

    counted: dict[str, Decimal]
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0

    def receive(self, batch: list[Fragment]) -> dict[str, int]:
        before = (self.accepted, self.duplicates, self.conflicts, self.rejected)
        for fragment in batch:
            if fragment.quantity is None:
                self.rejected += 1
            elif fragment.id not in self.counted:
                self.counted[fragment.id] = fragment.quantity
                self.accepted += 1
            elif self.counted[fragment.id] == fragment.quantity:
                self.duplicates += 1
            else:
                self.conflicts += 1
        now = (self.accepted, self.duplicates, self.conflicts, self.rejected)
        names = ("accepted", "duplicates", "conflicts", "rejected")
        return {name: after - first for name, after, first in zip(names, now, before, strict=True)}


@pytest.fixture(scope="module")
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def body_of(batch: list[Fragment], wrapped: bool) -> str:
    array = "[" + ", ".join(fragment.text for fragment in batch) + "]"
    return f'\n {{\t"events" : {array}\r\n}} ' if wrapped else f" {array}\n"


def counts(outcome: dict[str, Any]) -> dict[str, int]:
    return {name: entry if isinstance(entry, int) else len(entry) for name, entry in outcome.items()}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batches=st.lists(st.lists(fragments, max_size=8), min_size=1, max_size=3), wrapped=st.booleans())
def test_the_totals_are_those_of_a_ledger(
    connection: Connection, organization: UUID, batches: list[list[Fragment]], wrapped: bool
) -> None:
    model = Model({})
    with connection.transaction(force_rollback=True):
        for batch in batches:
            outcome = value(
                connection,
                "select metering.receive_events(%s, %s, 'api', 'reject')",
                body_of(batch, wrapped),
                organization,
            )
            assert counts(outcome) == model.receive(batch)
        stored = connection.execute("select idempotency_key, quantity from metering.usage_events").fetchall()
        assert dict(stored) == model.counted
        kept = value(connection, "select count(*) from metering.rejected_events")
        assert kept == model.rejected + model.conflicts


@pytest.mark.parametrize("text", [*UNREADABLE, *REFUSED], ids=lambda text: text[:70])
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "array"])
def test_what_is_refused_costs_nobody_else_and_is_kept(
    connection: Connection, organization: UUID, text: str, wrapped: bool
) -> None:
    batch = [good("before", "1"), bad(text), good("after", "2")]
    with connection.transaction(force_rollback=True):
        outcome = value(
            connection,
            "select metering.receive_events(%s, %s, 'api', 'reject')",
            body_of(batch, wrapped),
            organization,
        )
        assert outcome["accepted"] == 2
        [refusal] = outcome["rejected"]
        assert refusal["code"] == "INVALID_EVENT"
        assert refusal["message"].startswith("event 1: ")
        kept = "to_jsonb(%s::text)" if text in UNREADABLE else "%s::jsonb"  # as the text that it is, or as it was read
        assert value(connection, f"select event = {kept} from metering.rejected_events", text)


@pytest.fixture
def backend(stack: RunningStack) -> Iterator[httpx.Client]:
    with stack.client("backend", role="service") as client:
        yield client


def resident_bytes(stack: RunningStack) -> int:
    (process,) = members("sidecar", stack.state)
    return int(psutil.Process(process.pid).memory_info().rss)


HEAVY: dict[str, tuple[bytes, int]] = {
    "deep": (b'[{"dimensions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", 400),
    "deep object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "endless array": (b"[" * 8 * MEGABYTE, 400),
    "one long string": (b'["' + b"x" * 7 * MEGABYTE + b'"]', 200),
    "one long number": (b"[" + b"9" * 7 * MEGABYTE + b"]", 200),
    "10 MB": (b" " * 10 * MEGABYTE, 413),
    "gzip": (b"\x1f\x8b" * 1000, 400),
}


def test_heavy_bodies_are_answered_and_leave_nothing_behind(
    stack: RunningStack, backend: httpx.Client, make_organization: MakeOrganization
) -> None:
    organization = make_organization(stack.database)
    headers = {**JSON, "X-Organization-ID": organization.slug}

    def send_all() -> None:
        for name, (body, status) in HEAVY.items():
            answer = backend.post("/v1/events", content=body, headers=headers)
            assert answer.status_code == status, (name, answer.text[:200])
            if status == 200:
                assert [refusal["code"] for refusal in answer.json()["rejected"]] == ["INVALID_EVENT"]
            next_one = backend.post("/v1/events", content=good("next", "1").text.join("[]"), headers=headers)
            assert next_one.json()["accepted"] + next_one.json()["duplicates"] == 1

    send_all()
    before = resident_bytes(stack)
    for _ in range(3):
        send_all()
    assert resident_bytes(stack) - before < 64 * MEGABYTE, "three rounds sent 120 MB"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "identity, br"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json, text/plain"},
    ],
    ids=str,
)
def test_nothing_is_unpacked_or_guessed(backend: httpx.Client, headers: dict[str, str]) -> None:
    answer = backend.post("/v1/events", content=b"[]", headers={**JSON, **headers})
    assert_problem(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(stack: RunningStack) -> None:
    url = urlsplit(stack.gateway_url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n"
            + f"Expect: 100-continue\r\nAuthorization: Bearer {stack.token('b', role='service')}\r\n\r\n".encode()
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_more_batches_than_postgres_takes_in_are_sent_away_whole(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    """Neither their number nor their size fills the memory, and what was sent away can be sent again."""
    padding = "x" * 7000

    def batch(number: int) -> list[dict[str, Any]]:
        return [{"id": f"{number}-{i}", "event": "x", "quantity": 1, "dimensions": {"a": padding}} for i in range(100)]

    with open_stack(max_ingest_bytes=MEGABYTE, ingest_wait_seconds=1) as stack:
        organization = make_organization(stack.database)
        with (
            stack.client("backend", role="service", org=organization.slug) as backend,
            stack.database.connect() as operator,
            stack.database.connect(autocommit=False) as blocker,
            ThreadPoolExecutor(24) as pool,
        ):
            blocker.execute("lock table metering.event_keys in access exclusive mode")
            sent = [pool.submit(backend.post, "/v1/events", json=batch(number)) for number in range(24)]
            assert eventually(lambda: sum(answer.done() for answer in sent), lambda done: done >= 22) == 22
            small = backend.post("/v1/events", json={"id": "small", "event": "y", "quantity": 1})
            assert_problem(small, 503, "INGEST_BUSY")
            blocker.rollback()
            answers = [answer.result(timeout=30) for answer in sent]
            refused = [answer for answer in answers if answer.status_code != 200]
            for answer in refused:
                assert_problem(answer, 503, "INGEST_BUSY")
                assert answer.headers["Retry-After"]
            accepted = sum(answer.json()["accepted"] for answer in answers if answer.status_code == 200)
            stored = "select count(*) from metering.usage_events where event_name = 'x'"
            assert value(operator, stored) == accepted == 200
            for number in range(24):
                assert backend.post("/v1/events", json=batch(number)).status_code == 200
            assert value(operator, stored) == 2400

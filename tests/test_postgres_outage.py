"""Postgres goes away, or hangs, and comes back: what does not need it goes on, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from uuid import uuid4

import httpx
import psutil
import pytest

from api.stack.parts import PARTS
from api.stack.processes import members
from api.stack.supervisor import NAME as SUPERVISOR
from tests.observe import assert_problem, eventually, wait_until_shipped
from tests.test_stack import Command, execute, new_command

AWAY_SECONDS = 3
WITHIN = 60  # seconds, on a machine that does much else


@dataclass(frozen=True)
class Site:
    """A stack, with somebody who has worked there and whom the sidecar knows."""

    command: Command
    member: str
    service: str
    organization: str

    def client(self, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        url = self.command.endpoints().gateway_url
        return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with new_command() as command:
        yield command


@pytest.fixture
def site(command: Command) -> Site:
    """Without a supervisor, who would end the outage."""
    command.up()
    [supervisor] = members(SUPERVISOR, command.state)
    supervisor.kill()
    member = command.succeed("token", "--sub", "otto", "--email", "otto@example.com").strip()
    service = command.succeed("token", "--sub", "backend", "--role", "service").strip()
    site = Site(command, member, service, "otto")
    with site.client(member) as client:
        assert client.get("/api/v1/cases").status_code == 200
    return site


@contextmanager
def under_way(*works: Callable[[Event], None]) -> Iterator[None]:
    over = Event()
    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(work, over) for work in works]
        try:
            yield
        finally:
            over.set()
        for work in running:
            work.result()


def test_an_outage_is_said_clearly_and_everything_is_recorded_once(site: Site) -> None:
    read, sent, refusals = list[str](), list[str](), list[httpx.Response]()

    def read_cases(over: Event) -> None:
        with site.client(site.member) as client:
            while not over.is_set():
                request_id = f"outage-{uuid4()}"
                answer = client.get("/api/v1/cases", headers={"X-Request-ID": request_id})
                (read.append(request_id) if answer.status_code == 200 else refusals.append(answer))
                time.sleep(0.02)

    def send_events(over: Event) -> None:
        """As a backend should: the same event with the same id until it is taken."""
        with site.client(site.service) as client:
            while not over.is_set():
                event = {"id": f"sent-{uuid4()}", "event": "job.done", "quantity": 1}
                while True:
                    headers = {"X-Organization-ID": site.organization}
                    answer = client.post("/v1/events", json=[event], headers=headers)
                    if answer.status_code == 200:
                        break
                    refusals.append(answer)
                    time.sleep(0.1)
                assert answer.json()["rejected"] == answer.json()["conflicts"] == []
                sent.append(event["id"])  # type: ignore[arg-type]

    before = site.command.pids()
    with under_way(read_cases, *[send_events] * 4), site.client(site.member) as client:
        assert eventually(lambda: min(len(read), len(sent)), (20).__le__, seconds=WITHIN) >= 20
        os.kill(before["postgres"], signal.SIGKILL)
        assert eventually(lambda: client.get("/health").status_code, (503).__eq__, seconds=WITHIN) == 503
        began = time.monotonic()
        while time.monotonic() - began < AWAY_SECONDS:
            health = client.get("/health").json()
            assert (health["status"], health["database"]) == ("degraded", {"status": "down"})
            assert health["postgrest"] == {"status": "waiting"}
            assert_problem(client.get("/nothing"), 404, "ROUTE_NOT_FOUND")
            bad_token = client.get("/api/v1/cases", headers={"Authorization": "Bearer no.to.ken"})
            assert_problem(bad_token, 401, "INVALID_TOKEN")
            assert_problem(client.get("/api/v1/cases"), 503, "DATABASE_UNAVAILABLE")
            assert_problem(
                client.get("/api/v1/cases", headers={"X-Organization-ID": "new"}), 503, "DATABASE_UNAVAILABLE"
            )
        site.command.up()
        after = site.command.pids()
        assert {name for name in PARTS if after[name] != before[name]} == {"postgres"}, "the others recover themselves"
        enough = min(len(read), len(sent)) + 20
        assert eventually(lambda: min(len(read), len(sent)), enough.__le__, seconds=WITHIN) >= enough

    assert refusals
    for refusal in refusals:
        assert_problem(refusal, 503, "DATABASE_UNAVAILABLE")
        assert refusal.headers["Retry-After"] == "1"
        assert "127.0.0.1" not in refusal.text, "where the database is, is nobody's business"

    def recorded() -> Counter[str]:
        rows = execute(
            site.command.endpoints(),
            "select coalesce(request_id, idempotency_key) from metering.usage_events "
            "where event_name in ('api.request', 'job.done')",
        )
        return Counter(str(key) for (key,) in rows)

    everything = {*read, *sent}
    counts = eventually(recorded, lambda counts: everything <= set(counts), seconds=WITHIN)
    assert {key: counts[key] for key in everything if counts[key] != 1} == {}


@contextmanager
def hanging(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_database_that_hangs_keeps_nobody_waiting_for_ever(site: Site) -> None:
    with (
        site.client(site.member) as client,
        site.client(site.service) as backend,
        ThreadPoolExecutor() as pool,
    ):
        with hanging(members("postgres", site.command.state)):
            refused = [
                pool.submit(client.get, "/api/v1/cases"),
                pool.submit(client.get, "/api/v1/cases", headers={"X-Organization-ID": "new"}),
                pool.submit(backend.post, "/v1/events", json=[], headers={"X-Organization-ID": site.organization}),
            ]
            assert_problem(client.get("/nothing"), 404, "ROUTE_NOT_FOUND")
            health = client.get("/health")
            assert (health.status_code, health.json()["database"]) == (503, {"status": "down"})
            for asking in refused:
                assert_problem(asking.result(), 503, "DATABASE_UNAVAILABLE")
                assert asking.result().headers["Retry-After"]
        assert eventually(lambda: client.get("/health").status_code, (200).__eq__, seconds=WITHIN) == 200
        assert client.get("/api/v1/cases").status_code == 200
        assert backend.post("/v1/events", json=[], headers={"X-Organization-ID": site.organization}).status_code == 200
        wait_until_shipped(site.command.state)

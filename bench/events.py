"""`python -m bench.events`: `POST /v1/events` against the same function called over SQL, in batches of 1,000.

Both get the same bodies over as many connections, each into an organization of its own. Each batch is new, and durable
when it is answered. At the end the events are counted.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import psycopg

from bench.rounds import compare, show
from bench.stack import BenchStack, bench_stack, machine

ROUNDS: Final = 9
BATCHES: Final = 60  # a round
EVENTS: Final = 1000  # a batch
CONNECTIONS: Final = 2

INGEST: Final = "select metering.ingest_events(%s::jsonb, %s::uuid, 'api', 'reject')::text"

Send = Callable[[bytes], str]


class Sender:
    """One way in, which sends the batches of each round over its connections."""

    def __init__(self, sends: Sequence[Send], bodies: Callable[[int], list[bytes]]) -> None:
        self._sends = sends
        self._bodies = bodies
        self._round = 0

    def run(self) -> float:
        """Events a second. Raises when one was not accepted."""
        bodies = self._bodies(self._round)
        self._round += 1
        with ThreadPoolExecutor(len(self._sends)) as pool:
            started = time.perf_counter()
            done = [pool.submit(self._send, send, bodies[n :: len(self._sends)]) for n, send in enumerate(self._sends)]
            accepted = sum(one.result() for one in done)
            seconds = time.perf_counter() - started
        if accepted != BATCHES * EVENTS:
            raise RuntimeError(f"{accepted} of {BATCHES * EVENTS} events were accepted")
        return accepted / seconds

    @staticmethod
    def _send(send: Send, bodies: list[bytes]) -> int:
        return sum(int(json.loads(send(body))["accepted"]) for body in bodies)


def main() -> int:
    print(f"{machine()}; {CONNECTIONS} connections, {BATCHES} batches of {EVENTS} events a round")
    with bench_stack() as stack, ExitStack() as opened:
        organizations = stack.organization("over-http"), stack.organization("over-sql")
        http_sends = [_over_http(stack, organizations[0], opened) for _ in range(CONNECTIONS)]
        sql_sends = [_over_sql(stack, organizations[1], opened) for _ in range(CONNECTIONS)]
        comparison = compare(ROUNDS, Sender(http_sends, _bodies).run, Sender(sql_sends, _bodies).run)
        counts = [
            int(str(stack.value("select count(*) from metering.usage_events where organization_id = %s", one)))
            for one in organizations
        ]
    show("POST /v1/events", comparison, "events/s", ("over HTTP", "over SQL"))
    expected = (ROUNDS + 1) * BATCHES * EVENTS
    print(f"\n{expected:,} events were sent each way; {counts[0]:,} and {counts[1]:,} are stored")
    return 0 if counts == [expected, expected] else 1


def _bodies(number: int) -> list[bytes]:
    """The batches of a round. The same number gives the same ones."""
    moment = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).isoformat()
    return [
        json.dumps({"events": [_event(f"{number}-{batch}-{n}", moment) for n in range(EVENTS)]}).encode()
        for batch in range(BATCHES)
    ]


def _event(key: str, moment: str) -> dict[str, object]:
    dimensions = {"endpoint": "/v1/answers", "model": "large", "status_code": 200}
    return {"id": key, "event": "api.request", "quantity": 1, "time": moment, "dimensions": dimensions}


def _over_http(stack: BenchStack, organization: UUID, opened: ExitStack) -> Send:
    address = urlsplit(stack.gateway_url)
    connection = opened.enter_context(closing(http.client.HTTPConnection(address.hostname or "", address.port)))
    headers = {
        "Authorization": f"Bearer {stack.token('backend', 'service')}",
        "Content-Type": "application/json",
        "X-Organization-ID": str(organization),
    }

    def send(body: bytes) -> str:
        connection.request("POST", "/v1/events", body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text}")
        return text

    return send


def _over_sql(stack: BenchStack, organization: UUID, opened: ExitStack) -> Send:
    connection = opened.enter_context(psycopg.connect(stack.sidecar_database_url, autocommit=True))

    def send(body: bytes) -> str:
        row = connection.execute(INGEST, [body.decode(), organization]).fetchone()
        return str(row[0]) if row else "{}"

    return send


if __name__ == "__main__":
    sys.exit(main())

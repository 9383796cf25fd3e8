"""`python -m bench.events`: `POST /v1/events` against the same function called over SQL, each by as many connections.

Each event is new, and durable when it is answered, except where all of them are sent again. Small batches are sent by
wrk and pgbench, which cost the machine little; large ones by this process, both ways alike. At the end the events are
counted.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import psycopg

from bench.figures import Budget, Figure, at_least, at_most, print_figures
from bench.pgbench import Pgbench
from bench.rounds import Comparison, compare, show
from bench.stack import BenchStack, bench_stack
from bench.wrk import Wrk, require_wrk

ROUNDS: Final = 5
SECONDS: Final = 2
WARM_UP_SECONDS: Final = 2  # of sessions over SQL; those of the sidecar stay
SMALL: Final = ((1, 1), (1, 8), (1, 32), (10, 8))  # events a batch, connections
LARGE: Final = ((100, 4), (1000, 2), (1000, 8))
EVENTS_A_ROUND: Final = 40_000  # in large batches
REPEATED: Final = 10  # batches of 100 that are sent again and again

SINGLES_A_SECOND: Final = 4_000
SINGLES_MILLISECONDS: Final = 50
EVENTS_A_SECOND: Final = 50_000
OF_SQL: Final = 0.80

INGEST: Final = "select metering.ingest_events(%s::jsonb, %s::uuid, 'api', 'reject')::text"
POST_SCRIPT: Final = Path(__file__).with_name("post_events.lua")

Send = Callable[[bytes], str]


def measure() -> list[Figure]:
    """Raises RuntimeError when an event that was answered is not stored."""
    require_wrk()
    with bench_stack() as stack:
        bench = _Events(stack)
        return [
            *(bench.small(events, connections) for events, connections in SMALL),
            *(bench.large(events, connections) for events, connections in LARGE),
            bench.duplicates(),
        ]


class _Events:
    def __init__(self, stack: BenchStack) -> None:
        self._stack = stack
        self._numbers = count(1)

    def small(self, events: int, connections: int) -> Figure:
        by_http, by_sql = self._organizations()
        runs = count(1)
        posting = self._posting(by_http, events, connections)

        def post() -> float:
            posting.arguments = (str(events), f"run-{next(runs)}")
            return posting.run() * events

        calling = Pgbench(
            self._stack.stack.settings.postgres_version,
            self._stack.sidecar_database_url,
            _script(by_sql, events),
            statements=events,
            seconds=SECONDS,
            connections=connections,
            warm_up=WARM_UP_SECONDS,
        )
        comparison = compare(ROUNDS, post, calling.run)
        self._require_stored(by_http, posting.answered * events)
        slowest = median(posting.slowest[1:])
        print(f"  {'over HTTP':<20} {slowest:>9,.1f} ms or less for 99 of 100 requests")
        budgets: tuple[Budget, ...] = ()
        if (events, connections) == (1, 32):
            budgets = (
                at_least("/s", comparison.our_median, SINGLES_A_SECOND),
                at_most(" ms for 99 of 100", slowest, SINGLES_MILLISECONDS),
            )
        return _figure(events, connections, comparison, budgets, f", p99 {slowest:,.1f} ms")

    def large(self, events: int, connections: int) -> Figure:
        by_http, by_sql = self._organizations()
        with ExitStack() as opened:
            http_sends = [over_http(self._stack, by_http, opened) for _ in range(connections)]
            sql_sends = [over_sql(self._stack, by_sql, opened) for _ in range(connections)]
            comparison = compare(ROUNDS, _Sender(http_sends, events).run, _Sender(sql_sends, events).run)
        for organization in (by_http, by_sql):
            self._require_stored(organization, (ROUNDS + 1) * EVENTS_A_ROUND)
        budgets: tuple[Budget, ...] = ()
        if (events, connections) == (1000, 2):
            budgets = (
                at_least("", comparison.median_ratio, OF_SQL),
                at_least("/s", comparison.our_median, EVENTS_A_SECOND),
            )
        return _figure(events, connections, comparison, budgets)

    def duplicates(self) -> Figure:
        """Batches of which every event is there already, against new ones."""
        again, anew = self._organizations()
        runs = count(1)
        repeating, posting = self._posting(again, 100, 4), self._posting(anew, 100, 4)
        repeating.arguments = ("100", "again", str(REPEATED))

        def post() -> float:
            posting.arguments = ("100", f"run-{next(runs)}")
            return posting.run() * 100

        repeating.run()
        comparison = compare(ROUNDS, lambda: repeating.run() * 100, post)
        stored = self._stored(again)
        if stored != 100 * REPEATED:
            raise RuntimeError(f"{stored:,} events are stored of {100 * REPEATED:,} that were sent again and again")
        show("Duplicates only", comparison, "events/s", ("again", "anew"))
        return Figure(
            "nothing but duplicates, batches of 100, 4 connections",
            f"{comparison.our_median:,.0f} events/s",
            f"new events, {comparison.reference_median:,.0f}/s",
            comparison.ratio,
        )

    def _organizations(self) -> tuple[UUID, UUID]:
        number = next(self._numbers)
        return self._stack.organization(f"ours-{number}"), self._stack.organization(f"reference-{number}")

    def _posting(self, organization: UUID, events: int, connections: int) -> Wrk:
        headers = (
            f"Authorization: Bearer {self._stack.token('backend', 'service')}",
            "Content-Type: application/json",
            f"X-Organization-ID: {organization}",
        )
        target = f"{self._stack.gateway_url}/v1/events"
        name = f"batches of {events}"
        return Wrk(name, target, headers, POST_SCRIPT, seconds=SECONDS, connections=connections)

    def _require_stored(self, organization: UUID, answered: int) -> None:
        """wrk hangs up in the middle of some, which are stored or not."""
        if (stored := self._stored(organization)) < answered:
            raise RuntimeError(f"{answered:,} events were accepted, {stored:,} are stored")

    def _stored(self, organization: UUID) -> int:
        query = "select count(*) from metering.usage_events where organization_id = %s and event_name = 'api.request'"
        return int(str(self._stack.value(query, organization)))


class _Sender:
    """One way in, which sends the batches of each round over its connections."""

    def __init__(self, sends: Sequence[Send], events: int) -> None:
        self._sends = sends
        self._events = events
        self._rounds = count(1)

    def run(self) -> float:
        """Events a second. Raises when one was not accepted."""
        bodies = list(_bodies(next(self._rounds), self._events))
        with ThreadPoolExecutor(len(self._sends)) as pool:
            started = perf_counter()
            done = [pool.submit(self._send, send, bodies[n :: len(self._sends)]) for n, send in enumerate(self._sends)]
            accepted = sum(one.result() for one in done)
            seconds = perf_counter() - started
        if accepted != EVENTS_A_ROUND:
            raise RuntimeError(f"{accepted} of {EVENTS_A_ROUND} events were accepted")
        return accepted / seconds

    @staticmethod
    def _send(send: Send, bodies: list[bytes]) -> int:
        return sum(int(json.loads(send(body))["accepted"]) for body in bodies)


def _figure(
    events: int, connections: int, comparison: Comparison, budgets: tuple[Budget, ...], beside: str = ""
) -> Figure:
    what = "one event a request" if events == 1 else f"batches of {events:,}"
    what = f"`POST /v1/events`, {what}, {connections} connection{'' if connections == 1 else 's'}"
    show(what, comparison, "events/s", ("over HTTP", "over SQL"))
    reference = f"the function over SQL, {comparison.reference_median:,.0f}/s"
    return Figure(what, f"{comparison.our_median:,.0f} events/s{beside}", reference, comparison.ratio, budgets)


def _bodies(number: int, events: int) -> Iterator[bytes]:
    """The batches of a round. The same number gives the same ones."""
    moment = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0).isoformat()
    for batch in range(EVENTS_A_ROUND // events):
        yield json.dumps({"events": [_event(f"{number}-{batch}-{n}", moment) for n in range(events)]}).encode()


def _event(key: str, moment: str) -> dict[str, object]:
    dimensions = {"endpoint": "/v1/answers", "model": "large", "status_code": 200}
    return {"id": key, "event": "api.request", "quantity": 1, "time": moment, "dimensions": dimensions}


def _script(organization: UUID, events: int) -> str:
    """A transaction a batch, as wrk has it, with ids that do not come twice."""
    dimensions = '{"endpoint":"/v1/answers","model":"large","status_code":200}'
    event = """ '{{"id":"' || :n || '-{number}","event":"api.request","quantity":1,"dimensions":{dimensions}}}' """
    listed = " || ',' || ".join(event.format(number=number, dimensions=dimensions) for number in range(events))
    return "\n".join(
        (
            r"\set n random(1, 9000000000000000000)",
            f"select metering.ingest_events(('[' || {listed} || ']')::jsonb, '{organization}'::uuid, 'api', 'reject');",
        )
    )


def over_http(stack: BenchStack, organization: UUID, opened: ExitStack) -> Send:
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


def over_sql(stack: BenchStack, organization: UUID, opened: ExitStack) -> Send:
    connection = opened.enter_context(psycopg.connect(stack.sidecar_database_url, autocommit=True))

    def send(body: bytes) -> str:
        row = connection.execute(INGEST, [body.decode(), organization]).fetchone()
        return str(row[0]) if row else "{}"

    return send


if __name__ == "__main__":
    print_figures(measure())

"""What operations count: GET /metrics, in Prometheus' text format. Labels have few values, whoever asks for what."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from hmac import compare_digest
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from api.codes import CODES, PASSED_ON
from api.database import Database
from api.errors import problem
from api.event_metrics import EventMetrics
from api.repeats import RepeatedEvents
from api.spool import Spool

METRICS_PATH: Final = "/metrics"
OTHER: Final = "other"
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PARTS: Final = ("gateway", "events", OTHER)
STATUSES: Final = ("2xx", "3xx", "4xx", "5xx", "none")  # none: the client hung up before there was an answer
STEP: Final = re.compile(r"step: ([a-z_]{1,40})")
MOST_STEPS: Final = 20

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each, which says when we started


class Metrics:
    """A registry of its own, so that nothing is counted twice where several are made in one process."""

    def __init__(self, spool: Spool, database: Database, *others: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Parts(spool, database))
        events = EventMetrics()
        self._registry.register(events)
        self.repeated_events = RepeatedEvents(database)
        self._registry.register(self.repeated_events)
        for other in others:
            self._registry.register(other)
        ProcessCollector(registry=self._registry)
        requests = Histogram(
            "goldleaves_request_duration_seconds",
            "Requests, from their head to the last byte of the answer.",
            ["part", "status"],
            buckets=SECONDS,
            registry=self._registry,
        )
        # Found once, since finding one takes longer than to observe it.
        self._requests = {(part, status): requests.labels(part, status) for part in PARTS for status in STATUSES}
        self._refusals = Counter(
            "goldleaves_refusals_total",
            "Answers of 400 and above, by their stable code, or by that of PostgREST or Postgres.",
            ["code"],
            registry=self._registry,
        )
        self._conversions = Counter(
            "goldleaves_conversions_total",
            "Conversions of personal organizations; step is the one that failed.",
            ["outcome", "step"],
            registry=self._registry,
        )
        self._conversions.labels("succeeded", "")
        self._unrecorded = Counter(
            "goldleaves_refusals_unrecorded_total",
            "Refusals that the audit log did not take.",
            registry=self._registry,
        )
        self._steps: set[str] = set()
        self.events_of = events.of

    def request_ended(self, part: str, status: int, seconds: float) -> None:
        """`status` 0: there was no answer. A function of somebody's can make PostgREST answer 999."""
        self._requests[part, f"{min(status // 100, 5)}xx" if status >= 200 else "none"].observe(seconds)

    def refused(self, code: str) -> None:
        self._refusals.labels(code if code in CODES or code in PASSED_ON else OTHER).inc()

    def converted(self) -> None:
        self._conversions.labels("succeeded", "").inc()

    def conversion_failed(self, details: str) -> None:
        """`details` as the error has them: the step that failed."""
        match = STEP.fullmatch(details)
        step = match[1] if match is not None else OTHER
        if step not in self._steps and len(self._steps) >= MOST_STEPS:
            step = OTHER
        self._steps.add(step)
        self._conversions.labels("failed", step).inc()

    def not_recorded(self, refusals: int) -> None:
        self._unrecorded.inc(refusals)

    def render(self, accept: str) -> Response:
        encode, content_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"Content-Type": content_type})


class _Parts(Collector):
    """What the parts of the sidecar know of themselves, asked when somebody looks."""

    def __init__(self, spool: Spool, database: Database) -> None:
        self._spool = spool
        self._database = database

    def collect(self) -> Iterator[Metric]:
        spool = self._spool.state()
        yield _gauge("spool_bytes", "Metered requests that wait on disk for Postgres.", spool.pending_bytes)
        yield _gauge("spool_oldest_seconds", "Age of the oldest record that waits.", spool.oldest_seconds)
        yield _counter("spool_dropped", "Metered requests that could not be kept.", spool.dropped)
        yield _counter("spool_rejected", "Metered requests that Postgres has turned down.", spool.rejected)
        pool = self._database.pool()
        yield _gauge("database_pool_connections", "Connections to Postgres that the sidecar may have.", pool.size)
        yield _gauge("database_pool_in_use", "Connections to Postgres that are in use.", pool.in_use)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"goldleaves_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"goldleaves_{name}", text, value=value)


def metrics_endpoint(metrics: Metrics, token: str | None) -> Callable[[Request], Awaitable[Response]]:
    """With a token, only who sends it may look."""
    expected = None if token is None else f"bearer {token}".encode()

    async def show(request: Request) -> Response:
        if expected is not None and not compare_digest(_authorization(request), expected):
            raise problem(
                "INVALID_TOKEN",
                "this is not the token of /metrics",
                hint="Send METRICS_TOKEN as 'Authorization: Bearer <token>'.",
            )
        return metrics.render(request.headers.get("accept", ""))

    return show


def _authorization(request: Request) -> bytes:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return f"{scheme.lower()} {credentials.strip()}".encode()

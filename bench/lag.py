"""`python -m bench.lag`: how far rollups are behind while batches of 1,000 events are sent as fast as they are taken.

The sidecar rolls up on its own, as it always does. Lag is the age of the oldest event that is not rolled up: totals are
exact all the same, but what is not rolled up is read event by event.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from time import perf_counter, sleep
from typing import Final
from uuid import UUID

import psycopg

from bench.events import over_http
from bench.figures import Figure, print_figures
from bench.stack import BenchStack, bench_stack

SECONDS: Final = 20
CONNECTIONS: Final = 2
SAMPLE_SECONDS: Final = 0.2
EVENTS: Final = 1_000  # a batch

_LAG: Final = """
  select coalesce(extract(epoch from clock_timestamp() - min(e.recorded_at)), 0)
  from (
    select e.recorded_at
    from metering.usage_events e, metering.rollup_position p
    where (e.recorded_generation, e.recorded_xid) >= (p.generation, p.xid)
    order by e.recorded_generation, e.recorded_xid
    limit 1
  ) as e
"""


def measure() -> list[Figure]:
    with bench_stack() as stack:
        lags, rate = _under_load(stack, stack.organization("busy"))
    print(f"\nLag under {rate:,.0f} events/s: {median(lags):.1f} s ({min(lags):.1f} to {max(lags):.1f})")
    return [
        Figure(
            f"lag of rollups under load, batches of {EVENTS:,}, {CONNECTIONS} connections",
            f"{median(lags):.1f} s (at most {max(lags):.1f}) at {rate:,.0f} events/s",
        )
    ]


def _under_load(stack: BenchStack, organization: UUID) -> tuple[list[float], float]:
    """The lags that were seen, in seconds, and the events a second that were sent."""
    over = threading.Event()
    lags: list[float] = []
    with ExitStack() as opened, ThreadPoolExecutor(CONNECTIONS) as pool:
        sends = [over_http(stack, organization, opened) for _ in range(CONNECTIONS)]
        started = perf_counter()

        def load(number: int) -> int:
            batches = 0
            while not over.is_set():
                ids = (f"{number}-{batches}-{n}" for n in range(EVENTS))
                events = [{"id": one, "event": "api.request", "quantity": 1} for one in ids]
                sends[number](json.dumps(events).encode())
                batches += 1
            return batches * EVENTS

        running = [pool.submit(load, number) for number in range(CONNECTIONS)]
        try:
            with psycopg.connect(stack.database_url, autocommit=True) as connection:
                while perf_counter() - started < SECONDS:
                    sleep(SAMPLE_SECONDS)
                    row = connection.execute(_LAG).fetchone()
                    lags.append(float(row[0]) if row else 0.0)
        finally:
            over.set()
        sent = sum(client.result() for client in running)
        return lags, sent / (perf_counter() - started)


if __name__ == "__main__":
    print_figures(measure())

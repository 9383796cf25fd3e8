"""`python -m bench.flat [MILLIONS]`: whether ingestion is as fast with 20 million events stored as with none.

Batches of 1,000 through the function that everything goes through, over a few connections; each million is timed. The
first one fills the caches, and the second is what the last one is compared with.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Final
from uuid import UUID

from bench.events import Send, over_sql
from bench.figures import Figure, at_least, keep, print_figures
from bench.stack import BenchStack, bench_stack, when_and_where

MILLIONS: Final = 20
MILLION: Final = 1_000_000
BATCH: Final = 1_000
CONNECTIONS: Final = 2
ORGANIZATIONS: Final = 20
COMPARED: Final = 3  # of the last millions, the median
BUDGET: Final = 0.85
# As docs/operations.md has them. Keys are random: with Postgres' defaults each of them reads a page into a cache of 128
# MB and writes another one out, and soon a whole page into the log as well, for there is a checkpoint all the time.
SETTINGS: Final = {"shared_buffers": "4GB", "max_wal_size": "8GB", "checkpoint_timeout": "15min"}

_EVENT: Final = (
    '{"id":"%s-%d","event":"api.request","quantity":1,"time":"%s","user_id":"user-%d",'
    '"dimensions":{"endpoint":"/v1/answers","method":"POST","status_code":200}}'
)


def main() -> int:
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else MILLIONS)
    print_figures(figures)
    if len(sys.argv) == 1:
        keep("bench.flat", f"`make bench-flat`, {when_and_where()}", figures)
    return 0


def measure(millions: int) -> list[Figure]:
    if millions < COMPARED + 2:
        raise ValueError(f"at least {COMPARED + 2} millions make a comparison")
    with bench_stack() as stack:
        stack.configure(SETTINGS)
        organizations = [stack.organization(f"flat-{number}") for number in range(ORGANIZATIONS)]
        rates = []
        for million in range(1, millions + 1):
            rates.append(_send(stack, organizations, million))
            ratio = rates[-1] / rates[min(1, million - 1)]
            print(f"{million:>4} million stored: {rates[-1]:>9,.0f} events/s, {ratio:.2f}", flush=True)
        stored = int(str(stack.value("select count(*) from metering.usage_events where source = 'api'")))
    if stored != millions * MILLION:
        raise RuntimeError(f"{stored:,} events are stored")
    last = median(rates[-COMPARED:])
    ratios = sorted(rate / rates[1] for rate in rates[2:])
    return [
        Figure(
            f"batches of {BATCH:,} with {millions} million events stored, {CONNECTIONS} connections",
            f"{last:,.0f} events/s",
            f"with one million, {rates[1]:,.0f}/s",
            f"{last / rates[1]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            (at_least("", last / rates[1], BUDGET),),
        )
    ]


def _send(stack: BenchStack, organizations: list[UUID], million: int) -> float:
    """A million events. Returns events a second."""
    batches = MILLION // BATCH
    with ExitStack() as opened, ThreadPoolExecutor(CONNECTIONS) as pool:
        sends = [[over_sql(stack, one, opened) for one in organizations[n::CONNECTIONS]] for n in range(CONNECTIONS)]
        started = perf_counter()
        running = [
            pool.submit(_send_batches, sends[n], f"{million}-{n}", range(n, batches, CONNECTIONS))
            for n in range(CONNECTIONS)
        ]
        for each in running:
            each.result()
        return MILLION / (perf_counter() - started)


def _send_batches(sends: list[Send], prefix: str, batches: range) -> None:
    for batch in batches:
        moment = datetime.now(UTC).isoformat()
        events = ",".join(_EVENT % (f"{prefix}-{batch}", n, moment, n) for n in range(BATCH))
        sends[batch % len(sends)](f"[{events}]".encode())


if __name__ == "__main__":
    sys.exit(main())

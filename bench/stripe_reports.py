"""`python -m bench.stripe_reports`: a month of a hundred organizations, with a million events, is reported to Stripe.

Stripe is the stand-in, a process of its own on the same machine, which takes as much of it as we do. Nothing fails.
Memory is that of the process that makes and sends the reports.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import httpx
import psutil
import psycopg

from api.database import Database
from api.settings import Settings
from api.stack.endpoints import http_url
from api.stripe import fixtures
from api.stripe.client import Stripe
from api.stripe.reporting import BUILT_AT_ONCE, Reporting
from bench.figures import Figure, at_most, print_figures
from bench.stack import BenchStack, bench_stack, free_ports, machine

ORGANIZATIONS: Final = 100
EVENTS: Final = 10_000  # of each
MINUTES: Final = 15.0
MEGABYTES: Final = 300.0
METER: Final = "api.request"
KEY: Final = "sk_live_of_the_stand_in"  # live mode, whose pace is the quicker one
START_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.2

_FOUND: Final = """
  with owners as (
    insert into tenancy.users (subject) select 'reported-' || n from generate_series(1, %s) n returning id, subject
  ),
  made as (
    insert into tenancy.organizations (kind, name, slug, owner_user_id)
    select 'organization', subject, subject, id from owners
    returning id
  )
  insert into billing.billing_terms (organization_id, invoice_mode) select m.id, 'stripe_meters' from made m
"""
_PERIODS: Final = """
  select billing.ensure_periods(o.id, now() - interval '28 days', now())
  from tenancy.organizations o
  where o.slug like 'reported-%'
"""
_FILL: Final = """
  insert into metering.usage_events (
    organization_id, occurred_at, source, event_name, quantity, user_id, recorded_generation
  )
  select
    o.id, now() - interval '28 days' * (n::float8 / (%s + 1)), 'gateway', 'api.request', 1, 'user-' || n %% 10,
    (select max(generation) from metering.generations)
  from generate_series(1, %s) n
  cross join tenancy.organizations o
  where o.slug like 'reported-%%'
"""
_REGISTER: Final = "insert into stripe.meters (meter_code, id, event_name) values (%s, 'mtr_bench', %s)"
_LINK: Final = """
  insert into stripe.customers (organization_id, id, is_live, linked_by)
  select o.id, 'cus_' || translate(o.id::text, '-', ''), true, 'bench'
  from tenancy.organizations o
  where o.slug like 'reported-%'
"""


@dataclass
class Reported:
    built: float = 0.0  # seconds
    sent: float = 0.0
    reports: int = 0
    peak_bytes: int = 0


def measure() -> list[Figure]:
    """Raises RuntimeError when Stripe does not have what was used."""
    with bench_stack() as stack, _stand_in() as url:
        stack.stop("sidecar")  # it would roll up by itself
        _fill(stack, url)
        done = asyncio.run(_report(stack, url))
        told = sum(int(one["payload"]["value"]) for one in _all(url))
    if told != ORGANIZATIONS * EVENTS:
        raise RuntimeError(f"Stripe was told of {told:,} units")
    minutes, megabytes = (done.built + done.sent) / 60, done.peak_bytes / 1024**2
    return [
        Figure(
            f"reporting a month of {ORGANIZATIONS} organizations with {ORGANIZATIONS * EVENTS:,} events",
            f"{minutes:.1f} min: {done.reports:,} reports made in {done.built:.0f} s, "
            f"sent in {done.sent:.0f} s, {done.reports / done.sent:,.0f}/s",
            budgets=(at_most(" min", minutes, MINUTES),),
        ),
        Figure("memory of who reports it", f"{megabytes:.0f} MB", budgets=(at_most(" MB", megabytes, MEGABYTES),)),
    ]


def _fill(stack: BenchStack, url: str) -> None:
    stack.value("select metering.ensure_partitions(now() - interval '2 months', now() + interval '1 month')")
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(_FOUND, [ORGANIZATIONS])
        connection.execute(_PERIODS)
        connection.execute(_FILL, [EVENTS, EVENTS])
        while stack.value("select (metering.roll_up(200000) ->> 'behind')::boolean"):
            pass
        connection.execute(_REGISTER, [METER, METER])
        connection.execute(_LINK)
        customers = connection.execute("select id from stripe.customers").fetchall()
    stack.vacuum()
    _put(url, fixtures.meter("mtr_bench", event_name=METER), *(fixtures.customer(id) for (id,) in customers))


async def _report(stack: BenchStack, url: str) -> Reported:
    done, process = Reported(), psutil.Process()
    database = Database(stack.sidecar_database_url, Settings().database_pool_size)
    stripe = Stripe(KEY, url)

    async def watch() -> None:
        while True:
            done.peak_bytes = max(done.peak_bytes, process.memory_info().rss)
            await asyncio.sleep(LOOK_SECONDS)

    watching = asyncio.create_task(watch())
    try:
        started, meters = perf_counter(), BUILT_AT_ONCE
        while meters == BUILT_AT_ONCE:
            meters, made = await database.build_reports(
                is_live=True, most=BUILT_AT_ONCE, organization_id=None, also_unended=True
            )
            done.reports += made
        built = perf_counter()
        done.built = built - started
        reporting = Reporting(database, stripe)
        while (await database.report_backlog()).pending:
            await reporting.report_now(None, 60.0)
        done.sent = perf_counter() - built
        return done
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await stripe.close()
        await database.close()


@contextmanager
def _stand_in() -> Iterator[str]:
    [port] = free_ports(1)
    url = http_url("127.0.0.1", port)
    process = subprocess.Popen([sys.executable, "-m", "api.stripe.standin", "--port", str(port)])  # noqa: S603
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{url}/_control/requests", trust_env=False)
                break
            except httpx.TransportError:
                if time.monotonic() > until or process.poll() is not None:
                    raise
                time.sleep(LOOK_SECONDS)
        yield url
    finally:
        process.terminate()
        process.wait()


def _put(url: str, *objects: dict[str, Any]) -> None:
    httpx.post(f"{url}/_control/objects", json={"objects": objects}, trust_env=False).raise_for_status()


def _all(url: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/_control/objects?object=billing.meter_event", trust_env=False, timeout=120)
    found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


def main() -> int:
    print(machine())
    print_figures(measure())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

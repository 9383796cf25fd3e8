"""`python -m bench.closing`: closing last month of a thousand organizations with a million events, as the sidecar does.

As many at once as the sidecar has connections for. The events are written straight into the table and rolled up before.
Half as many organizations say whether it is linear in them, and a tenth of the events whether it is flat in those.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import Final, LiteralString

import psycopg

from api.closing import Closing, Run
from api.database import Database
from api.settings import Settings
from bench.figures import Figure, at_most, print_figures
from bench.stack import BenchStack, bench_stack, machine

ORGANIZATIONS: Final = 1_000
EVENTS: Final = 1_000  # of each
SECONDS: Final = 10.0
TIMES: Final = 1.25
CHUNK: Final = 100  # organizations whose events are one statement

_FOUND: Final = """
  with owners as (
    insert into tenancy.users (subject) select %(name)s || '-' || n from generate_series(1, %(organizations)s) n
    returning id, subject
  )
  insert into tenancy.organizations (kind, name, slug, owner_user_id)
  select 'organization', subject, subject, id from owners
"""
_PERIODS: Final = """
  select billing.ensure_periods(id, date_trunc('month', now(), 'UTC') - interval '1 month', now())
  from tenancy.organizations
  where slug like %(name)s || '-%%'
"""
_FILL: Final = """
  insert into metering.usage_events (
    organization_id, occurred_at, source, event_name, quantity, user_id, dimensions, recorded_generation
  )
  select
    o.id,
    date_trunc('month', now(), 'UTC') - interval '1 month' + interval '28 days' * (n::float8 / (%(events)s + 1)),
    'gateway',
    ('{api.request,doc.upload,doc.processed}'::text[])[1 + n %% 3], 1, 'user-' || n %% 10,
    jsonb_build_object('endpoint', '/api/v1/e' || n %% 5, 'method', 'GET'),
    (select max(generation) from metering.generations)
  from generate_series(1, %(events)s) n
  cross join (
    select id from tenancy.organizations where slug like %(name)s || '-%%' order by id offset %(first)s limit %(chunk)s
  ) as o
"""


@dataclass(frozen=True)
class Cohort:
    """Organizations that are closed together, each with so many events."""

    name: str
    organizations: int
    events: int


MANY: Final = Cohort("many", ORGANIZATIONS, EVENTS)
HALF: Final = Cohort("half", ORGANIZATIONS // 2, EVENTS)
FEW: Final = Cohort("few", ORGANIZATIONS, EVENTS // 10)


def measure() -> list[Figure]:
    """Raises RuntimeError when something was not closed, or its invoices do not have what was used."""
    with bench_stack() as stack:
        stack.stop("sidecar")  # it would close them by itself
        stack.value("select metering.ensure_partitions(now() - interval '2 months', now() + interval '1 month')")
        warm_up = Cohort("warm-up", 50, 100)
        _close(stack, warm_up)
        seconds = {cohort: _close(stack, cohort) for cohort in (FEW, HALF, MANY)}
    events = ORGANIZATIONS * EVENTS
    whole, half, few = seconds[MANY], seconds[HALF], seconds[FEW]
    linear, flat = whole / (2 * half), whole / few
    return [
        Figure(
            f"closing a month of {ORGANIZATIONS:,} organizations with {events:,} events",
            f"{whole:.1f} s, {whole / ORGANIZATIONS * 1000:.1f} ms each",
            budgets=(at_most(" s", whole, SECONDS),),
        ),
        Figure(
            "the same, an organization, against half as many organizations",
            f"{whole / ORGANIZATIONS * 1000:.1f} ms",
            f"{HALF.organizations:,} organizations, {half / HALF.organizations * 1000:.1f} ms",
            f"{linear:.2f}",
            (at_most(" times", linear, TIMES),),
        ),
        Figure(
            "the same against a tenth of the events",
            f"{whole:.1f} s",
            f"{FEW.organizations * FEW.events:,} events, {few:.1f} s",
            f"{flat:.2f}",
            (at_most(" times", flat, TIMES),),
        ),
    ]


def _close(stack: BenchStack, cohort: Cohort) -> float:
    """Make the organizations with what they have used, and return how long it took to close their month."""
    _fill(stack, cohort)
    while stack.value("select (metering.roll_up(200000) ->> 'behind')::boolean"):
        pass
    stack.vacuum()
    run, seconds = asyncio.run(_close_as_the_sidecar(stack))
    invoiced = stack.value(
        """
        select count(*) from billing.invoices i
        join tenancy.organizations o on o.id = i.organization_id
        where o.slug like %s || '-%%'
          and (
            select sum(l.quantity) from billing.invoice_lines l
            where l.organization_id = i.organization_id and l.invoice_id = i.id
          ) = %s
        """,
        cohort.name,
        cohort.events,
    )
    if run.failures or not run.periods == invoiced == cohort.organizations:
        raise RuntimeError(f"{cohort}: closed {run.periods}, failed {run.failures}, invoiced {invoiced}")
    return seconds


async def _close_as_the_sidecar(stack: BenchStack) -> tuple[Run, float]:
    database = Database(stack.sidecar_database_url, Settings().database_pool_size)
    run, started = Run(), perf_counter()
    try:
        await Closing(database, timedelta(0)).close_due(run)
        return run, perf_counter() - started
    finally:
        await database.close()


def _fill(stack: BenchStack, cohort: Cohort) -> None:
    """As quick as Postgres takes rows: what guards finalized periods is off, there are none."""
    parameters = {"name": cohort.name, "organizations": cohort.organizations, "events": cohort.events, "chunk": CHUNK}

    def execute(statement: LiteralString, **more: object) -> None:
        connection.execute(statement, parameters | more)

    with psycopg.connect(stack.database_url) as connection:
        connection.execute("set session_replication_role = replica")
        execute(_FOUND)
        execute(_PERIODS)
        for first in range(0, cohort.organizations, CHUNK):
            execute(_FILL, first=first)


def main() -> int:
    print(machine())
    print_figures(measure())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

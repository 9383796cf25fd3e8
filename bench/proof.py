"""`python -m bench.proof`: proving an invoice of a million events, and one that rests on an event somebody has changed.

The events of the last month are written straight into the table, over all of its hours and many groups; the rollup
takes them, the month is closed, and its invoice is verified: all events are counted anew, one by one.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any, Final

import psycopg

from bench.figures import Figure, at_most, print_figures
from bench.stack import BenchStack, bench_stack

EVENTS: Final = 1_000_000
ROUNDS: Final = 5
SECONDS: Final = 5.0

_FILL: Final = """
  insert into metering.usage_events (
    organization_id, occurred_at, source, event_name, quantity, user_id, dimensions, recorded_generation
  )
  select
    %(organization)s, m.month_start + (m.month_end - m.month_start) * ((n - 0.5) / %(events)s::float8),
    'gateway', 'api.request', 1, 'user-' || n %% 100,
    jsonb_build_object('endpoint', '/api/v1/e' || n %% 20, 'method', ('{GET,POST}'::text[])[1 + n %% 2]),
    (select max(generation) from metering.generations)
  from generate_series(1, %(events)s) n
  cross join (
    select date_trunc('month', now(), 'UTC') - interval '1 month', date_trunc('month', now(), 'UTC')
  ) as m (month_start, month_end)
"""

_PERIODS: Final = """
  select billing.ensure_periods(%s, date_trunc('month', now(), 'UTC') - interval '1 month', now())
"""

_CLOSE: Final = """
  select i.id
  from billing.finalize_period(%s, (date_trunc('month', now() at time zone 'UTC') - interval '1 month')::date) i
"""

_VERIFY: Final = "select count(*) from billing.verify_invoice(%s, %s)"
_TAMPER: Final = """
  update metering.usage_events set quantity = 2
  where (organization_id, occurred_at, id) in (
    select organization_id, occurred_at, id from metering.usage_events where organization_id = %s limit 1
  )
"""


def measure() -> list[Figure]:
    """Raises RuntimeError when an invoice is not proved, or a change is not found."""
    with bench_stack() as stack:
        stack.stop("sidecar")  # it would roll up, and close, meanwhile
        organization = stack.organization("proof")
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")
            connection.execute("set synchronous_commit = off")
            connection.execute(_PERIODS, [organization])
            connection.execute(_FILL, {"organization": organization, "events": EVENTS})
            stack.vacuum()
            _roll_up(stack)
            invoice = stack.value(_CLOSE, organization)
            stack.vacuum()
            seconds = [_verify(connection, organization, invoice, differs=False) for _ in range(ROUNDS)]
            connection.execute(_TAMPER, [organization])
            tampered = _verify(connection, organization, invoice, differs=True)
    figure = f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
    print(f"\nAn invoice of {EVENTS:,} events is verified in {figure}, with one that was changed in {tampered:.1f} s")
    budget = (at_most(" s", median(seconds), SECONDS),)
    return [
        Figure(f"verification of an invoice of {EVENTS:,} events", figure, budgets=budget),
        Figure("the same, with one event that somebody changed, which it names", f"{tampered:.1f} s"),
    ]


def _roll_up(stack: BenchStack) -> None:
    with psycopg.connect(stack.sidecar_database_url, autocommit=True) as connection:
        behind = True
        while behind:
            report: dict[str, Any] = (connection.execute("select metering.roll_up()").fetchone() or ({},))[0]
            behind = bool(report["behind"])


def _verify(connection: psycopg.Connection[Any], organization: object, invoice: object, *, differs: bool) -> float:
    started = perf_counter()
    row = connection.execute(_VERIFY, [organization, invoice]).fetchone()
    seconds = perf_counter() - started
    if row is None or (row[0] > 0) is not differs:
        raise RuntimeError(f"verification found {row and row[0]} differences")
    return seconds


if __name__ == "__main__":
    print_figures(measure())

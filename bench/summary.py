"""`python -m bench.summary`: the current period's summary, and the preview of its invoice, of 5 million events against
those of 50 thousand.

The events are written straight into the table, over all hours of the period so far and many groups; the rollup takes
them, which is timed. Then summaries are read, first with nothing else, then with the same number in the tail of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import psycopg

from bench.figures import Figure, at_most, print_figures
from bench.pgbench import Pgbench
from bench.rounds import Comparison, compare, show
from bench.stack import BenchStack, bench_stack
from bench.wrk import Wrk, require_wrk

ROUNDS: Final = 5
SECONDS: Final = 2
MANY: Final = 5_000_000
FEW: Final = 50_000
TAIL: Final = 1_000  # events of each that are not rolled up
CHUNK: Final = 250_000
STATEMENTS: Final = 10  # a transaction
TIMES: Final = 1.5
CHANGED: Final = 20.0  # milliseconds, where the plan changes in the month


@dataclass(frozen=True)
class Read:
    """A function of schema api, and how long it may take."""

    name: str
    function: str
    milliseconds: float


SUMMARY: Final = Read("summary", "usage_summary", 5.0)
PREVIEW: Final = Read("preview", "preview_invoice", 20.0)

_SUBJECT: Final = "{organization}|reader"

_PERIOD: Final = "select billing.ensure_periods(%s, date_trunc('month', now(), 'UTC'), now())"

# As quick as Postgres takes rows: what guards finalized periods is off, there are none.
_FILL: Final = """
  insert into metering.usage_events (
    organization_id, occurred_at, source, event_name, quantity, user_id, dimensions, recorded_generation
  )
  select
    %(organization)s, s.start + (now() - s.start) * (n::float8 / %(events)s), 'gateway', 'api.request', 1,
    'user-' || n %% 100,
    jsonb_build_object('endpoint', '/api/v1/e' || n %% 20, 'method', ('{GET,POST}'::text[])[1 + n %% 2]),
    (select max(generation) from metering.generations)
  from generate_series(%(first)s::integer, %(last)s::integer) n
  cross join (select date_trunc('month', now(), 'UTC')) as s (start)
"""


def measure() -> list[Figure]:
    """Raises RuntimeError when a summary is not what was written."""
    require_wrk()
    with bench_stack() as stack:
        _pause_rollups(stack)
        organizations = [_organization(stack, name) for name in ("many", "few")]
        for organization, events in zip(organizations, (MANY, FEW), strict=True):
            _fill(stack, organization, events)
        stack.vacuum()
        rollup = _roll_up(stack)
        stack.vacuum()
        many, few = organizations
        at_rest = [*_read(stack, many, few, 0), *_read_changed(stack, few)]
        for organization in organizations:
            _fill(stack, organization, TAIL)
        _require_total(stack, many, MANY + TAIL)
        return [rollup, *at_rest, *_read(stack, many, few, TAIL)]


def _read(stack: BenchStack, many: UUID, few: UUID, tail: int) -> list[Figure]:
    return [
        measure(stack, read, many, few, tail) for read in (SUMMARY, PREVIEW) for measure in (_over_sql, _over_postgrest)
    ]


def _read_changed(stack: BenchStack, few: UUID) -> list[Figure]:
    """A month that is cut by a change of plan, against one that is not."""
    changed = _organization(stack, "changed")
    _fill(stack, changed, FEW)
    _roll_up(stack, FEW)
    stack.value("select billing.start_subscription(%s, 'starter', 0, true, date_trunc('month', now(), 'UTC'))", changed)
    stack.value(
        "select billing.change_subscription(%s, 'pro', false, date_bin('1 hour', "
        "date_trunc('month', now(), 'UTC') + (now() - date_trunc('month', now(), 'UTC')) / 2, '2000-01-01') "
        "+ interval '7 minutes')",
        changed,
    )
    stack.vacuum()
    figures = []
    for read in (SUMMARY, PREVIEW):
        comparison = compare(ROUNDS, _calling(stack, read, changed).run, _calling(stack, read, few).run)
        cut, whole = (1000 / rate for rate in (comparison.our_median, comparison.reference_median))
        times = sorted(1 / ratio for ratio in comparison.ratios)
        title = f"{read.name} of {FEW:,} events in a month in which the plan changes, over SQL"
        show(title, comparison, f"{read.name}/s", ("changed", "not changed"))
        figures.append(
            Figure(
                title,
                f"{cut:.2f} ms",
                f"of a month of one plan, {whole:.2f} ms",
                f"{median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
                (at_most(" ms", cut, CHANGED),),
            )
        )
    return figures


def _pause_rollups(stack: BenchStack) -> None:
    """The sidecar would roll up meanwhile. Reads over PostgREST need none."""
    stack.stop("sidecar")


def _organization(stack: BenchStack, name: str) -> UUID:
    """One with a member who may read."""
    organization = stack.organization(name)
    stack.value(
        """
        with reader as (insert into tenancy.users (subject) values (%s) returning id)
        insert into tenancy.memberships (organization_id, user_id, role)
        select %s, id, 'billing' from reader
        returning 1
        """,
        _SUBJECT.format(organization=organization),
        organization,
    )
    return organization


def _fill(stack: BenchStack, organization: UUID, events: int) -> None:
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("set synchronous_commit = off")
        connection.execute(_PERIOD, [organization])
        for first in range(1, events + 1, CHUNK):
            last = min(first + CHUNK - 1, events)
            values = {"organization": organization, "events": events, "first": first, "last": last}
            connection.execute(_FILL, values)


def _roll_up(stack: BenchStack, events: int = MANY + FEW) -> Figure:
    """Everything that was written, in as many runs as it takes."""
    taken, started = 0, perf_counter()
    with psycopg.connect(stack.sidecar_database_url, autocommit=True) as connection:
        behind = True
        while behind:
            report: dict[str, Any] = (connection.execute("select metering.roll_up()").fetchone() or ({},))[0]
            behind = bool(report["behind"])
            taken += report["events"]
    seconds = perf_counter() - started
    if taken < events:
        raise RuntimeError(f"{taken:,} events were rolled up of {events:,}")
    print(f"\nRollup: {taken:,} events in {seconds:.0f} s, {taken / seconds:,.0f}/s")
    return Figure(f"rollup of {taken:,} events", f"{taken / seconds:,.0f} events/s")


def _require_total(stack: BenchStack, organization: UUID, expected: int) -> None:
    bounds = "array[date_trunc('month', now(), 'UTC'), date_trunc('month', now(), 'UTC') + interval '1 month']"
    query = f"select sum(quantity) from metering.measure(%s, {bounds})"  # noqa: S608 - a constant
    if (total := stack.value(query, organization)) != expected:
        raise RuntimeError(f"the summary says {total}, and {expected:,} were written")


def _over_sql(stack: BenchStack, read: Read, many: UUID, few: UUID, tail: int) -> Figure:
    ours, reference = (_calling(stack, read, organization).run for organization in (many, few))
    return _figure(read, "over SQL", tail, compare(ROUNDS, ours, reference))


def _calling(stack: BenchStack, read: Read, organization: UUID) -> Pgbench:
    major = stack.stack.settings.postgres_version
    return Pgbench(major, stack.database_url, _script(read, organization), STATEMENTS, SECONDS, connections=1)


def _over_postgrest(stack: BenchStack, read: Read, many: UUID, few: UUID, tail: int) -> Figure:
    def asking(organization: UUID) -> Wrk:
        token = stack.token(_SUBJECT.format(organization=organization))
        headers = (f"Authorization: Bearer {token}", f"X-Organization-ID: {organization}")
        target = f"{stack.postgrest_url}/rpc/{read.function}"
        return Wrk(read.name, target, headers, seconds=SECONDS, connections=1)

    return _figure(read, "over PostgREST", tail, compare(ROUNDS, asking(many).run, asking(few).run))


def _figure(read: Read, way: str, tail: int, comparison: Comparison) -> Figure:
    """Times, not rates: how long one takes."""
    ours, reference = (1000 / rate for rate in (comparison.our_median, comparison.reference_median))
    times = sorted(1 / ratio for ratio in comparison.ratios)
    title = f"{read.name} of {MANY:,} events{f', and {tail:,} that are not rolled up' if tail else ''}, {way}"
    show(title, comparison, f"{read.name}/s", ("5 million", "50 thousand"))
    return Figure(
        title,
        f"{ours:.2f} ms",
        f"of {FEW:,} events, {reference:.2f} ms",
        f"{median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
        (at_most(" times", median(times), TIMES), at_most(" ms", ours, read.milliseconds)),
    )


def _script(read: Read, organization: UUID) -> str:
    return "\n".join(
        (
            "begin;",
            f"select tenancy.enter('{_SUBJECT.format(organization=organization)}', 'member', '{organization}', null);",
            "set local role member;",
            r"\startpipeline",
            *(f"select * from api.{read.function}();" for _ in range(STATEMENTS)),  # noqa: S608 - one of ours
            r"\endpipeline",
            "commit;",
        )
    )


if __name__ == "__main__":
    print_figures(measure())

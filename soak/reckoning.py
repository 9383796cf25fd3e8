"""The comparison: what the load was told, plain events, and summaries. Nothing may differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import psycopg

from api.exporting.staff import enter, staff_snapshot
from api.release.catalog import Connection
from bench.stack import BenchStack
from soak.account import REQUEST_PREFIX, Account
from soak.clients import LATE_NAME, NAMES, Tenant
from soak.faults import Faults

Sums = dict[str, tuple[int, Decimal]]  # of a meter: events, quantity

METERED, UNMETERED = NAMES
METERS: Final = {"soak.sum": "sum", "soak.count": "count", "soak.max": "max", "soak.users": "unique"}
COMPARED: Final = ("sum", "count")  # what plain events can be added up to

_PLAIN: Final = """
  select
    m.code,
    sum(case e.event_type when 'void' then -1 else 1 end),
    sum(case when m.aggregation = 'sum' then e.quantity / m.unit_size when e.event_type = 'void' then -1 else 1 end)
  from api.billing_events e
  join metering.meters m on m.event_name = e.event_name and m.aggregation = any (%(compared)s)
  where e.organization_id = %(organization)s and e.occurred_at >= %(start)s and e.occurred_at < %(end)s
  group by m.code, m.aggregation, m.unit_size
  union all
  select e.event_name, sum(case e.event_type when 'void' then -1 else 1 end), sum(e.quantity)
  from api.billing_events e
  where e.organization_id = %(organization)s and e.occurred_at >= %(start)s and e.occurred_at < %(end)s
    and not exists (select from metering.meters m where m.event_name = e.event_name)
  group by e.event_name
"""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. Figures that are None are not known to that side."""

    whose: str
    what: str
    account: object
    events: object
    summary: object

    @property
    def agrees(self) -> bool:
        return len({figure for figure in (self.account, self.events, self.summary) if figure is not None}) == 1


def differences_now(stack: BenchStack, tenant: Tenant) -> list[str]:
    """Where the summaries of all periods differ from plain events in one snapshot, in the middle of everything."""
    with staff_snapshot(stack.database_url) as connection:
        return [
            f"{tenant.id} {what}: summary {summary.get(what)}, events {plain.get(what)}"
            for _, plain, summary in _periods(connection, tenant)
            for what in plain.keys() | (summary.keys() - _not_compared(connection))
            if plain.get(what) != summary.get(what)
        ]


def ledger(stack: BenchStack, account: Account, tenants: tuple[Tenant, ...]) -> Iterator[Entry]:
    """What each organization used, by the account, by plain events and by summaries."""
    with staff_snapshot(stack.database_url) as connection:
        for number, tenant in enumerate(tenants, 1):
            whose = f"organization {number}"
            periods = list(_periods(connection, tenant))
            plain, summary = _total(plain for _, plain, _ in periods), _total(summary for *_, summary in periods)
            not_compared = _not_compared(connection)
            told = _told(account, tenant)
            for what in sorted({*told, *plain, *(summary.keys() - not_compared)}):
                yield Entry(whose, what, told.get(what), plain.get(what, (0, 0)), summary.get(what, (0, 0)))
            if len(periods) <= 2:  # those of two months do not add up
                live = [event for event in account.live(tenant.id) if event.name == METERED]
                highest = max((event.quantity for event in live), default=0)
                for what, expected in (("soak.max", highest), ("soak.users", len({event.user for event in live}))):
                    yield Entry(whose, what, expected, None, int(summary.get(what, (0, Decimal()))[1]))
            yield _documents(stack, account, tenant, whose, plain)


def differences_of_requests(stack: BenchStack, account: Account, faults: Faults) -> tuple[list[str], dict[str, int]]:
    """What the gateway answered against what is recorded, and the figures that were compared."""
    recorded = _requests(stack)
    metered = _metered_events(stack)
    found: list[str] = []
    figures = {"asked": len(account.requests), "dropped by a full disk": faults.dropped}
    for name in metered:
        counts = recorded[name]
        expected = {
            request_id
            for request_id, asked in account.requests.items()
            if (asked.is_billed if name == "api.request" else asked.status)
        }
        may_be = {request_id for request_id, asked in account.requests.items() if not asked.status} | expected
        missing = [request_id for request_id in expected if not counts[request_id]]
        unexplained = [
            one for one in missing if not _was_full(faults, account.requests[one].began, account.requests[one].ended)
        ]
        figures |= {
            f"{name}: answered": len(expected),
            f"{name}: recorded": sum(counts.values()),
            f"{name}: answered while the disk was full, not recorded": len(missing),
        }
        if doubled := [one for one, times in counts.items() if times > 1]:
            found.append(f"{name}: {len(doubled)} requests are recorded twice, such as {doubled[0]}")
        if unexplained:
            found.append(f"{name}: {len(unexplained)} answered requests are not recorded, such as {unexplained[0]}")
        if len(missing) > faults.dropped:
            found.append(f"{name}: {len(missing)} are missing, and the sidecar says it dropped {faults.dropped}")
        if strange := counts.keys() - may_be:
            found.append(f"{name}: {len(strange)} are recorded that are not to be billed, such as {min(strange)}")
    return found, figures


def _periods(connection: Connection, tenant: Tenant) -> Iterator[tuple[datetime, Sums, Sums]]:
    enter(connection, tenant.id)
    periods = connection.execute(
        "select start_date, period_start, period_end from api.billing_periods where organization_id = %s order by 1",
        [tenant.id],
    ).fetchall()
    for start_date, start, end in periods:
        bounds = {"organization": tenant.id, "start": start, "end": end, "compared": list(COMPARED)}
        plain = _sums(connection.execute(_PLAIN, bounds).fetchall())
        query = "select meter, events, quantity from api.usage_summary(period_start => %s)"
        yield start, plain, _sums(connection.execute(query, [start_date]).fetchall())


def _sums(rows: list[tuple[Any, ...]]) -> Sums:
    """Without what was taken back as a whole, which a summary may or may not mention."""
    return {what: (int(events), Decimal(quantity)) for what, events, quantity in rows if events or quantity}


def _total(parts: Iterator[Sums]) -> Sums:
    total: Sums = {}
    for part in parts:
        for what, (events, quantity) in part.items():
            before = total.get(what, (0, Decimal()))
            total[what] = before[0] + events, before[1] + quantity
    return total


def _not_compared(connection: Connection) -> set[str]:
    query = "select code from metering.meters where aggregation <> all (%s) or event_name is null"
    return {str(row[0]) for row in connection.execute(query, [list(COMPARED)])}


def _told(account: Account, tenant: Tenant) -> Sums:
    told: Sums = {}
    for name, meters in ((METERED, ("soak.sum", "soak.count")), (UNMETERED, (UNMETERED,)), (LATE_NAME, (LATE_NAME,))):
        live = [event.quantity for event in account.live(tenant.id) if event.name == name]
        for meter in meters:
            told[meter] = len(live), Decimal(len(live) if meter == "soak.count" else sum(live))
    return {what: sums for what, sums in told.items() if sums[0]}


def _documents(stack: BenchStack, account: Account, tenant: Tenant, whose: str, plain: Sums) -> Entry:
    """The account is the table itself: a request without an answer has written its row, or has not."""
    with psycopg.connect(stack.database_url) as connection:
        rows = connection.execute("select title from app.documents where organization_id = %s", [tenant.id]).fetchall()
    titles = Counter(str(title) for (title,) in rows)
    lost = [title for title, is_there in account.documents.items() if is_there and titles.get(title, 1) != 1]
    if lost:
        account.surprise(f"{whose}: {len(lost)} documents were answered and are not there once, such as {lost[0]}")
    return Entry(whose, "documents", len(rows), plain.get("doc.upload", (0, Decimal()))[0], None)


def _requests(stack: BenchStack) -> dict[str, Counter[str]]:
    recorded: dict[str, Counter[str]] = {"api.request": Counter(), "traffic.bytes": Counter()}
    query = """
      select event_name, request_id, count(*)
      from metering.usage_events
      where source = 'gateway' and event_name in ('api.request', 'traffic.bytes') and request_id like %s
      group by 1, 2
    """
    with psycopg.connect(stack.database_url) as connection:
        for name, request_id, times in connection.execute(query, [f"{REQUEST_PREFIX}%"]):
            recorded[name][request_id] = times
    return recorded


def _metered_events(stack: BenchStack) -> tuple[str, ...]:
    """Traffic is metered by versions that have it."""
    query = (
        "select exists (select from metering.usage_events where source = 'gateway' and event_name = 'traffic.bytes')"
    )
    return ("api.request", "traffic.bytes") if stack.value(query) else ("api.request",)


def _was_full(faults: Faults, began: float, ended: float) -> bool:
    return any(began < end and ended > start for start, end in faults.full)

"""What the tests of usage reports say again and again: whose usage Stripe bills, what was reported of it, and a Stripe
that remembers what it was told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from tests.usage import Connection, value

Report = dict[str, Any]


def link(superuser: Connection, organization: UUID, *, mode: str = "stripe_meters", customer: str | None = None) -> str:
    """An organization whose invoices are made by Stripe, or not, and who it is there."""
    customer = customer or f"cus_{organization.hex}"
    superuser.execute(
        """
        insert into billing.billing_terms (organization_id, invoice_mode) values (%s, %s)
        on conflict (organization_id) do update set invoice_mode = excluded.invoice_mode
        """,
        [organization, mode],
    )
    superuser.execute(
        "insert into stripe.customers (organization_id, id, is_live, linked_by) values (%s, %s, false, 'test')",
        [organization, customer],
    )
    return customer


def register(superuser: Connection, *meters: str) -> None:
    """Meters that Stripe has, under our names."""
    for meter in meters:
        superuser.execute(
            "insert into stripe.meters (meter_code, id, event_name) values (%s, %s, %s) on conflict do nothing",
            [meter, f"mtr_{meter}", meter],
        )


def build(sidecar: Connection, organization: UUID | None = None, *, unended: bool = True) -> int:
    """Make reports of all that is queued. Returns how many there are."""
    made: int = 0
    while True:
        found = sidecar.execute(
            "select meters, made from stripe.build_reports(false, 1000, %s, %s)", [organization, unended]
        ).fetchone()
        assert found
        made += int(found[1])
        if not found[0]:
            return made


def claim(sidecar: Connection, organization: UUID | None = None, *, meters: int = 100, each: int = 100) -> list[Report]:
    with sidecar.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select * from stripe.claim_reports(false, %s, %s, '1 minute', %s)", [meters, each, organization]
        ).fetchall()


def record(sidecar: Connection, report: Report, outcome: str, message: str | None = None, pause: float = 0) -> None:
    told = {"identifier": report["identifier"], "attempts": report["attempts"], "outcome": outcome}
    sidecar.execute(
        "select stripe.record_reports(%s::jsonb)", [json.dumps([told | {"message": message, "pause": pause}])]
    )


def reports(superuser: Connection, organization: UUID, meter: str | None = None) -> list[Report]:
    with superuser.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """
            select * from stripe.meter_event_reports
            where organization_id = %s and meter_code = coalesce(%s, meter_code)
            order by meter_code, bucket_start, sequence
            """,
            [organization, meter],
        ).fetchall()


def accounted(superuser: Connection, organization: UUID, meter: str, period_start: datetime) -> Decimal:
    """What reports say of a period, with what is carried, as the meter reads it: it is what was recorded."""
    found: Decimal = value(
        superuser,
        """
        select
          coalesce(sum(r.units), 0) * metering.value_of_unit(m.aggregation, m.unit_size)
            + coalesce(max(p.carried - p.passed_on - p.credited), 0)
        from metering.meters m
        left join stripe.report_periods p on p.organization_id = %s and p.meter_code = m.code and p.period_start = %s
        left join lateral (
          select sum(e.quantity) as units from stripe.meter_event_reports e
          where e.organization_id = p.organization_id and e.meter_code = p.meter_code
            and e.period_start = p.period_start and e.status not in ('canceled', 'canceling')
        ) as r on true
        where m.code = %s
        group by m.code
        """,
        organization,
        period_start,
        meter,
    )
    return found


@dataclass
class Remembered:
    """What Stripe has: units by identifier, and what it can cancel no more."""

    units: dict[str, Decimal] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    def take(self, report: Report) -> str:
        """What it answers. Whoever sends the same again hears that it is there."""
        identifier = report["identifier"]
        if report["status"] == "canceling":
            if identifier in self.kept or identifier not in self.units:
                return "refused"
            del self.units[identifier]
        else:
            self.units.setdefault(identifier, report["quantity"])
        return "sent"

    def total(self, superuser: Connection, organization: UUID, meter: str) -> Decimal:
        return sum(
            (self.units.get(r["identifier"], Decimal(0)) for r in reports(superuser, organization, meter)), Decimal(0)
        )


def settle(superuser: Connection, sidecar: Connection, stripe: Remembered, organization: UUID | None = None) -> int:
    """Send all there is, and answer it at once. Returns how many attempts it took."""
    attempts = 0
    while True:
        superuser.execute("update stripe.meter_event_reports set claimed_until = null, next_attempt_at = now()")
        claimed = claim(sidecar, organization)
        if not claimed:
            return attempts
        for report in claimed:
            record(sidecar, report, stripe.take(report))
            attempts += 1


def posted(superuser: Connection, organization: UUID, name: str = "api.request") -> list[int]:
    """Status of events by view billing_events, the oldest first."""
    with superuser.cursor() as cursor:
        return [
            status
            for (status,) in cursor.execute(
                """
                select status from api.billing_events where organization_id = %s and event_name = %s
                order by created_at, id
                """,
                [organization, name],
            ).fetchall()
        ]

"""Invariant 12: usage reported equals usage recorded. Whatever is recorded, taken back, or replaced, in whatever order
reports are made of it, sent, lost, refused and sent again: what Stripe has, with what is carried, is what was used.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all, void
from tests.usage import Connection, event, finalize, ingest, moment, month, value
from tests.usage_reports import (
    Remembered,
    accounted,
    build,
    claim,
    link,
    record,
    register,
    reports,
    settle,
)

ZERO = Decimal(0)
METERS = """
insert into metering.meters
  (code, event_name, aggregation, value, group_by, allow_negative, unit, unit_size, description) values
  ('t.thirds', 't', 'sum', 'quantity', '{k}', false, 'unit', 3, 'test'),
  ('t.parts', 't', 'sum', 'quantity', '{}', false, 'unit', 0.7, 'test'),
  ('t.count', 't', 'count', 'quantity', '{}', false, 'unit', 1, 'test'),
  ('t.max', 't', 'max', 'quantity', '{}', false, 'unit', 1, 'test'),
  ('t.latest', 't', 'latest', 'quantity', '{}', false, 'unit', 2, 'test'),
  ('t.unique', 't', 'unique', 'user_id', '{}', false, 'unit', 1, 'test'),
  ('t.hours', 's', 'weighted_sum', 'quantity', '{}', true, 'unit-hour', 1, 'test')
"""
ADDED = ("t.thirds", "t.parts", "t.count")
CODES = (*ADDED, "t.max", "t.latest", "t.unique")
UNIT = defaultdict(lambda: Decimal(1), {"t.thirds": Decimal(3), "t.parts": Decimal("0.7"), "t.latest": Decimal(2)})


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Any:
    with shared_database.connect() as connection:
        connection.execute(METERS)
        register(connection, *CODES)
        yield connection


def recorded(superuser: Connection, organization: UUID) -> dict[str, Decimal]:
    """Of the current month, by nothing but the rows. As the meters read it."""
    rows = superuser.execute(
        """
        select event_type, id, corrects, quantity, user_id, occurred_at from metering.usage_events
        where organization_id = %s and event_name = 't' and occurred_at >= %s
        """,
        [organization, moment()],
    ).fetchall()
    voided = {row[2] for row in rows if row[0] == "void"}
    left = [row for row in rows if row[0] != "void" and row[1] not in voided]
    whole = sum((row[3] for row in rows), ZERO)
    usage = [row for row in left if row[0] == "usage"]
    return {
        "t.thirds": whole,
        "t.parts": whole,
        "t.count": Decimal(sum(-1 if row[0] == "void" else 1 for row in rows)),
        "t.max": max((row[3] for row in left), default=ZERO),
        "t.latest": max(usage, key=lambda row: (row[5], row[1]))[3] if usage else ZERO,
        "t.unique": Decimal(len({row[4] for row in left})),
    }


def some_events(chance: random.Random, batch: int) -> list[dict[str, Any]]:
    since = max(moment(), datetime.now(UTC) - timedelta(days=4))
    seconds = int((datetime.now(UTC) - since).total_seconds())
    return [
        event(
            f"{batch}-{n}",
            since + timedelta(seconds=chance.randrange(seconds) if seconds else 0),
            name="t",
            quantity=chance.choice((1, 2, 7.25, 0.4, 100)),
            user_id=f"u{chance.randrange(9)}",
            dimensions={"k": str(chance.randrange(3))},
        )
        for n in range(chance.choice((1, 2, 10)))
    ]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_in_whatever_order(
    superuser: Connection,
    sidecar: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    seed: int,
) -> None:
    chance = random.Random(seed)
    organization = make_organization(shared_database, roles=("owner",)).id
    link(superuser, organization)
    stripe = Remembered()
    sent: list[list[str]] = []

    def record_some() -> None:
        events = some_events(chance, len(sent))
        sent.append([one["id"] for one in events])
        ingest(sidecar, events, organization)

    def take_back() -> None:
        if sent:
            key = chance.choice(chance.choice(sent))
            try:
                void(sidecar, organization, key)
            except Exception as error:
                assert "EVENT_AMENDED" in str(error)

    def replace() -> None:
        if sent:
            batch = chance.choice(sent)
            key, new = chance.choice(batch), f"new-{uuid4()}"
            instead = json.dumps({"id": new, "event": "t", "quantity": chance.randrange(1, 50), "user_id": "u1"})
            try:
                sidecar.execute("select metering.amend_event(%s, %s, %s::jsonb)", [organization, key, instead])
                batch.append(new)
            except Exception as error:
                assert "EVENT_VOIDED" in str(error) or "EVENT_AMENDED" in str(error)

    def roll_up() -> None:
        sidecar.execute("select metering.roll_up(%s)", [chance.choice((1, 5, 1000))])

    def make_reports() -> None:
        build(sidecar, organization)

    def make_none() -> None:
        """Killed before it was committed."""
        with shared_database.connect("sidecar", autocommit=False) as killed:
            killed.execute("select stripe.build_reports(false, 1000, %s, true)", [organization])
            killed.rollback()

    def send() -> None:
        for report in claim(sidecar, organization, meters=chance.choice((1, 100)), each=chance.choice((1, 5))):
            match chance.randrange(7):
                case 0:  # killed between sending and recording
                    stripe.take(report)
                case 1:
                    record(sidecar, report, "busy", "slower")
                case 2:
                    stripe.take(report)
                    record(sidecar, report, "unknown", "no answer")
                case 3:
                    record(sidecar, report, "unknown", "no answer")
                case 4 if report["status"] == "pending" and report["identifier"] not in stripe.units:
                    record(sidecar, report, "refused", "no")
                case _:
                    record(sidecar, report, stripe.take(report))
        superuser.execute(
            """
            update stripe.meter_event_reports set claimed_until = null, next_attempt_at = now()
            where organization_id = %s
            """,
            [organization],
        )

    def grow_old() -> None:
        aged = superuser.execute(
            """
            update stripe.meter_event_reports set acknowledged_at = now() - interval '24 hours'
            where organization_id = %s and status in ('acknowledged', 'canceling') returning identifier
            """,
            [organization],
        ).fetchall()
        stripe.kept.update(identifier for (identifier,) in aged)

    def find_fault() -> None:
        theirs = [r for r in reports(superuser, organization) if r["identifier"] in stripe.units]
        if theirs:
            identifier = chance.choice(theirs)["identifier"]
            del stripe.units[identifier]
            complain(superuser, {identifier: "no such customer"})

    def send_again() -> None:
        superuser.execute("select stripe.resend_reports(%s, '{rejected}')", [organization])

    steps = (record_some,) * 4 + (take_back, take_back, replace, roll_up, roll_up, make_reports, make_reports) + (
        send, send, send, make_none, grow_old, find_fault, send_again,
    )  # fmt: skip
    for _ in range(60):
        chance.choice(steps)()

    # Then Stripe is well, and all of it arrives.
    for _ in range(3):
        roll_up_all(sidecar)
        send_again()
        build(sidecar, organization)
        superuser.execute("select stripe.settle_report_periods(false)")
        settle(superuser, sidecar, stripe, organization)
    live = {r["identifier"]: r["quantity"] for r in reports(superuser, organization) if r["status"] != "canceled"}
    assert live == stripe.units
    used = recorded(superuser, organization)
    for code in CODES:
        assert accounted(superuser, organization, code, moment()) == used[code], code
        carried = value(
            superuser,
            """
            select coalesce(sum(carried), 0) from stripe.report_periods
            where organization_id = %s and meter_code = %s
            """,
            organization,
            code,
        )
        assert stripe.total(superuser, organization, code) * UNIT[code] + carried == used[code], code
        assert carried < UNIT[code], code
        states = {report["status"] for report in reports(superuser, organization, code)}
        assert states <= {"acknowledged", "canceled"}


@pytest.mark.parametrize("seed", range(4))
def test_a_month_is_closed_in_the_middle_of_it(
    superuser: Connection,
    sidecar: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    seed: int,
) -> None:
    """What comes late, and is taken back late, counts in the open month; what is then too much is credited."""
    chance = random.Random(seed)
    organization = make_organization(shared_database, roles=("owner",)).id
    link(superuser, organization)
    stripe = Remembered()
    sent: list[str] = []
    keys = (f"event {n}" for n in count())
    is_closed = False

    def record_some() -> None:
        for _ in range(chance.choice((1, 3))):
            sent.append(next(keys))
            at = moment(1, hours=chance.randrange(600)) if chance.random() < 0.6 else None
            one = event(sent[-1], at, name="t", quantity=chance.choice((1, 2.5, 40)), user_id=f"u{chance.randrange(5)}")
            assert ingest(sidecar, [one], organization, late="adjust").accepted == 1

    def take_back() -> None:
        if sent:
            sidecar.execute(
                "select metering.void_event(%s, %s, 'api', 'adjust')",
                [organization, sent.pop(chance.randrange(len(sent)))],
            )

    def roll_up() -> None:
        sidecar.execute("select metering.roll_up(%s)", [chance.choice((1, 5, 1000))])

    def make_reports() -> None:
        build(sidecar, organization)
        superuser.execute("select stripe.settle_report_periods(false)")

    def send() -> None:
        settle(superuser, sidecar, stripe, organization)

    def grow_old() -> None:
        superuser.execute(
            """
            update stripe.meter_event_reports set acknowledged_at = now() - interval '24 hours'
            where organization_id = %s and status in ('acknowledged', 'canceling')
            """,
            [organization],
        )
        stripe.kept.update(stripe.units)

    steps = (record_some,) * 3 + (take_back, take_back, roll_up, roll_up, make_reports, make_reports, send, grow_old)
    closes_at = chance.randrange(10, 40)
    for n in range(50):
        if n == closes_at:
            finalize(superuser, organization, month(1))
            is_closed = True
        chance.choice(steps)()
    assert is_closed
    for _ in range(3):
        roll_up_all(sidecar)
        make_reports()
        send()

    live = {r["identifier"]: r["quantity"] for r in reports(superuser, organization) if r["status"] != "canceled"}
    assert live == stripe.units
    for months_ago in (1, 0):
        rows = superuser.execute(
            """
            select coalesce(sum(quantity), 0), count(*) filter (where event_type <> 'void')
              - count(*) filter (where event_type = 'void')
            from metering.usage_events
            where organization_id = %s and event_name = 't' and occurred_at >= %s and occurred_at < %s
            """,
            [organization, moment(months_ago), moment(months_ago - 1)],
        ).fetchone()
        assert rows
        for code in ADDED:
            used = rows[1] if code == "t.count" else rows[0]
            assert accounted(superuser, organization, code, moment(months_ago)) == used, (code, months_ago)
    left = (
        "select count(*) from stripe.report_periods where organization_id = %s and period_start = %s and carried <> 0"
    )
    assert value(superuser, left, organization, moment(1)) == 0, "nothing is carried in a period that is closed"


def complain(superuser: Connection, errors: dict[str, str]) -> None:
    """As Stripe tells of what is wrong with meter events."""
    payload = {
        "id": f"evt_{uuid4()}",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": datetime.now(UTC).isoformat(),
        "livemode": False,
        "data": {
            "reason": {
                "error_count": len(errors),
                "error_types": [
                    {
                        "code": "meter_event_customer_not_found",
                        "error_count": len(errors),
                        "sample_errors": [
                            {"error_message": text, "request": {"identifier": identifier}}
                            for identifier, text in errors.items()
                        ],
                    }
                ],
            }
        },
    }
    outcome, message = superuser.execute(
        "select outcome, error_message from stripe.receive_events(%s, false)", [[json.dumps(payload)]]
    ).fetchone() or (None, None)
    assert outcome == "applied", message

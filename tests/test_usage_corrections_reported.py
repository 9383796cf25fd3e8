"""What is taken back after it was reported: first what Stripe has not got, then what it cancels, then later usage, and
when the period is over a credit. And whose invoice counts decides what is reported at all.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
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

METER = "api.request"
RATE = 25  # cents, as it is seeded


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Any:
    with shared_database.connect() as connection:
        register(connection, METER)
        yield connection


@pytest.fixture
def organization(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> UUID:
    made = make_organization(shared_database, roles=("owner",)).id
    link(superuser, made)
    return made


def use(sidecar: Connection, organization: UUID, *events: dict[str, Any], late: str = "reject") -> None:
    ingest(sidecar, events, organization, late=late)
    roll_up_all(sidecar)


def take_back(sidecar: Connection, organization: UUID, *keys: str) -> None:
    for key in keys:
        sidecar.execute("select metering.void_event(%s, %s, 'api', 'adjust')", [organization, key])
    roll_up_all(sidecar)


def by_status(superuser: Connection, organization: UUID) -> dict[str, list[Decimal]]:
    found: dict[str, list[Decimal]] = {}
    for report in reports(superuser, organization):
        found.setdefault(report["status"], []).append(report["quantity"])
    return {status: sorted(quantities) for status, quantities in found.items()}


def carried(superuser: Connection, organization: UUID, months_ago: int = 0) -> Decimal:
    found: Decimal = value(
        superuser,
        "select coalesce(sum(carried), 0) from stripe.report_periods where organization_id = %s and period_start = %s",
        organization,
        moment(months_ago),
    )
    return found


def grow_old(superuser: Connection, stripe: Remembered, organization: UUID) -> None:
    """It was a day ago: Stripe cancels none of it any more."""
    superuser.execute(
        """
        update stripe.meter_event_reports set acknowledged_at = now() - interval '25 hours'
        where organization_id = %s and status in ('acknowledged', 'canceling')
        """,
        [organization],
    )
    stripe.kept.update(stripe.units)


def tend(sidecar: Connection) -> None:
    sidecar.execute("select stripe.tend_reports(false, false)")


def credits(superuser: Connection, organization: UUID) -> list[tuple[Any, ...]]:
    return superuser.execute(
        "select meter_code, amount_cents, currency, status from stripe.invoice_items"
        " where organization_id = %s and kind = 'credit'",
        [organization],
    ).fetchall()


def test_what_was_not_sent_is_simply_not_sent(superuser: Connection, sidecar: Connection, organization: UUID) -> None:
    use(sidecar, organization, event("a", quantity=5), event("b", quantity=3))
    build(sidecar, organization)
    take_back(sidecar, organization, "b")
    build(sidecar, organization)
    assert by_status(superuser, organization) == {"canceled": [8], "pending": [5]}
    assert [report["quantity"] for report in claim(sidecar, organization)] == [5]


def test_what_was_sent_is_canceled_and_the_rest_reported_anew(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", quantity=5), event("b", quantity=3))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    take_back(sidecar, organization, "a")
    build(sidecar, organization)
    assert by_status(superuser, organization) == {"canceling": [8], "pending": [3]}
    settle(superuser, sidecar, stripe, organization)
    assert by_status(superuser, organization) == {"canceled": [8], "acknowledged": [3]}
    assert stripe.total(superuser, organization, METER) == 3


def test_the_fewest_are_canceled(superuser: Connection, sidecar: Connection, organization: UUID) -> None:
    stripe = Remembered()
    for n, quantity in enumerate((1, 2, 4, 50, 6)):
        use(sidecar, organization, event(f"{n}", quantity=quantity))
        build(sidecar, organization)
        settle(superuser, sidecar, stripe, organization)
    take_back(sidecar, organization, "2")
    build(sidecar, organization)
    # The smallest one that is enough, as it happens.
    assert by_status(superuser, organization) == {"acknowledged": [1, 2, 6, 50], "canceling": [4]}
    take_back(sidecar, organization, "3", "4")
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    # 56 take two: the largest, and of the rest the smallest one that is enough.
    assert by_status(superuser, organization) == {"acknowledged": [1, 2], "canceled": [4, 6, 50]}
    assert stripe.total(superuser, organization, METER) == 3


def test_what_stripe_cancels_no_more_later_usage_takes_off(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", quantity=10))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    grow_old(superuser, stripe, organization)
    take_back(sidecar, organization, "a")
    assert build(sidecar, organization) == 0
    assert carried(superuser, organization) == -10
    use(sidecar, organization, event("b", quantity=4))
    build(sidecar, organization)
    assert carried(superuser, organization) == -6
    use(sidecar, organization, event("c", quantity=8))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    assert carried(superuser, organization) == 0
    assert stripe.total(superuser, organization, METER) == 12


def test_what_stripe_refuses_to_cancel_counts_again(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", quantity=10), event("b", quantity=2))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    take_back(sidecar, organization, "a")
    stripe.kept.update(stripe.units)
    build(sidecar, organization)
    for _ in range(3):
        settle(superuser, sidecar, stripe, organization)
        tend(sidecar)
        assert accounted(superuser, organization, METER, moment()) == 2
    # 12, and the 2 that were reported anew before it refused; those are taken back.
    assert by_status(superuser, organization) == {"acknowledged": [12], "canceled": [2]}
    assert carried(superuser, organization) == -10
    assert stripe.total(superuser, organization, METER) == 12


def test_what_is_left_at_the_end_is_credited(
    superuser: Connection, sidecar: Connection, shared_database: Database, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", moment(1, days=2), quantity=10), event("b", moment(1, days=3), quantity=4))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    grow_old(superuser, stripe, organization)
    take_back(sidecar, organization, "a")
    build(sidecar, organization)
    assert credits(superuser, organization) == []
    finalize(superuser, organization, month(1))
    tend(sidecar)
    assert credits(superuser, organization) == [(METER, -10 * RATE, "usd", "pending")]
    assert carried(superuser, organization, 1) == 0
    assert accounted(superuser, organization, METER, moment(1)) == 4
    tend(sidecar)
    assert len(credits(superuser, organization)) == 1


def test_a_period_waits_for_what_stripe_says_of_cancels(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", moment(1, days=2), quantity=10))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    take_back(sidecar, organization, "a")
    build(sidecar, organization)
    stripe.kept.update(stripe.units)
    finalize(superuser, organization, month(1))
    tend(sidecar)
    closed = "select count(*) from stripe.report_periods where organization_id = %s and closed_at is not null"
    assert value(superuser, closed, organization) == 0
    (canceling,) = claim(sidecar, organization)
    assert canceling["status"] == "canceling"
    record(sidecar, canceling, "refused", "too late")
    tend(sidecar)
    assert value(superuser, closed, organization) == 1
    assert credits(superuser, organization) == [(METER, -10 * RATE, "usd", "pending")]


def test_a_fraction_goes_on_to_the_next_period(superuser: Connection, sidecar: Connection, organization: UUID) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", moment(1, days=2), quantity=1.75))
    build(sidecar, organization)
    assert carried(superuser, organization, 1) == Decimal("0.75")
    finalize(superuser, organization, month(1))
    tend(sidecar)
    assert carried(superuser, organization, 1) == 0
    assert carried(superuser, organization) == Decimal("0.75")
    use(sidecar, organization, event("b", quantity=0.25))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    assert stripe.total(superuser, organization, METER) == 2
    assert accounted(superuser, organization, METER, moment(1)) == Decimal("1.75")
    assert accounted(superuser, organization, METER, moment()) == Decimal("0.25")


def test_late_usage_of_a_finalized_period_is_reported_in_the_open_one(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("a", moment(1, days=2), quantity=3))
    build(sidecar, organization)
    finalize(superuser, organization, month(1))
    use(sidecar, organization, event("late", moment(1, days=5), quantity=2), late="adjust")
    take_back(sidecar, organization, "a")
    build(sidecar, organization)
    assert [r["quantity"] for r in reports(superuser, organization) if r["period_start"] == moment(1)] == [3]
    assert carried(superuser, organization) == -1, "3 were taken back, 2 came"
    use(sidecar, organization, event("now", quantity=5))
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    assert stripe.total(superuser, organization, METER) == 7
    assert accounted(superuser, organization, METER, moment()) == 4


def test_nothing_of_a_period_of_ours_is_reported(
    superuser: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Whose invoice counts is the period's, for ever, whatever the terms say now."""
    turned = make_organization(shared_database, roles=("owner",)).id
    link(superuser, turned, mode="local")
    use(sidecar, turned, event("ours", moment(1, days=2), quantity=3))
    superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_meters' where organization_id = %s", [turned]
    )
    use(sidecar, turned, event("theirs", quantity=5), event("ours too", moment(1, days=3), quantity=2))
    build(sidecar, turned)
    superuser.execute("select stripe.queue_missing_reports()")
    # A row that should not be there.
    superuser.execute(
        "insert into stripe.report_queue (organization_id, meter_code, bucket_start) values (%s, %s, %s)",
        [turned, METER, moment(1, days=2)],
    )
    build(sidecar, turned)
    assert [(r["quantity"], r["period_start"]) for r in reports(superuser, turned)] == [(5, moment())]
    finalize(superuser, turned, month(1))
    invoice = "select kind, total_cents from billing.invoices where organization_id = %s and period_start = %s"
    assert superuser.execute(invoice, [turned, moment(1)]).fetchall() == [("invoice", 5 * RATE)]
    # What comes late for it is billed where it counts: at Stripe, once.
    use(sidecar, turned, event("late", moment(1, days=4), quantity=7), late="adjust")
    build(sidecar, turned)
    assert sum(r["quantity"] for r in reports(superuser, turned)) == 12

    back = make_organization(shared_database, roles=("owner",)).id
    link(superuser, back)
    use(sidecar, back, event("theirs", moment(1, days=2), quantity=3))
    superuser.execute("update billing.billing_terms set invoice_mode = 'local' where organization_id = %s", [back])
    use(sidecar, back, event("ours", quantity=5))
    build(sidecar, back)
    assert [(r["quantity"], r["period_start"]) for r in reports(superuser, back)] == [(3, moment(1))]

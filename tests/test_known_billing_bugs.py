"""Mistakes that other billing systems have made, as they were told in their trackers, each as a case of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.ledger import LONG_AGO, Ledger, Terms
from tests.meters import void
from tests.usage import Connection, event, finalize, ingest, moment, month, value

MICROSECOND = timedelta(microseconds=1)
EACH: Terms = {"model": "per_unit", "unit_amount_cents": 1, "included_quantity": 0}


@pytest.fixture
def ledger(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> Iterator[Ledger]:
    made = Ledger(superuser, shared_database, make_organization)
    made.begin()
    yield made


def total(ledger: Ledger, organization: UUID, months_ago: int) -> Decimal:
    return sum((amount for lines in ledger.lines(organization, months_ago).values() for amount in lines), Decimal())


def test_two_prices_of_one_meter_are_not_both_charged(ledger: Ledger, superuser: Connection) -> None:
    """Two charges on one metric: a price for everybody, and one of the plan, bill the same usage twice."""
    code = ledger.meter(EACH)
    superuser.execute(
        """
        insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
        values (%s, 'usd', %s, 50)
        """,
        [code, LONG_AGO],
    )
    organization = ledger.organization()
    ledger.send(organization, [(code, Decimal(3), moment(1, days=2))])
    assert ledger.lines(organization, 1) == {("usage", code): [3]}


def test_a_period_far_from_utc_has_one_invoice(ledger: Ledger, superuser: Connection) -> None:
    """Asked for at a date that is another one at the customer's, the same period was billed a second time."""
    zone = ZoneInfo("Pacific/Apia")
    code = ledger.meter(EACH)
    organization = ledger.organization(zone.key)
    edge = datetime.combine(month(1), datetime.min.time(), zone).astimezone(UTC)
    assert edge.date() < month(1), "still the last day of the month before in UTC"
    ledger.send(organization, [(code, Decimal(1), edge), (code, Decimal(2), edge - MICROSECOND)])
    earlier, first, again = (finalize(superuser, organization, month(ago)) for ago in (2, 1, 1))
    assert [earlier.total_cents, first.total_cents] == [2, 1]
    assert again == first
    assert value(superuser, "select count(*) from billing.invoices where organization_id = %s", organization) == 2
    with pytest.raises(psycopg.Error, match="PERIOD_NOT_FOUND"):
        finalize(superuser, organization, edge.date())


def test_the_last_moment_belongs_to_its_month_and_the_next_one_does_not(ledger: Ledger, superuser: Connection) -> None:
    """Closed upper bounds: what happens just at the end is on two invoices; or the last day is on none."""
    zone = ZoneInfo("America/St_Johns")
    code = ledger.meter(EACH)
    organization = ledger.organization(zone.key)
    edge = datetime.combine(month(1), datetime.min.time(), zone).astimezone(UTC)
    ledger.send(organization, [(code, Decimal(10), edge - MICROSECOND), (code, Decimal(1), edge)])
    assert [finalize(superuser, organization, month(ago)).total_cents for ago in (2, 1)] == [10, 1]


def test_the_thirty_first_comes_back_after_february(superuser: Connection) -> None:
    """31 → 28 → 28 …: after the first short month the anchor was forgotten, or billing stopped."""
    year = month(12).year
    starts = superuser.execute(
        """
        select (b.period_start at time zone 'UTC')::date
        from generate_series(1, 12) as m (n),
          billing.period_bounds('UTC', 31, make_timestamptz(%s, m.n, 15, 0, 0, 0, 'UTC')) b
        """,
        [year],
    ).fetchall()
    ends = [date(year, number, 1) - timedelta(days=1) for number in range(1, 13)]
    assert [start for (start,) in starts] == ends


def test_usage_after_the_invoice_is_neither_lost_nor_forgotten(ledger: Ledger, superuser: Connection) -> None:
    """Late events of an invoiced period were dropped without a word, or changed the invoice."""
    code = ledger.meter(EACH)
    organization = ledger.organization()
    ledger.send(organization, [(code, Decimal(5), moment(1, days=2))])
    invoice = finalize(superuser, organization, month(1))
    late = event("late", moment(1, days=3), name=code, quantity=7)
    assert [each.code for each in ingest(superuser, [late], organization).rejected] == ["BILLING_PERIOD_LOCKED"]
    assert ingest(superuser, [late], organization, late="adjust").accepted == 1
    assert finalize(superuser, organization, month(1)) == invoice
    assert ledger.lines(organization, 0) == {("adjustment", code): [7]}


def test_sums_are_not_those_of_binary_fractions(ledger: Ledger, superuser: Connection) -> None:
    """0.1 + 0.2, and ever so many hundredths: in floats they end a little above or below the boundary they reach."""
    code = ledger.meter(
        {
            "model": "graduated",
            "included_quantity": 0,
            "tiers": [
                {"up_to": Decimal("20.3"), "unit_amount_cents": 0, "flat_amount_cents": 0},
                {"up_to": None, "unit_amount_cents": 0, "flat_amount_cents": 100_000},
            ],
        }
    )
    organization = ledger.organization()
    at = moment(1, days=2)
    parts = [*[Decimal("0.01")] * 2000, Decimal("0.1"), Decimal("0.2")]
    assert sum(map(float, parts)) != 20.3
    ledger.send(organization, [(code, part, at) for part in parts])
    assert total(ledger, organization, 1) == 0, "exactly up to the boundary"
    ledger.send(organization, [(code, Decimal("0.000000000000000001"), at)])
    assert total(ledger, organization, 1) == 100_000


def test_events_are_not_rounded_one_by_one(ledger: Ledger) -> None:
    """A thousand times 0.4 cents is four units of money, and not nothing."""
    code = ledger.meter({**EACH, "unit_amount_cents": Decimal("0.4")})
    organization = ledger.organization()
    ledger.send(organization, [(code, Decimal(1), moment(1, days=2))] * 1000)
    assert total(ledger, organization, 1) == 400


def test_a_price_that_changes_within_a_month_counts_from_the_next(ledger: Ledger, superuser: Connection) -> None:
    """The whole month at the new price, or the invoice of the last one rated again by it."""
    code = ledger.meter(EACH)
    organization = ledger.organization()
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")  # such a price is made in advance
        superuser.execute(
            """
            insert into billing.prices (meter_code, plan_code, currency, effective_from, unit_amount_cents)
            values (%s, %s, 'usd', %s, 100)
            """,
            [code, ledger.plan, moment(2, days=10)],
        )
    ledger.send(organization, [(code, Decimal(2), moment(ago, days=20)) for ago in (2, 1)])
    assert [finalize(superuser, organization, month(ago)).total_cents for ago in (2, 1)] == [2, 200]


def test_usage_of_a_deleted_meter_is_still_billed(ledger: Ledger, superuser: Connection) -> None:
    """With its metric a charge was gone, and what had been used until then was never on an invoice."""
    code = ledger.meter(EACH)
    organization = ledger.organization()
    ledger.send(organization, [(code, Decimal(3), moment(1, days=2))])
    superuser.execute("update metering.meters set deleted_at = clock_timestamp() where code = %s", [code])
    ledger.send(organization, [(code, Decimal(50), moment(1, days=3))])
    assert finalize(superuser, organization, month(1)).total_cents == 3


def test_what_is_voided_after_the_invoice_is_paid_back(ledger: Ledger, superuser: Connection) -> None:
    """The event was gone and its money kept; or it was taken off the next month's own usage, at that month's price."""
    code = ledger.meter(EACH)
    organization = ledger.organization()
    ingest(superuser, [event("wrong", moment(1, days=2), name=code, quantity=7)], organization)
    invoice = finalize(superuser, organization, month(1))
    with pytest.raises(psycopg.Error, match="BILLING_PERIOD_LOCKED"):
        void(superuser, organization, "wrong")
    superuser.execute("select metering.void_event(%s, 'wrong', 'api', 'adjust')", [organization])
    superuser.execute("select metering.void_event(%s, 'wrong', 'api', 'adjust')", [organization])
    assert finalize(superuser, organization, month(1)) == invoice
    assert ledger.lines(organization, 0) == {("adjustment", code): [-7]}


def test_an_empty_month_between_two_is_not_skipped(ledger: Ledger, superuser: Connection) -> None:
    """Numbers without a gap, periods in their order: a month without usage stopped billing, or doubled the next one."""
    code = ledger.meter(EACH)
    organization = ledger.organization()
    ledger.send(organization, [(code, Decimal(2), moment(ago, days=20)) for ago in (3, 1)])
    with pytest.raises(psycopg.Error, match="PERIOD_OUT_OF_ORDER"):
        finalize(superuser, organization, month(1))
    closed = [finalize(superuser, organization, month(ago)) for ago in (3, 2, 1)]
    assert [invoice.total_cents for invoice in closed] == [2, 0, 2]
    assert [int(invoice.number[5:]) for invoice in closed] == [1, 2, 3]


def test_a_seat_that_two_pay_for_is_shown_as_it_is_billed(ledger: Ledger, superuser: Connection) -> None:
    """Who moves to another account in the middle of a month paid for everybody twice, in the bill or in the usage."""
    code = ledger.meter({**EACH, "unit_amount_cents": 100, "included_quantity": 1}, aggregation="max")
    organization = ledger.organization(kind="personal")
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [moment(1, days=10), organization],
    )
    ledger.send(organization, [(code, Decimal(3), moment(1, days=2)), (code, Decimal(5), moment(1, days=20))])
    assert ledger.lines(organization, 1) == {("usage", code): [200, 200]}
    shown = superuser.execute(
        """
        select quantity, amount_cents
        from billing.usage_by_group(%s, %s, %s, false, '{}', jsonb_build_object('meter', jsonb_build_array(%s::text)))
        """,
        [organization, moment(1), moment(0), code],
    ).fetchall()
    assert shown == [(5, 400)]


def test_each_of_two_payers_is_shown_what_is_on_their_invoice(ledger: Ledger, superuser: Connection) -> None:
    """Shown was their share by quantity of what the tiers came to for both."""
    code = ledger.meter({**EACH, "unit_amount_cents": 100, "included_quantity": 4})
    organization = ledger.organization(kind="personal")
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [moment(1, days=10), organization],
    )
    ledger.send(organization, [(code, Decimal(5), moment(1, days=2)), (code, Decimal(5), moment(1, days=20))])

    def shown(is_finalized: bool) -> dict[str, list[tuple[Decimal, Decimal]]]:
        return {
            payer: superuser.execute(
                "select quantity, amount_cents from billing.usage_by_group(%s, %s, %s, %s, '{}', %s)",
                [
                    organization,
                    moment(1),
                    moment(0),
                    is_finalized,
                    Jsonb({"billing_entity_type": [payer], "meter": [code]}),
                ],
            ).fetchall()
            for payer in ("user", "organization")
        }

    billed = {"user": [(Decimal(5), Decimal(100))], "organization": [(Decimal(5), Decimal(500))]}
    assert shown(False) == billed
    assert ledger.lines(organization, 1) == {("usage", code): [100, 500]}
    finalize(superuser, organization, month(1))
    assert shown(True) == billed

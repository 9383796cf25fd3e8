"""Money is numeric all the way: a line is rounded once, half away from zero; the total is the sum of its lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from threading import Event as Signal
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.usage import Connection, Event, event, finalize, ingest, moment, month, race, value

LONG_AGO = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
PRICE = """
  insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents) values (%s, %s, %s, %s::numeric)
"""
Line = tuple[str, int, Decimal | int, Decimal | int, Decimal | int]


@pytest.fixture(scope="module")
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def meter(connection: Connection, code: str, price: str | None, *, aggregation: str = "sum") -> None:
    connection.execute(
        "insert into metering.meters (code, event_name, aggregation, unit, description) values (%s, %s, %s, 'u', 'd')",
        [code, code, aggregation],
    )
    if price is not None:
        set_price(connection, code, price, LONG_AGO)


def set_price(connection: Connection, code: str, price: str, since: datetime, currency: str = "usd") -> None:
    connection.execute(PRICE, [code, currency, since, price])


def set_price_past_its_guard(connection: Connection, code: str, price: str, since: datetime) -> None:
    """As nobody may any more: one that takes the place of another in the past."""
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")
        set_price(connection, code, price, since)
        connection.execute("set local session_replication_role = origin")


def batch(name: str, quantities: list[str], at: datetime) -> str:
    """JSON with the quantities exactly as written."""
    events = (
        f'{{"id": "{name}-{index}", "event": "{name}", "time": "{at.isoformat()}", "quantity": {quantity}}}'
        for index, quantity in enumerate(quantities)
    )
    return f"[{', '.join(events)}]"


def lines(connection: Connection, invoice: UUID) -> list[Line]:
    return connection.execute(
        """
        select meter_code, events, quantity, unit_amount_cents, amount_cents
        from billing.invoice_lines where invoice_id = %s order by line_number
        """,
        [invoice],
    ).fetchall()


def summary(connection: Connection, organization: UUID, function: str) -> list[tuple[object, ...]]:
    with connection.transaction():
        connection.execute("select set_config('app.current_org', %s, true)", [str(organization)])
        arguments = {"usage_summary": "%(day)s", "recalculate_period": "%(org)s, %(day)s"}[function]
        return connection.execute(
            f"""
            select meter, events, quantity, unit_amount_cents, amount_cents
            from billing.{function}({arguments}) where unit_amount_cents is not null
            """,
            {"org": organization, "day": month(1)},
        ).fetchall()


@pytest.mark.parametrize(
    ("price", "quantities", "amount"),
    [
        ("0.5", ["1"], "1"),  # half goes away from zero, not to even: 0.5 → 1, 1.5 → 2, 2.5 → 3
        ("0.5", ["3"], "2"),
        ("0.5", ["5"], "3"),
        ("0.5", ["0.99"], "0"),
        ("0.499999999999", ["1"], "0"),
        ("0.333333333333", ["1", "1", "1"], "1"),  # rounded once: a rounding an event would make it 0
        ("0.1", ["0.1"] * 50, "1"),
        ("1", ["0.1", "0.2"], "0"),
        ("10", ["0.1", "0.2"], "3"),
        ("5", ["0.1", "0.2"], "2"),  # 1.5, where binary fractions say 1.5000000000000002 or 1.4999999999999998
        ("25", ["999999999999999999.999999999999999999"] * 3, "75000000000000000000"),
        ("0.000000000001", ["999999999999999999"], "1000000"),
        ("25", ["0.000000000000000001"], "0"),
        ("0", ["7"], "0"),
    ],
)
def test_a_line_is_rounded_once_half_away_from_zero(
    connection: Connection, organization: UUID, price: str, quantities: list[str], amount: str
) -> None:
    with connection.transaction(force_rollback=True):
        meter(connection, "exact", price)
        answer = ingest(connection, batch("exact", quantities, moment(1, days=3)), organization)
        assert answer.accepted == len(quantities)
        invoice = finalize(connection, organization, month(1))
        with localcontext(prec=100):
            exact = sum(map(Decimal, quantities), Decimal())
        assert lines(connection, invoice.id) == [("exact", len(quantities), exact, Decimal(price), Decimal(amount))]
        assert invoice.total_cents == Decimal(amount)


prices = st.decimals("0", "1000", places=6)
amounts = st.lists(st.decimals("0", "100000", places=9), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(used=st.lists(st.tuples(prices, amounts), min_size=1, max_size=5))
def test_the_total_is_the_sum_of_lines_that_anyone_can_recompute(
    connection: Connection, billed: UUID, used: list[tuple[Decimal, list[Decimal]]]
) -> None:
    with connection.transaction(force_rollback=True):
        expected: list[Line] = []
        for number, (price, quantities) in enumerate(used):
            meter(connection, f"m{number}", f"{price:f}")
            ingest(connection, batch(f"m{number}", [f"{q:f}" for q in quantities], moment(1, hours=number)), billed)
            quantity = sum(quantities, Decimal())
            cents = (quantity * price).quantize(Decimal(1), ROUND_HALF_UP)
            expected.append((f"m{number}", len(quantities), quantity, price, cents))
        before = summary(connection, billed, "recalculate_period")
        assert summary(connection, billed, "usage_summary") == before
        invoice = finalize(connection, billed, month(1))
        assert lines(connection, invoice.id) == expected == before
        assert invoice.total_cents == sum(line[-1] for line in expected)
        assert summary(connection, billed, "usage_summary") == expected


@pytest.fixture(scope="module")
def billed(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def test_a_request_that_uploads_is_two_units_and_both_are_billed(connection: Connection, organization: UUID) -> None:
    at = moment(1, days=2)
    ingest(connection, [event("r", at), event("u", at, name="doc.upload"), event("x", at, name="free")], organization)
    invoice = finalize(connection, organization, month(1))
    assert [(line[0], line[4]) for line in lines(connection, invoice.id)] == [("api.request", 25), ("doc.upload", 25)]
    assert invoice.total_cents == 50


def test_nothing_used_is_an_invoice_of_nothing(connection: Connection, organization: UUID) -> None:
    invoice = finalize(connection, organization, month(1))
    assert invoice.total_cents == 0
    assert lines(connection, invoice.id) == []


def test_what_had_no_meter_is_counted_and_never_billed(connection: Connection, organization: UUID) -> None:
    at = moment(1, days=2)
    with connection.transaction(force_rollback=True):
        ingest(connection, [event("before", at, name="new.thing", quantity=7)], organization)
        connection.execute(
            """
            insert into metering.meters (code, event_name, unit, description, created_at)
            values ('new', 'new.thing', 'u', 'd', clock_timestamp())
            """
        )
        set_price(connection, "new", "100", LONG_AGO)
        ingest(connection, [event("after", at, name="new.thing", quantity=2)], organization)
        found = connection.execute(
            "select meter, quantity, amount_cents from billing.recalculate_period(%s, %s)", [organization, month(1)]
        ).fetchall()
        assert found == [("new", 2, 200), ("new.thing", 7, 0)]
        assert finalize(connection, organization, month(1)).total_cents == 200


def test_a_meter_without_a_price_is_counted_and_not_invoiced(connection: Connection, organization: UUID) -> None:
    with connection.transaction(force_rollback=True):
        meter(connection, "unpriced", None)
        set_price(connection, "unpriced", "9", LONG_AGO, currency="eur")
        ingest(connection, [event("a", moment(1, days=2), name="unpriced")], organization)
        invoice = finalize(connection, organization, month(1))
        assert invoice.total_cents == 0
        assert lines(connection, invoice.id) == []


def test_a_meter_that_counts_bills_events_and_not_quantities(connection: Connection, organization: UUID) -> None:
    with connection.transaction(force_rollback=True):
        meter(connection, "counted", "3", aggregation="count")
        ingest(connection, batch("counted", ["100", "0.5"], moment(1, days=1)), organization)
        invoice = finalize(connection, organization, month(1))
        assert lines(connection, invoice.id) == [("counted", 2, 2, 3, 6)]


def test_a_price_counts_from_its_date_on(connection: Connection, organization: UUID) -> None:
    """A period is rated at the price in force when it began: a change within it counts from the next one on."""
    microsecond = timedelta(microseconds=1)
    with connection.transaction(force_rollback=True):
        meter(connection, "priced", "1")
        set_price_past_its_guard(connection, "priced", "10", moment(3) + microsecond)  # too late for that month
        set_price_past_its_guard(connection, "priced", "100", moment(1))  # just in time for that one
        set_price_past_its_guard(connection, "priced", "1000", moment(0, days=-1))
        for ago in (3, 2, 1):
            ingest(connection, [event(f"a{ago}", moment(ago, days=20), name="priced")], organization)
        totals = [finalize(connection, organization, month(ago)).total_cents for ago in (3, 2, 1)]
        assert totals == [1, 10, 100]


def test_the_cost_shown_for_events_is_the_cost_invoiced(connection: Connection, organization: UUID) -> None:
    """An event's cost_cents adds up to its line (before rounding), also where a price changed within the period."""
    with connection.transaction(force_rollback=True):
        meter(connection, "shown", "1.5")
        set_price_past_its_guard(connection, "shown", "9", moment(1, days=10))
        set_price(connection, "shown", "7", LONG_AGO + timedelta(days=1), currency="eur")
        ingest(connection, [event("a", moment(1, days=5), name="shown")], organization)
        ingest(connection, [event("b", moment(1, days=15), name="shown")], organization)
        finalize(connection, organization, month(1))
        line = value(connection, "select amount_cents from billing.invoice_lines where meter_code = 'shown'")
        assert value(connection, "select sum(cost_cents) from api.usage_events where event_name = 'shown'") == line


def test_a_finalized_period_is_summarized_as_it_was_invoiced(connection: Connection, organization: UUID) -> None:
    """A price with a date in the past, added afterwards, changes no invoice; so it changes no summary of it either."""
    with connection.transaction(force_rollback=True):
        meter(connection, "later", "2")
        ingest(connection, [event("a", moment(1, days=5), name="later")], organization)
        invoice = finalize(connection, organization, month(1))
        set_price_past_its_guard(connection, "later", "5", LONG_AGO + timedelta(days=1))
        assert summary(connection, organization, "usage_summary") == lines(connection, invoice.id)


def test_a_price_that_is_made_meanwhile_comes_after_the_invoice(
    shared_database: Database, connection: Connection, organization: UUID
) -> None:
    """It waits for the finalization, of which all statements rate alike, and is later than what that was rated by. The
    first price of a meter, since that may reach back.
    """
    meter(connection, "meanwhile", None)
    ingest(connection, [event("a", moment(1, days=5), name="meanwhile")], organization)
    connection.execute(
        """
        create function public.hold() returns trigger language plpgsql as
          'begin perform pg_advisory_xact_lock(1); return null; end'
        """
    )
    connection.execute("create trigger hold after insert on billing.invoices execute function public.hold()")

    def waiting() -> int:
        return int(
            value(
                connection,
                "select count(*) from pg_locks where not granted and locktype = 'advisory' and database = %s",
                here,
            )
        )

    here = value(connection, "select oid from pg_database where datname = current_database()")
    try:
        with (
            shared_database.connect() as finalizer,
            shared_database.connect() as staff,
            ThreadPoolExecutor(2) as pool,
        ):
            connection.execute("select pg_advisory_lock(1)")
            closing = pool.submit(finalize, finalizer, organization, month(1))
            while waiting() < 1:
                assert not closing.done()
            pricing = pool.submit(set_price, staff, "meanwhile", "1000", LONG_AGO)
            while waiting() < 2:
                assert not pricing.done()
            connection.execute("select pg_advisory_unlock(1)")
            invoice = closing.result(60)
            pricing.result(60)
    finally:
        connection.execute("drop trigger hold on billing.invoices")
        connection.execute("drop function public.hold()")
    assert invoice.total_cents == 0
    assert lines(connection, invoice.id) == []
    assert value(
        connection,
        """
        select p.created_at > i.rated_at
        from billing.prices p, billing.invoices i
        where p.meter_code = 'meanwhile' and i.organization_id = %s and i.id = %s
        """,
        organization,
        invoice.id,
    )


def test_numbers_have_no_gap_when_many_months_are_closed_at_once(
    shared_database: Database, connection: Connection, make_organization: MakeOrganization
) -> None:
    """All at once and again until it is their turn: months are closed in their order, and numbered in it."""
    organizations = [make_organization(shared_database, roles=("owner",)).id for _ in range(2)]
    months = 8
    for organization in organizations:
        ingest(connection, [event("first", moment(months))], organization)

    broken = Signal()

    def close(connection: Connection, organization: UUID, ago: int) -> str:
        while not broken.wait(0.01):
            try:
                if ago % 3 == 0:  # an attempt that is rolled back leaves no hole
                    with connection.transaction(force_rollback=True):
                        finalize(connection, organization, month(ago))
                return finalize(connection, organization, month(ago)).number
            except psycopg.Error as error:
                if "PERIOD_OUT_OF_ORDER: " not in str(error):
                    broken.set()  # the others would wait for their turn for ever
                    raise
        return "another one failed"

    actions = [(organization, ago) for ago in range(1, months + 1) for organization in organizations]
    numbers = race(
        shared_database,
        [
            lambda connection, organization=organization, ago=ago: close(  # type: ignore[misc]
                connection, organization, ago
            )
            for organization, ago in actions
        ],
        role="postgres",
    )
    for number in numbers:
        assert re.fullmatch(r"\d{4}-\d{4}", number)
    for organization in organizations:
        mine = [number for number, (owner, _) in zip(numbers, actions, strict=True) if owner == organization]
        assert [int(number[5:]) for number in mine] == list(range(months, 0, -1))
    assert set(Counter(numbers).values()) == {len(organizations)}


def test_adjustments_are_billed_where_they_count(connection: Connection, organization: UUID) -> None:
    """A late event is on the next invoice, once, at the price of the period that it counts in."""
    late: list[Event] = [event("late", moment(2, days=3), quantity=4)]
    with connection.transaction(force_rollback=True):
        finalize(connection, organization, month(2))
        assert ingest(connection, late, organization, source="gateway", late="adjust").accepted == 1
        assert ingest(connection, late, organization, source="gateway", late="adjust").duplicates == 1
        assert (
            value(connection, "select total_cents from billing.invoices where organization_id = %s", organization) == 0
        )
        open_now = connection.execute(
            "select meter, quantity, amount_cents from billing.recalculate_period(%s, %s)", [organization, month(0)]
        ).fetchall()
        assert open_now == [("api.request", 4, 100)]


def test_a_summary_after_the_invoice_counts_what_was_billed_once(connection: Connection, organization: UUID) -> None:
    """Some of it from before its meter was made, under the same name: two rows before the invoice, and after it."""
    at = moment(1, days=2)
    with connection.transaction(force_rollback=True):
        ingest(connection, [event(f"before-{n}", at, name="same") for n in range(3)], organization)
        connection.execute(
            """
            insert into metering.meters (code, event_name, unit, description, created_at)
            values ('same', 'same', 'u', 'd', clock_timestamp())
            """
        )
        set_price(connection, "same", "10", LONG_AGO)
        ingest(connection, [event(f"after-{n}", at, name="same") for n in range(2)], organization)
        rows = "select meter, events, amount_cents from billing.usage_summary(%s) order by amount_cents"
        connection.execute("select set_config('app.current_org', %s, true)", [str(organization)])
        open_summary = connection.execute(rows, [month(1)]).fetchall()
        assert open_summary == [("same", 3, 0), ("same", 2, 20)]
        assert finalize(connection, organization, month(1)).total_cents == 20
        assert connection.execute(rows, [month(1)]).fetchall() == open_summary


def test_the_cost_shown_for_a_meter_that_counts_is_the_cost_invoiced(
    connection: Connection, organization: UUID
) -> None:
    with connection.transaction(force_rollback=True):
        meter(connection, "tallied", "5", aggregation="count")
        ingest(connection, batch("tallied", ["3"] * 4, moment(1, days=1)), organization)
        assert finalize(connection, organization, month(1)).total_cents == 20
        assert value(connection, "select sum(cost_cents) from api.usage_events where event_name = 'tallied'") == 20

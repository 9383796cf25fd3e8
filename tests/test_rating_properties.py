"""What holds of rating for whatever prices, usage and changes there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.ledger import Ledger, Terms, as_json
from tests.meters import roll_up_all
from tests.usage import Connection, finalize, moment, month, value

MODELS = ("flat", "per_unit", "package", "graduated", "volume")
ZONES = (
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "America/St_Johns",
    "Pacific/Apia",
    "UTC",
)

amounts = st.one_of(st.integers(0, 20).map(Decimal), st.decimals(0, 50, places=6))
quantities = st.one_of(st.integers(0, 60).map(Decimal), st.decimals(0, 60, places=6))


@st.composite
def prices(draw: st.DrawFn, models: tuple[str, ...] = MODELS, limits: bool = True) -> Terms:
    """A price as billing.rate() takes it, its numbers decimals."""
    model = draw(st.sampled_from(models))
    terms: Terms = {"model": model, "included_quantity": draw(st.sampled_from([0, 0, 5, Decimal("10.5"), 30]))}
    if model in ("graduated", "volume"):
        bounds = sorted(draw(st.sets(st.integers(1, 50), max_size=3)))
        terms["tiers"] = [
            {
                "up_to": up_to,
                "unit_amount_cents": draw(amounts),
                "flat_amount_cents": draw(st.sampled_from([0, 0, 7, Decimal("0.5")])),
            }
            for up_to in [*bounds, None]
        ]
    else:
        terms["unit_amount_cents"] = draw(amounts)
    if model == "package":
        terms["package_size"] = draw(st.sampled_from([1, 3, 10, Decimal("0.7")]))
    if limits:
        lowest, highest = draw(st.sampled_from([(None, None), (50, None), (None, 90), (50, 90), (0, 0)]))
        terms |= {"minimum_cents": lowest} if lowest is not None else {}
        terms |= {"maximum_cents": highest} if highest is not None else {}
    return terms


def exact_cost(terms: Terms, begin: Decimal, end: Decimal, whole: Decimal) -> Fraction:
    """What the units after `begin` up to `end` of `whole` cost: the price list read again, in fractions."""
    free = Fraction(terms["included_quantity"])
    first, last = max(Fraction(begin), free), max(Fraction(end), free)
    if last <= first:
        return Fraction()
    match terms["model"]:
        case "flat":
            return Fraction(terms["unit_amount_cents"]) if first == free else Fraction()
        case "per_unit":
            return (last - first) * Fraction(terms["unit_amount_cents"])
        case "package":
            size = Fraction(terms["package_size"])
            begun = math.ceil((last - free) / size) - math.ceil((first - free) / size)
            return begun * Fraction(terms["unit_amount_cents"])
    cost, lower = Fraction(), Fraction()
    for tier in terms["tiers"]:
        upper = None if tier["up_to"] is None else Fraction(tier["up_to"])
        each, flat = Fraction(tier["unit_amount_cents"]), Fraction(tier["flat_amount_cents"])
        if terms["model"] == "volume":
            if whole > lower and (upper is None or whole <= upper):
                return (last - first) * each + (flat if first == free else 0)
        else:
            starts = max(lower, free)  # where the first unit of the tier is that is paid for
            if (upper is None or starts < upper) and first <= starts < last:
                cost += flat
            reach = last if upper is None else min(last, upper)
            cost += max(reach - max(first, lower), Fraction()) * each
        lower = upper if upper is not None else lower
    return cost


def due(terms: Terms, exact: Fraction) -> Decimal:
    """Within the limits, and rounded half away from zero."""
    lowest, highest = terms.get("minimum_cents"), terms.get("maximum_cents")
    exact = max(exact, Fraction(lowest or 0))
    exact = exact if highest is None else min(exact, Fraction(highest))
    with localcontext(prec=200):
        return (Decimal(exact.numerator) / Decimal(exact.denominator)).quantize(Decimal(1), ROUND_HALF_UP)


# One price by itself: billing.rate() is a function of numbers, so a question is one row of a query.


@pytest.fixture(scope="module")
def rate(superuser: Connection) -> Callable[[list[tuple[Terms, Decimal, Decimal, Decimal]]], list[Decimal]]:
    def ask(questions: list[tuple[Terms, Decimal, Decimal, Decimal]]) -> list[Decimal]:
        asked = [{"terms": terms, "begin": begin, "end": end, "whole": whole} for terms, begin, end, whole in questions]
        return [
            exact
            for (exact,) in superuser.execute(
                """
                select r.exact_cents
                from jsonb_array_elements(%s::jsonb) with ordinality as q (q, n),
                  billing.rate(q -> 'terms',
                    (q ->> 'begin')::numeric, (q ->> 'end')::numeric, (q ->> 'whole')::numeric) r
                order by q.n
                """,
                [as_json(asked)],
            )
        ]

    return ask


Rate = Callable[[list[tuple[Terms, Decimal, Decimal, Decimal]]], list[Decimal]]


@settings(max_examples=40, deadline=None)
@given(asked=st.lists(st.tuples(prices(), quantities, quantities, quantities), min_size=20, max_size=20))
def test_a_price_is_what_it_is_in_fractions(rate: Rate, asked: list[tuple[Terms, Decimal, Decimal, Decimal]]) -> None:
    questions = [(terms, *sorted(numbers)) for terms, *numbers in asked]
    for question, found in zip(questions, rate(questions), strict=True):  # type: ignore[arg-type]
        assert Fraction(found) == exact_cost(*question), question  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(asked=st.lists(st.tuples(prices(), quantities, quantities), min_size=10, max_size=10))
def test_a_quantity_cut_in_two_costs_what_it_costs_whole(
    rate: Rate, asked: list[tuple[Terms, Decimal, Decimal]]
) -> None:
    nothing = Decimal()
    for terms, one, other in asked:
        cut, whole = sorted((one, other))
        first, second, together = rate(
            [(terms, nothing, cut, whole), (terms, cut, whole, whole), (terms, nothing, whole, whole)]
        )
        assert first + second == together, (terms, cut, whole)


@settings(max_examples=20, deadline=None)
@given(
    asked=st.lists(
        st.tuples(prices(("per_unit", "graduated", "package", "flat")), quantities, quantities),
        min_size=10,
        max_size=10,
    )
)
def test_one_more_event_never_lowers_the_bill(
    superuser: Connection, asked: list[tuple[Terms, Decimal, Decimal]]
) -> None:
    """Of volume prices it may: that is what they are for."""
    for terms, before, more in asked:
        lower, higher = superuser.execute(
            "select billing.amount_of(%(terms)s, %(few)s), billing.amount_of(%(terms)s, %(many)s)",
            {"terms": as_json(terms), "few": before, "many": before + more},
        ).fetchone() or (None, None)
        assert lower <= higher, (terms, before, more)
        assert lower == due(terms, exact_cost(terms, Decimal(), before, before)), (terms, before)


# Whole periods, from events to invoices


@pytest.fixture(scope="module")
def ledger(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> Iterator[Ledger]:
    yield Ledger(superuser, shared_database, make_organization)


@settings(max_examples=12, deadline=None)
@given(
    terms=prices(),
    used=st.lists(st.tuples(quantities, st.integers(0, 27)), min_size=1, max_size=6),
    data=st.data(),
)
def test_the_order_of_arrival_does_not_matter(
    ledger: Ledger, sidecar: Connection, terms: Terms, used: list[tuple[Decimal, int]], data: st.DataObject
) -> None:
    ledger.begin()
    code = ledger.meter(terms)
    bills = []
    for _ in range(2):
        organization = ledger.organization()
        for quantity, day in data.draw(st.permutations(used)):
            ledger.send(organization, [(code, quantity, moment(1, days=day))])
            if data.draw(st.booleans()):
                roll_up_all(sidecar)
        bills.append(ledger.lines(organization, 1)["usage", code])
    whole = sum((quantity for quantity, _ in used), Decimal())
    assert bills == [[due(terms, exact_cost(terms, Decimal(), whole, whole))]] * 2


@settings(max_examples=20, deadline=None)
@given(terms=prices(), person=quantities, organization=quantities, days=st.integers(1, 26))
def test_two_payers_pay_what_one_would(
    ledger: Ledger, terms: Terms, person: Decimal, organization: Decimal, days: int
) -> None:
    ledger.begin()
    code = ledger.meter(terms)
    made = ledger.organization(kind="personal")
    start = moment(1, days=days, hours=5)
    ledger.superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s", [start, made]
    )
    microsecond = timedelta(microseconds=1)
    ledger.send(made, [(code, person, start - microsecond), (code, organization, start)])
    shares = ledger.lines(made, 1)["usage", code]
    whole = person + organization
    assert sum(shares) == due(terms, exact_cost(terms, Decimal(), whole, whole))
    assert len(shares) == 2
    assert min(shares) >= 0


@settings(max_examples=20, deadline=None)
@given(
    terms=prices(),
    in_time=quantities,
    late=st.lists(quantities.filter(bool), min_size=1, max_size=3),
)
def test_late_usage_costs_what_it_would_have_cost_in_time(
    ledger: Ledger, terms: Terms, in_time: Decimal, late: list[Decimal]
) -> None:
    ledger.begin()
    code = ledger.meter(terms)
    organization = ledger.organization()
    ledger.send(organization, [(code, in_time, moment(1, days=3))])
    billed = ledger.lines(organization, 1)["usage", code]
    finalize(ledger.superuser, organization, month(1))
    ledger.send(organization, [(code, quantity, moment(1, days=4)) for quantity in late], late="adjust")
    adjusted = ledger.lines(organization, 0)["adjustment", code]
    whole = in_time + sum(late)
    assert sum(billed + adjusted) == due(terms, exact_cost(terms, Decimal(), whole, whole))


@settings(max_examples=10, deadline=None)
@given(used=st.lists(st.tuples(prices(), quantities), min_size=1, max_size=4))
def test_lines_sum_to_the_total(ledger: Ledger, used: list[tuple[Terms, Decimal]]) -> None:
    ledger.begin()
    organization = ledger.organization()
    codes = [ledger.meter(terms) for terms, _ in used]
    ledger.send(
        organization, [(code, quantity, moment(1, days=1)) for code, (_, quantity) in zip(codes, used, strict=True)]
    )
    invoice = finalize(ledger.superuser, organization, month(1))
    of_line: dict[str, Decimal] = dict(
        ledger.superuser.execute(
            "select meter_code, amount_cents from billing.invoice_lines where invoice_id = %s", [invoice.id]
        ).fetchall()
    )
    for code, (terms, quantity) in zip(codes, used, strict=True):
        assert of_line[code] == due(terms, exact_cost(terms, Decimal(), quantity, quantity))
    assert invoice.total_cents == sum(of_line.values())


# Periods


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    anchor=st.integers(1, 31),
    minutes=st.integers(0, 3 * 365 * 24 * 60),
)
def test_every_moment_is_in_one_period(superuser: Connection, zone: str, anchor: int, minutes: int) -> None:
    at = moment(37) + timedelta(minutes=minutes)
    found = superuser.execute(
        """
        select b.period_start, b.period_end, n.period_start, l.period_end
        from billing.period_bounds(%(zone)s, %(anchor)s, %(at)s) b,
          billing.period_bounds(%(zone)s, %(anchor)s, b.period_end) n,
          billing.period_bounds(%(zone)s, %(anchor)s, b.period_start - interval '1 microsecond') l
        """,
        {"zone": zone, "anchor": anchor, "at": at},
    ).fetchone()
    assert found
    start, end, next_start, last_end = found
    assert start <= at < end
    assert (next_start, last_end) == (end, start)
    for bound in (start, end):
        local = bound.astimezone(ZoneInfo(zone))
        days_of_month = (local.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        assert (local.hour, local.minute, local.day) == (0, 0, min(anchor, days_of_month.day))


@settings(max_examples=6, deadline=None)
@given(zone=st.sampled_from(ZONES), hours=st.lists(st.integers(-30, 30), min_size=1, max_size=6, unique=True))
def test_what_is_used_around_a_midnight_is_billed_once(ledger: Ledger, zone: str, hours: list[int]) -> None:
    ledger.begin()
    code = ledger.meter({"model": "per_unit", "unit_amount_cents": 1, "included_quantity": 0})
    organization = ledger.organization(zone)
    edge = datetime.combine(month(1), datetime.min.time(), ZoneInfo(zone)).astimezone(UTC)
    ledger.send(organization, [(code, Decimal(1), edge + timedelta(hours=hour, minutes=15)) for hour in hours])
    totals = [finalize(ledger.superuser, organization, month(ago)).total_cents for ago in (2, 1)]
    assert totals == [sum(hour < 0 for hour in hours), sum(hour >= 0 for hour in hours)]


def test_a_period_is_where_the_one_before_ended(superuser: Connection, ledger: Ledger) -> None:
    """Also when the organization moves to another timezone and another day meanwhile."""
    organization = ledger.organization("Pacific/Apia")
    superuser.execute("select billing.ensure_periods(%s, %s, %s)", [organization, moment(5), moment(4)])
    superuser.execute(
        "update tenancy.organizations set billing_timezone = 'America/St_Johns', billing_anchor_day = 31 where id = %s",
        [organization],
    )
    superuser.execute("select billing.ensure_periods(%s, %s, %s)", [organization, moment(5), moment(0)])
    periods = superuser.execute(
        """
        select period_start, period_end from billing.billing_periods where organization_id = %s order by period_start
        """,
        [organization],
    ).fetchall()
    assert all(one[1] == other[0] for one, other in pairwise(periods))
    assert value(superuser, "select count(*) from billing.invoices where organization_id = %s", organization) == 0

"""What holds of months in which the plan changes, whatever the prices, the usage and the moments are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import count, pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.ledger import LONG_AGO, Ledger, Terms, as_json
from tests.meters import roll_up_all
from tests.test_rating_properties import prices
from tests.usage import Connection, event, finalize, ingest, moment, month

MICROSECOND = timedelta(microseconds=1)
MONTH = moment(0) - moment(1)

seconds = st.integers(0, int(MONTH.total_seconds()) - 1)
moments = st.lists(seconds, min_size=1, max_size=4, unique=True).map(
    lambda several: [moment(1, seconds=one) + timedelta(microseconds=one % 7) for one in sorted(several)]
)
uses = st.lists(st.tuples(st.integers(0, 40).map(Decimal), seconds), min_size=1, max_size=6)

_numbers = count(1)


class Subscribed(Ledger):
    """Plans of one property, and organizations that change between them."""

    def begin(self) -> None:
        super().begin()
        self.plans = [self.plan]

    def other_plan(self) -> str:
        self.plans.append(f"{self.plan}.{len(self.plans)}")
        self.superuser.execute("insert into billing.plans (code, name) values (%s, 'Plan')", [self.plans[-1]])
        return self.plans[-1]

    def price(self, code: str | None, plan: str | None, terms: Terms) -> None:
        self.superuser.execute(
            """
            insert into billing.prices (
              meter_code, plan_code, currency, model, unit_amount_cents, package_size, tiers, included_quantity,
              minimum_cents, maximum_cents, effective_from
            )
            values (%s, %s, 'usd', %s, %s, %s, %s, %s, %s, %s, %s)
            """,
            [
                code, plan, terms["model"], terms.get("unit_amount_cents"), terms.get("package_size"),
                as_json(terms["tiers"]) if "tiers" in terms else None, terms.get("included_quantity", 0),
                terms.get("minimum_cents"), terms.get("maximum_cents"), LONG_AGO,
            ],
        )  # fmt: skip

    def subscribed(self, changes: list[tuple[datetime, str]], before: str | None = None) -> UUID:
        """On `before`, or its first plan, when the month begins."""
        organization = self.organization()
        changes = [(moment(1), before or changes[0][1]), *changes] if changes[0][0] > moment(1) else changes
        for number, (at, plan) in enumerate(changes):
            function = "change_subscription(%s, %s, false, %s)" if number else "start_subscription(%s, %s, 0, true, %s)"
            self.superuser.execute(f"select billing.{function}", [organization, plan, at])
        return organization

    def bill(self, organization: UUID) -> list[dict[str, Any]]:
        """The lines that last month would have."""
        return [
            {"kind": kind, "meter": meter, "plan": plan, "quantity": quantity, "amount": amount, "exact": exact}
            for kind, meter, plan, quantity, amount, exact in self.superuser.execute(
                """
                select l.kind, l.meter_code, l.price ->> 'plan', l.quantity, l.amount_cents, l.exact_cents
                from billing.draft_invoices(%s, %s, %s, 'UTC') d, unnest(d.lines) l
                order by l.line_number
                """,
                [organization, moment(1), moment(0)],
            )
        ]

    def use(self, organization: UUID, code: str, used: list[tuple[Decimal, int]]) -> None:
        self.send(organization, [(code, quantity, moment(1, seconds=second)) for quantity, second in used])


@pytest.fixture(scope="module")
def ledger(
    superuser: Connection, shared_database: Database, make_organization: MakeOrganization
) -> Iterator[Subscribed]:
    yield Subscribed(superuser, shared_database, make_organization)


def total(lines: list[dict[str, Any]]) -> Decimal:
    return sum((line["amount"] for line in lines), Decimal())


@settings(max_examples=6, deadline=None)
@given(changes=moments, fee=st.integers(0, 10**6))
def test_parts_of_a_fee_add_up_to_it(ledger: Subscribed, changes: list[datetime], fee: int) -> None:
    """Of plans that cost the same: within half a cent a plan, and exactly before they are rounded."""
    ledger.begin()
    plans = [ledger.plan, ledger.other_plan(), ledger.other_plan()]
    for plan in plans:
        ledger.price(None, plan, {"model": "flat", "unit_amount_cents": fee})
    lines = ledger.bill(ledger.subscribed([(at, plans[n % 3]) for n, at in enumerate(changes)], plans[2]))
    assert abs(total(lines) - fee) <= Decimal(len(lines)) / 2
    assert round(sum(line["exact"] for line in lines), 9) == fee
    assert len({line["plan"] for line in lines}) == len(lines), "a plan that comes back is one line"


@settings(max_examples=5, deadline=None)
@given(changes=moments, unit=st.decimals(0, 50, places=6), used=uses)
def test_a_change_to_a_plan_that_costs_the_same_changes_no_total(
    ledger: Subscribed, sidecar: Connection, changes: list[datetime], unit: Decimal, used: list[tuple[Decimal, int]]
) -> None:
    """But for what rounding of more lines makes."""
    ledger.begin()
    terms = {"model": "per_unit", "unit_amount_cents": unit, "included_quantity": 0}
    code = ledger.meter(terms)
    other = ledger.other_plan()
    ledger.price(code, other, terms)
    bills: list[list[dict[str, Any]]] = []
    for plans in ([ledger.plan] * len(changes), [(other, ledger.plan)[n % 2] for n in range(len(changes))]):
        organization = ledger.subscribed(list(zip(changes, plans, strict=True)), ledger.plan)
        ledger.use(organization, code, used)
        if len(bills) == 1:
            roll_up_all(sidecar)
        bills.append(ledger.bill(organization))
    one, cut = bills
    assert sum(line["quantity"] for line in one) == sum(line["quantity"] for line in cut)
    assert sum(line["exact"] for line in one) == sum(line["exact"] for line in cut)
    assert abs(total(one) - total(cut)) <= Decimal(len(one) + len(cut)) / 2


@settings(max_examples=5, deadline=None)
@given(at=st.integers(1, int(MONTH.total_seconds()) - 2), terms=prices(), used=uses)
def test_a_plan_that_was_left_at_once_costs_nothing(
    ledger: Subscribed, at: int, terms: Terms, used: list[tuple[Decimal, int]]
) -> None:
    ledger.begin()
    code = ledger.meter(terms)
    other = ledger.other_plan()
    ledger.price(None, other, {"model": "flat", "unit_amount_cents": 5000})
    ledger.price(code, other, {"model": "per_unit", "unit_amount_cents": 1000, "minimum_cents": 5000})
    changed = moment(1, seconds=at) + 3 * MICROSECOND  # where nothing is used
    bills = []
    for changes in ([(moment(1), ledger.plan)], [(changed, other), (changed + MICROSECOND, ledger.plan)]):
        organization = ledger.subscribed(changes, ledger.plan)
        ledger.use(organization, code, used)
        bills.append(ledger.bill(organization))
    one, cut = bills
    assert {line["plan"] for line in cut} <= {ledger.plan}
    assert [line["quantity"] for line in one] == [line["quantity"] for line in cut]
    # A microsecond of what is included, or due at least, may be missing of it.
    assert abs(total(one) - total(cut)) <= 1


@settings(max_examples=5, deadline=None)
@given(changes=moments, used=uses, data=st.data())
def test_usage_is_in_one_part_whatever_is_rolled_up_and_in_whatever_order_it_comes(
    ledger: Subscribed,
    sidecar: Connection,
    changes: list[datetime],
    used: list[tuple[Decimal, int]],
    data: st.DataObject,
) -> None:
    ledger.begin()
    code = ledger.meter({"model": "per_unit", "unit_amount_cents": 1, "included_quantity": 0})
    plans = [ledger.plan, ledger.other_plan(), ledger.other_plan()]
    for number, plan in enumerate(plans[1:], 2):
        ledger.price(code, plan, {"model": "per_unit", "unit_amount_cents": number})
    timeline = [(at, plans[n % 3]) for n, at in enumerate(changes)]
    # At the very moments of the changes, and just before them.
    edges = [(Decimal(1), at) for at in changes] + [(Decimal(1), at - MICROSECOND) for at in changes if at > moment(1)]
    everything = [(quantity, moment(1, seconds=second)) for quantity, second in used] + edges
    expected: dict[str, Decimal] = {}
    for quantity, at in everything:
        plan = next((plan for since, plan in reversed(timeline) if since <= at), plans[2])
        expected[plan] = expected.get(plan, Decimal()) + quantity
    for _ in range(2):
        organization = ledger.subscribed(timeline, plans[2])
        for quantity, at in data.draw(st.permutations(everything)):
            ledger.send(organization, [(code, quantity, at)])
            if data.draw(st.integers(0, 3)) == 0:
                roll_up_all(sidecar)
        found = {line["plan"]: line["quantity"] for line in ledger.bill(organization)}
        assert {plan: quantity for plan, quantity in found.items() if quantity} == {
            plan: quantity for plan, quantity in expected.items() if quantity
        }
        costs = ledger.superuser.execute(
            """
            select
              sum(billing.cost_cents(e)),
              (select sum((d.invoice).total_cents) from billing.draft_invoices(%s, %s, %s, 'UTC') d)
            from metering.usage_events e where e.organization_id = %s
            """,
            [organization, moment(1), moment(0), organization],
        ).fetchone()
        assert costs and costs[0] == costs[1], "what each event costs adds up to the invoice"


@settings(max_examples=5, deadline=None)
@given(
    changes=moments,
    aggregation=st.sampled_from(["max", "min", "latest", "unique", "sum", "count"]),
    used=st.lists(st.tuples(st.integers(1, 9).map(Decimal), seconds), min_size=1, max_size=8, unique_by=lambda u: u[1]),
)
def test_what_does_not_add_up_is_one_value_for_all_plans(
    ledger: Subscribed, sidecar: Connection, changes: list[datetime], aggregation: str, used: list[tuple[Decimal, int]]
) -> None:
    ledger.begin()
    terms = {"model": "per_unit", "unit_amount_cents": 1, "included_quantity": 0}
    code = ledger.meter(terms, aggregation, "user_id" if aggregation == "unique" else "quantity")
    plans = [ledger.plan, ledger.other_plan()]
    ledger.price(code, plans[1], terms)
    organization = ledger.subscribed([(at, plans[n % 2]) for n, at in enumerate(changes)], plans[1])
    events = [
        event(f"{n}", moment(1, seconds=second), name=code, quantity=int(quantity), user_id=f"user-{quantity}")
        for n, (quantity, second) in enumerate(used)
    ]
    assert ingest(ledger.superuser, events, organization).accepted == len(used)
    values = [quantity for quantity, _ in used]
    whole = {
        "max": max(values),
        "min": min(values),
        "latest": max(used, key=lambda one: one[1])[0],
        "unique": Decimal(len(set(values))),
        "sum": sum(values),
        "count": Decimal(len(values)),
    }[aggregation]
    for _ in range(2):
        lines = ledger.bill(organization)
        assert sum(line["quantity"] for line in lines) == whole == total(lines)
        assert all(line["quantity"] >= 0 for line in lines)
        roll_up_all(sidecar)


@settings(max_examples=5, deadline=None)
@given(terms=prices(), other_terms=prices(), changes=moments, in_time=uses, late=uses)
def test_late_usage_of_a_changed_month_costs_what_it_would_have_cost_in_time(
    ledger: Subscribed, terms: Terms, other_terms: Terms, changes: list[datetime], in_time: Any, late: Any
) -> None:
    ledger.begin()
    code = ledger.meter(terms)
    plans = [ledger.plan, ledger.other_plan()]
    ledger.price(code, plans[1], other_terms)
    timeline = [(at, plans[n % 2]) for n, at in enumerate(changes)]
    whole, parts = ledger.subscribed(timeline, plans[1]), ledger.subscribed(timeline, plans[1])
    ledger.use(whole, code, in_time + late)
    ledger.use(parts, code, in_time)
    expected = total(ledger.bill(whole))
    billed = finalize(ledger.superuser, parts, month(1)).total_cents
    events = ", ".join(
        f'{{"id": "late-{next(_numbers)}", "event": "{code}", "quantity": {quantity:f}, '
        f'"time": "{moment(1, seconds=second).isoformat()}"}}'
        for quantity, second in late
    )
    assert ingest(ledger.superuser, f"[{events}]", parts, late="adjust").accepted == len(late)
    adjusted = sum(ledger.lines(parts, 0).get(("adjustment", code), []), Decimal())
    assert billed + adjusted == expected


def test_a_month_is_cut_without_gaps(ledger: Subscribed) -> None:
    ledger.begin()
    other = ledger.other_plan()
    at = [moment(1, days=day, minutes=7, seconds=11) for day in (3, 3.5, 9, 20)]
    organization = ledger.subscribed(list(zip(at, [other, ledger.plan] * 2, strict=True)), ledger.plan)
    slices = ledger.superuser.execute(
        "select slice_start, slice_end, plan_code from billing.plan_slices(%s, %s, %s, 'starter') order by n",
        [organization, moment(1), moment(0)],
    ).fetchall()
    assert [slices[0][0], slices[-1][1]] == [moment(1), moment(0)]
    assert all(one[1] == other[0] and one[2] != other[2] for one, other in pairwise(slices))
    assert [one[0] for one in slices[1:]] == at


@pytest.mark.parametrize("closed", [False, True], ids=["running", "closed"])
def test_a_summary_by_group_has_each_group_at_the_price_of_its_time(
    ledger: Subscribed, superuser: Connection, closed: bool
) -> None:
    """Also where only one of the plans has a price of its own for a group, or none at all."""
    ledger.begin()
    organization = ledger.organization()
    plans = [ledger.other_plan(), ledger.other_plan()]
    code = f"{ledger.plan}.pages"
    superuser.execute(
        """
        insert into metering.meters (code, event_name, unit, description, group_by)
        values (%s, %s, 'page', 'Pages', '{team,kind}')
        """,
        [code, code],
    )
    for plan, dimension, unit, included in (
        (plans[0], None, 10, 0),
        (plans[1], "photo", 7, 0),
        (plans[1], None, 2, 310),
    ):
        superuser.execute(
            """
            insert into billing.prices (meter_code, plan_code, currency, model, unit_amount_cents, included_quantity,
              dimension, dimension_value, effective_from)
            values (%s, %s, 'usd', 'per_unit', %s, %s, %s, %s, %s)
            """,
            [code, plan, unit, included, dimension and "kind", dimension, LONG_AGO],
        )
    start, half, end = moment(1), moment(1) + MONTH / 2, moment(0)
    superuser.execute("select billing.start_subscription(%s, %s, 0, true, %s)", [organization, plans[0], start])
    superuser.execute("select billing.change_subscription(%s, %s, false, %s)", [organization, plans[1], half])
    used = (
        ("red", "photo", 30, start),
        ("red", "text", 5, start),
        ("red", "photo", 20, half),
        ("blue", "text", 200, half),
    )
    events = [
        event(f"{n}", at + timedelta(hours=1), name=code, quantity=quantity, dimensions={"team": team, "kind": kind})
        for n, (team, kind, quantity, at) in enumerate(used)
    ]
    assert ingest(superuser, events, organization).accepted == len(used)
    if closed:
        finalize(superuser, organization, month(1))
    asked = "select groups ->> 'team', quantity, amount_cents from billing.usage_by_group(%s, %s, %s, %s, '{team}', %s)"
    where = json.dumps({"meter": code})
    found = superuser.execute(asked, [organization, start, end, closed, where]).fetchall()
    # 30 + 5 cost 10 each before, and 20 photos 7 after; of 200 texts after the change 155 are included.
    assert found == [("blue", 200, 90), ("red", 55, 350 + 140)]
    only = json.dumps({"meter": code, "kind": "photo"})
    assert superuser.execute(asked, [organization, start, end, closed, only]).fetchall() == [("red", 50, 300 + 140)]


@pytest.mark.parametrize("closed", [False, True], ids=["running", "closed"])
def test_a_summary_of_one_meter_says_what_the_invoice_does(ledger: Subscribed, closed: bool) -> None:
    """Also of a largest value that was seen in a trial, and where usage came late for a time without a price."""
    ledger.begin()
    each: Terms = {"model": "per_unit", "unit_amount_cents": 10, "included_quantity": 0}
    seats, calls = ledger.meter({**each, "included_quantity": 1}, aggregation="max"), ledger.meter(each)
    organization = ledger.organization()
    start, half, end = moment(1), moment(1) + MONTH / 2, moment(0)
    ledger.superuser.execute(
        "select billing.start_subscription(%s, %s, 0, false, %s)", [organization, ledger.plan, moment(2)]
    )
    ledger.send(organization, [(calls, Decimal(1), moment(2, days=1))])
    finalize(ledger.superuser, organization, month(2))
    ledger.superuser.execute("select billing.cancel_subscription(%s, false, null, %s)", [organization, start])
    ledger.superuser.execute(
        "select billing.start_subscription(%s, %s, 3, true, %s)",
        [organization, ledger.plan, start + timedelta(days=1)],
    )
    ledger.use(organization, seats, [(Decimal(9), 2 * 86400), (Decimal(7), 20 * 86400)])
    ledger.use(organization, calls, [(Decimal(4), 20 * 86400)])
    # Late for the month before, in which the plan was not paid for, and recorded in this one.
    ledger.send(organization, [(calls, Decimal(5), moment(2, days=3))], late="adjust")
    with ledger.superuser.transaction():
        ledger.superuser.execute("set local session_replication_role = replica")
        for table in ("usage_events", "event_keys"):
            ledger.superuser.execute(
                f"update metering.{table} set occurred_at = %s where organization_id = %s and occurred_at >= %s",
                [half, organization, end],
            )
    if closed:
        finalize(ledger.superuser, organization, month(1))
    found = {
        code: ledger.superuser.execute(
            "select quantity, amount_cents from billing.usage_by_group(%s, %s, %s, %s, '{}', %s)",
            [organization, start, end, closed, json.dumps({"meter": code})],
        ).fetchall()
        for code in (seats, calls)
    }
    billed = {
        code: sum(line["amount"] for line in ledger.bill(organization) if line["meter"] == code)
        for code in (seats, calls)
    }
    assert billed[calls] == 40
    assert {code: [amount for _, amount in rows] for code, rows in found.items()} == {
        code: [amount] for code, amount in billed.items()
    }


def test_a_summary_has_a_minimum_of_what_was_used_in_a_group_alone(ledger: Subscribed) -> None:
    """Late usage of a trial, which knows no groups, is on a line beside the minimum, and now belongs to the group."""
    ledger.begin()
    code, organization = f"{ledger.plan}.mails", ledger.organization()
    ledger.superuser.execute(
        """
        insert into metering.meters (code, event_name, unit, description, group_by)
        values (%s, %s, 'mail', 'Mails', '{kind}')
        """,
        [code, code],
    )
    ledger.superuser.execute(
        """
        insert into billing.prices (
          meter_code, plan_code, currency, model, unit_amount_cents, dimension, dimension_value, effective_from
        )
        values (%s, %s, 'usd', 'per_unit', 7, 'kind', 'x', %s)
        """,
        [code, ledger.plan, LONG_AGO],
    )
    ledger.price(code, ledger.plan, {"model": "per_unit", "unit_amount_cents": 10, "minimum_cents": 300})
    ledger.superuser.execute(
        "select billing.start_subscription(%s, %s, 10, true, %s)", [organization, ledger.plan, moment(1)]
    )
    ledger.superuser.execute("select billing.ensure_periods(%s, %s, %s)", [organization, moment(1), moment(0)])
    finalize(ledger.superuser, organization, month(1))
    now = datetime.now(moment(0).tzinfo)
    for at in (moment(1, days=3), now):
        told = event(f"{at}", at, name=code, quantity=4, dimensions={"kind": "x"})
        ingest(ledger.superuser, [told], organization, late="adjust")
    ((amount,),) = ledger.superuser.execute(
        "select amount_cents from billing.usage_by_group(%s, %s, %s, false, '{}', %s)",
        [organization, moment(0), moment(-1), json.dumps({"meter": code})],
    ).fetchall()
    assert amount == 300 + 4 * 7


def test_a_summary_rates_what_no_invoice_knows_by_the_plan_that_the_preview_takes(ledger: Subscribed) -> None:
    """Late usage of a time before the first invoice, in a month after which another plan began."""
    ledger.begin()
    before, after = ledger.plan, ledger.other_plan()
    code = ledger.meter({"model": "per_unit", "unit_amount_cents": 10, "included_quantity": 0})
    ledger.price(code, after, {"model": "per_unit", "unit_amount_cents": 3})
    organization = ledger.organization()
    finalize(ledger.superuser, organization, month(2))
    ledger.superuser.execute(
        "select billing.start_subscription(%s, %s, 0, true, %s)", [organization, before, moment(1)]
    )
    ledger.superuser.execute("select billing.change_subscription(%s, %s, false, %s)", [organization, after, moment(0)])
    ledger.send(organization, [(code, Decimal(5), moment(3, days=3))], late="adjust")
    with ledger.superuser.transaction():
        ledger.superuser.execute("set local session_replication_role = replica")
        for table in ("usage_events", "event_keys"):
            ledger.superuser.execute(
                f"update metering.{table} set occurred_at = %s where organization_id = %s",
                [moment(1, days=9), organization],
            )
    summary = ledger.superuser.execute(
        "select kind, amount_cents from billing.rate_period(%s, %s, %s) where kind <> 'unpriced'",
        [organization, moment(1), moment(0)],
    ).fetchall()
    assert summary == [(line["kind"], line["amount"]) for line in ledger.bill(organization)] == [("adjustment", 50)]

"""A fee is charged once: by Stripe with the subscription there, or by us. Where our invoice counts, it leaves out the
fee for the time in which Stripe charges it; a statement shows it, and says so.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest

from api.invoices.page import page
from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.sql_requests import Connection
from tests.statements import agree, document_of, items, rows, use
from tests.usage import finalize, moment, month, value

START, END = moment(1), moment(0)
DAYS = (END - START).days
FEE = 100 * DAYS  # a dollar a day, so that shares are whole
PLAN = "fees-by-stripe"

Phase = tuple[datetime, str, str, bool]  # from when, status, plan, and whether Stripe charges its fee
LineOfFee = tuple[int, bool]  # the amount, and whether Stripe charges it


@pytest.fixture(scope="module", autouse=True)
def _plan(superuser: Connection) -> None:
    for plan, fee in ((PLAN, FEE), (f"{PLAN}-2", 2 * FEE)):
        superuser.execute("insert into billing.plans (code, name) values (%s, 'Fees')", [plan])
        superuser.execute(
            """
            insert into billing.prices (plan_code, currency, effective_from, model, unit_amount_cents)
            values (%s, 'usd', '2020-01-01', 'flat', %s)
            """,
            [plan, fee],
        )


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database).id


def at(day: int) -> datetime:
    return moment(1, days=day)


def subscribe(superuser: Connection, organization: UUID, *phases: Phase) -> None:
    """As Stripe's events leave it, whatever they were."""
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        subscription = value(
            superuser,
            """
            insert into billing.subscriptions (organization_id, has_payment_method, created_by, managed_by)
            values (%s, true, 'stripe', 'stripe') returning id
            """,
            organization,
        )
        for starts_at, status, plan, by_stripe in phases:
            superuser.execute(
                """
                insert into billing.subscription_phases (organization_id, starts_at, subscription_id, status, plan_code,
                  reason, made_by, announced_at, fee_by_stripe)
                values (%s, %s, %s, %s, %s, 'started', 'stripe', %s, %s)
                """,
                [organization, starts_at, subscription, status, plan, starts_at, by_stripe],
            )


def closed(superuser: Connection, organization: UUID, mode: str) -> tuple[list[LineOfFee], list[int]]:
    """The fees on what closing makes, and the amounts that go to Stripe; what it makes is proved."""
    agree(superuser, organization, mode)
    use(superuser, organization, 1)
    (draft,) = rows(
        superuser,
        "select to_jsonb(d.lines) as lines from billing.draft_invoices(%s, %s, %s, 'UTC') d",
        *(organization, START, END),
    )
    made = finalize(superuser, organization, month(1)).id
    query = """
        select amount_cents, coalesce((price ->> 'by_stripe')::boolean, false) as by_stripe from billing.invoice_lines
        where invoice_id = %s and kind = 'fee' order by line_number
        """
    lines = [(int(row["amount_cents"]), row["by_stripe"]) for row in rows(superuser, query, made)]
    assert [int(line["amount_cents"]) for line in draft["lines"] if line["kind"] == "fee"] == [
        cents for cents, _ in lines
    ]
    assert rows(superuser, "select * from billing.verify_invoice(%s)", made) == []
    return lines, [int(item["amount_cents"]) for item in items(superuser, organization)]


# What Stripe has charged, whose invoice counts; the fees on ours, and what is sent to Stripe: one request is 25.
TEN, REST = 10 * 100, (DAYS - 10) * 100
EXAMPLES: dict[str, tuple[list[Phase], dict[str, tuple[list[LineOfFee], list[int]]]]] = {
    "all month at Stripe": (
        [(at(0), "active", PLAN, True)],
        {"local": ([], []), "stripe_meters": ([(FEE, True)], []), "stripe_items": ([(FEE, True)], [25])},
    ),
    "never at Stripe": (
        [(at(0), "active", PLAN, False)],
        {
            "local": ([(FEE, False)], []),
            "stripe_meters": ([(FEE, False)], [FEE]),
            "stripe_items": ([(FEE, False)], [FEE, 25]),
        },
    ),
    "taken over after ten days": (
        [(at(0), "active", PLAN, False), (at(10), "active", PLAN, True)],
        {
            "local": ([(TEN, False)], []),
            "stripe_meters": ([(TEN, False), (REST, True)], [TEN]),
            "stripe_items": ([(TEN, False), (REST, True)], [TEN, 25]),
        },
    ),
    "ours once more after ten days": (
        [(at(0), "active", PLAN, True), (at(10), "active", f"{PLAN}-2", False)],
        {
            "local": ([(2 * REST, False)], []),
            "stripe_meters": ([(TEN, True), (2 * REST, False)], [2 * REST]),
            "stripe_items": ([(TEN, True), (2 * REST, False)], [2 * REST, 25]),
        },
    ),
    "a trial at Stripe, then paid there": (
        [(at(0), "trialing", PLAN, True), (at(10), "active", PLAN, True)],
        # The request was made in the trial.
        {"local": ([], []), "stripe_meters": ([(REST, True)], []), "stripe_items": ([(REST, True)], [])},
    ),
    "a free price at Stripe": (
        [(at(0), "active", PLAN, False)],
        {"local": ([(FEE, False)], [])},
    ),
    "canceled after ten days": (
        [(at(0), "active", PLAN, True), (at(10), "canceled", PLAN, True)],
        {"local": ([], []), "stripe_items": ([(TEN, True)], [25])},
    ),
}
CASES = [(name, mode) for name, (_, expected) in EXAMPLES.items() for mode in expected]


@pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{name}-{mode}" for name, mode in CASES])
def test_a_fee_is_charged_once(superuser: Connection, organization: UUID, name: str, mode: str) -> None:
    phases, expected = EXAMPLES[name]
    subscribe(superuser, organization, *phases)
    assert closed(superuser, organization, mode) == expected[mode]


def test_a_statement_says_which_fee_stripe_charges(superuser: Connection, organization: UUID) -> None:
    subscribe(superuser, organization, (at(0), "active", PLAN, False), (at(10), "active", PLAN, True))
    agree(superuser, organization, "stripe_items")
    use(superuser, organization, 1)
    document = document_of(superuser, finalize(superuser, organization, month(1)).id)
    ours, theirs, _ = document.lines
    assert ours.price and theirs.price and (ours.price.by_stripe, theirs.price.by_stripe) == (False, True)
    html = page(document)
    assert html.count("Charged with the subscription at Stripe: 11 ") == 1 and "10 of " in html


def test_usage_is_charged_wherever_the_fee_is(superuser: Connection, organization: UUID) -> None:
    """And rated as one where only the fee's way changes."""
    subscribe(superuser, organization, (at(0), "active", PLAN, False), (at(10), "active", PLAN, True))
    agree(superuser, organization, "local")
    use(superuser, organization, 2, at=at(3))
    use(superuser, organization, 3, at=at(20))
    made = finalize(superuser, organization, month(1))
    query = "select quantity, amount_cents from billing.invoice_lines where invoice_id = %s and kind = 'usage'"
    assert [tuple(row.values()) for row in rows(superuser, query, made.id)] == [(5, 125)]
    assert made.total_cents == TEN + 125


def test_who_says_that_stripe_did_not_charge_it_is_found(superuser: Connection, organization: UUID) -> None:
    subscribe(superuser, organization, (at(0), "active", PLAN, True))
    agree(superuser, organization, "local")
    use(superuser, organization, 1)
    made = finalize(superuser, organization, month(1)).id
    with superuser.transaction(force_rollback=True):
        superuser.execute("alter table billing.subscription_phases disable trigger user")
        superuser.execute(
            "update billing.subscription_phases set fee_by_stripe = false where organization_id = %s", [organization]
        )
        told = rows(superuser, "select what, detail from billing.verify_invoice(%s)", made)
    assert {"subscription", "line"} <= {one["what"] for one in told}

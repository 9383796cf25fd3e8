"""Whoever passes all triggers, as a superuser can, and changes what an organization was subscribed to is found: where
it was invoiced, by the phases that the invoice keeps, and else by what the audit log tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.ledgers import refused_by_hand
from tests.meters import roll_up_all
from tests.sql_requests import run
from tests.test_proration_properties import Subscribed
from tests.usage import Connection, finalize, moment, month

CHANGED, CHANGED_NOW = moment(1, days=9, hours=7, minutes=20), moment(0, minutes=1)


@dataclass(frozen=True)
class Closed:
    connection: Connection
    organization: UUID
    invoice: UUID
    known: dict[str, object]


@pytest.fixture(scope="module")
def closed(
    superuser: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization
) -> Closed:
    """On one plan, then on another with a fee, and back in the running month, which is to end with a cancellation."""
    ledger = Subscribed(superuser, shared_database, make_organization)
    ledger.begin()
    code = ledger.meter({"model": "per_unit", "unit_amount_cents": 3, "included_quantity": 0})
    other = ledger.other_plan()
    ledger.price(None, other, {"model": "flat", "unit_amount_cents": 9999})
    ledger.price(code, other, {"model": "per_unit", "unit_amount_cents": 1})
    organization = ledger.subscribed([(moment(1, days=2), ledger.plan), (CHANGED, other)])
    superuser.execute("select billing.change_subscription(%s, %s, false, %s)", [organization, ledger.plan, CHANGED_NOW])
    superuser.execute(
        "insert into billing.plan_features (plan_code, feature, kind, limit_value) values (%s, 'seats', 'limit', 3)",
        [ledger.plan],
    )
    superuser.execute(
        """
        insert into billing.entitlement_overrides (organization_id, feature, kind, limit_value, created_by)
        values (%s, 'seats', 'limit', 5, 'staff')
        """,
        [organization],
    )
    for days in (1, 5, 15):
        ledger.send(organization, [(code, 100, moment(1, days=days))])  # type: ignore[list-item]
    roll_up_all(sidecar)
    invoice = finalize(superuser, organization, month(1)).id
    superuser.execute("select billing.cancel_subscription(%s, true, null, null)", [organization])
    known: dict[str, object] = {
        "org": organization,
        "plan": ledger.plan,
        "other": other,
        "changed": CHANGED,
        "now": CHANGED_NOW,
    }
    made = Closed(superuser, organization, invoice, known)
    assert tampered(made) == ([], [])
    return made


def tampered(closed: Closed, *statements: str) -> tuple[list[str], list[str]]:
    """What verification says of the invoice, and of what is beside it. It is taken back."""
    with closed.connection.transaction(force_rollback=True):
        closed.connection.execute("alter table billing.subscription_phases disable trigger user")
        closed.connection.execute("set local session_replication_role = replica")
        for statement in statements:
            assert run(closed.connection, statement, closed.known).rowcount, statement
        of_invoice = closed.connection.execute(
            "select what || ': ' || detail from billing.verify_invoice(%s, %s)", [closed.organization, closed.invoice]
        ).fetchall()
        beside = closed.connection.execute(
            "select what || ': ' || detail from billing.differences_beside_invoices(%s)", [closed.organization]
        ).fetchall()
        return [row[0] for row in of_invoice], [row[0] for row in beside]


PHASE = "{} billing.subscription_phases {} where organization_id = %(org)s and starts_at = "
ADDED = """
insert into billing.subscription_phases (organization_id, starts_at, subscription_id, status, plan_code, made_by)
select organization_id, starts_at + interval '1 hour', subscription_id, '{}', %(plan)s, 'x'
from billing.subscription_phases where organization_id = %(org)s and starts_at = """
INVOICED = {
    "moved": PHASE.format("update", "set starts_at = starts_at + interval '3 days'"),
    "moved by a microsecond": PHASE.format("update", "set starts_at = starts_at - interval '1 microsecond'"),
    "deleted": PHASE.format("delete from", ""),
    "another plan": PHASE.format("update", "set plan_code = %(plan)s"),
    "a trial": PHASE.format("update", "set status = 'trialing'"),
    "added": ADDED.format("active"),
    "paused": ADDED.format("paused"),
}


@pytest.mark.parametrize("statement", INVOICED.values(), ids=INVOICED)
def test_phases_that_were_invoiced_are_named(closed: Closed, statement: str) -> None:
    of_invoice, beside = tampered(closed, statement + "%(changed)s")
    assert "subscription: the phases of the subscription are not what they were" in of_invoice
    assert any(one.startswith(("subscription phase: ", "subscription_phase: ")) for one in beside), beside


def test_the_lines_that_come_of_it_are_named(closed: Closed) -> None:
    of_invoice, _ = tampered(closed, INVOICED["another plan"] + "%(changed)s")
    other = closed.known["other"]
    assert f"line: line fee of plan {other}: nothing makes it any more" in of_invoice
    assert any(one.startswith("total: the total is not what comes out now") for one in of_invoice)


@pytest.mark.parametrize("statement", INVOICED.values(), ids=INVOICED)
def test_phases_of_the_running_month_are_compared_with_the_log(closed: Closed, statement: str) -> None:
    of_invoice, beside = tampered(closed, statement.replace("%(plan)s", "%(other)s") + "%(now)s")
    assert of_invoice == []
    assert any(one.startswith("subscription phase: ") for one in beside), beside


BESIDE = {
    "all phases gone": ("delete from billing.subscription_phases where organization_id = %(org)s", "is gone"),
    "the cancellation taken back": (
        "delete from billing.subscription_phases where organization_id = %(org)s and status = 'canceled'",
        "is gone",
    ),
    "grace": (
        """update billing.subscription_phases set status = 'past_due', grace_ends_at = now() + interval '1 year'
        where organization_id = %(org)s and starts_at = %(now)s""",
        "grace_ends_at of subscription phase",
    ),
    "payment method": (
        "update billing.subscriptions set has_payment_method = false where organization_id = %(org)s",
        "has_payment_method of subscription",
    ),
    "end of the trial": (
        "update billing.subscriptions set trial_end = now() where organization_id = %(org)s",
        "trial_end of subscription",
    ),
    "limit of an override": (
        "update billing.entitlement_overrides set limit_value = 1000000 where organization_id = %(org)s",
        "limit_value of entitlement override",
    ),
    "override made up": (
        """insert into billing.entitlement_overrides (organization_id, feature, kind, created_by)
        values (%(org)s, 'everything', 'boolean', 'x')""",
        "does not know entitlement override",
    ),
    "feature of a plan": (
        "update billing.plan_features set limit_value = 1000000 where plan_code = %(plan)s",
        "limit_value of plan feature",
    ),
}


@pytest.mark.parametrize("case", BESIDE.values(), ids=BESIDE)
def test_what_decides_about_access_is_compared_with_the_log(closed: Closed, case: tuple[str, str]) -> None:
    statement, detail = case
    _, beside = tampered(closed, statement)
    assert any(detail in one for one in beside), beside


def test_a_subscription_that_goes_on_changes_no_invoice(closed: Closed) -> None:
    """Each way, as it is done."""
    connection = closed.connection
    with connection.transaction(force_rollback=True):
        for change in (
            "resume_subscription(%(org)s, null)",
            "change_subscription(%(org)s, %(other)s, false, null)",
            "mark_past_due(%(org)s, 3, null)",
            "cancel_subscription(%(org)s, false, null, null)",
            "start_subscription(%(org)s, %(plan)s, 3, false, null)",
        ):
            run(connection, f"select billing.{change}", closed.known)
            connection.execute("set constraints all immediate")
            assert tampered(closed) == ([], []), change


def test_nobody_writes_a_phase_into_a_closed_month(closed: Closed) -> None:
    """Not even who owns the tables: what refuses it holds for everybody."""
    refused_by_hand(
        closed.connection,
        "SUBSCRIPTION_FIXED",
        PHASE.format("update", "set plan_code = 'pro'") + "%(changed)s",
        **closed.known,
    )
    refused_by_hand(closed.connection, "BILLING_PERIOD_LOCKED", ADDED.format("active") + "%(changed)s", **closed.known)

"""Whoever passes all triggers, as a superuser can, and changes what is beside an invoice is found as well: payments,
credit notes and balances, and what the next invoices will be made by. The audit log tells what there was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from api.cli import app
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.ledgers import refused_by_hand, staff
from tests.meters import roll_up_all
from tests.sql_requests import run
from tests.usage import Connection, event, finalize, ingest, moment, month, value

LEDGERS = ("payments", "refunds", "credit_notes", "credit_note_lines", "balance_entries")


@dataclass(frozen=True)
class Settled:
    connection: Connection
    organization: Organization
    invoice: UUID
    last: UUID

    @property
    def known(self) -> dict[str, Any]:
        return {
            "org": self.organization.id,
            "invoice": self.invoice,
            "last": self.last,
            "start": month(1),
            "running": moment(0),
        }


@pytest.fixture(scope="module")
def settled(
    shared_database: Database,
    make_organization: MakeOrganization,
    superuser: Connection,
    api: Connection,
    sidecar: Connection,
) -> Settled:
    """Two months are closed. The first one was paid, then credited, and of that something paid back; the second one
    took the rest.
    """
    organization = make_organization(shared_database)
    for ago in (2, 1):
        ingest(superuser, [event(f"{ago}", moment(ago, days=3), name="api.request", quantity=40)], organization.id)
    superuser.execute(
        "insert into billing.billing_terms (organization_id, tax_percent) values (%s, 20)", [organization.id]
    )
    roll_up_all(sidecar)
    invoice = finalize(superuser, organization.id, month(2)).id
    with staff(api, organization) as by:
        paid = by.pay(invoice, value(superuser, "select total_cents from billing.invoices where id = %s", invoice))
        note = by.credit(invoice, (1, 10))
        by.call("record_refund", payment_id=paid["id"], amount_cents=3, reference="back", credit_note_id=note["id"])
        by.connection.execute("set constraints all immediate")
        by.connection.execute("commit")
    last = finalize(superuser, organization.id, month(1)).id
    made = Settled(superuser, organization, invoice, last)
    assert tampered(made) == ([], [])
    return made


def tampered(settled: Settled, *statements: str) -> tuple[list[str], list[str]]:
    """What verification of the first invoice says of it, and of what is beside invoices. It is taken back."""
    connection = settled.connection
    with connection.transaction(force_rollback=True):
        for ledger in LEDGERS:
            connection.execute(f"alter table billing.{ledger} disable trigger user")
        connection.execute("set local session_replication_role = replica")
        for statement in statements:
            assert run(connection, statement, settled.known).rowcount, statement
        of_invoice = connection.execute(
            "select what || ': ' || detail from billing.verify_invoice(%s, %s)",
            [settled.organization.id, settled.invoice],
        )
        beside = connection.execute(
            "select what || ': ' || detail from billing.differences_beside_invoices(%s)", [settled.organization.id]
        )
        return [row[0] for row in of_invoice], [row[0] for row in beside]


PAYMENT = """insert into billing.payments (organization_id, invoice_id, amount_cents, method, reference, recorded_by)
  values (%(org)s, %(last)s, 5, 'x', 'made up', 'x')"""
NOTE = """insert into billing.credit_notes (organization_id, number, invoice_id, currency, reason, issued_by, reference,
  subtotal_cents, tax_cents, total_cents, to_balance_cents)
  values (%(org)s, 'CN-2020-0001', %(last)s, 'usd', 'x', 'x', 'x', 5, 0, 5, 0)"""
BALANCE = """insert into billing.balance_entries (organization_id, currency, kind, amount_cents, invoice_id)
  values (%(org)s, 'usd', 'negative_invoice', 100000, %(last)s)"""
LEDGER = {
    "payment changed": ("update billing.payments set amount_cents = 1", "amount_cents of payment"),
    "payment gone": ("delete from billing.payments", "is gone"),
    "payment made up": (PAYMENT, "does not know payment"),
    "payment of another invoice": ("update billing.payments set invoice_id = %(last)s", "invoice_id of payment"),
    "refund changed": ("update billing.refunds set amount_cents = 1", "amount_cents of refund"),
    "refund gone": ("delete from billing.refunds", "is gone"),
    "credit note changed": ("update billing.credit_notes set total_cents = 99", "total_cents of credit note"),
    "credit note made up": (NOTE, "does not know credit note"),
    "line of a credit note": (
        "update billing.credit_note_lines set amount_cents = 1",
        "amount_cents of credit note line",
    ),
    "balance changed": (
        "update billing.balance_entries set amount_cents = 60000 where kind = 'credit_note'",
        "amount_cents of balance entry",
    ),
    "balance gone": ("delete from billing.balance_entries where kind = 'refund'", "is gone"),
    "balance made up": (BALANCE, "does not know balance entry"),
}


@pytest.mark.parametrize("case", LEDGER.values(), ids=LEDGER)
def test_what_was_done_to_a_ledger_is_named(settled: Settled, case: tuple[str, str]) -> None:
    statement, detail = case
    for found in tampered(settled, statement):
        assert any(one.startswith("ledger: ") and detail in one for one in found), found


def test_a_change_that_was_put_into_the_log_is_none_all_the_same(settled: Settled) -> None:
    """Ledgers only grow: with the trigger of the audit log on, and that of the ledger off, it tells on who did it."""
    connection = settled.connection
    with connection.transaction(force_rollback=True):
        connection.execute("alter table billing.payments disable trigger append_only")
        connection.execute("update billing.payments set amount_cents = 1")
        connection.execute("set constraints all immediate")
        found = connection.execute(
            "select detail from billing.verify_invoice(%s, %s)", [settled.organization.id, settled.invoice]
        ).fetchall()
    assert any("was changed once it was there" in one for (one,) in found), found


TOLD = {
    "balance of a note": (
        """alter table billing.balance_entries disable trigger append_only, disable trigger check_source;
        delete from billing.balance_entries where kind = 'credit_note';
        insert into billing.balance_entries (organization_id, currency, kind, amount_cents, credit_note_id)
        select organization_id, currency, 'credit_note', 100000, id from billing.credit_notes""",
        "of kind credit_note is not what it comes from",
    ),
    "paid twice": (
        """alter table billing.payments disable trigger guard;
        insert into billing.payments (organization_id, invoice_id, amount_cents, method, reference, recorded_by)
        values (%(org)s, %(invoice)s, 5, 'x', 'twice', 'x')""",
        "more was paid and credited than was due",
    ),
    "note without a line": (
        """alter table billing.credit_notes disable trigger guard, disable trigger check_sum;
        insert into billing.credit_notes (organization_id, number, invoice_id, currency, reason, issued_by, reference,
          subtotal_cents, tax_cents, total_cents, to_balance_cents)
        values (%(org)s, 'CN-2020-0001', %(last)s, 'usd', 'x', 'x', 'x', 5, 0, 5, 0)""",
        "is not the sum of its lines",
    ),
}


@pytest.mark.parametrize("case", TOLD.values(), ids=TOLD)
def test_what_contradicts_itself_is_named_though_the_log_tells_of_it(settled: Settled, case: tuple[str, str]) -> None:
    statements, detail = case
    connection = settled.connection
    with connection.transaction(force_rollback=True):
        for statement in statements.split(";\n"):
            run(connection, statement, settled.known)
        for asked in ("verify_invoice(%(org)s, %(invoice)s)", "differences_beside_invoices(%(org)s)"):
            found = run(connection, f"select detail from billing.{asked}", settled.known).fetchall()
            assert any(detail in one for (one,) in found), (asked, found)


ORGANIZATION = "update tenancy.organizations set {} where id = %(org)s"
PERIOD = "update billing.billing_periods set {} where organization_id = %(org)s and period_start = "
BESIDE = {
    "tax": ("update billing.billing_terms set tax_percent = 0", "billing terms: tax_percent"),
    "terms gone": ("delete from billing.billing_terms", "is gone"),
    "plan": (ORGANIZATION.format("plan = 'firm'"), "organization: plan"),
    "currency": (ORGANIZATION.format("currency = 'jpy'"), "organization: currency"),
    "timezone": (ORGANIZATION.format("billing_timezone = 'Asia/Tokyo'"), "organization: billing_timezone"),
    "anchor": (ORGANIZATION.format("billing_anchor_day = 9"), "organization: billing_anchor_day"),
    "attribution": (
        ORGANIZATION.format("billing_user_id = owner_user_id, billing_start_at = now()"),
        "organization: billing_user_id",
    ),
    "price to come": (
        """insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
        values ('api.request', 'usd', now() + interval '1 month', 0)""",
        "price: the audit log does not know",
    ),
    "first price changed": (
        "update billing.prices set unit_amount_cents = 0 where meter_code = 'doc.upload'",
        "price: ",
    ),
    "first price gone": ("delete from billing.prices where meter_code = 'doc.upload'", "price: price"),
    "open period shut": (
        PERIOD.format("status = 'finalized', finalized_at = clock_timestamp()") + "%(running)s",
        "period: the audit log does not know that",
    ),
    "period gone": (
        "delete from billing.billing_periods where organization_id = %(org)s and period_start = %(start)s",
        "period: billing period",
    ),
    "chain of the organization gone": (
        "alter table audit.log disable trigger user; alter table audit.heads disable trigger user; "
        "delete from audit.heads where organization_id = %(org)s; "
        "delete from audit.log where organization_id = %(org)s",
        "organization: the audit log does not know organization",
    ),
    "version of a meter": (
        "update metering.meter_versions set counts = false where meter_code = 'api.request'",
        "the last version of meter api.request",
    ),
    "another version of a meter": (
        """insert into metering.meter_versions select (jsonb_populate_record(v, '{"version": 9, "counts": false}')).*
        from metering.meter_versions v where meter_code = 'api.request'""",
        "the last version of meter api.request",
    ),
    "last invoice gone": ("delete from billing.invoices where id = %(last)s", "invoice: invoice"),
}


@pytest.mark.parametrize("case", BESIDE.values(), ids=BESIDE)
def test_what_the_next_invoices_are_made_by_is_compared_with_the_log(settled: Settled, case: tuple[str, str]) -> None:
    statement, detail = case
    _, found = tampered(settled, *statement.split("; "))
    assert any(detail in one for one in found), found


@pytest.mark.parametrize(
    "statement",
    [
        "update metering.meter_versions set counts = false",
        "delete from metering.meter_versions",
        "truncate metering.meter_versions",
        """insert into metering.meter_versions select (jsonb_populate_record(v, '{"version": 9}')).*
        from metering.meter_versions v""",
    ],
)
def test_nobody_changes_what_usage_is_counted_by_without_the_meter(superuser: Connection, statement: str) -> None:
    refused_by_hand(superuser, "METER_FIXED", statement)


def test_the_command_names_it(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    """Also where an invoice's own period was moved: it is verified all the same."""
    made = make_organization(shared_database)
    ingest(superuser, [event("one", moment(1, days=3), quantity=40)], made.id)
    finalize(superuser, made.id, month(1))
    arguments = ["billing", "verify", "--period", f"{month(1):%Y-%m}", "--organization", made.slug]
    environment = {"MIGRATION_DATABASE_URL": shared_database.migrator}
    assert CliRunner().invoke(app, arguments, env=environment).exit_code == 0
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        superuser.execute("update tenancy.organizations set plan = 'firm' where id = %s", [made.id])
        superuser.execute(
            "update billing.billing_periods set timezone = 'Asia/Tokyo' where organization_id = %s", [made.id]
        )
    told = CliRunner().invoke(app, arguments, env=environment)
    assert told.exit_code == 1, told.output
    assert f"{made.slug}: 1 difference beside its invoices" in told.stderr
    assert "plan of organization" in told.stderr and "expected starter, found firm" in told.stderr
    assert "its period is not closed as it was" in told.stderr
    assert "1 invoice, 1 of them differ." in told.stdout

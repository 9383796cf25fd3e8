"""Where Stripe's invoice counts, closing a period makes a statement: the same lines and totals, and nothing that
anybody could pay here. It uses up no number and touches no balance, and it is proved like an invoice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from api.invoices.document import Document
from api.invoices.lines_csv import lines_csv
from api.invoices.page import page
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.ledgers import issue, refused_by_hand, staff
from tests.sql_requests import Caller, Connection, request
from tests.statements import agree, arrive, document_of, invoices, items, rows, use
from tests.usage import event, finalize, ingest, moment, month, value

MODES = ("stripe_meters", "stripe_items")


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def close(superuser: Connection, organization: UUID, mode: str, months_ago: int = 1, requests: int = 4) -> UUID:
    agree(superuser, organization, mode)
    use(superuser, organization, requests, months_ago)
    return finalize(superuser, organization, month(months_ago)).id


@pytest.mark.parametrize("mode", MODES)
def test_closing_makes_one_with_the_lines_of_an_invoice(
    superuser: Connection,
    organization: Organization,
    make_organization: MakeOrganization,
    shared_database: Database,
    mode: str,
) -> None:
    other = make_organization(shared_database)
    close(superuser, organization.id, mode)
    close(superuser, other.id, "local")
    (statement,), (invoice,) = invoices(superuser, organization.id), invoices(superuser, other.id)
    assert (statement["kind"], statement["number"], statement["due_at"]) == ("statement", None, None)
    assert (statement["amount_due_cents"], statement["balance_applied_cents"]) == (0, 0)
    assert (invoice["kind"], invoice["amount_due_cents"]) == ("invoice", 100)
    for column in ("subtotal_cents", "tax_cents", "total_cents", "currency", "plan_code", "period_start", "period_end"):
        assert statement[column] == invoice[column], column
    query = "select kind, meter_code, quantity, amount_cents, price from billing.invoice_lines where invoice_id = %s"
    assert rows(superuser, query, statement["id"]) == rows(superuser, query, invoice["id"])


def test_numbers_of_invoices_stay_without_gaps(superuser: Connection, organization: Organization) -> None:
    modes = ("local", "stripe_items", "local")
    agree(superuser, organization.id, modes[0])
    for months_ago, mode, after in ((3, *modes[:2]), (2, *modes[1:]), (1, modes[2], "local")):
        use(superuser, organization.id, 1, months_ago)
        agree(superuser, organization.id, after)  # of the period that closing makes
        finalize(superuser, organization.id, month(months_ago))
        assert invoices(superuser, organization.id)[-1]["kind"] == ("invoice" if mode == "local" else "statement")
    numbers = [made["number"] for made in invoices(superuser, organization.id)]
    assert [number and number[-4:] for number in numbers] == ["0001", None, "0002"]
    for made in invoices(superuser, organization.id):
        assert rows(superuser, "select * from billing.verify_invoice(%s)", made["id"]) == []


def test_it_leaves_the_balance_alone(superuser: Connection, api: Connection, organization: Organization) -> None:
    """What is in hand stays so; and what is below zero is Stripe's to credit."""
    use(superuser, organization.id, 4, 3)
    agree(superuser, organization.id, "stripe_items")
    paid = finalize(superuser, organization.id, month(3)).id
    superuser.execute("select billing.record_payment(%s, %s, 100, 'cash', 'r1', null)", [organization.id, paid])
    superuser.execute("select billing.create_credit_note(%s, %s, null, 'wrong', null)", [organization.id, paid])
    above = close(superuser, organization.id, "stripe_items", 2, 3)
    for number in range(2):
        key = f"{moment(2, days=3):%Y%m%d%H%M%S}-{number}"
        superuser.execute("select metering.void_event(%s, %s, 'api', 'adjust')", [organization.id, key])
        arrive(superuser, organization.id, 1)
    below = finalize(superuser, organization.id, month(1)).id
    with staff(api, organization) as provider:
        assert provider.balance() == 100
        for statement, total in ((above, 75), (below, -50)):
            shown = provider.invoice(statement)
            assert (shown["total_cents"], shown["balance_applied_cents"], shown["amount_due_cents"]) == (total, 0, 0)
    assert [item["amount_cents"] for item in items(superuser, organization.id)] == [75, -50]
    for statement in (above, below):
        assert rows(superuser, "select * from billing.verify_invoice(%s)", statement) == []


PAYING: dict[str, Callable[[UUID], tuple[str, dict[str, object]]]] = {
    "payment": lambda statement: (
        "record_payment",
        {"invoice_id": statement, "amount_cents": 1, "method": "cash", "reference": "r1"},
    ),
    "write-off": lambda statement: ("write_off_invoice", {"invoice_id": statement, "reason": "gone"}),
    "credit note": lambda statement: ("create_credit_note", {"invoice_id": statement, "reason": "wrong"}),
}


@pytest.mark.parametrize("what", PAYING)
def test_nobody_pays_it_or_credits_it(
    superuser: Connection, api: Connection, organization: Organization, what: str
) -> None:
    statement = close(superuser, organization.id, "stripe_items")
    function, arguments = PAYING[what](statement)
    with staff(api, organization) as provider:
        assert provider.settled(statement) == ("statement", 0, 0, 0)
        said = provider.refused("STATEMENT_NOT_PAYABLE", function, **arguments)
        assert "Stripe's invoice" in said


BY_HAND = {
    "payment": """
        insert into billing.payments (organization_id, invoice_id, amount_cents, method, reference, recorded_by)
        values (%(org)s, %(invoice)s, 1, 'cash', 'r1', 'me')
        """,
    "credit note": """
        insert into billing.credit_notes (organization_id, invoice_id, currency, reason, issued_by, reference,
          subtotal_cents, tax_cents, total_cents, to_balance_cents)
        values (%(org)s, %(invoice)s, 'usd', 'wrong', 'me', 'r1', 1, 0, 1, 1)
        """,
}
INTO_THE_BALANCE = """
  insert into billing.balance_entries (organization_id, currency, kind, amount_cents, invoice_id)
  values (%(org)s, 'usd', 'negative_invoice', 100, %(invoice)s)
"""


@pytest.mark.parametrize("what", BY_HAND)
def test_nor_does_who_writes_to_the_ledger_by_hand(
    superuser: Connection, organization: Organization, what: str
) -> None:
    statement = close(superuser, organization.id, "stripe_meters")
    refused_by_hand(superuser, "STATEMENT_NOT_PAYABLE: ", BY_HAND[what], org=organization.id, invoice=statement)


def test_nor_does_it_put_anything_on_the_balance(superuser: Connection, organization: Organization) -> None:
    statement = close(superuser, organization.id, "stripe_meters")
    refused_by_hand(superuser, "LEDGER_INCONSISTENT: ", INTO_THE_BALANCE, org=organization.id, invoice=statement)


def test_a_person_who_pays_gets_one_too(
    superuser: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database, kind="personal", roles=("owner",))
    close(superuser, organization.id, "stripe_items")
    (made,) = invoices(superuser, organization.id)
    assert (made["kind"], made["billing_entity_type"]) == ("statement", "user")
    assert [item["amount_cents"] for item in items(superuser, organization.id)] == [100]


def test_the_message_and_the_document_say_what_it_is(superuser: Connection, organization: Organization) -> None:
    statement = close(superuser, organization.id, "stripe_items")
    (told,) = rows(
        superuser,
        """
        select payload from notifications.webhook_messages
        where organization_id = %s and type = 'invoice.finalized'
        """,
        organization.id,
    )
    expected = {"kind": "statement", "status": "statement", "number": None, "amount_due_cents": 0, "total_cents": 100}
    assert {name: told["payload"][name] for name in expected} == expected

    document = document_of(superuser, statement)
    assert (document.kind, document.status, int(document.remaining_cents)) == ("statement", "statement", 0)
    assert document.name == f"statement-{month(1)}"
    html = page(document)
    assert "<h1>Statement</h1>" in html and "invoice counts" in html and "no invoice" in html
    assert "Amount due" not in html and "Due by" not in html
    header, line = lines_csv(document).splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["document"] == "statement"


def test_a_preview_says_that_it_will_be_one(superuser: Connection, api: Connection, organization: Organization) -> None:
    agree(superuser, organization.id, "stripe_meters")
    use(superuser, organization.id, 2, 0, moment(0, minutes=1))
    with request(api, Caller("member", organization["owner"].subject)) as conn:
        shown = value(conn, "select api.preview_invoice()")
    assert (shown["kind"], shown["status"], shown["total_cents"], shown["amount_due_cents"]) == (
        "statement",
        "draft",
        50,
        0,
    )
    assert "<h1>Statement preview</h1>" in page(Document.of_json(json.dumps(shown).encode()))


FORGERIES = {
    "into an invoice": "update billing.invoices set kind = 'invoice', number = '2026-0001' where id = %(invoice)s",
    "into an invoice that is paid for": """
        update billing.invoices set kind = 'invoice', number = '2026-0001', amount_due_cents = total_cents
        where id = %(invoice)s
        """,
    "with its digest": """
        update billing.invoices set kind = 'invoice', number = '2026-0001', amount_due_cents = total_cents
        where id = %(invoice)s;
        update billing.invoices i set digest = billing.digest_of(i, array(
          select l from billing.invoice_lines l where l.invoice_id = i.id order by l.line_number
        )) where i.id = %(invoice)s
        """,
    "with its digest and its period": """
        update billing.invoices set kind = 'invoice', number = '2026-0001', amount_due_cents = total_cents
        where id = %(invoice)s;
        update billing.invoices i set digest = billing.digest_of(i, array(
          select l from billing.invoice_lines l where l.invoice_id = i.id order by l.line_number
        )) where i.id = %(invoice)s;
        update billing.billing_periods set invoice_mode = 'local' where organization_id = %(org)s
        """,
}


@pytest.mark.parametrize("how", FORGERIES)
def test_who_turns_one_into_an_invoice_is_found(superuser: Connection, organization: Organization, how: str) -> None:
    statement = close(superuser, organization.id, "stripe_items")
    assert forged(superuser, statement, "", organization.id) == []
    told = forged(superuser, statement, FORGERIES[how], organization.id)
    assert "audit log" in {what for what, _ in told} and ("kind" in {what for what, _ in told}) == ("period" not in how)


def test_and_who_turns_an_invoice_into_one(superuser: Connection, organization: Organization) -> None:
    invoice = close(superuser, organization.id, "local")
    told = forged(
        superuser,
        invoice,
        """
        update billing.invoices set kind = 'statement', number = null, due_at = null, amount_due_cents = 0
        where id = %(invoice)s
        """,
        organization.id,
    )
    assert {"digest", "audit log", "kind"} <= {what for what, _ in told}


@pytest.mark.parametrize(("mode", "other"), [("stripe_items", "stripe_meters"), ("stripe_meters", "stripe_items")])
def test_who_has_a_month_told_to_stripe_once_more_is_found(
    superuser: Connection, organization: Organization, mode: str, other: str
) -> None:
    """What was sent as items would be reported as usage, too."""
    statement = close(superuser, organization.id, mode)
    changed = f"update billing.billing_periods set invoice_mode = '{other}' where organization_id = %(org)s"
    assert "period" in {what for what, _ in forged(superuser, statement, changed, organization.id)}


def forged(superuser: Connection, invoice: UUID, statement: str, organization: UUID) -> list[tuple[str, str]]:
    """What verification says once somebody has written that, whom no trigger stops. It is taken back."""
    with superuser.transaction(force_rollback=True):
        superuser.execute("set local session_replication_role = replica")
        for part in filter(str.strip, statement.split(";")):
            superuser.execute(part.encode(), {"invoice": invoice, "org": organization})
        found = rows(superuser, "select what, detail from billing.verify_invoice(%s)", invoice)
    return [(row["what"], row["detail"]) for row in found]


def test_late_usage_of_it_is_an_adjustment_of_the_next(superuser: Connection, organization: Organization) -> None:
    statement = close(superuser, organization.id, "stripe_items", 2)
    late = event("late", moment(2, days=5))
    assert ingest(superuser, [late], organization.id, late="adjust").accepted == 1
    draft = rows(
        superuser,
        """
        select l.kind, l.amount_cents, l.belongs_to
        from billing.draft_invoices(%s, %s, %s, 'UTC') d cross join lateral unnest(d.lines) l
        """,
        organization.id, moment(0), moment(-1),
    )  # fmt: skip
    assert draft == [{"kind": "adjustment", "amount_cents": 25, "belongs_to": moment(2)}]
    assert rows(superuser, "select * from billing.verify_invoice(%s)", statement) == []


PAID_AT_STRIPE = """
with made as (
  insert into stripe.invoices (organization_id, id, customer_id, number, status, currency, total_cents, is_live,
    latest_event_id, latest_event_at)
  values (%(org)s, 'in_' || %(customer)s, %(customer)s, 'A-1', 'paid', 'eur', 700, false, 'evt_1', now())
  returning organization_id, id
)
insert into billing.payments (organization_id, stripe_invoice_id, amount_cents, method, reference, recorded_by)
select organization_id, id, 700, 'stripe', id, 'stripe' from made
returning id
"""


def test_what_was_paid_at_stripe_is_among_payments(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    customer = f"cus_{organization.id.hex[-12:]}"
    with superuser.transaction():
        payment = rows_of_one(superuser, PAID_AT_STRIPE, organization.id, customer)
    with request(api, Caller("member", organization["billing"].subject)) as conn:
        (shown,) = rows(conn, "select * from api.payments")
        assert (shown["invoice_id"], shown["stripe_invoice_id"], shown["currency"]) == (None, f"in_{customer}", "eur")
        assert (shown["billing_entity_type"], shown["billing_entity_id"]) == ("organization", organization.id)
        (invoice,) = rows(conn, "select * from api.stripe_invoices")
        assert (invoice["status"], invoice["total_cents"]) == ("paid", 700)
    for role in ("member", "viewer"):
        with request(api, Caller("member", organization[role].subject)) as conn:
            assert rows(conn, "select * from api.stripe_invoices") == rows(conn, "select * from api.payments") == []
    with staff(api, organization) as provider:
        back = provider.call("record_refund", payment_id=payment, amount_cents=300, reference="b1")
        assert (back["stripe_invoice_id"], back["invoice_id"], back["currency"]) == (f"in_{customer}", None, "eur")
        more = {"payment_id": payment, "amount_cents": 401, "reference": "b2"}
        assert "has 400 left to be paid back" in provider.refused("REFUND_TOO_HIGH", "record_refund", **more)
        assert provider.balances() == []
    assert rows(superuser, "select * from billing.differences_of_ledgers(%s)", organization.id) == []


def test_no_credit_note_is_for_what_was_paid_at_stripe(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    """It would take from the balance what is not on it."""
    customer = f"cus_{organization.id.hex[-12:]}"
    with superuser.transaction():
        payment = rows_of_one(superuser, PAID_AT_STRIPE.replace("'eur'", "'usd'"), organization.id, customer)
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        provider.pay(invoice, 500)
        note = provider.credit(invoice)
        refund = {"payment_id": payment, "credit_note_id": note["id"], "amount_cents": 1, "reference": "b1"}
        provider.refused("LEDGER_INCONSISTENT", "record_refund", **refund)


def rows_of_one(superuser: Connection, statement: str, organization: UUID, customer: str) -> UUID:
    found = superuser.execute(statement.encode(), {"org": organization, "customer": customer}).fetchone()
    assert found
    made: UUID = found[0]
    return made


def test_a_closed_statement_is_immutable(superuser: Connection, organization: Organization) -> None:
    statement = close(superuser, organization.id, "stripe_items")
    for change in ("kind = 'invoice', number = 'x'", "amount_due_cents = 1", "due_at = now()"):
        with pytest.raises(psycopg.Error, match=r"BILLING_PERIOD_LOCKED: invoice .+ is issued"):
            superuser.execute(f"update billing.invoices set {change} where id = %s", [statement])

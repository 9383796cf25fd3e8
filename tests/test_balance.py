"""What a payer has in hand is carried from invoice to invoice: never below zero, never twice, to nobody else."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.ledgers import issue, refused_by_hand, staff
from tests.sql_requests import Caller, Connection, request, run
from tests.usage import event, finalize, ingest, moment, month, race, value


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def use(sidecar: Connection, organization: Organization, *requests: int) -> None:
    """So many requests of 25 in the month before the last one, and in the last one."""
    events = [
        event(f"{ago}", moment(ago, days=1), quantity=quantity) for ago, quantity in zip((2, 1), requests, strict=False)
    ]
    assert ingest(sidecar, events, organization.id).accepted == len(events)


def credited(connection: Connection, organization: Organization, amount: int) -> None:
    """The invoice of the month before the last one, paid and then credited so far."""
    invoice = finalize(connection, organization.id, month(2))
    pay = "select billing.record_payment(%s, %s, %s, 'cash', 'r1', null)"
    connection.execute(pay, [organization.id, invoice.id, invoice.total_cents])
    lines = f'[{{"line_number": 1, "amount_cents": {amount}}}]'
    make = "select billing.create_credit_note(%s, %s, %s, 'wrong', 'r1')"
    connection.execute(make, [organization.id, invoice.id, lines])


def balance(connection: Connection, organization: Organization) -> int:
    query = "select coalesce(sum(amount_cents), 0) from billing.balance_entries where organization_id = %s"
    return int(value(connection, query, organization.id))


def test_the_next_invoice_takes_it_off(
    superuser: Connection, sidecar: Connection, api: Connection, organization: Organization
) -> None:
    use(sidecar, organization, 4, 2)
    credited(superuser, organization, 60)
    assert balance(superuser, organization) == 60
    invoice = finalize(superuser, organization.id, month(1)).id
    with staff(api, organization) as provider:
        row = provider.invoice(invoice)
        assert (row["total_cents"], row["balance_applied_cents"], row["amount_due_cents"]) == (50, 50, 0)
        assert (row["status"], row["remaining_cents"]) == ("paid", 0)
        assert provider.balances() == [("organization", 10)]
        # What was taken off it comes back when it is credited: nothing of it was to be paid any more.
        assert provider.credit(invoice, (1, 20))["to_balance_cents"] == 20
        assert provider.balances() == [("organization", 30)]


def test_a_credit_first_takes_off_what_the_balance_has_left_to_pay(
    superuser: Connection, sidecar: Connection, api: Connection, organization: Organization
) -> None:
    use(sidecar, organization, 4, 2)
    credited(superuser, organization, 40)
    invoice = finalize(superuser, organization.id, month(1)).id
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("open", 0, 0, 10)
        said = provider.refused(
            "PAYMENT_TOO_HIGH",
            "record_payment",
            **{"invoice_id": invoice, "amount_cents": 11, "method": "cash", "reference": "r2"},
        )
        assert "has 10 left to be paid, not 11" in said
        assert provider.credit(invoice)["to_balance_cents"] == 40
        assert provider.settled(invoice) == ("void", 0, 50, 0)
        assert provider.balances() == [("organization", 40)]


def test_what_was_paid_out_is_not_taken_off_too(
    superuser: Connection, sidecar: Connection, api: Connection, organization: Organization
) -> None:
    use(sidecar, organization, 4, 2)
    credited(superuser, organization, 60)
    refund = """
        select billing.record_refund(p.organization_id, p.id, %s, 'back', c.id)
        from billing.payments p join billing.credit_notes c using (organization_id) where p.organization_id = %s
    """
    superuser.execute(refund, [45, organization.id])
    invoice = finalize(superuser, organization.id, month(1)).id
    with staff(api, organization) as provider:
        assert provider.invoice(invoice)["balance_applied_cents"] == 15
        assert provider.balance() == 0
        [(paid, note)] = api.execute(
            "select payment_id, credit_note_id from api.refunds where organization_id = %s", [organization.id]
        ).fetchall()
        said = provider.refused(
            "REFUND_TOO_HIGH",
            "record_refund",
            **{"payment_id": paid, "amount_cents": 15, "reference": "r3", "credit_note_id": note},
        )
        assert "no more than 0 is still on the balance" in said


@pytest.mark.parametrize("late", [False, True])
def test_while_it_is_paid_out_an_invoice_takes_only_the_rest(
    superuser: Connection,
    sidecar: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    late: bool,
) -> None:
    """At once, many rounds: what comes first has it. `late`: the note itself is made meanwhile."""

    def close(connection: Connection, organization: Organization) -> str:
        finalize(connection, organization.id, month(1))
        return "closed"

    def pay_out(connection: Connection, organization: Organization) -> str:
        try:
            connection.execute(
                """
                select billing.record_refund(p.organization_id, p.id, 60, 'back', c.id)
                from billing.payments p join billing.credit_notes c using (organization_id)
                where p.organization_id = %s
                """,
                [organization.id],
            )
        except psycopg.Error as error:
            assert "REFUND_TOO_HIGH: " in str(error)
            return "spent"
        return "paid out"

    def credit(connection: Connection, organization: Organization) -> str:
        connection.execute(
            """
            select billing.create_credit_note(
              i.organization_id, i.id, '[{"line_number": 1, "amount_cents": 40}]', 'x', 'r2')
            from billing.invoices i where i.organization_id = %s and i.number like '%%-0001'
            """,
            [organization.id],
        )
        return "credited"

    for _ in range(4):
        organization = make_organization(shared_database, roles=("owner",))
        use(sidecar, organization, 4, 2)
        credited(superuser, organization, 60)
        done = race(
            shared_database,
            [
                lambda c, o=organization: close(c, o),  # type: ignore[misc]
                lambda c, o=organization: (credit if late else pay_out)(c, o),  # type: ignore[misc]
            ],
            role="postgres",
        )
        applied = value(
            superuser,
            "select sum(balance_applied_cents) from billing.invoices where organization_id = %s",
            organization.id,
        )
        expected = {"spent": (50, 10), "paid out": (0, 0), "credited": (50, 50)}[done[1]]
        assert (applied, balance(superuser, organization)) == expected


def test_it_is_its_payers(superuser: Connection, api: Connection, organization: Organization) -> None:
    """The person's, from before a personal organization was converted, and the organization's."""
    person = issue(superuser, organization, [("usage", 500)], payer=organization["owner"].id)
    firm = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        for number, (invoice, amount) in enumerate([(person, 30), (firm, 5)]):
            provider.pay(invoice, 500, f"r{number}")
            provider.credit(invoice, (1, amount))
        assert provider.balances() == [("organization", 5), ("user", 30)]
        found = api.execute(
            "select organization_id, balance_cents from api.balances where billing_entity_id = %s",
            [organization["owner"].id],
        )
        assert found.fetchall() == [(organization.id, 30)]


def test_who_reads_it(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    superuser.execute("select billing.record_payment(%s, %s, 500, 'cash', 'r1', null)", [organization.id, invoice])
    superuser.execute("select billing.create_credit_note(%s, %s, null, 'wrong', null)", [organization.id, invoice])
    for role, rows in {"owner": 1, "admin": 1, "billing": 1, "member": 0, "viewer": 0}.items():
        with request(api, Caller("member", organization[role].subject)):
            for view in ("balances", "credit_notes", "credit_note_lines", "payments"):
                assert run(api, f"select from api.{view}").rowcount == rows, (role, view)


_ENTRY = """
    insert into billing.balance_entries (organization_id, payer_user_id, currency, kind, amount_cents, {source}_id)
    values (%(org)s, {payer}, {currency}, '{kind}', {amount}, {id})
"""


def entry(
    source: str, kind: str, amount: int, id: str = "%(invoice)s", payer: str = "null", currency: str = "'usd'"
) -> str:
    return _ENTRY.format(source=source, kind=kind, amount=amount, id=id, payer=payer, currency=currency)


_INVOICE = """
    insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents,
      balance_applied_cents, amount_due_cents)
    select %(org)s, %(id)s, 'x', period_start, period_end, 'usd', {total}, {applied}, greatest({total}, 0) - {applied}
    from billing.billing_periods where organization_id = %(org)s and period_start > '2020-01-15Z'
"""


def invoice(total: int, applied: int = 0) -> str:
    return _INVOICE.format(total=total, applied=applied)


# By hand, where an invoice of 500 is paid and 60 of it are credited, which are on the balance.
INCONSISTENT = "LEDGER_INCONSISTENT: "
BY_HAND = {
    "from nowhere": (INCONSISTENT, entry("invoice", "negative_invoice", 500)),
    "the note once more": ("unique", entry("credit_note", "credit_note", 60, id="%(note)s")),
    "taken for an invoice that took nothing": (INCONSISTENT, entry("invoice", "applied", -60)),
    "more than there is": (INCONSISTENT, invoice(500, 61), entry("invoice", "applied", -61, id="%(id)s")),
    "less than the invoice took": (INCONSISTENT, invoice(500, 60), entry("invoice", "applied", -50, id="%(id)s")),
    "nothing though the invoice took some": (INCONSISTENT, invoice(500, 60)),
    "nothing though the invoice is below zero": (INCONSISTENT, invoice(-60)),
    "to another payer": (
        *(INCONSISTENT, invoice(-60)),
        entry("invoice", "negative_invoice", 60, id="%(id)s", payer="%(org)s"),
    ),
    "in another currency": (
        *(INCONSISTENT, invoice(-60)),
        entry("invoice", "negative_invoice", 60, id="%(id)s", currency="'eur'"),
    ),
}


@pytest.fixture(scope="module")
def by_hand(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> dict[str, object]:
    made = make_organization(shared_database)
    paid = issue(superuser, made, [("usage", 500)])
    superuser.execute("select billing.record_payment(%s, %s, 500, 'cash', 'r1', null)", [made.id, paid])
    make = "select (billing.create_credit_note(%s, %s, %s, 'wrong', null)).id"
    note = value(superuser, make, made.id, paid, '[{"line_number": 1, "amount_cents": 60}]')
    superuser.execute(
        """
        insert into billing.billing_periods (organization_id, period_start, period_end, previous_end, timezone)
        values (%s, '2020-02-01Z', '2020-03-01Z', '2020-02-01Z', 'UTC')
        """,
        [made.id],
    )
    return {"org": made.id, "id": made.id, "invoice": paid, "note": note}


@pytest.mark.parametrize("what", BY_HAND)
def test_by_hand_nothing_else_is_written(superuser: Connection, by_hand: dict[str, object], what: str) -> None:
    code, *statements = BY_HAND[what]
    refused_by_hand(superuser, code, *statements, **by_hand)


def test_by_hand_what_agrees_is_written(superuser: Connection, by_hand: dict[str, object]) -> None:
    """So it is the rules that refuse, and not that nothing goes in."""
    with superuser.transaction(force_rollback=True):
        for statement in (invoice(500, 60), entry("invoice", "applied", -60, id="%(id)s")):
            run(superuser, statement, by_hand)
        superuser.execute("set constraints all immediate")

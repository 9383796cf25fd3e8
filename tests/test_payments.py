"""What is paid and owed follows from ledgers that only grow: payments, what is paid back and what is written off."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization
from tests.ledgers import issue, refused_by_hand, staff
from tests.sql_requests import Caller, Connection, request, run
from tests.usage import race, value


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def test_an_invoice_is_open_until_it_is_paid(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("open", 0, 0, 500)
        paid = provider.pay(invoice, 300, "r1", paid_at="2026-02-14T00:00:00Z")
        assert (paid["kind"], paid["amount_cents"], paid["recorded_by"]) == ("payment", 300, "staff|7")
        assert paid["paid_at"].isoformat() == "2026-02-14T00:00:00+00:00"
        assert provider.settled(invoice) == ("open", 300, 0, 200)
        provider.pay(invoice, 200, "r2")
        assert provider.settled(invoice) == ("paid", 500, 0, 0)


def test_where_nothing_is_to_be_paid_it_is_paid(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [])
    with staff(api, organization) as provider:
        assert provider.settled(invoice) == ("paid", 0, 0, 0)


def test_no_more_is_paid_than_is_left(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        provider.pay(invoice, 300)
        provider.credit(invoice, (1, 50))
        for amount in (151, 10**14):
            said = provider.refused(
                "PAYMENT_TOO_HIGH",
                "record_payment",
                **{"invoice_id": invoice, "amount_cents": amount, "method": "cash", "reference": "r2"},
            )
            assert f"has 150 left to be paid, not {amount}" in said
        provider.pay(invoice, 150, "r2")


def test_a_retry_counts_once(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice, other = (issue(superuser, organization, [("usage", 500)]) for _ in range(2))
    with staff(api, organization) as provider:
        paid = provider.pay(invoice, 300)
        assert provider.pay(invoice, "300.00") == paid
        back = provider.call("record_refund", payment_id=paid["id"], amount_cents=20, reference="r1")
        assert provider.call("record_refund", payment_id=paid["id"], amount_cents=20, reference="r1") == back
        assert provider.settled(invoice) == ("open", 280, 0, 220)
        payment = {"invoice_id": invoice, "amount_cents": 300, "method": "cash", "reference": "r1"}
        for different in (
            {"invoice_id": other},
            {"amount_cents": 299},
            {"method": "card"},
            {"paid_at": "2020-01-01T00:00:00Z"},
        ):
            provider.refused("REFERENCE_TAKEN", "record_payment", **(payment | different))
        refund = {"payment_id": paid["id"], "amount_cents": 19, "reference": "r1"}
        provider.refused("REFERENCE_TAKEN", "record_refund", **refund)


def test_what_is_paid_back_is_to_be_paid_again(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        paid = provider.pay(invoice, 500)
        provider.call("record_refund", payment_id=paid["id"], amount_cents=400, reference="r1")
        assert provider.settled(invoice) == ("open", 100, 0, 400)
        refund = {"payment_id": paid["id"], "amount_cents": 101, "reference": "r2"}
        assert "has 100 left to be paid back, not 101" in provider.refused("REFUND_TOO_HIGH", "record_refund", **refund)
        provider.pay(invoice, 400, "r2")
        assert provider.settled(invoice) == ("paid", 500, 0, 0)


def test_for_a_credit_note_it_is_paid_back_out_of_the_balance(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        paid = provider.pay(invoice, 500)
        note = provider.credit(invoice, (1, 200))
        refund = {"payment_id": paid["id"], "credit_note_id": note["id"]}
        back = provider.call("record_refund", **refund, amount_cents=150, reference="r1")
        assert (back["invoice_id"], back["credit_note_id"]) == (invoice, note["id"])
        assert provider.settled(invoice) == ("paid", 500, 200, 0)
        assert provider.balance() == 50
        said = provider.refused("REFUND_TOO_HIGH", "record_refund", **refund, amount_cents=51, reference="r2")
        assert "has 50 left to be paid back, not 51" in said
        provider.call("record_refund", **refund, amount_cents=50, reference="r2")
        assert provider.balance() == 0


def test_who_is_credited_is_who_paid(superuser: Connection, api: Connection, organization: Organization) -> None:
    theirs = issue(superuser, organization, [("usage", 500)], payer=organization["owner"].id)
    ours = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        provider.pay(theirs, 500, "r1")
        note = provider.credit(theirs)
        paid = provider.pay(ours, 500, "r2")
        provider.refused(
            "LEDGER_INCONSISTENT",
            "record_refund",
            **{"payment_id": paid["id"], "credit_note_id": note["id"], "amount_cents": 1, "reference": "r1"},
        )


def test_what_nobody_will_pay_is_written_off(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    write_off = {"invoice_id": invoice, "reason": "insolvent"}
    with staff(api, organization) as provider:
        first = provider.pay(invoice, 100)
        gone = provider.call("write_off_invoice", **write_off)
        assert (gone["kind"], gone["amount_cents"], gone["reason"]) == ("write_off", 400, "insolvent")
        assert provider.call("write_off_invoice", **write_off) == gone
        assert provider.settled(invoice) == ("uncollectible", 100, 0, 0)
        assert provider.invoice(invoice)["written_off_cents"] == 400
        refund = {"payment_id": gone["id"], "amount_cents": 1, "reference": "r1"}
        provider.refused("PAYMENT_NOT_FOUND", "record_refund", **refund)

        # A credit note takes it off what is owed: who has not paid has nothing in hand.
        assert provider.credit(invoice, (1, 50))["to_balance_cents"] == 0
        provider.pay(invoice, 350, "r2")
        assert provider.settled(invoice) == ("paid", 450, 50, 0)
        provider.refused("NOTHING_TO_WRITE_OFF", "write_off_invoice", **write_off)

        provider.call("record_refund", payment_id=first["id"], amount_cents=100, reference="r2")
        assert provider.settled(invoice) == ("uncollectible", 350, 50, 0)


def test_more_is_written_off_when_more_is_owed_again(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        paid = provider.pay(invoice, 100)
        provider.call("write_off_invoice", invoice_id=invoice, reason="insolvent")
        provider.call("record_refund", payment_id=paid["id"], amount_cents=100, reference="r1")
        assert provider.settled(invoice) == ("open", 0, 0, 100)
        assert provider.call("write_off_invoice", invoice_id=invoice, reason="x")["amount_cents"] == 100
        assert provider.settled(invoice) == ("uncollectible", 0, 0, 0)


def test_what_is_no_payment_is_refused(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    good = {"invoice_id": invoice, "amount_cents": 1, "method": "cash", "reference": "r1"}
    with staff(api, organization) as provider:
        wrong: dict[str, tuple[object, ...]] = {
            "amount_cents": (0, -1, "1.5", "NaN", "Infinity", None),
            "reference": ("", " ", "x" * 256, None),
            "method": ("", "x" * 65, None),
            "paid_at": ("infinity", "2999-01-01Z"),
        }
        for name, values in wrong.items():
            for each in values:
                provider.refused("INVALID_PAYMENT", "record_payment", **{**good, name: each})
        for reason in ("", "x" * 1001, None):
            provider.refused("INVALID_PAYMENT", "write_off_invoice", invoice_id=invoice, reason=reason)


def test_only_staff_and_only_of_the_organization_that_is_named(
    superuser: Connection,
    api: Connection,
    organization: Organization,
    make_organization: MakeOrganization,
    shared_database: Database,
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    payment = value(
        superuser, "select (billing.record_payment(%s, %s, 5, 'cash', 'r1', null)).id", organization.id, invoice
    )
    with staff(api, make_organization(shared_database)) as elsewhere:
        of_invoice = {"invoice_id": invoice, "amount_cents": 1, "method": "cash", "reference": "r1"}
        elsewhere.refused("INVOICE_NOT_FOUND", "record_payment", **of_invoice)
        elsewhere.refused("INVOICE_NOT_FOUND", "write_off_invoice", invoice_id=invoice, reason="x")
        elsewhere.refused("PAYMENT_NOT_FOUND", "record_refund", payment_id=payment, amount_cents=1, reference="r1")
    for role in ROLES:
        for call in (
            f"api.record_payment('{invoice}', 1, 'cash', 'r2')",
            f"api.record_refund('{payment}', 1, 'r2')",
            f"api.write_off_invoice('{invoice}', 'x')",
        ):
            caller = Caller("member", organization[role].subject)
            with request(api, caller), pytest.raises(psycopg.Error, match="ROLE_REQUIRED: "):
                run(api, f"select {call}")


def test_eight_at_once_never_exceed_what_is_left(
    superuser: Connection, shared_database: Database, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 50)])

    def paying(reference: str) -> Callable[[Connection], bool]:
        def pay(connection: Connection) -> bool:
            try:
                connection.execute(
                    "select billing.record_payment(%s, %s, 15, 'cash', %s, null)", [organization.id, invoice, reference]
                )
            except psycopg.Error as error:
                assert "PAYMENT_TOO_HIGH: " in str(error)
                return False
            return True

        return pay

    assert sum(race(shared_database, [paying(f"r{n}") for n in range(8)], role="postgres")) == 3


def test_eight_retries_at_once_count_once(
    superuser: Connection, shared_database: Database, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    pay = "select (billing.record_payment(%s, %s, 100, 'cash', 'r1', null)).id"
    made = race(shared_database, [lambda c: value(c, pay, organization.id, invoice)] * 8, role="postgres")
    assert len(set(made)) == 1
    assert value(superuser, "select count(*) from billing.payments where organization_id = %s", organization.id) == 1


_PAYMENT = """
    insert into billing.payments (organization_id, id, invoice_id, kind, amount_cents, method, reference, reason,
      recorded_by)
    values (%(org)s, %(id)s, {invoice}, {kind}, {amount}, 'x', 'x', {reason}, 'x')
"""
_REFUND = """
    insert into billing.refunds (organization_id, payment_id, amount_cents, reference, recorded_by)
    values (%(org)s, {payment}, {amount}, 'x', 'x')
"""


def payment(amount: str = "500", kind: str = "'payment'", reason: str = "null", invoice: str = "%(invoice)s") -> str:
    return _PAYMENT.format(amount=amount, kind=kind, reason=reason, invoice=invoice)


def refund(amount: str, payment: str = "%(id)s") -> str:
    return _REFUND.format(amount=amount, payment=payment)


WRITE_OFF = payment(kind="'write_off'", reason="'x'")
BY_HAND = {
    "more than is left": ("PAYMENT_TOO_HIGH: ", payment("501")),
    "not a number": ("PAYMENT_TOO_HIGH: ", payment("'NaN'")),
    "infinitely much": ("PAYMENT_TOO_HIGH: ", payment("'Infinity'")),
    "nothing": ("amount_cents_check", payment("0")),
    "a fraction": ("amount_cents_check", payment("0.5")),
    "of another organization's invoice": ("invoice_id_fkey", payment(invoice="%(foreign)s")),
    "written off without a reason": ("payments_check", payment(kind="'write_off'")),
    "written off twice": ("PAYMENT_TOO_HIGH: ", WRITE_OFF, payment("1", "'write_off'", "'x'")),
    "more back than was paid": ("REFUND_TOO_HIGH: ", payment(), refund("501")),
    "not a number back": ("REFUND_TOO_HIGH: ", payment(), refund("'NaN'")),
    "back what was written off": ("REFUND_TOO_HIGH: ", WRITE_OFF, refund("1")),
    "back of another organization's payment": ("payment_id_fkey", refund("1", "%(foreign)s")),
}


@pytest.fixture(scope="module")
def by_hand(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> dict[str, object]:
    mine, foreign = make_organization(shared_database), make_organization(shared_database)
    return {
        "org": mine.id,
        "id": mine.id,
        "invoice": issue(superuser, mine, [("usage", 500)]),
        "foreign": issue(superuser, foreign, [("usage", 500)]),
    }


@pytest.mark.parametrize("what", BY_HAND)
def test_by_hand_nothing_else_is_written(superuser: Connection, by_hand: dict[str, object], what: str) -> None:
    code, *statements = BY_HAND[what]
    refused_by_hand(superuser, code, *statements, **by_hand)


LEDGERS = ("payments", "refunds", "credit_notes", "credit_note_lines", "balance_entries")


@pytest.fixture(scope="module")
def settled(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> None:
    """A row of each ledger."""
    organization = make_organization(shared_database)
    invoice = issue(superuser, organization, [("usage", 500)])
    known = [organization.id, invoice]
    paid = value(superuser, "select (billing.record_payment(%s, %s, 500, 'cash', 'r1', null)).id", *known)
    superuser.execute("select billing.create_credit_note(%s, %s, null, 'wrong', null)", known)
    superuser.execute("select billing.record_refund(%s, %s, 5, 'r1', null)", [organization.id, paid])


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("ledger", LEDGERS)
def test_nothing_of_a_ledger_ever_changes(superuser: Connection, settled: None, ledger: str, role: str) -> None:
    """Whoever asks, a superuser at psql or one who applies changes of elsewhere included."""
    for change in (
        f"update billing.{ledger} set organization_id = organization_id",
        f"delete from billing.{ledger}",
        f"truncate billing.{ledger} cascade",
    ):
        with superuser.transaction(force_rollback=True):
            run(superuser, f"set local session_replication_role = {role}")
            with pytest.raises(psycopg.Error, match="LEDGER_APPEND_ONLY: "):
                run(superuser, change)


def test_a_page_of_invoices_reads_none_of_what_they_rest_on(api: Connection, organization: Organization) -> None:
    """As a whole row, each would be put together with its facts, which are as long as the period was busy."""
    with request(api, Caller("member", organization["owner"].subject)):
        plan = api.execute("explain (verbose, costs off) select id, status, remaining_cents from api.invoices")
        shown = "\n".join(line for (line,) in plan.fetchall())
    assert "billing.payments" in shown and "billing.credit_notes" in shown
    assert "i.*" not in shown

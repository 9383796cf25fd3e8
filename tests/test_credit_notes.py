"""A mistake on an invoice is mended by a credit note: at most what is left of each line, its part of the tax, a number
of its own, once by its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization
from tests.ledgers import issue, refused_by_hand, staff
from tests.sql_requests import Caller, Connection, request
from tests.usage import race, value

YEAR = datetime.now(UTC).year


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture(scope="module")
def steady(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    """For tests that take back what they do."""
    return make_organization(shared_database)


def test_it_takes_off_what_is_still_to_be_paid(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("fee", 1000), ("usage", 500)], tax_percent=19)
    with staff(api, organization) as provider:
        note = provider.credit(invoice, (2, 200), reason="too many requests")
        assert (note["subtotal_cents"], note["tax_cents"], note["total_cents"], note["to_balance_cents"]) == (
            *(200, 38, 238),
            0,
        )
        assert (note["number"], note["reason"], note["issued_by"]) == (
            f"CN-{YEAR}-0001",
            "too many requests",
            "staff|7",
        )
        assert provider.settled(invoice) == ("open", 0, 238, 1785 - 238)
        assert provider.balances() == []
        lines = api.execute(
            """
            select line_number, invoice_line_number, description, amount_cents from api.credit_note_lines
            where credit_note_id = %s
            """,
            [note["id"]],
        )
        assert lines.fetchall() == [(1, 2, "Usage", 200)]


def test_without_lines_it_is_all_that_is_left(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("fee", 1000), ("usage", 500)], tax_percent=19)
    with staff(api, organization) as provider:
        provider.credit(invoice, (1, 1), (2, 499))
        rest = provider.credit(invoice)
        assert (rest["number"], rest["subtotal_cents"], rest["total_cents"]) == (f"CN-{YEAR}-0002", 1000, 1190)
        assert provider.settled(invoice) == ("void", 0, 1785, 0)
        said = provider.refused("CREDIT_TOO_HIGH", "create_credit_note", invoice_id=invoice, reason="again")
        assert "nothing left" in said


def test_what_was_paid_goes_to_the_balance(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, organization) as provider:
        provider.pay(invoice, 400)
        note = provider.credit(invoice, (1, 300))
        assert note["to_balance_cents"] == 200  # 100 were still to be paid
        assert provider.settled(invoice) == ("paid", 400, 300, 0)
        assert provider.balances() == [("organization", 200)]


def test_of_a_line_no_more_than_is_left(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500), ("usage", 70)])
    with staff(api, organization) as provider:
        provider.credit(invoice, (2, 50))
        lines = [{"line_number": 2, "amount_cents": 21}]
        said = provider.refused("CREDIT_TOO_HIGH", "create_credit_note", invoice_id=invoice, lines=lines, reason="x")
        assert "line 2 has 20 left to be credited, not 21" in said
        provider.credit(invoice, (2, 20))


def test_of_an_invoice_no_more_than_it_came_to(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    """An adjustment that took something off is not paid out by crediting the rest."""
    invoice = issue(superuser, organization, [("usage", 60), ("usage", 40), ("adjustment", -30)], tax_percent=20)
    with staff(api, organization) as provider:
        lines = [{"line_number": 1, "amount_cents": 60}, {"line_number": 2, "amount_cents": 11}]
        said = provider.refused("CREDIT_TOO_HIGH", "create_credit_note", invoice_id=invoice, lines=lines, reason="x")
        assert "has 70 left to be credited, not 71" in said
        note = provider.credit(invoice)
        assert (note["subtotal_cents"], note["tax_cents"], note["total_cents"]) == (70, 14, 84)
        assert provider.settled(invoice)[0] == "void"


@pytest.mark.parametrize("inclusive", [False, True])
def test_whatever_the_steps_the_whole_tax_is_credited(
    superuser: Connection, api: Connection, steady: Organization, inclusive: bool
) -> None:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 99), st.lists(st.integers(1, 400), min_size=1, max_size=5))
    def whatever(percent: int, amounts: list[int]) -> None:
        invoice = issue(
            superuser, steady, [("usage", amount) for amount in amounts], tax_percent=percent, tax_inclusive=inclusive
        )
        with staff(api, steady) as provider:
            billed = provider.invoice(invoice)
            notes = [provider.credit(invoice, (n, a)) for n, a in enumerate(amounts, 1)]
            assert sum(note["tax_cents"] for note in notes) == billed["tax_cents"]
            assert sum(note["total_cents"] for note in notes) == billed["total_cents"]
            assert all(
                abs(n["tax_cents"] * billed["subtotal_cents"] - billed["tax_cents"] * n["subtotal_cents"])
                <= billed["subtotal_cents"]
                for n in notes
            )  # each within one minor unit of its part

    whatever()


def test_a_retry_makes_no_second_note(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice, other = (issue(superuser, organization, [("usage", 500), ("usage", 70)]) for _ in range(2))
    with staff(api, organization) as provider:
        note = provider.credit(invoice, (2, 50), (1, 5), reference="r1")
        assert provider.credit(invoice, (1, 5), (2, 50), reference="r1") == note
        rest = provider.credit(invoice, reference="r2")
        assert provider.credit(invoice, reference="r2") == rest
        provider.credit(other, (1, 1))
        for invoice_id, line, reason, reference in (
            (invoice, (1, 5), "wrong", "r1"),
            (invoice, None, "wrong", "r1"),
            (other, None, "wrong", "r2"),
            (invoice, None, "another reason", "r2"),
        ):
            lines = line and [{"line_number": line[0], "amount_cents": line[1]}]
            provider.refused(
                "REFERENCE_TAKEN",
                "create_credit_note",
                **{"invoice_id": invoice_id, "lines": lines, "reason": reason, "reference": reference},
            )


def test_numbers_have_no_gap(superuser: Connection, shared_database: Database, organization: Organization) -> None:
    """Over several invoices, at once, and where some are taken back."""
    invoices = [issue(superuser, organization, [("usage", 5)]) for _ in range(3)]

    def credit(connection: Connection, n: int) -> str:
        make = "select (billing.create_credit_note(%s, %s, %s, 'wrong', null)).number"
        line = '[{"line_number": 1, "amount_cents": 1}]'
        if n % 4 == 0:
            with connection.transaction(force_rollback=True):
                value(connection, make, organization.id, invoices[n % 3], line)
        return str(value(connection, make, organization.id, invoices[n % 3], line))

    made = race(shared_database, [lambda c, n=n: credit(c, n) for n in range(8)], role="postgres")  # type: ignore[misc]
    assert sorted(made) == [f"CN-{YEAR}-{n:04}" for n in range(1, 9)]


def test_eight_at_once_never_exceed_a_line(
    superuser: Connection, shared_database: Database, organization: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 50), ("usage", 1000)], tax_percent=7)

    def credit(connection: Connection) -> bool:
        try:
            connection.execute(
                "select billing.create_credit_note(%s, %s, %s, 'wrong', null)",
                [organization.id, invoice, '[{"line_number": 1, "amount_cents": 15}]'],
            )
        except psycopg.Error as error:
            assert "CREDIT_TOO_HIGH: line 1 has 5 left to be credited, not 15" in str(error)
            return False
        return True

    assert sum(race(shared_database, [credit] * 8, role="postgres")) == 3


WRONG: Mapping[str, Mapping[str, object]] = {
    "no reason": {"reason": " "},
    "an endless reason": {"reason": "x" * 1001},
    "an empty reference": {"reference": ""},
    "no lines": {"lines": []},
    "a line that is not there": {"lines": [{"line_number": 9, "amount_cents": 1}]},
    "the tax": {"lines": [{"line_number": 3, "amount_cents": 1}]},
    "what took something off": {"lines": [{"line_number": 2, "amount_cents": 1}]},
    "a line twice": {"lines": [{"line_number": 1, "amount_cents": 1}] * 2},
    "a fraction": {"lines": [{"line_number": 1, "amount_cents": 1.5}]},
    "nothing": {"lines": [{"line_number": 1, "amount_cents": 0}]},
    "less than nothing": {"lines": [{"line_number": 1, "amount_cents": -1}]},
    "a text": {"lines": [{"line_number": 1, "amount_cents": "1"}]},
    "a word too much": {"lines": [{"line_number": 1, "amount_cents": 1, "tax_cents": 1}]},
    "an amount without a line": {"lines": [{"amount_cents": 1}]},
}


def test_what_is_no_credit_note_is_refused(superuser: Connection, api: Connection, organization: Organization) -> None:
    invoice = issue(superuser, organization, [("usage", 500), ("adjustment", -30)], tax_percent=19)
    with staff(api, organization) as provider:
        for what in WRONG.values():
            arguments = {"invoice_id": invoice, "reason": "wrong", **what}
            provider.refused("INVALID_CREDIT_NOTE", "create_credit_note", **arguments)
        assert provider.settled(invoice) == ("open", 0, 0, 559)


def test_only_staff_and_only_of_the_organization_that_is_named(
    superuser: Connection, api: Connection, organization: Organization, steady: Organization
) -> None:
    invoice = issue(superuser, organization, [("usage", 500)])
    with staff(api, steady) as elsewhere:
        elsewhere.refused("INVOICE_NOT_FOUND", "create_credit_note", invoice_id=invoice, reason="x")
    for role in ROLES:
        with request(api, Caller("member", organization[role].subject)), pytest.raises(psycopg.Error) as refused:
            api.execute("select api.create_credit_note(%s, 'mine')", [invoice])
        assert "ROLE_REQUIRED: " in str(refused.value)


# What whoever writes into the tables themselves cannot do.

_NOTE = """
    insert into billing.credit_notes (organization_id, id, number, invoice_id, payer_user_id, currency, reason,
      issued_by, reference, subtotal_cents, tax_cents, total_cents, to_balance_cents)
    values (%(org)s, %(id)s, {number}, %(id)s, {payer}, {currency}, 'x', 'x', 'x',
      {subtotal}, {tax}, {total}, {balance})
"""
_GOOD = {
    "number": "null",
    "payer": "null",
    "currency": "'usd'",
    **{"subtotal": "100", "tax": "19", "total": "119", "balance": "0"},
}
_LINE = """
    insert into billing.credit_note_lines (organization_id, credit_note_id, line_number, invoice_id,
      invoice_line_number, description, amount_cents)
    values (%(org)s, %(id)s, {number}, %(id)s, {line}, 'x', {amount})
"""


def note(**different: str) -> str:
    return _NOTE.format(**{**_GOOD, **different})


def line(amount: str, line: int = 1, number: int = 1) -> str:
    return _LINE.format(number=number, line=line, amount=amount)


BY_HAND = {
    "more than the invoice": ("CREDIT_TOO_HIGH", note(subtotal="1001", tax="190", total="1191", balance="1")),
    "not a number": ("CREDIT_TOO_HIGH", note(subtotal="'NaN'", total="'NaN'")),
    "another number": ("LEDGER_INCONSISTENT", note(number=f"'CN-{YEAR}-0009'")),
    "another payer": ("LEDGER_INCONSISTENT", note(payer="%(id)s")),
    "another currency": ("LEDGER_INCONSISTENT", note(currency="'eur'")),
    "to the balance what is asked for": ("LEDGER_INCONSISTENT", note(balance="119")),
    "without lines": ("LEDGER_INCONSISTENT", note()),
    "lines that do not sum": ("LEDGER_INCONSISTENT", note(), line("99")),
    "more of a line": ("CREDIT_TOO_HIGH", note(), line("401", line=2)),
    "no number of a line": ("CREDIT_TOO_HIGH", note(), line("'NaN'")),
    "of the tax line": ("LEDGER_INCONSISTENT", note(), line("100", line=3)),
    "more tax": ("LEDGER_INCONSISTENT", note(tax="20", total="120"), line("100")),
    "tax beside the total": ("LEDGER_INCONSISTENT", note(total="100"), line("100")),
    "a line later": ("LEDGER_INCONSISTENT", note(), line("100"), "set constraints all immediate", line("1", 1, 2)),
}


@pytest.fixture(scope="module")
def by_hand(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> Organization:
    """With an invoice of 600 and 400 and 19 percent of tax, which has the organization's own id."""
    made = make_organization(shared_database)
    with superuser.transaction():
        superuser.execute("set local session_replication_role = replica")
        invoice = issue(superuser, made, [("usage", 600), ("usage", 400)], tax_percent=19)
        for table, column in (("invoices", "id"), ("invoice_lines", "invoice_id")):
            change = f"update billing.{table} set {column} = %s where {column} = %s"
            superuser.execute(change.encode(), [made.id, invoice])
    return made


@pytest.mark.parametrize("what", BY_HAND)
def test_by_hand_nothing_else_is_written(superuser: Connection, by_hand: Organization, what: str) -> None:
    code, *statements = BY_HAND[what]
    refused_by_hand(superuser, f"{code}: ", *statements, org=by_hand.id, id=by_hand.id)


def test_by_hand_a_good_note_is_written(superuser: Connection, by_hand: Organization) -> None:
    with superuser.transaction(force_rollback=True):
        for statement in (note(), line("100")):
            superuser.execute(statement.encode(), {"org": by_hand.id, "id": by_hand.id})
        superuser.execute("set constraints all immediate")


def test_outside_read_committed_nothing_is_written(shared_database: Database, by_hand: Organization) -> None:
    """A snapshot older than the lock would not see what another has credited."""
    with shared_database.connect() as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(psycopg.Error, match="ISOLATION_LEVEL: "), connection.transaction():
            connection.execute(note().encode(), {"org": by_hand.id, "id": by_hand.id})

"""What tests of credit notes, payments and balances say again and again: an issued invoice, and the staff at it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.harness import Organization
from tests.sql_requests import Caller, Connection, request, run
from tests.usage import value

Row = dict[str, Any]
Line = tuple[str, int]  # kind and amount


def issue(
    superuser: Connection,
    organization: Organization,
    lines: Sequence[Line],
    *,
    tax_percent: int = 0,
    tax_inclusive: bool = False,
    payer: UUID | None = None,
) -> UUID:
    """An invoice as finalization would store it, of a month of its own."""
    subtotal = sum(amount for _, amount in lines)
    tax = value(
        superuser,
        "select round(%s::numeric * %s / %s)",
        subtotal,
        tax_percent,
        100 + tax_percent if tax_inclusive else 100,
    )
    total = subtotal if tax_inclusive else subtotal + tax
    with superuser.transaction():
        period = superuser.execute(
            """
            insert into billing.billing_periods (organization_id, period_start, period_end, previous_end, timezone)
            select o.id, s.start, s.start + interval '1 month', (select max(period_end) from billing.billing_periods
              where organization_id = o.id), 'UTC'
            from tenancy.organizations o, coalesce(
              (select max(period_end) from billing.billing_periods where organization_id = o.id), '2020-01-01Z'
            ) as s (start)
            where o.id = %s
            returning period_start, period_end
            """,
            [organization.id],
        ).fetchone()
        assert period
        made: UUID = value(
            superuser,
            """
            insert into billing.invoices (organization_id, number, period_start, period_end, payer_user_id, currency,
              subtotal_cents, tax_name, tax_percent, tax_inclusive, tax_cents, total_cents, balance_applied_cents,
              amount_due_cents)
            values (%s, to_char(%s::timestamptz, 'YYYY-00MM'), %s, %s, %s, 'usd', %s, 'VAT', %s, %s, %s, %s, 0, %s)
            returning id
            """,
            *(organization.id, period[0], *period, payer),
            *(subtotal, tax_percent, tax_inclusive, tax, total, max(total, 0)),
        )
        billed = [*lines, *([("tax", 0 if tax_inclusive else tax)] if tax_percent else [])]
        for number, (kind, amount) in enumerate(billed, 1):
            superuser.execute(
                """
                insert into billing.invoice_lines (organization_id, invoice_id, line_number, description, events,
                  quantity, amount_cents, kind)
                values (%s, %s, %s, %s, 0, 0, %s, %s)
                """,
                [organization.id, made, number, kind.title(), amount, kind],
            )
    return made


@dataclass(frozen=True)
class Staff:
    """The provider's staff in one transaction, which is taken back."""

    connection: Connection

    def call(self, function: str, **arguments: object) -> Row:
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        adapted = {name: Jsonb(a) if isinstance(a, list) else a for name, a in arguments.items()}
        return self._row(f"select * from api.{function}({named})", adapted)

    def refused(self, code: str, function: str, **arguments: object) -> str:
        """The message with which it is refused."""
        with pytest.raises(psycopg.Error, match=f"{code}: ") as refused, self.connection.transaction():
            self.call(function, **arguments)
            self.connection.execute("set constraints all immediate")
        return str(refused.value.diag.message_primary)

    def credit(self, invoice: UUID, *lines: tuple[int, int], reason: str = "wrong", **more: object) -> Row:
        """So much of each line; without lines, all that is left."""
        named = [{"line_number": number, "amount_cents": amount} for number, amount in lines]
        return self.call("create_credit_note", invoice_id=invoice, lines=named or None, reason=reason, **more)

    def pay(self, invoice: UUID, amount: object, reference: str = "r1", **more: object) -> Row:
        return self.call(
            "record_payment", invoice_id=invoice, amount_cents=amount, method="cash", reference=reference, **more
        )

    def invoice(self, invoice: UUID) -> Row:
        return self._row("select * from api.invoices where id = %(id)s", {"id": invoice})

    def settled(self, invoice: UUID) -> tuple[str, int, int, int]:
        """Status, and what was paid, credited and remains."""
        row = self.invoice(invoice)
        return row["status"], row["paid_cents"], row["credited_cents"], row["remaining_cents"]

    def balance(self) -> int:
        return sum(amount for _, amount in self.balances())

    def balances(self) -> list[tuple[str, int]]:
        """Of each kind of payer."""
        found = self.connection.execute(
            """
            select billing_entity_type, balance_cents from api.balances
            where organization_id = tenancy.current_org() order by 1
            """
        )
        return [(payer, int(amount)) for payer, amount in found.fetchall()]

    def _row(self, query: str, parameters: Row) -> Row:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(query.encode(), parameters).fetchone()
        assert found
        return found


@contextmanager
def staff(api: Connection, organization: Organization) -> Iterator[Staff]:
    with request(api, Caller("platform_admin", "staff|7", str(organization.id))) as connection:
        yield Staff(connection)
        connection.execute("set constraints all immediate")  # what a commit would look at


def refused_by_hand(superuser: Connection, code: str, *statements: str, **known: object) -> None:
    """Of a superuser who writes the last one of these into the tables themselves. All is taken back."""
    with superuser.transaction(force_rollback=True):
        for statement in statements[:-1]:
            run(superuser, statement, known)
        with pytest.raises(psycopg.Error, match=code), superuser.transaction():
            run(superuser, statements[-1], known)
            superuser.execute("set constraints all immediate")

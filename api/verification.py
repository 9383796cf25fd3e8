"""Invoices seen from the command line: which can be proved from what was used, and what is wrong with the others.

What proves an invoice is said in sql/billing/verify_invoice.sql. `url` is that of goldleaves_migrator, or of a
superuser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from uuid import UUID

import psycopg
from psycopg.rows import class_row


class VerificationError(Exception):
    """What was asked cannot be verified: the reason, in one line."""


@dataclass(frozen=True)
class Difference:
    """`expected` is what was issued or recorded, `found` what there is now."""

    what: str
    expected: str | None
    found: str | None
    detail: str

    def __str__(self) -> str:
        sides = (("expected", self.expected), ("found", self.found))
        told = ", ".join(f"{name} {side}" for name, side in sides if side is not None)
        return self.detail + (f" ({told})" if told else "")


@dataclass(frozen=True)
class Listed:
    """An invoice that is to be verified, or a statement, which has no number. `digest` is None where it is older than
    digests.
    """

    organization_id: UUID
    slug: str
    id: UUID
    number: str | None
    digest: str | None


@dataclass(frozen=True)
class Verdict:
    invoice: Listed
    differences: tuple[Difference, ...]

    @property
    def is_proved(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        number = len(self.differences)
        told = "verified" if self.is_proved else f"{number} difference{'' if number == 1 else 's'}"
        older = "" if self.invoice.digest else ", older than digests: only its quantities and amounts can be verified"
        name = self.invoice.number or f"statement {self.invoice.id}"
        return f"{self.invoice.slug} {name}: {told}{older}"


@dataclass(frozen=True)
class Beside:
    """What differs in an organization, or on the platform, that no single invoice tells: terms, plans, prices, periods,
    and invoices that are gone.
    """

    organization_id: UUID
    slug: str
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        number = len(self.differences)
        return f"{self.slug}: {number} difference{'' if number == 1 else 's'} beside its invoices"


@dataclass(frozen=True)
class Chosen:
    """Which invoices: of periods that ended in a month (its first day), of an organization (slug or id), one (id or
    number).
    """

    month: date | None = None
    organization: str | None = None
    invoice: str | None = None


def month_of(text: str | None) -> date:
    """The first day of 2026-01; without a text, of the last month. Raises VerificationError."""
    if text is None:
        today = datetime.now(UTC).date()
        return date(today.year - (today.month == 1), (today.month - 2) % 12 + 1, 1)
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise VerificationError(f"{text!r} is no month. Write it as 2026-01.") from error


_LIST = """
  select i.organization_id, coalesce(o.slug, i.organization_id::text) as slug, i.id, i.number, i.digest
  from billing.invoices i
  left join tenancy.organizations o on o.id = i.organization_id
  -- An invoice says itself of when it is: its period may be gone, or moved.
  left join billing.billing_periods p
    on p.organization_id = i.organization_id and p.period_start = i.period_start and i.timezone is null
  where (
      %(month)s::date is null
      or %(month)s::date = date_trunc(
        'month', (i.period_end - interval '1 microsecond') at time zone coalesce(i.timezone, p.timezone, 'UTC')
      )
    )
    and (%(organization)s::text is null or %(organization)s in (o.slug, i.organization_id::text))
    and (%(invoice)s::text is null or %(invoice)s in (i.number, i.id::text))
  order by 2, i.number, i.id
"""


def verify(url: str, chosen: Chosen) -> Iterator[tuple[int, Verdict]]:
    """Verify one invoice after the other, each in a snapshot of its own; with how many there are.

    Raises VerificationError.
    """
    with psycopg.connect(url, application_name="goldleaves billing verify", autocommit=True) as conn:
        row = conn.execute("select to_regprocedure('billing.verify_invoice(uuid, uuid)') is not null").fetchone()
        if not row or not row[0]:
            raise VerificationError("This database cannot verify invoices yet. Run `goldleaves migrate` first.")
        invoices = _listed(conn, chosen)
        for invoice in invoices:
            with conn.transaction(), conn.cursor(row_factory=class_row(Difference)) as cursor:
                cursor.execute("set transaction isolation level repeatable read, read only")
                found = cursor.execute(
                    "select * from billing.verify_invoice(%s, %s)", [invoice.organization_id, invoice.id]
                ).fetchall()
            yield len(invoices), Verdict(invoice, tuple(found))


_BESIDE = """
  select b.organization_id, coalesce(o.slug, b.organization_id::text), b.what, b.expected, b.found, b.detail
  from (
    select (select o.id from tenancy.organizations o where %(organization)s::text in (o.slug, o.id::text)) as id
  ) as c
  cross join lateral billing.differences_beside_invoices(c.id) b
  left join tenancy.organizations o on o.id = b.organization_id
  order by 2, b.what, b.detail
"""


def verify_beside(url: str, organization: str | None) -> list[Beside]:
    """What differs beside the invoices, in one organization (slug or id) and on the platform, or everywhere."""
    with psycopg.connect(url, application_name="goldleaves billing verify") as conn:
        conn.execute("set transaction isolation level repeatable read, read only")
        conn.execute("set local role goldleaves_kernel")
        rows = conn.execute(_BESIDE, {"organization": organization}).fetchall()
    return [
        Beside(*of, tuple(Difference(*row[2:]) for row in found))
        for of, found in groupby(rows, key=lambda row: (row[0], row[1]))
    ]


def _listed(conn: psycopg.Connection[tuple[object, ...]], chosen: Chosen) -> list[Listed]:
    with conn.transaction(), conn.cursor(row_factory=class_row(Listed)) as cursor:
        cursor.execute("set local role goldleaves_kernel")
        invoices = cursor.execute(
            _LIST, {"month": chosen.month, "organization": chosen.organization, "invoice": chosen.invoice}
        ).fetchall()
    if not invoices and chosen.invoice is not None:
        raise VerificationError(f"There is no invoice {chosen.invoice!r}. Give its id or number.")
    if not invoices and chosen.organization is not None:
        raise VerificationError(f"There is no invoice of organization {chosen.organization!r} for that month.")
    if chosen.invoice is not None and len(invoices) > 1:
        raise VerificationError(
            f"{len(invoices)} organizations have an invoice {chosen.invoice!r}. Say which with --organization."
        )
    return invoices

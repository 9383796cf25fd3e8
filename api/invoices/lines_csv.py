"""The lines of an invoice as CSV (RFC 4180), tax included: amount_cents adds up to the total."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Final

from api.invoices.document import Document, Line, Price
from api.invoices.in_force import intervals_in_force
from api.invoices.numbers import money

# Columns are added behind these, never between or instead.
COLUMNS: Final = (
    "invoice_number",
    "currency",
    "period_start",
    "period_end",
    "line_number",
    "kind",
    "meter",
    "groups",
    "description",
    "unit",
    "events",
    "quantity",
    "unit_amount_cents",
    "amount_cents",
    "amount",
    "plan",
    "trial",
    "in_force",
    "document",  # invoice; statement: Stripe's invoice counts
)
# A spreadsheet takes a cell that begins so for a formula, and runs it. Numbers of ours are none of those.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def lines_csv(document: Document) -> str:
    """period_end is the first day after the period; of an adjustment, both are of the period it belongs to."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    rows = [(line.line_number, _row(document, line)) for line in (*document.lines, *document.adjustments)]
    if document.tax is not None:
        rows.append((document.tax.line_number, _tax_row(document)))
    writer.writerows(row for _, row in sorted(rows))
    return text.getvalue()


def _row(document: Document, line: Line) -> list[str]:
    period = line.belongs_to or document.period
    price = line.price or Price()
    return [
        document.number or "",
        document.currency,
        f"{period.start_date}",
        f"{period.end_date}",
        f"{line.line_number}",
        line.kind,
        _harmless(line.meter or ""),
        _harmless("; ".join(f"{name}={value}" for name, value in sorted(line.groups.items()))),
        _harmless(line.description),
        _harmless(line.unit or ""),
        f"{line.events}",
        f"{line.quantity:f}",
        f"{line.unit_amount_cents:f}" if line.unit_amount_cents is not None else "",
        f"{line.amount_cents:f}",
        money(line.amount_cents, document.minor_units, thousands=""),
        _harmless(price.plan or ""),
        "true" if price.trial else "",
        intervals_in_force(price, period),
        document.kind,
    ]


def _tax_row(document: Document) -> list[str]:
    """What the tax adds to the total: nothing, where prices contain it."""
    assert document.tax is not None  # noqa: S101
    tax = document.tax
    added = Decimal(0) if tax.inclusive else tax.amount_cents
    return [
        document.number or "",
        document.currency,
        f"{document.period.start_date}",
        f"{document.period.end_date}",
        f"{tax.line_number}",
        "tax",
        "",
        "",
        _harmless(tax.description),
        "",
        "",
        "",
        "",
        f"{added:f}",
        money(added, document.minor_units, thousands=""),
        "",
        "",
        "",
        document.kind,
    ]


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text

"""The document that `invoice_document` and `preview_invoice` answer with, as far as it is written out. Amounts are in
minor units of the currency, and exact: numbers of the JSON are never read as floating point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Party(Part):
    legal_name: str | None = None
    address: str | None = None
    country: str | None = None
    email: str | None = None
    tax_id: str | None = None


class Period(Part):
    start_date: date
    end_date: date  # the first day that does not belong to it
    timezone: str

    @property
    def last_day(self) -> date:
        return max(self.start_date, self.end_date - timedelta(days=1))


class FinalizedPeriod(Period):
    invoice_number: str | None = None


class Tier(Part):
    """What a part of the quantity comes to."""

    starts: Decimal = Field(alias="from")
    ends: Decimal = Field(alias="to")
    quantity: Decimal
    unit_amount_cents: Decimal | None = None
    flat_amount_cents: Decimal = Decimal(0)
    amount_cents: Decimal
    packages: Decimal | None = None
    package_size: Decimal | None = None
    included: bool = False


class Span(Part):
    starts: datetime = Field(alias="from")
    ends: datetime = Field(alias="until")


class Price(Part):
    model: str = "per_unit"
    plan: str | None = None
    trial: bool = False
    by_stripe: bool = False  # Stripe charges it with the subscription
    in_force: tuple[Span, ...] = ()  # empty: for all of the period
    package_size: Decimal | None = None
    minimum_cents: Decimal | None = None
    maximum_cents: Decimal | None = None


class Line(Part):
    line_number: int
    kind: str
    meter: str | None
    groups: Mapping[str, str]
    description: str
    unit: str | None
    events: int
    quantity: Decimal
    unit_amount_cents: Decimal | None
    price: Price | None
    tiers: tuple[Tier, ...]
    exact_cents: Decimal
    amount_cents: Decimal
    belongs_to: FinalizedPeriod | None = None

    @property
    def is_per_unit(self) -> bool:
        return self.kind != "fee" and (self.price is None or self.price.model == "per_unit")


class Tax(Part):
    line_number: int
    description: str
    inclusive: bool
    amount_cents: Decimal


class Payment(Part):
    kind: str
    amount_cents: Decimal
    method: str
    reference: str
    paid_date: date
    refunded_cents: Decimal


class CreditNote(Part):
    number: str
    reason: str
    issue_date: date
    total_cents: Decimal
    to_balance_cents: Decimal = Decimal(0)


class Document(Part):
    kind: str = "invoice"  # statement: Stripe's invoice counts
    number: str | None
    status: str
    issuer: Party
    billed_to: Party
    period: Period
    issue_date: date | None
    due_date: date | None
    currency: str
    minor_units: int
    lines: tuple[Line, ...]
    adjustments: tuple[Line, ...]
    tax: Tax | None
    subtotal_cents: Decimal
    total_cents: Decimal
    balance_applied_cents: Decimal
    amount_due_cents: Decimal
    paid_cents: Decimal
    credited_cents: Decimal
    remaining_cents: Decimal
    written_off_cents: Decimal
    payments: tuple[Payment, ...]
    credit_notes: tuple[CreditNote, ...]
    digest: str | None

    @classmethod
    def of_json(cls, body: bytes) -> Self:
        return cls.model_validate(json.loads(body, parse_float=Decimal))

    @property
    def is_draft(self) -> bool:
        return self.status == "draft"

    @property
    def is_statement(self) -> bool:
        return self.kind == "statement"

    @property
    def noun(self) -> str:
        return self.kind.capitalize()

    @property
    def taken_off_cents(self) -> Decimal:
        """What credit notes took off the amount due. What they put on the balance is not in it."""
        return self.amount_due_cents - self.paid_cents - self.written_off_cents - self.remaining_cents

    @property
    def name(self) -> str:
        """What a file with it is called."""
        if self.is_draft:
            return f"{self.kind}-preview-{self.period.start_date}"
        return f"{self.kind}-{self.number or self.period.start_date}"

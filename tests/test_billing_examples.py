"""The worked examples of `tests/billing_examples/`: what an accountant says an invoice has to be, against what it is.

Each is played twice, for an organization of its own: read from the events, and rolled up before each month is closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
import yaml  # type: ignore[import-untyped]
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
from tests.usage import Connection, finalize, ingest, value

EXAMPLES = sorted((Path(__file__).parent / "billing_examples").glob("*.yaml"))
YEAR = datetime.now(UTC).year - 1
"""The last one that is over, so that each of its months can be closed."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Meter(Strict):
    event: str | None = None
    aggregation: str = "sum"
    unit_size: Decimal = Decimal(1)
    keeps: list[str] = []
    allow_negative: bool = False


class Tier(Strict):
    up_to: Decimal | None = None
    each: Decimal = Decimal(0)
    flat: Decimal = Decimal(0)


class Price(Strict):
    meter: str | None = None
    model: Literal["flat", "per_unit", "package", "graduated", "volume"]
    amount: Decimal | None = None
    package_of: Decimal | None = None
    tiers: list[Tier] | None = None
    included: Decimal = Decimal(0)
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    group: dict[str, str] | None = None
    plan: str | None = None
    since: str | None = None


class Change(Strict):
    """Of the subscription: one of its actions, at that moment."""

    on: str
    start: str | None = None
    trial_days: int = 0
    payment_method: bool = True
    change: str | None = None
    cancel: bool = False
    pause: bool = False
    resume: bool = False
    past_due: bool = False
    paid: bool = False


class Tax(Strict):
    percent: Decimal
    inclusive: bool = False


class Usage(Strict):
    on: str
    meter: str | None = None
    quantity: Decimal | None = None
    id: str | None = None
    of: dict[str, str] = {}
    late_for: str | None = None
    void: str | None = None


class Line(Strict):
    fee: bool = False
    meter: str | None = None
    plan: str = ""
    group: dict[str, str] = {}
    late_for: str | None = None
    quantity: Decimal
    amount: Decimal
    because: str


class Note(Strict):
    lines: dict[int, Decimal]
    subtotal: Decimal
    tax: Decimal = Decimal(0)
    total: Decimal
    to_balance: Decimal = Decimal(0)
    because: str


class Settled(Strict):
    status: Literal["open", "paid", "void", "uncollectible"]
    remaining: Decimal


class Invoice(Strict):
    payer: Literal["person", "organization"] = "organization"
    lines: list[Line] = []
    tax: Decimal = Decimal(0)
    total: Decimal
    balance_applied: Decimal = Decimal(0)
    due: Decimal | None = None
    paid: Decimal | None = None
    credit_notes: list[Note] = []
    settled: Settled | None = None


class Month(Strict):
    month: str
    usage: list[Usage] = []
    invoices: list[Invoice]


class Example(Strict):
    title: str
    why: str
    currency: str = "usd"
    timezone: str = "UTC"
    converted: str | None = None
    subscription: list[Change] = []
    tax: Tax | None = None
    meters: dict[str, Meter] = {}
    prices: list[Price]
    months: list[Month] = Field(min_length=1)

    @field_validator("months")
    @classmethod
    def has_an_invoice(cls, months: list[Month]) -> list[Month]:
        if not any(month.invoices for month in months):
            raise ValueError("nothing is expected")
        return months


@cache
def read(path: Path) -> Example:
    # As texts, so that no number is rounded on its way.
    return Example.model_validate(yaml.load(path.read_text(), yaml.BaseLoader))  # noqa: S506 - makes only texts


def moment(text: str) -> datetime:
    """`January 3`, `January 3 12:00:30`, or `middle of February`, in UTC."""
    if text.startswith("middle of "):
        first = moment(f"{text.removeprefix('middle of ')} 1")
        return first + ((first + timedelta(days=31)).replace(day=1) - first) / 2
    day, _, time = text.partition(":")
    if time:
        day, _, hour = day.rpartition(" ")
        time = f"{hour}:{time}"
    return datetime.strptime(
        f"{YEAR} {day} {time or '00:00'}", "%Y %B %d %H:%M:%S" if time.count(":") == 2 else "%Y %B %d %H:%M"
    ).replace(tzinfo=UTC)


class Books:
    """One organization of an example, whose prices and meters have names that no other example uses."""

    def __init__(self, superuser: Connection, example: Example, prefix: str, organization: UUID) -> None:
        self.superuser = superuser
        self.example = example
        self.prefix = prefix
        self.organization = organization

    def agree(self) -> None:
        example = self.example
        self.superuser.execute(
            "update tenancy.organizations set plan = %s, currency = %s, billing_timezone = %s where id = %s",
            [f"{self.prefix}.plan", example.currency, example.timezone, self.organization],
        )
        if example.converted:
            self.superuser.execute(
                "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
                [moment(example.converted), self.organization],
            )
        if example.tax:
            self.superuser.execute(
                "insert into billing.billing_terms (organization_id, tax_percent, tax_inclusive) values (%s, %s, %s)",
                [self.organization, example.tax.percent, example.tax.inclusive],
            )
        for change in example.subscription:
            self._change(change)

    def _change(self, change: Change) -> None:
        started = change.start and f"{self.prefix}.{change.start}"
        function, arguments = next(
            (function, arguments)
            for asked, function, arguments in (
                (change.start, "start_subscription", [started, change.trial_days, change.payment_method]),
                (change.change, "change_subscription", [f"{self.prefix}.{change.change}", False]),
                (change.cancel, "cancel_subscription", [False, None]),
                (change.pause, "pause_subscription", []),
                (change.resume, "resume_subscription", []),
                (change.past_due, "mark_past_due", [None]),
                (change.paid, "mark_paid", []),
            )
            if asked
        )
        parameters = [self.organization, *arguments, moment(change.on)]
        self.superuser.execute(
            f"select billing.{function}({', '.join(['%s'] * len(parameters))})",
            parameters,
        )

    def record(self, month: Month) -> None:
        for number, usage in enumerate(month.usage):
            at = moment(f"{month.month} {usage.on}")
            if usage.void:
                self.superuser.execute(
                    "select metering.void_event(%s, %s, 'api', 'adjust')", [self.organization, usage.void]
                )
            else:
                assert usage.meter
                meter = self.example.meters.get(usage.meter, Meter())
                told: dict[str, Any] = {
                    "id": usage.id or f"{month.month}-{number}",
                    "event": f"{self.prefix}.{meter.event or usage.meter}",
                    "time": (moment(usage.late_for) if usage.late_for else at).isoformat(),
                    "dimensions": usage.of,
                }
                if "user_id" in usage.of:
                    told["user_id"] = usage.of["user_id"]
                # The quantity as it is written.
                body = json.dumps([told])[:-2] + f', "quantity": {usage.quantity:f}}}]'
                answer = ingest(self.superuser, body, self.organization, late="adjust" if usage.late_for else "reject")
                assert answer.accepted == 1, answer
            if usage.void or usage.late_for:
                self._arrive(at)

    def _arrive(self, at: datetime) -> None:
        """What is late is recorded now, whatever year the example is of: put it where the example says it came."""
        with self.superuser.transaction():
            self.superuser.execute("select metering.ensure_partition(%s)", [at.date().replace(day=1)])
            self.superuser.execute("select billing.ensure_periods(%s, %s, %s)", [self.organization, at, at])
            self.superuser.execute("set local session_replication_role = replica")
            for table in ("usage_events", "event_keys"):
                self.superuser.execute(
                    f"""
                    update metering.{table} set occurred_at = %s
                    where organization_id = %s and occurred_at > clock_timestamp() - interval '1 hour'
                    """,
                    [at, self.organization],
                )

    def found(self, month: Month) -> list[list[str]]:
        """The invoices of a month as rows of a table."""
        first = moment(f"{month.month} 1").date()
        finalize(self.superuser, self.organization, first)
        rows: list[list[str]] = []
        for invoice in self.superuser.execute(
            """
            select id, billing_entity_type, tax_cents, total_cents, balance_applied_cents, amount_due_cents
            from billing.invoices
            where organization_id = %s and (period_start at time zone timezone)::date = %s
            order by payer_user_id nulls last
            """,
            [self.organization, first],
        ).fetchall():
            identity, entity, *totals = invoice
            rows.append(["invoice", "person" if entity == "user" else entity, "", "", "", ""])
            rows += [
                [
                    kind if not self.example.subscription else f"{kind} {self._named(plan)}".strip(),
                    self._named(meter), group, late, nine_places(quantity), text(amount),
                ]
                for kind, meter, plan, group, late, quantity, amount in self.superuser.execute(
                    """
                    select kind, meter_code, billing.plan_of_line(l), groups::text,
                      coalesce(to_char(belongs_to at time zone %s, 'FMMonth'), ''), quantity, amount_cents
                    from billing.invoice_lines l where organization_id = %s and invoice_id = %s and kind <> 'tax'
                    order by line_number
                    """,
                    [self.example.timezone, self.organization, identity],
                )
            ]  # fmt: skip
            rows += [
                [name, "", "", "", "", text(amount)]
                for name, amount in zip(("tax", "total", "balance applied", "due"), totals, strict=True)
            ]
            expected = next((each for each in month.invoices if each.payer == rows_payer(rows)), None)
            if expected:
                rows += self._settle(expected, identity, f"{month.month}-{entity}")
        return rows

    def _named(self, name: str | None) -> str:
        return (name or "").removeprefix(f"{self.prefix}.")

    def _settle(self, expected: Invoice, invoice: UUID, reference: str) -> list[list[str]]:
        rows = []
        if expected.paid is not None:
            self.superuser.execute(
                "select billing.record_payment(%s, %s, %s, 'bank', %s, null)",
                [self.organization, invoice, expected.paid, reference],
            )
        for number, note in enumerate(expected.credit_notes):
            lines = [{"line_number": line, "amount_cents": int(amount)} for line, amount in note.lines.items()]
            found = self.superuser.execute(
                """
                select subtotal_cents, tax_cents, total_cents, to_balance_cents
                from billing.create_credit_note(%s, %s, %s, 'a mistake', %s)
                """,
                [self.organization, invoice, Jsonb(lines), f"{reference}-{number}"],
            ).fetchone()
            assert found
            names = ("subtotal", "tax", "total", "to balance")
            rows += [
                [f"credit note: {name}", "", "", "", "", text(amount)]
                for name, amount in zip(names, found, strict=True)
            ]
        if expected.settled:
            status, remaining = self.superuser.execute(
                """
                select s.status, s.remaining_cents
                from billing.invoices i,
                  billing.settlement(i.organization_id, i.id, i.total_cents, i.amount_due_cents) s
                where i.organization_id = %s and i.id = %s
                """,
                [self.organization, invoice],
            ).fetchone() or (None, 0)
            rows.append(["settled", str(status), "", "", "", text(remaining)])
        return rows


def rows_payer(rows: list[list[str]]) -> str:
    return [row[1] for row in rows if row[0] == "invoice"][-1]


def expectation(month: Month) -> list[list[str]]:
    rows: list[list[str]] = []
    for invoice in month.invoices:
        rows.append(["invoice", invoice.payer, "", "", "", ""])
        for line in invoice.lines:
            kind = "fee" if line.fee else "adjustment" if line.late_for else "usage"
            rows.append(
                [
                    f"{kind} {line.plan}".strip(),
                    line.meter or "",
                    json.dumps(line.group),
                    line.late_for or "",
                    nine_places(line.quantity),
                    text(line.amount),
                ]
            )
        due = invoice.due if invoice.due is not None else max(invoice.total, Decimal()) - invoice.balance_applied
        totals = {"tax": invoice.tax, "total": invoice.total, "balance applied": invoice.balance_applied, "due": due}
        rows += [[name, "", "", "", "", text(amount)] for name, amount in totals.items()]
        for note in invoice.credit_notes:
            amounts = {"subtotal": note.subtotal, "tax": note.tax, "total": note.total, "to balance": note.to_balance}
            rows += [[f"credit note: {name}", "", "", "", "", text(amount)] for name, amount in amounts.items()]
        if invoice.settled:
            rows.append(["settled", invoice.settled.status, "", "", "", text(invoice.settled.remaining)])
    return rows


def text(number: Decimal | int) -> str:
    plain = f"{number:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def nine_places(quantity: Decimal | int) -> str:
    """A third has no end. What is rated is the third, what is compared here nine places of it."""
    with localcontext(prec=60):
        return text(round(Decimal(quantity), 9))


def table(rows: list[list[str]]) -> str:
    return "\n".join("  " + " ".join(cell.ljust(18) for cell in row).rstrip() for row in rows)


@pytest.fixture(scope="module")
def agree_on_prices(superuser: Connection) -> Iterator[Any]:
    """Meters and prices of an example, once for all organizations that play it."""

    @cache
    def make(path: Path) -> str:
        example, prefix = read(path), path.stem.replace("-", "_")
        used = {price.meter for price in example.prices if price.meter} | set(example.meters)
        for code in sorted(used):
            meter = example.meters.get(code, Meter())
            reads = "user_id" if meter.aggregation == "unique" else "quantity"
            superuser.execute(
                """
                insert into metering.meters
                  (code, event_name, aggregation, value, unit, unit_size, group_by, allow_negative, description)
                values (%s, %s, %s, %s, 'unit', %s, %s, %s, %s)
                """,
                [
                    f"{prefix}.{code}", f"{prefix}.{meter.event or code}", meter.aggregation, reads, meter.unit_size,
                    meter.keeps, meter.allow_negative, code,
                ],
            )  # fmt: skip
        of_prices = {price.plan for price in example.prices if price.plan} - {"true"}
        of_subscription = {change.start or change.change or "plan" for change in example.subscription}
        for name in sorted({"plan"} | of_prices | of_subscription):
            superuser.execute(
                "insert into billing.plans (code, name) values (%s, %s)", [f"{prefix}.{name}", name.capitalize()]
            )
        # Of its plan, so that nobody else owes a minimum; for everybody only where an example tells the two apart.
        for_everybody = any(price.plan for price in example.prices)
        for price in example.prices:
            with superuser.transaction():
                # Nobody makes one price after the other for a time that is over, but this year was not over then.
                superuser.execute("set local session_replication_role = replica")
                plan = price.plan if price.plan not in (None, "true") else "plan"
                (group,) = (price.group or {}).items() or [(None, None)]
                tiers = [
                    {"up_to": tier.up_to, "unit_amount_cents": tier.each, "flat_amount_cents": tier.flat}
                    for tier in price.tiers or []
                ]
                superuser.execute(
                    """
                    insert into billing.prices (
                      meter_code, plan_code, currency, model, unit_amount_cents, package_size, tiers, included_quantity,
                      minimum_cents, maximum_cents, dimension, dimension_value, effective_from
                    )
                    values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
                    """,
                    [
                        price.meter and f"{prefix}.{price.meter}",
                        f"{prefix}.{plan}" if price.plan or not for_everybody else None,
                        example.currency, price.model, price.amount, price.package_of,
                        Jsonb(tiers, dumps=exact) if tiers else None, price.included, price.minimum, price.maximum,
                        *group, moment(f"{price.since} 1") if price.since else datetime(2000, 1, 1, tzinfo=UTC),
                    ],
                )  # fmt: skip
        return prefix

    yield make


def exact(tiers: list[dict[str, Decimal | None]]) -> str:
    """JSON with decimals as they are."""
    members = (
        ", ".join(f'"{name}": {"null" if number is None else f"{number:f}"}' for name, number in tier.items())
        for tier in tiers
    )
    return f"[{', '.join(f'{{{each}}}' for each in members)}]"


@pytest.mark.parametrize("rolled_up", [False, True], ids=["events", "rolled up"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_invoice_is_what_an_accountant_says(
    path: Path,
    rolled_up: bool,
    shared_database: Database,
    superuser: Connection,
    sidecar: Connection,
    agree_on_prices: Any,
    make_organization: MakeOrganization,
) -> None:
    example = read(path)
    kind = "personal" if example.converted else "organization"
    organization = make_organization(shared_database, kind=kind, roles=("owner",)).id
    books = Books(superuser, example, agree_on_prices(path), organization)
    books.agree()
    for month in example.months:
        books.record(month)
        if rolled_up:
            roll_up_all(sidecar)
        found, expected = books.found(month), expectation(month)
        assert found == expected, (
            f"{example.title}\n{month.month}, expected:\n{table(expected)}\nfound:\n{table(found)}"
        )
        drawn = value(
            superuser,
            """
            select coalesce(bool_and(i.total_cents = l.total), true) from billing.invoices i, lateral (
              select coalesce(sum(amount_cents), 0) as total from billing.invoice_lines l
              where l.organization_id = i.organization_id and l.invoice_id = i.id
            ) l where i.organization_id = %s
            """,
            organization,
        )
        assert drawn, "the total is the sum of its lines"


def test_there_are_enough_of_them() -> None:
    assert len(EXAMPLES) >= 40
    assert len({read(path).title for path in EXAMPLES}) == len(EXAMPLES)
    assert timedelta(days=365) < datetime.now(UTC) - moment("January 1")

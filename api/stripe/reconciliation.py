"""Reconciliation: what Stripe says it has of a billing period, handed to Postgres, which compares it with ours. What is
compared, and what a difference means, says sql/stripe/reconcile.sql.

The sidecar comes to each current and previous period once a day; `goldleaves stripe reconcile` does it at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from uuid import UUID

import structlog
from aiolimiter import AsyncLimiter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError
from api.stripe.client import Stripe
from api.stripe.failures import StripeBusy, StripeDenied, StripeError, StripeRefused

if TYPE_CHECKING:
    import stripe

PAGE: Final = 100
# Well below what Stripe allows for reading (100 a second, 25 in test mode): the provider's own backend reads, too.
READS_A_SECOND: Final = {True: 40.0, False: 12.0}
BUSY_ATTEMPTS: Final = 6
MOST: Final = 20  # periods that are claimed together
AT_ONCE: Final = 4
LEASE: Final = timedelta(minutes=10)
IDLE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 60.0
PRICES_KEPT: Final = 10_000

log = structlog.get_logger(__name__)

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period in which Stripe's invoice counts."""

    organization_id: UUID
    period_start: datetime


@dataclass(frozen=True, slots=True)
class Finding:
    """A meter, a line of Stripe's invoice, or an amount sent to it. `theirs` is None where Stripe does not say.

    `explained` is what of the difference is as it should be, `drift` the rest: 0 where nothing is wrong.
    """

    kind: str
    subject: str
    ours: Decimal
    theirs: Decimal | None
    explained: Decimal
    drift: Decimal
    cause: str


class Books(Protocol):
    """Our side of it."""

    async def reconciliation_question(self, period: Period) -> Json | None: ...

    async def reconcile(self, period: Period, theirs: str) -> list[Finding]: ...


class Reconciliation:
    """Asks Stripe, no faster than it likes."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe
        self._pace = AsyncLimiter(READS_A_SECOND[stripe.is_live], 1)
        self._meters: dict[str, str | None] = {}  # by price: None where it is charged whatever is used

    async def reconcile(self, books: Books, period: Period) -> tuple[Json, list[Finding]] | None:
        """What was asked, and what was found. None: there is no such period any more. Raises StripeError, and what
        `books` does.
        """
        question = await books.reconciliation_question(period)
        if question is None:
            return None
        usage = [await self._usage(asked) for asked in question["usage"]]
        lines = [line for customer in question["customers"] async for line in self._lines(customer, question)]
        items = [
            item
            for customer in (question["customers"] if question["items"] else ())
            async for item in self._items(customer, question)
        ]
        theirs = json.dumps({"usage": usage, "lines": lines, "items": items}, default=str)
        return question, await books.reconcile(period, theirs)

    async def _usage(self, asked: Json) -> Json:
        total = Decimal(0)
        for start, end in asked["ranges"]:
            try:
                found = await self._all(
                    lambda s, page, start=start, end=end: s.v1.billing.meters.event_summaries.list_async(  # type: ignore[misc]
                        asked["meter_id"],
                        {"customer": asked["customer_id"], "start_time": start, "end_time": end, **page},
                    )
                )
            except StripeRefused as error:
                return asked | {"value": None, "error": str(error)}
            total += sum((Decimal(str(one["aggregated_value"])) for one in found), Decimal(0))
        return asked | {"value": total}

    async def _lines(self, customer: str, question: Json) -> AsyncIterator[Json]:
        """Of invoices that count, or will. What we sent as amounts is compared as such."""
        created = {"gte": question["invoices_since"], "lte": question["invoices_until"]}
        for invoice in await self._all_of_customer(
            lambda s, page: s.v1.invoices.list_async({"customer": customer, "created": created, **page})  # type: ignore[arg-type]
        ):
            if invoice["status"] == "void":
                continue
            lines = invoice["lines"]["data"]
            if invoice["lines"].get("has_more"):
                lines = await self._all(
                    lambda s, page, id=invoice["id"]: s.v1.invoices.line_items.list_async(id, page)  # type: ignore[misc]
                )
            for line in lines:
                price, start, end = _price_of(line), line["period"]["start"], line["period"]["end"]
                starts_in_period = question["lines_since"] <= start < question["lines_until"]
                touches_period = start < question["lines_until"] and end > question["lines_since"]
                if price is not None and (starts_in_period or touches_period) and not _is_item(line):
                    told = _told(invoice, line, price, await self._meter_of(price))
                    yield told | {"is_of_period": starts_in_period}

    async def _items(self, customer: str, question: Json) -> AsyncIterator[Json]:
        created = {"gte": question["invoices_since"]}
        for item in await self._all_of_customer(
            lambda s, page: s.v1.invoice_items.list_async({"customer": customer, "created": created, **page})  # type: ignore[arg-type]
        ):
            yield {
                "id": item["id"],
                "item": (item.get("metadata") or {}).get("goldleaves_item"),
                "amount": item["amount"],
                "currency": item["currency"],
                "invoice": _id_of(item.get("invoice")),
            }

    async def _meter_of(self, price: str) -> str | None:
        if price not in self._meters:
            if len(self._meters) >= PRICES_KEPT:
                self._meters.clear()
            found = _plain(await self._ask(lambda s: s.v1.prices.retrieve_async(price)))
            self._meters[price] = (found.get("recurring") or {}).get("meter")
        return self._meters[price]

    async def _all_of_customer(self, call: Callable[[stripe.StripeClient, Any], Awaitable[Any]]) -> list[Json]:
        """Nothing of a customer that Stripe does not know any more."""
        try:
            return await self._all(call)
        except StripeRefused as error:
            if error.code != "resource_missing":
                raise
            return []

    async def _all(self, call: Callable[[stripe.StripeClient, Any], Awaitable[Any]]) -> list[Json]:
        """Page after page: each is a call of its own, with its own time limit."""
        found: list[Json] = []
        page: Json = {"limit": PAGE}
        while True:
            answer = await self._ask(lambda s, page=page: call(s, page))  # type: ignore[misc]
            found += [_plain(one) for one in answer.data]
            if not answer.has_more or not answer.data:
                return found
            page = {"limit": PAGE, "starting_after": answer.data[-1].id}

    async def _ask(self, call: Callable[[stripe.StripeClient], Awaitable[T]]) -> T:
        """Raises StripeError: when it is busy only after it was asked again some times."""
        for _ in range(BUSY_ATTEMPTS - 1):
            async with self._pace:
                try:
                    return await self._stripe.ask(call)
                except StripeDenied:
                    raise
                except StripeBusy as error:
                    pause = error.pause
            await asyncio.sleep(pause)
        async with self._pace:
            return await self._stripe.ask(call)


class Reconciling(Collector):
    """Reconciles what is due, and tells metrics. Several sidecars share it: who has claimed a period has it alone."""

    def __init__(self, database: Database, stripe: Stripe) -> None:
        self._database = database
        self._reconciliation = Reconciliation(stripe)
        self._drift: tuple[Decimal, Decimal, int] | None = None
        self._is_away = False

    async def run(self) -> None:
        while True:
            pause = await self.step()
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """All sidecars tell the same: take the highest."""
        if self._drift is None:
            return
        units, amounts, organizations = self._drift
        family = GaugeMetricFamily(
            "goldleaves_stripe_drift_units",
            "What differs between us and Stripe and is not explained: of usage in units of its meters, of what is on "
            "Stripe's invoices in units, and smallest units of currencies.",
            labels=["of"],
        )
        family.add_metric(["usage"], float(units))
        family.add_metric(["invoices"], float(amounts))
        yield family
        yield GaugeMetricFamily(
            "goldleaves_stripe_drift_organizations",
            "Organizations of which something differs; api.stripe_reconciliations says what, and why.",
            value=organizations,
        )

    async def step(self) -> float:
        """Reconcile what is due. Returns how long to wait until the next time."""
        try:
            due = await self._database.claim_reconciliations(MOST, LEASE)
            for first in range(0, len(due), AT_ONCE):
                done = (self._reconcile(Period(*one)) for one in due[first : first + AT_ONCE])
                for outcome in await asyncio.gather(*done, return_exceptions=True):
                    if isinstance(outcome, BaseException):
                        raise outcome
            self._drift = await self._database.stripe_drift()
        except (DatabaseError, StripeError) as error:
            if not self._is_away:  # once: whoever is away may stay so for long. What was claimed is due again later
                log.warning("stripe_not_reconciled", error=str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        return IDLE_SECONDS if len(due) < MOST else 0.0

    async def _reconcile(self, period: Period) -> None:
        """What Stripe refuses of one holds up no other: it is tried again when the lease is over."""
        try:
            found = await self._reconciliation.reconcile(_SidecarBooks(self._database), period)
        except StripeRefused as error:
            log.warning("stripe_period_not_reconciled", organization=str(period.organization_id), error=str(error))
            return
        for one in found[1] if found is not None else ():
            if one.drift:
                log.warning(
                    "stripe_drift",
                    organization=str(period.organization_id),
                    period_start=period.period_start.isoformat(),
                    subject=one.subject,
                    drift=str(one.drift),
                    cause=one.cause,
                )


class _SidecarBooks:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def reconciliation_question(self, period: Period) -> Json | None:
        return await self._database.reconciliation_question(period.organization_id, period.period_start)

    async def reconcile(self, period: Period, theirs: str) -> list[Finding]:
        rows = await self._database.reconcile_stripe(period.organization_id, period.period_start, theirs)
        return [Finding(*row) for row in rows]


def _plain(found: Any) -> Json:
    made: Json = found.to_dict()
    return made


def _id_in(value: object) -> str | None:
    """References are ids, or whole objects."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) else None


def _price_of(line: Json) -> str | None:
    """The price of a line: in `pricing` since 2025-03-31, before that in `price`."""
    details = (line.get("pricing") or {}).get("price_details") or {}
    return _id_in(details.get("price")) or _id_in(line.get("price"))


def _is_item(line: Json) -> bool:
    """An amount that somebody put on the invoice, ourselves or the provider, and no price of a subscription."""
    return (line.get("parent") or {}).get("type") == "invoice_item_details" or line.get("type") == "invoiceitem"


def _is_prorated(line: Json) -> bool:
    details = (line.get("parent") or {}).get("subscription_item_details") or {}
    return bool(details.get("proration") or line.get("proration"))


def _id_of(reference: Any) -> str | None:
    """Of what may be an id, or a whole object."""
    found: str | None = reference["id"] if isinstance(reference, dict) else reference
    return found


def _told(invoice: Json, line: Json, price: str, meter: str | None) -> Json:
    """As stripe.reconcile_lines() takes it."""
    quantity = Decimal(str(line.get("quantity_decimal") or line.get("quantity") or 0))
    amount = Decimal(str(line["amount"]))
    unit_amount = (line.get("pricing") or {}).get("unit_amount_decimal")
    return {
        "invoice": invoice["id"],
        "status": invoice["status"],
        "finalized_at": (invoice.get("status_transitions") or {}).get("finalized_at"),
        "line": line["id"],
        "period_start": line["period"]["start"],
        "period_end": line["period"]["end"],
        "quantity": quantity,
        "amount": amount,
        "currency": line["currency"],
        "price_id": price,
        "meter_id": meter,
        "unit_amount": unit_amount if unit_amount is not None else amount / (quantity or 1),
        "is_prorated": _is_prorated(line),
    }

"""Sends amounts to Stripe, which puts them on its next invoice: lines of statements, and credits. What is sent, and
what becomes of it, says sql/stripe/invoice_items.sql.

Any number of sidecars do it beside each other. Each amount counts once: it is sent under a key of its own, and where
nobody knows for a day whether it arrived, Stripe is asked for it before it is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from stripe import StripeClient

from api.database import ClaimedItem, Database, DatabaseError, WaitingItems
from api.stripe.client import CALL_SECONDS, Stripe
from api.stripe.failures import StripeBusy, StripeError, StripeRefused

AT_ONCE: Final = 4
MOST: Final = 40  # claimed together
LEASE: Final = timedelta(minutes=5)
RECORDING_SECONDS: Final = 10.0  # for saying what came of an attempt, within the lease
IDLE_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 10.0
READ_SECONDS: Final = 15.0
MARGIN: Final = timedelta(hours=1)  # by which Stripe's clock may be behind ours
OUTCOMES: Final = ("acknowledged", "unknown", "postponed", "rejected", "missing")

log = structlog.get_logger(__name__)


class InvoiceItems(Collector):
    def __init__(self, database: Database, stripe: Stripe) -> None:
        self._database = database
        self._stripe = stripe
        self._paused_until = 0.0
        self._outcomes: Counter[str] = Counter()
        self._answers = True
        self._is_away = False
        self._waiting: WaitingItems | None = None
        self._read_at = float("-inf")

    async def run(self) -> None:
        while True:
            pause = await self.step()
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """Of several sidecars each tells what it has sent, and all tell what waits: take the highest of that."""
        family = CounterMetricFamily(
            "goldleaves_stripe_invoice_item_attempts",
            "What came of sending amounts to Stripe; missing: it was looked for there, and is sent anew.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            family.add_metric([outcome], self._outcomes[outcome])
        yield family
        if self._waiting is None:
            return
        for name, text, value in (
            ("pending", "Amounts that wait to be sent to Stripe.", self._waiting.pending),
            ("uncertain", "Amounts of which nobody knows whether Stripe has them.", self._waiting.uncertain),
            ("rejected", "Amounts that Stripe refused.", self._waiting.rejected),
            ("oldest_seconds", "Age of the oldest amount that Stripe does not have.", self._waiting.oldest_seconds),
        ):
            yield GaugeMetricFamily(f"goldleaves_stripe_invoice_items_{name}", text, value=value)

    async def step(self) -> float:
        """Send what is due. Returns how long to wait until the next time."""
        try:
            if time.monotonic() > self._read_at + READ_SECONDS:
                self._waiting = await self._database.invoice_item_backlog()
                self._read_at = time.monotonic()
            paused = self._paused_until - time.monotonic()
            if paused > 0:
                return min(paused, READ_SECONDS)
            lease_ends = time.monotonic() + LEASE.total_seconds()
            most = MOST if self._answers else 1
            claimed = await self._database.claim_invoice_items(most, LEASE, self._stripe.is_live)
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("invoice_items_not_claimed", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        waiting = deque(claimed)
        # While nobody answers one is tried at a time: the others keep their day.
        is_probe = not self._answers
        await asyncio.gather(*(self._send_each(waiting, lease_ends, is_probe) for _ in range(AT_ONCE)))
        return 0.0 if len(claimed) == MOST else IDLE_SECONDS

    async def _send_each(self, waiting: deque[ClaimedItem], lease_ends: float, is_probe: bool) -> None:
        while waiting:
            item = waiting.popleft()
            now = time.monotonic()
            if now > lease_ends - 2 * CALL_SECONDS - RECORDING_SECONDS or not (self._answers or is_probe):
                await self._record(item, "postponed", 0.0, "", lease_ends)
            elif now < self._paused_until:
                await self._record(item, "postponed", self._paused_until - now, "", lease_ends)
            else:
                await self._send(item, lease_ends)

    async def _send(self, item: ClaimedItem, lease_ends: float) -> None:
        outcome, pause, text = await self._outcome(item)
        self._answers = outcome != "unknown"
        if pause:
            self._paused_until = max(self._paused_until, time.monotonic() + pause)
        self._outcomes[outcome] += 1
        if outcome == "rejected":
            log.error("invoice_item_rejected", id=str(item.id), organization=str(item.organization_id), error=text)
        elif outcome in ("unknown", "postponed"):
            log.warning("invoice_item_not_sent", id=str(item.id), error=text)
        await self._record(item, outcome, pause, text, lease_ends)

    async def _outcome(self, item: ClaimedItem) -> tuple[str, float, str]:
        """What came of it, for how long to ask nothing, and Stripe's id, or what is wrong."""
        try:
            if item.is_lost:
                found = await self._stripe.ask(lambda client: _find(client, item))
                return ("acknowledged", 0.0, found) if found is not None else ("missing", 0.0, "")
            return "acknowledged", 0.0, await self._stripe.ask(lambda client: _create(client, item))
        except StripeBusy as error:
            return "postponed", error.pause, str(error)
        except StripeRefused as error:
            return "rejected", 0.0, f"{error.code}: {error}" if error.code else str(error)
        except StripeError as error:
            return "unknown", 0.0, str(error)

    async def _record(self, item: ClaimedItem, outcome: str, pause: float, text: str, lease_ends: float) -> None:
        """Insist, for as long as the lease lasts: then it is sent again, under the same key."""
        while time.monotonic() < lease_ends:
            with contextlib.suppress(DatabaseError):
                match outcome:
                    case "acknowledged":
                        await self._database.acknowledge_invoice_item(item, text)
                    case "unknown":
                        await self._database.retry_invoice_item(item, text)
                    case "postponed":
                        await self._database.postpone_invoice_item(item, timedelta(seconds=pause))
                    case "rejected":
                        await self._database.reject_invoice_item(item, text)
                    case _:
                        await self._database.renew_invoice_item(item)
                return
            await asyncio.sleep(IDLE_SECONDS)


async def _create(client: StripeClient, item: ClaimedItem) -> str:
    """Returns Stripe's id. Source: docs.stripe.com/api/invoiceitems/create."""
    params: dict[str, Any] = {
        "customer": item.customer_id,
        "amount": item.amount,
        "currency": item.currency,
        "description": item.description,
        "period": {"start": int(item.period_start.timestamp()), "end": int(item.period_end.timestamp())},
        "metadata": item.metadata,
    }
    if item.subscription_id is not None:
        params["subscription"] = item.subscription_id
    if item.tax_behavior is not None:
        params["tax_behavior"] = item.tax_behavior
    made = await client.v1.invoice_items.create_async(
        params=params,  # type: ignore[arg-type]
        options={"idempotency_key": item.idempotency_key},
    )
    return made.id


async def _find(client: StripeClient, item: ClaimedItem) -> str | None:
    """The one that was made of it, by its metadata; None: there is none."""
    # In a database that was restored it may have been made, and sent, before it was made anew.
    since = int((min(item.created_at, item.period_end) - MARGIN).timestamp())
    page = await client.v1.invoice_items.list_async(
        params={"customer": item.customer_id, "created": {"gte": since}, "limit": 100}
    )
    async for made in page.auto_paging_iter():
        if made.metadata is not None and made.metadata.to_dict().get("goldleaves_item") == str(item.id):
            return made.id
    return None

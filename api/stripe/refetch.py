"""Fetches from Stripe what webhooks leave open: which of two changes in one second came last, which invoice a charge
paid, what a thin event is about. What is fetched is stored and applied as an event of its own: see
sql/stripe/receive_fetched.sql.

Any number of sidecars do it beside each other. Without a key nobody does, and a written rule decides.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError, Refetch
from api.stripe.failures import StripeAway, StripeBusy, StripeError, StripeRefused

if TYPE_CHECKING:
    from api.stripe.client import Stripe

AT_ONCE: Final = 4
LEASE: Final = timedelta(seconds=120)  # longer than a few calls that hang
IDLE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 10.0
AWAY: Final = timedelta(seconds=20)
OUTCOMES: Final = ("fetched", "gone", "failed", "postponed")

log = structlog.get_logger(__name__)


class Refetching(Collector):
    def __init__(self, database: Database, stripe: Stripe) -> None:
        self._database = database
        self._stripe = stripe
        self._counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self._answers = True
        self._is_away = False

    async def run(self) -> None:
        pause = 0.0
        while True:
            await asyncio.sleep(pause)
            pause = await self.step()

    async def step(self) -> float:
        """Fetch what is due. Returns how long to wait until the next time."""
        try:
            # While nobody answers, one is enough to see whether that is still so.
            claimed = await self._database.claim_refetches(AT_ONCE if self._answers else 1, LEASE)
            await asyncio.gather(*(self._fetch(one) for one in claimed))
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("stripe_refetches_not_claimed", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        return 0.0 if claimed and self._answers else IDLE_SECONDS

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "goldleaves_stripe_refetches",
            "Objects that Stripe was asked for since events do not say enough; gone: it does not know them.",
            labels=["outcome"],
        )
        for outcome, count in self._counts.items():
            family.add_metric([outcome], count)
        yield family

    async def _fetch(self, one: Refetch) -> None:
        try:
            objects, at = await self._objects(one)
        except StripeError as error:
            await self._failed(one, error)
            return
        self._answers = True
        if not objects:
            await self._drop(one, "it says nothing of it")
            return
        try:
            for found in objects:
                await self._database.receive_fetched(one, json.dumps(found), at)
        except DatabaseError as error:
            if error.away:
                raise
            await self._mark(one, str(error), timedelta(0))
            return
        self._counts["fetched"] += 1

    async def _failed(self, one: Refetch, error: StripeError) -> None:
        if isinstance(error, StripeRefused):
            self._answers = True
            if error.status == HTTPStatus.NOT_FOUND:
                await self._drop(one, str(error))
            else:
                await self._mark(one, str(error), timedelta(0))
        elif isinstance(error, StripeBusy):
            await self._postpone(one, timedelta(seconds=error.pause))
        elif isinstance(error, StripeAway):
            self._answers = False
            await self._postpone(one, AWAY)

    async def _mark(self, one: Refetch, error: str, after: timedelta) -> None:
        log.warning("stripe_refetch_failed", type=one.object_type, id=one.object_id, error=error)
        await self._database.mark_refetch_failed(one, error, after)
        self._counts["failed"] += 1

    async def _postpone(self, one: Refetch, after: timedelta) -> None:
        await self._database.postpone_refetch(one, after)
        self._counts["postponed"] += 1

    async def _drop(self, one: Refetch, why: str) -> None:
        log.warning("stripe_refetch_dropped", type=one.object_type, id=one.object_id, error=why)
        await self._database.drop_refetch(one)
        self._counts["gone"] += 1

    async def _objects(self, one: Refetch) -> tuple[list[dict[str, Any]], datetime]:
        """What Stripe says of it now, and when that was by its clock."""
        name = quote(one.object_id, safe="")
        match one.object_type:
            case "subscription":
                found, at = await self._get(f"/v1/subscriptions/{name}")
                return [found], at
            case "invoice":
                found, at = await self._get(f"/v1/invoices/{name}", expand=["payments"])
                return [found], at
            case "charge":
                return await self._payments_of_charge(name)
            case _:
                found, at = await self._get(f"/v2/core/events/{name}")
                return [found], at

    async def _payments_of_charge(self, name: str) -> tuple[list[dict[str, Any]], datetime]:
        """Since 2025-03-31 a charge does not say which invoice it paid; payments of invoices do."""
        charge, at = await self._get(f"/v1/charges/{name}")
        intent = charge.get("payment_intent")
        if not isinstance(intent, str):
            return [charge], at
        payment = {"type": "payment_intent", "payment_intent": intent}
        payments, at = await self._get("/v1/invoice_payments", payment=payment, limit=100, expand=["data.invoice"])
        return [payment for payment in payments.get("data", ()) if isinstance(payment, dict)], at

    async def _get(self, path: str, **params: object) -> tuple[dict[str, Any], datetime]:
        """Raises StripeError."""
        began = time.monotonic()
        answer: Any = await self._stripe.ask(lambda s: s.raw_request_async("get", path, **params))
        if not isinstance(answer.data, dict):
            raise StripeAway("its answer is no object")
        # What changed while it was slow may not be in it: that comes later. Less a second, in which the answer travels:
        # what we were told before we asked is in it.
        took = max(int(time.monotonic() - began) - 1, 0)
        return answer.data, _time_of(answer.headers) - timedelta(seconds=took)


def _time_of(headers: Any) -> datetime:
    """By Stripe's clock, which its events go by, too; without a Date by ours."""
    try:
        at = parsedate_to_datetime(str(headers.get("date", "")))
    except (ValueError, OverflowError):
        return datetime.now(UTC)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)

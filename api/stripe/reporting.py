"""Reports usage to Stripe: has reports made of what was used, sends them, and says what came of each. What is reported,
and what becomes of it, says sql/stripe/build_reports.sql and send_reports.sql.

Any number of sidecars do it beside each other. Stripe takes one event at a time of a customer and meter, so those of
one meter of an organization are sent one after the other, and of many meters at once. Each has an identifier that
counts once, so whoever is killed in between has it sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from aiolimiter import AsyncLimiter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import ClaimedReport, Database, DatabaseError, WaitingReports
from api.stripe.client import CALL_SECONDS, OPEN_SECONDS, Stripe
from api.stripe.failures import StripeAway, StripeBusy, StripeDenied, StripeError, StripeRefused

if TYPE_CHECKING:
    import stripe

# Stripe allows 1,000 meter events a second in live mode and 100 in test mode; the provider's own backend sends, too.
EVENTS_A_SECOND: Final = {True: 800.0, False: 80.0}
AT_ONCE: Final = 32
METERS: Final = 64  # of organizations, whose reports are claimed together
EACH: Final = 20
BUILT_AT_ONCE: Final = 50
LEASE: Final = timedelta(seconds=120)
RECORDING_SECONDS: Final = 10.0  # for saying what came of attempts, within the lease
IDLE_SECONDS: Final = 2.0
BUILD_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 3600.0
READ_SECONDS: Final = 15.0
RETRY_SECONDS: Final = 10.0
AWAY_SECONDS: Final = OPEN_SECONDS + 1.0  # then the circuit breaker lets one through
DENIED_SECONDS: Final = 60.0
OUTCOMES: Final = ("sent", "canceled", "refused", "busy", "unknown")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """sent: Stripe has it, or has canceled it; refused: it will not; busy: it has not; unknown: it may have."""

    report: ClaimedReport
    outcome: str
    message: str | None = None
    pause: float = 0.0

    def told(self) -> dict[str, Any]:
        return {
            "identifier": self.report.identifier,
            "attempts": self.report.attempts,
            "outcome": self.outcome,
            "message": self.message,
            "pause": self.pause,
        }


@dataclass(slots=True)
class Tally:
    """What was sent, while somebody counted. `units`: by meter, less what was canceled."""

    sent: int = 0
    units: Counter[str] = field(default_factory=Counter)
    away: bool = False


class Reporting(Collector):
    def __init__(self, database: Database, stripe: Stripe) -> None:
        self._database = database
        self._stripe = stripe
        self._pace = AsyncLimiter(EVENTS_A_SECOND[stripe.is_live], 1)
        self._at_once = asyncio.Semaphore(AT_ONCE)
        # Never all connections: requests and usage go first.
        self._connections = asyncio.Semaphore(max(1, database.pool().size // 2))
        self._outcomes: Counter[str] = Counter()
        self._units = 0
        self._paused_until = 0.0
        self._answers = True
        self._is_away = False
        self._built_at = self._swept_at = self._read_at = float("-inf")
        self._waiting: WaitingReports | None = None

    async def run(self) -> None:
        while True:
            pause = await self.step()
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """Of several sidecars each tells what it has sent, and all tell what waits: take the highest of that."""
        attempts = CounterMetricFamily(
            "goldleaves_stripe_report_attempts", "What came of reports of usage to Stripe.", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            attempts.add_metric([outcome], self._outcomes[outcome])
        yield attempts
        yield CounterMetricFamily(
            "goldleaves_stripe_reported_units", "Units of usage that Stripe has acknowledged.", value=self._units
        )
        if self._waiting is None:
            return
        for name, text, value in (
            ("pending", "Reports of usage that wait to be sent to Stripe.", self._waiting.pending),
            ("rejected", "Reports of usage that Stripe refused.", self._waiting.rejected),
            ("uncertain", "Reports of which nobody knows whether Stripe has them.", self._waiting.uncertain),
            ("oldest_seconds", "Age of the oldest report that waits.", self._waiting.oldest_seconds),
        ):
            yield GaugeMetricFamily(f"goldleaves_stripe_reports_{name}", text, value=value)

    async def step(self) -> float:
        """Make reports where it is time for that, and send what is due. Returns how long to wait until then."""
        try:
            await self._tend()
            if time.monotonic() < self._paused_until:
                return IDLE_SECONDS
            sent = await self._send(None, Tally())
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("usage_not_reported", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        return 0.0 if sent and self._answers else IDLE_SECONDS

    async def report_now(self, organization_id: UUID | None, seconds: float) -> Tally:
        """Make reports of all that is rolled up, of hours that go on, too, and send them, for so long at most. Those
        that were tried before wait for their time. Raises DatabaseError.
        """
        until, tally = time.monotonic() + seconds, Tally()
        while time.monotonic() < until:
            meters, _ = await self._database.build_reports(
                is_live=self._stripe.is_live, most=BUILT_AT_ONCE, organization_id=organization_id, also_unended=True
            )
            if meters < BUILT_AT_ONCE:
                break
        while time.monotonic() < until and await self._send(organization_id, tally):
            if not self._answers:
                break
        tally.away = not self._answers
        return tally

    async def _tend(self) -> None:
        now = time.monotonic()
        if now > self._built_at + BUILD_SECONDS:
            also_sweep = now > self._swept_at + SWEEP_SECONDS
            await self._database.tend_reports(is_live=self._stripe.is_live, also_sweep=also_sweep)
            self._swept_at = now if also_sweep else self._swept_at
            while True:
                meters, _ = await self._database.build_reports(
                    is_live=self._stripe.is_live, most=BUILT_AT_ONCE, organization_id=None, also_unended=False
                )
                if meters < BUILT_AT_ONCE:
                    break
            self._built_at = now
        if now > self._read_at + READ_SECONDS:
            self._waiting = await self._database.report_backlog()
            self._read_at = now

    async def _send(self, organization_id: UUID | None, tally: Tally) -> int:
        """Send some of what is due. Returns how many reports that were."""
        lease_ends = time.monotonic() + LEASE.total_seconds()
        claimed = await self._database.claim_reports(
            is_live=self._stripe.is_live,
            # While nobody answers, one is enough to see whether that is still so.
            meters=METERS if self._answers else 1,
            each=EACH if self._answers else 1,
            lease=LEASE,
            organization_id=organization_id,
        )
        chains = deque(list(of) for _, of in groupby(claimed, key=lambda one: (one.organization_id, one.meter_code)))
        is_probe = not self._answers
        await asyncio.gather(
            *(self._send_chains(chains, lease_ends, tally, is_probe=is_probe) for _ in range(min(AT_ONCE, len(chains))))
        )
        return len(claimed)

    async def _send_chains(
        self, chains: deque[list[ClaimedReport]], lease_ends: float, tally: Tally, *, is_probe: bool
    ) -> None:
        while chains:
            chain, outcomes = chains.popleft(), list[Outcome]()
            for report in chain:
                if (pause := self._must_wait(lease_ends, outcomes, is_probe=is_probe)) is not None:
                    outcomes.append(Outcome(report, "busy", None, pause))
                    continue
                async with self._at_once:
                    await self._pace.acquire()
                    outcomes.append(await self._attempt(report))
            await self._record(outcomes, lease_ends)
            self._note(outcomes, tally)

    def _must_wait(self, lease_ends: float, before: Sequence[Outcome], *, is_probe: bool) -> float | None:
        """For how many seconds a report that was claimed is not to be sent; None: it is."""
        now = time.monotonic()
        if before and before[-1].outcome == "busy":
            return before[-1].pause
        if now < self._paused_until and not is_probe:
            return self._paused_until - now
        if now > lease_ends - CALL_SECONDS - RECORDING_SECONDS:
            return 0.0
        return None

    async def _attempt(self, report: ClaimedReport) -> Outcome:
        try:
            await self._stripe.ask(lambda client: _tell(client, report))
        except StripeAway as error:
            self._answers = False
            self._paused_until = max(self._paused_until, time.monotonic() + AWAY_SECONDS)
            return Outcome(report, "unknown", str(error))
        except StripeBusy as error:
            self._note_answer()
            pause = max(error.pause, DENIED_SECONDS) if isinstance(error, StripeDenied) else error.pause
            if pause > 1.0:  # else it is about this customer and meter alone
                self._paused_until = max(self._paused_until, time.monotonic() + pause)
            return Outcome(report, "busy", str(error), pause)
        except StripeRefused as error:
            self._note_answer()
            return Outcome(report, "sent" if _is_done(report, error) else "refused", str(error))
        except StripeError as error:
            return Outcome(report, "unknown", str(error))
        self._note_answer()
        return Outcome(report, "sent")

    def _note_answer(self) -> None:
        if not self._answers:
            self._paused_until = 0.0
        self._answers = True

    async def _record(self, outcomes: Sequence[Outcome], lease_ends: float) -> None:
        """While it is not known, all would be sent again: insist, for as long as the lease lasts."""
        told = json.dumps([one.told() for one in outcomes])
        while True:
            with contextlib.suppress(DatabaseError):
                async with self._connections:
                    await self._database.record_reports(told)
                    return
            if time.monotonic() > lease_ends:
                log.warning("usage_reports_not_recorded", reports=len(outcomes))
                return
            await asyncio.sleep(1.0)

    def _note(self, outcomes: Sequence[Outcome], tally: Tally) -> None:
        for one in outcomes:
            is_canceled = one.outcome == "sent" and one.report.is_canceling
            self._outcomes["canceled" if is_canceled else one.outcome] += 1
            if one.outcome == "sent":
                units = -one.report.quantity if is_canceled else one.report.quantity
                tally.sent += 1
                tally.units[one.report.meter_code] += units
                self._units += max(units, 0)
            elif one.outcome == "refused":
                log.warning("usage_report_refused", identifier=one.report.identifier, error=one.message)


async def _tell(client: stripe.StripeClient, report: ClaimedReport) -> object:
    """Sources: docs.stripe.com/api/billing/meter-event/create and meter-event-adjustment/create."""
    if report.is_canceling:
        return await client.v1.billing.meter_event_adjustments.create_async(
            params={"event_name": report.event_name, "type": "cancel", "cancel": {"identifier": report.identifier}}
        )
    return await client.v1.billing.meter_events.create_async(
        params={
            "event_name": report.event_name,
            "identifier": report.identifier,
            "timestamp": int(report.happened_at.timestamp()),
            "payload": {"stripe_customer_id": report.customer_id, "value": str(report.quantity)},
        }
    )


def _is_done(report: ClaimedReport, error: StripeRefused) -> bool:
    """Whether it was refused because it was done before, and only the answer was lost. Stripe has no code for that."""
    text = str(error).lower()
    if report.is_canceling:
        return "already" in text or error.code == "resource_missing"  # it is not there, which is what we want
    return "already exists" in text and (report.identifier.lower() in text or "identifier" in text)

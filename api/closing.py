"""Closing periods by the clock: each minute what is due, several organizations at once, each in its own transaction.

Which periods those are, and what closing one is, says sql/billing/close_periods.sql. Any number of sidecars do it
beside each other, and one that is killed in the middle leaves nothing half done: the next run goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import CALL_TIMEOUT_SECONDS, PATIENT_CALL_TIMEOUT_SECONDS, Database, DatabaseError, DuePeriod

RUN_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 10.0
LONGEST_PAUSE_SECONDS: Final = 3600.0
MOST: Final = 200  # at once: marking them as closing is one transaction
KEPT_CONNECTIONS: Final = 2  # of the pool, for those who wait for an answer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A period that could not be closed. It is tried again more and more rarely, so that it holds up no other."""

    due_at: datetime
    attempts: int
    timed_out: bool
    retry_at: float  # of time.monotonic()


@dataclass(slots=True)
class Run:
    """What came of one run."""

    periods: int = 0
    invoices: int = 0
    failures: int = 0
    failed: set[UUID] = field(default_factory=set)
    ended_by: DatabaseError | None = None  # Postgres is away: no fault of a period


class Closing(Collector):
    """Closes what is due, and tells metrics."""

    def __init__(self, database: Database, grace: timedelta) -> None:
        self._database = database
        self._grace = grace
        self._at_once = max(1, database.pool().size - KEPT_CONNECTIONS)
        self._failures: dict[UUID, Failure] = {}
        self._periods = 0
        self._invoices = 0
        self._failed_attempts = 0
        self._is_away = False

    async def run(self) -> None:
        while True:
            pause = await self._step()
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """Of several sidecars each tells what it has done: add up the counters, and take the highest of the seconds."""
        yield CounterMetricFamily("goldleaves_periods_closed", "Billing periods that were closed.", value=self._periods)
        yield CounterMetricFamily(
            "goldleaves_invoices_issued", "Invoices that were made by closing periods.", value=self._invoices
        )
        yield CounterMetricFamily(
            "goldleaves_period_failures",
            "Attempts to close a billing period that failed; the log says why.",
            value=self._failed_attempts,
        )
        oldest = min((failure.due_at for failure in self._failures.values()), default=None)
        yield GaugeMetricFamily(
            "goldleaves_period_overdue_seconds",
            "For how long the oldest billing period that could not be closed has been due.",
            value=max((datetime.now(UTC) - oldest).total_seconds(), 0.0) if oldest is not None else 0.0,
        )

    async def _step(self) -> float:
        """Close what is due now. Returns how long to wait until the next time."""
        started, run = time.monotonic(), Run()
        try:
            await self.close_due(run)
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("closing_failed", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        finally:
            if run.periods or run.failures:
                log.info(
                    "periods_closed",
                    periods=run.periods,
                    invoices=run.invoices,
                    failures=run.failures,
                    seconds=round(time.monotonic() - started, 3),
                )
        self._is_away = False
        return RUN_SECONDS

    async def close_due(self, run: Run) -> None:
        """Close all that is due, one list after the other: closing a period may make the organization's next one due.
        Raises DatabaseError when Postgres is away.
        """
        while True:
            now = time.monotonic()
            paused = {of for of, failure in self._failures.items() if failure.retry_at > now} | run.failed
            due = await self._database.due_periods(self._grace, MOST, paused)
            if len(due) < MOST:
                there = {period.organization_id for period in due} | paused
                self._failures = {of: failure for of, failure in self._failures.items() if of in there}
            closed_before = run.periods
            waiting = deque(due)
            await asyncio.gather(*(self._close_each(waiting, run) for _ in range(self._at_once)))
            if run.ended_by is not None:
                raise run.ended_by
            if run.periods == closed_before:
                return

    async def _close_each(self, waiting: deque[DuePeriod], run: Run) -> None:
        while waiting:
            period = waiting.popleft()
            try:
                before = self._failures.get(period.organization_id)
                # Millions of events that are not rolled up take longer than a request may; who writes usage waits then.
                within = PATIENT_CALL_TIMEOUT_SECONDS if before and before.timed_out else CALL_TIMEOUT_SECONDS
                invoices = await self._database.close_period(period, within)
            except DatabaseError as error:
                if error.away:
                    run.ended_by = error
                    waiting.clear()
                else:
                    self._note_failure(period, error, run)
            else:
                self._failures.pop(period.organization_id, None)
                if invoices is not None:  # else another sidecar is at it
                    run.periods += 1
                    run.invoices += invoices
                    self._periods += 1
                    self._invoices += invoices

    def _note_failure(self, period: DuePeriod, error: DatabaseError, run: Run) -> None:
        before = self._failures.get(period.organization_id)
        attempts = before.attempts + 1 if before is not None else 1
        pause = min(RUN_SECONDS * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
        retry_at = time.monotonic() + pause
        self._failures[period.organization_id] = Failure(period.due_at, attempts, error.timed_out, retry_at)
        self._failed_attempts += 1
        run.failures += 1
        run.failed.add(period.organization_id)
        log.warning(
            "period_not_closed",
            organization=str(period.organization_id),
            period_start=period.period_start.isoformat(),
            state=error.state,
            error=error.message or str(error),
            attempts=attempts,
        )

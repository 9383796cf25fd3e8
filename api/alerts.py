"""Usage alerts by the clock: every two seconds, of organizations whose usage was rolled up, or whose limits changed.

What has crossed a threshold says sql/billing/fire_alerts.sql. Any number of sidecars ask for it beside each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError

RUN_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 10.0
MOST: Final = 200  # organizations at once: some tenths of a second

log = structlog.get_logger(__name__)


class Alerts(Collector):
    """Fires alerts, and tells metrics."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fired = 0
        self._failures = 0
        self._fails = False

    async def run(self) -> None:
        while True:
            pause = await self._step()
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """Of several sidecars each tells what it has done: add them up."""
        yield CounterMetricFamily(
            "goldleaves_alerts_fired", "Thresholds of usage that were told of.", value=self._fired
        )
        yield CounterMetricFamily(
            "goldleaves_alert_failures",
            "Attempts to look at an organization's alerts that failed; the log says why.",
            value=self._failures,
        )

    async def _step(self) -> float:
        """Look at organizations that wait. Returns how long to wait until the next time."""
        started = time.monotonic()
        try:
            report = await self._database.fire_alerts(MOST)
        except DatabaseError as error:
            if not self._fails:  # once: whoever is away may stay so for long
                log.warning("alerts_failed", state=error.state, error=error.message or str(error))
            self._fails = True
            return RETRY_SECONDS
        self._fails = False
        self._fired += report.fired
        self._failures += len(report.failed)
        for organization, reason in report.failed:
            log.warning("alerts_not_looked_at", organization=organization, error=reason)
        # However many organizations wait: as long as it took, others have Postgres to themselves.
        return time.monotonic() - started if report.more else RUN_SECONDS

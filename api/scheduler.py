"""What runs by the clock, beside the requests: maintenance and storage snapshots every hour, rollups every second.

All of it is a function in Postgres that any sidecar may call at any time: locks there let one at a time do the work. It
fails quietly, since totals do not depend on it: they are exact without rollups too, and slower to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError

HOUR: Final = 3600.0
RETRY_SECONDS: Final = 10.0
ROLLUP_SECONDS: Final = 1.0
LONGEST_ROLLUP_PAUSE: Final = 8.0
MOST_EVENTS: Final = 200_000  # at once: some seconds
FEWEST_EVENTS: Final = 1_000

log = structlog.get_logger(__name__)


async def every_hour(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do it at start and every hour, and soon again when Postgres did not."""
    while True:
        pause = HOUR
        try:
            await work()
        except DatabaseError as error:
            log.warning(f"{name}_failed", state=error.state, error=error.message or str(error))
            pause = RETRY_SECONDS
        await asyncio.sleep(pause)


class Rollups(Collector):
    """Rolls usage up, at once while there is more to take and less often while there is nothing, and tells metrics."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._events = 0
        self._lag_seconds = 0.0
        self._held_back_by: str | None = None
        self._fails = False
        self._most = MOST_EVENTS

    async def run(self) -> None:
        pause = ROLLUP_SECONDS
        while True:
            pause = await self._step(pause)
            await asyncio.sleep(pause)

    def collect(self) -> Iterator[Metric]:
        """Of several sidecars the one that is at it knows: add up the events, and take the highest of the seconds."""
        yield GaugeMetricFamily(
            "goldleaves_rollup_lag_seconds", "Age of the oldest usage that is not rolled up.", value=self._lag_seconds
        )
        yield GaugeMetricFamily(
            "goldleaves_rollup_held_back_seconds",
            "For how long a transaction has kept usage from being rolled up, from a minute on.",
            value=self._lag_seconds if self._held_back_by is not None else 0.0,
        )
        yield CounterMetricFamily("goldleaves_rollup_events", "Usage events that were rolled up.", value=self._events)

    async def _step(self, pause: float) -> float:
        """Roll up once. Returns how long to wait until the next time."""
        try:
            report = await self._database.roll_up(self._most)
        except DatabaseError as error:
            if not self._fails:  # once: whoever is away may stay so for long
                log.warning("rollup_failed", state=error.state, error=error.message or str(error))
            self._fails = True
            self._most = max(self._most // 4, FEWEST_EVENTS)  # perhaps it was cancelled for taking too long
            return RETRY_SECONDS
        self._fails = False
        self._most = min(self._most * 2, MOST_EVENTS)
        self._note(report)
        if report.get("behind"):
            return 0.0
        if report.get("events"):
            return ROLLUP_SECONDS
        return min(max(pause, ROLLUP_SECONDS) * 2, LONGEST_ROLLUP_PAUSE)

    def _note(self, report: dict[str, Any]) -> None:
        self._events += report.get("events", 0)
        self._lag_seconds = float(report.get("lag_seconds", 0))
        held_back_by = report.get("held_back_by")
        if held_back_by != self._held_back_by:
            if held_back_by is not None:
                log.warning("rollup_held_back", by=held_back_by, seconds=self._lag_seconds)
            else:
                log.info("rollup_goes_on")
        self._held_back_by = held_back_by
        if report.get("folded"):
            log.warning(
                "groups_folded",
                groups=report["folded"],
                of=report["folded_of"],
                remedy="raise max_groups of the meter, or group by less",
            )

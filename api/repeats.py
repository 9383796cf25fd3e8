"""Whose usage came again, or too late, in the last minutes: through all sidecars, as Postgres knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError, Repeats
from api.event_metrics import SOURCES
from api.recent import WINDOW_SECONDS

log = structlog.get_logger(__name__)

READ_SECONDS: Final = 15.0
MOST_SHOWN: Final = 20  # organizations and their sources: /metrics is no report


class RepeatedEvents(Collector):
    """Those with the most, read once in a while: who looks at /metrics waits for no database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._most: list[Repeats] = []

    async def keep_read(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(READ_SECONDS)

    async def read(self) -> None:
        try:
            self._most = await self._database.repeated_events(WINDOW_SECONDS, MOST_SHOWN)
        except DatabaseError as error:
            self._most = []  # rather than what was true once
            log.warning("repeats_not_read", state=error.state, error=error.message or str(error))

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "goldleaves_repeated_events",
            "Events of the last 5 minutes that were duplicates, conflicts or of finalized periods: who has the most.",
            labels=["organization", "source", "outcome"],
        )
        shown: dict[tuple[str, str, str], int] = {}
        for one in self._most:
            source = one.source if one.source in (*SOURCES, "trigger") else "other"
            for outcome, number in (("duplicate", one.duplicates), ("conflict", one.conflicts), ("locked", one.locked)):
                labels = str(one.organization_id), source, outcome
                shown[labels] = shown.get(labels, 0) + number  # an organization may have many other sources
        for labels, number in shown.items():
            family.add_metric(labels, number)
        yield family

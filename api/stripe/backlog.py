"""What Stripe has told that is not applied, through all sidecars: for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError, StripeBacklog

READ_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


class EventBacklog(Collector):
    """Read once in a while: who looks at /metrics waits for no database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: StripeBacklog | None = None

    async def keep_read(self) -> None:
        while True:
            try:
                self._known = await self._database.stripe_backlog()
            except DatabaseError as error:
                self._known = None  # rather than what was true once
                log.warning("stripe_backlog_not_read", state=error.state, error=error.message or str(error))
            await asyncio.sleep(READ_SECONDS)

    def collect(self) -> Iterator[Metric]:
        if self._known is None:
            return
        for name, text, value in (
            ("pending_events", "Events of Stripe that could not be applied, and are tried again.", self._known.pending),
            ("dead_events", "Events of Stripe that are not tried any more, and wait to be replayed.", self._known.dead),
            ("unlinked_events", "Events of customers at Stripe that are no organization's.", self._known.unlinked),
            ("oldest_pending_seconds", "Age of the oldest event that is tried again.", self._known.oldest_seconds),
        ):
            yield GaugeMetricFamily(f"goldleaves_stripe_{name}", text, value=value)

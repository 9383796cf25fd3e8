"""What waits for the provider's application, through all sidecars: for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError, WaitingWebhooks

READ_SECONDS: Final = 15.0

log = structlog.get_logger(__name__)


class WebhookBacklog(Collector):
    """Read once in a while: who looks at /metrics waits for no database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: WaitingWebhooks | None = None

    async def keep_read(self) -> None:
        while True:
            try:
                self._known = await self._database.webhook_backlog()
            except DatabaseError as error:
                self._known = None  # rather than what was true once
                log.warning("webhook_backlog_not_read", state=error.state, error=error.message or str(error))
            await asyncio.sleep(READ_SECONDS)

    def collect(self) -> Iterator[Metric]:
        if self._known is None:
            return
        for name, text, value in (
            ("pending_messages", "Messages that wait to be sent to the provider's application.", self._known.pending),
            ("dead_messages", "Messages that could not be delivered, and wait to be replayed.", self._known.dead),
            ("oldest_pending_seconds", "Age of the oldest message that waits.", self._known.oldest_seconds),
        ):
            yield GaugeMetricFamily(f"goldleaves_webhook_{name}", text, value=value)

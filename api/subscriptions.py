"""What time alone begins of subscriptions, as the end of a trial or an agreed cancellation, is told every few seconds.

It counts from its moment on without this: see sql/billing/announce_subscriptions.sql. Any number of sidecars tell it
beside each other, each phase once.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from api.database import Database, DatabaseError

RUN_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 10.0
MOST: Final = 200  # organizations at once: one transaction

log = structlog.get_logger(__name__)


class Subscriptions:
    """Tells of phases that have begun."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fails = False

    async def run(self) -> None:
        while True:
            pause = await self._step()
            await asyncio.sleep(pause)

    async def _step(self) -> float:
        """Tell of what has begun. Returns how long to wait until the next time."""
        try:
            told = await self._database.advance_subscriptions(MOST)
        except DatabaseError as error:
            if not self._fails:  # once: whoever is away may stay so for long
                log.warning("subscriptions_failed", state=error.state, error=error.message or str(error))
            self._fails = True
            return RETRY_SECONDS
        self._fails = False
        if told:
            log.info("subscriptions_advanced", organizations=told)
        return 0.0 if told == MOST else RUN_SECONDS

"""Applies what was stored and could not be applied, each event in a transaction of its own. Any number of sidecars do
it beside each other. When it is tried again, and how often, says sql/stripe/apply.sql.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from api.database import Database, DatabaseError
from api.stripe.inbox import Inbox

MOST: Final = 20  # claimed together: each may take as long as a statement may
LEASE: Final = timedelta(minutes=12)
IDLE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class Reapplying:
    def __init__(self, database: Database, inbox: Inbox) -> None:
        self._database = database
        self._inbox = inbox
        self._is_away = False

    async def run(self) -> None:
        while True:
            pause = await self._step()
            await asyncio.sleep(pause)

    async def _step(self) -> float:
        """Apply what is due. Returns how long to wait until the next time."""
        try:
            due = await self._database.due_stripe_events(MOST, LEASE)
            for event_id in due:
                await self._apply(event_id)
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("stripe_events_not_applied", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        return IDLE_SECONDS if len(due) < MOST else 0.0

    async def _apply(self, event_id: str) -> None:
        """Raises DatabaseError when Postgres is away: what was claimed is due again when the lease ends."""
        try:
            settled = await self._database.apply_stripe_event(event_id)
        except DatabaseError as error:
            if error.away:
                raise
            is_dead = await self._database.fail_stripe_event(event_id, error.message or str(error))
            outcome, message = "dead" if is_dead else "pending", error.message or str(error)
        else:
            if settled is None:
                return
            outcome, message = settled.outcome, settled.message
        self._inbox.tried_again(outcome)
        if outcome == "dead":
            log.error("stripe_event_dead", id=event_id, error=message)
        elif outcome == "pending":
            log.warning("stripe_event_not_applied", id=event_id, error=message)
        else:
            log.info("stripe_event_applied", id=event_id, outcome=outcome)

"""Where events go: many in one transaction, and by itself what waits for somebody who closes a period. What is answered
is stored; what could not be applied is pending, and the worker tries again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import Database, DatabaseError, Settled
from api.group_commit import GroupCommit
from api.ingestion.limits import Slots

OUTCOMES: Final = ("applied", "duplicate", "stale", "ignored", "unlinked", "pending", "dead")
AT_ONCE: Final = 2  # groups in the database; requests and usage need connections, too
WAIT_SECONDS: Final = 10.0  # Stripe waits for longer, and sends again


class Inbox(Collector):
    """`is_live`: the mode of our key, None without one."""

    def __init__(self, database: Database, is_live: bool | None) -> None:
        slots = Slots(min(AT_ONCE, database.pool().size), WAIT_SECONDS)
        self._groups = GroupCommit(_Events(database, is_live), slots, AT_ONCE)
        self._outcomes: Counter[str] = Counter()

    async def receive(self, payload: str) -> Settled:
        """Raises DatabaseError, and INGEST_BUSY (503)."""
        settled = await self._groups.store(payload)
        self._outcomes[settled.outcome] += 1
        return settled

    def tried_again(self, outcome: str) -> None:
        self._outcomes[outcome] += 1

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "goldleaves_stripe_events",
            "Webhooks of Stripe, and attempts to apply them, by what came of it.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            family.add_metric([outcome], self._outcomes[outcome])
        yield family


class _Events:
    def __init__(self, database: Database, is_live: bool | None) -> None:
        self._database = database
        self._is_live = is_live

    def size(self, asked: str) -> int:
        return len(asked)

    async def together(self, asked: Sequence[str]) -> Sequence[Settled | DatabaseError]:
        return await self._database.receive_stripe_events(asked, self._is_live, waits=False)

    async def alone(self, asked: str) -> Settled:
        [settled] = await self._database.receive_stripe_events([asked], self._is_live, waits=True)
        if isinstance(settled, DatabaseError):
            raise settled
        return settled

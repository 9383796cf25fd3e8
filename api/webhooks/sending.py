"""Sends what waits in the outbox, several messages at once, those of one organization one after the other. While nobody
answers it is one message at a time: the others keep their attempts, and nothing hangs that somebody else needs.

Any number of sidecars do it beside each other: what one has claimed is left to it until its lease is over. Whether a
message is tried again, and when, says sql/notifications/send_webhooks.sql.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby
from typing import Final

import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from api.database import ClaimedWebhook, Database, DatabaseError
from api.webhooks.receiver import TIMEOUT_SECONDS, Answer, Receiver

AT_ONCE: Final = 8
MOST: Final = 64  # claimed together
LEASE: Final = timedelta(seconds=120)
RECORDING_SECONDS: Final = 10.0  # for saying what came of an attempt, within the lease
IDLE_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 10.0
OUTCOMES: Final = ("delivered", "failed", "dead")

log = structlog.get_logger(__name__)


class WebhookSender(Collector):
    def __init__(self, database: Database, receiver: Receiver) -> None:
        self._database = database
        self._receiver = receiver
        self._closing = asyncio.Event()
        self._paused_until = 0.0
        self._attempts: Counter[str] = Counter()
        self._fails = False
        self._is_away = False
        self._answers = True
        # Never all connections: requests and usage go first.
        self._connections = asyncio.Semaphore(max(1, database.pool().size // 2))

    async def run(self) -> None:
        """Until it is closed: then what is being sent is finished, and the rest is given back."""
        try:
            while not self._closing.is_set():
                pause = await self._step()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
        finally:
            if self._closing.is_set():
                await self._receiver.close()

    def close(self) -> None:
        self._closing.set()

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "goldleaves_webhook_attempts",
            "Attempts to send a message to the provider's application; dead: the last one that is made.",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            family.add_metric([outcome], self._attempts[outcome])
        yield family

    async def _step(self) -> float:
        """Send what is due. Returns how long to wait until the next time."""
        paused = self._paused_until - time.monotonic()
        if paused > 0:
            return min(paused, IDLE_SECONDS)
        lease_ends = time.monotonic() + LEASE.total_seconds()
        try:
            claimed = await self._database.claim_webhooks(MOST if self._answers else 1, LEASE)
        except DatabaseError as error:
            if not self._is_away:  # once: whoever is away may stay so for long
                log.warning("webhooks_not_claimed", state=error.state, error=error.message or str(error))
            self._is_away = True
            return RETRY_SECONDS
        self._is_away = False
        if not claimed:
            return IDLE_SECONDS
        in_order = sorted(claimed, key=lambda message: message.organization_id)  # within one they stay as they are
        waiting = deque(list(of) for _, of in groupby(in_order, key=lambda message: message.organization_id))
        is_probe = not self._answers
        await asyncio.gather(*(self._send_each(waiting, lease_ends, is_probe) for _ in range(AT_ONCE)))
        return 0.0

    async def _send_each(self, waiting: deque[list[ClaimedWebhook]], lease_ends: float, is_probe: bool) -> None:
        while waiting:
            for message in waiting.popleft():
                if (after := self._must_wait(lease_ends, is_probe)) is not None:
                    await self._give_back(message, after)
                    continue
                answer = await self._receiver.post(str(message.id), message.body)
                self._answers = answer.status is not None
                if answer.pause:
                    self._paused_until = max(self._paused_until, time.monotonic() + answer.pause)
                await self._record(message, answer, lease_ends)

    def _must_wait(self, lease_ends: float, is_probe: bool) -> float | None:
        """For how many seconds a message that was claimed is not to be sent; None: it is."""
        now = time.monotonic()
        if now < self._paused_until:
            return self._paused_until - now
        nobody_answers = not self._answers and not is_probe
        if nobody_answers or self._closing.is_set() or now > lease_ends - TIMEOUT_SECONDS - RECORDING_SECONDS:
            return 0.0
        return None

    async def _give_back(self, message: ClaimedWebhook, after: float) -> None:
        """Where that fails, the end of its lease does it."""
        with contextlib.suppress(DatabaseError):
            async with self._connections:
                await self._database.postpone_webhook(message, timedelta(seconds=after))

    async def _record(self, message: ClaimedWebhook, answer: Answer, lease_ends: float) -> None:
        """While it is not known, the message would be sent again: insist, for as long as the lease lasts."""
        while True:
            try:
                async with self._connections:
                    is_last = await self._say(message, answer)
            except DatabaseError as error:
                if time.monotonic() > lease_ends:
                    log.warning("webhook_not_recorded", id=str(message.id), error=error.message or str(error))
                    return
                await asyncio.sleep(IDLE_SECONDS)
            else:
                break
        self._tell(message, answer, is_last)

    async def _say(self, message: ClaimedWebhook, answer: Answer) -> bool:
        """Whether that was the last attempt."""
        if answer.is_delivered:
            await self._database.mark_webhook_delivered(message, answer.status)
            return False
        after = timedelta(seconds=answer.pause)
        return await self._database.mark_webhook_failed(message, answer.status, answer.error, after)

    def _tell(self, message: ClaimedWebhook, answer: Answer, is_last: bool) -> None:
        """What the receiver has said is in the database, where staff reads it, and not in the log."""
        self._attempts["delivered" if answer.is_delivered else "dead" if is_last else "failed"] += 1
        if is_last:
            log.error("webhook_dead", id=str(message.id), type=message.type, status=answer.status)
        elif answer.is_delivered and self._fails:
            log.info("webhooks_delivered_again")
        elif not answer.is_delivered and not self._fails:  # once, until one arrives
            why = {} if answer.status is not None else {"error": answer.error}
            log.warning("webhook_failed", id=str(message.id), type=message.type, status=answer.status, **why)
        self._fails = not answer.is_delivered

"""A transaction for each small request is mostly the wait for the disk. So they share one: while a group is in the
database the next one gathers, and each is answered after the commit that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, Protocol, TypeVar

import structlog

from api.database import DatabaseError
from api.errors import Problem
from api.ingestion.limits import Slots, busy

log = structlog.get_logger(__name__)

GROUP_REQUESTS: Final = 256
GROUP_BYTES: Final = 512 * 1024
MOST_WAITING: Final = 10_000
HELD_UP_AT_ONCE: Final = 1  # in the database
SLOW_SECONDS: Final = 0.1  # what holds a group up for longer may be none of the next one's business
MOST_GROUPS: Final = 2  # at once
# Those who were just answered are about to send again. Whoever is first would else go alone, and the others after it
# all together: then Postgres idles while they are answered, and nobody is answered while Postgres works.
GATHER_SECONDS: Final = 0.005


Asked = TypeVar("Asked")
Said = TypeVar("Said")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)


class Store(Protocol[Taken, Given]):
    """What is asked of Postgres, and how. Both ways raise DatabaseError."""

    def size(self, asked: Taken) -> int:
        """In bytes, about."""
        ...

    async def together(self, asked: Sequence[Taken]) -> Sequence[Given | DatabaseError]:
        """In one transaction, each by itself, and without waiting for who holds one of them up."""
        ...

    async def alone(self, asked: Taken) -> Given: ...


class GroupCommit(Generic[Asked, Said]):
    """`at_once`: how many groups are in the database beside each other when nothing holds one up. More than one pays
    where a group keeps Postgres busy for longer than its commit waits for the disk.
    """

    def __init__(self, store: Store[Asked, Said], slots: Slots, at_once: int = 1) -> None:
        self._into = store
        self._slots = slots
        self._at_once = at_once
        self._waiting: deque[_Request[Asked, Said]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._held_up: set[asyncio.Task[None]] = set()
        self._slots_held_up = Slots(HELD_UP_AT_ONCE, slots.wait_seconds)
        self._enough = 0  # half of the last group, so that while it is in the database the others are answered
        self._gather_until = 0.0  # by the clock of the loop
        self._is_enough = asyncio.Event()

    async def store(self, asked: Asked) -> Said:
        """What became of it, once it is committed. Raises DatabaseError, and INGEST_BUSY (503)."""
        if len(self._waiting) + len(self._held_up) >= MOST_WAITING:
            raise busy()
        loop = asyncio.get_running_loop()
        request: _Request[Asked, Said] = _Request(asked, loop.create_future())
        request.expiry = loop.call_later(self._slots.wait_seconds, self._expire, request)
        self._waiting.append(request)
        if len(self._waiting) >= self._enough:
            self._is_enough.set()
        if not self._workers or (len(self._workers) < self._at_once and len(self._waiting) >= self._enough):
            self._start_worker()
        return await request.answer

    def _start_worker(self) -> None:
        self._workers.add(asyncio.create_task(self._work(), name="group-commit"))

    async def _work(self) -> None:
        """Store one group after the other, until nobody waits."""
        try:
            while self._waiting:
                await self._gather()
                # No slot for as long as a request may wait: those that have waited are told so one by one.
                with contextlib.suppress(Problem):
                    async with self._slots.one():
                        await self._store(self._next_group())
        finally:
            self._workers.remove(asyncio.current_task())  # type: ignore[arg-type]  # at once: who comes next starts one

    async def _gather(self) -> None:
        """Wait for company, where there is likely to be some in a moment."""
        left = self._gather_until - asyncio.get_running_loop().time()
        if left <= 0 or len(self._waiting) >= self._enough:
            return
        self._is_enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._is_enough.wait()

    def _next_group(self) -> list[_Request[Asked, Said]]:
        group: list[_Request[Asked, Said]] = []
        size = 0
        while self._waiting and len(group) < GROUP_REQUESTS and size < GROUP_BYTES:
            request = self._waiting.popleft()
            request.expiry.cancel()
            size += self._into.size(request.asked)
            group.append(request)
        return group

    async def _store(self, group: list[_Request[Asked, Said]]) -> None:
        if not group:
            return
        overtaking = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._overtake)
        answers: Sequence[Said | Exception]
        try:
            answers = await self._answers([request.asked for request in group])
        except DatabaseError as error:
            if error.refused and len(group) > 1:  # as a whole, which nobody foresaw: it may be the fault of one
                for request in group:
                    await self._store([request])
                return
            answers = [error] * len(group)
        except Exception as error:  # a mistake of ours, which must leave nobody waiting
            answers = [error] * len(group)
        finally:
            overtaking.cancel()
            self._enough = len(group) // 2
            self._gather_until = asyncio.get_running_loop().time() + GATHER_SECONDS
        for request, answer in zip(group, answers, strict=True):
            if isinstance(answer, DatabaseError) and answer.held_up:
                task = asyncio.create_task(self._store_held_up(request), name="group-commit-held-up")
                self._held_up.add(task)
                task.add_done_callback(self._held_up.discard)
            else:
                request.resolve(answer)

    async def _store_held_up(self, request: _Request[Asked, Said]) -> None:
        """By itself, since what it waits for (its organization's period is being closed) is nobody else's business."""
        try:
            async with self._slots_held_up.one(), self._slots.one():
                request.resolve(await self._into.alone(request.asked))
        except Exception as error:
            request.resolve(error)

    async def _answers(self, asked: Sequence[Asked]) -> Sequence[Said | DatabaseError]:
        """Tried again once when the connection broke: what was committed all the same is then a duplicate."""
        try:
            return await self._into.together(asked)
        except DatabaseError as error:
            if not error.passing:
                raise
            log.warning("group_repeated", requests=len(asked), state=error.state, error=error.message or str(error))
        return await self._into.together(asked)

    def _overtake(self) -> None:
        if self._waiting and len(self._workers) < max(MOST_GROUPS, self._at_once):
            self._start_worker()

    def _expire(self, request: _Request[Asked, Said]) -> None:
        self._waiting.remove(request)
        request.resolve(busy())


class _Request(Generic[Asked, Said]):
    __slots__ = ("answer", "asked", "expiry")
    expiry: asyncio.TimerHandle  # runs while it waits for its group

    def __init__(self, asked: Asked, answer: asyncio.Future[Said]) -> None:
        self.asked = asked
        self.answer = answer

    def resolve(self, answer: Said | Exception) -> None:
        if self.answer.done():  # whoever asked has gone
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

"""How much is taken in at once. Who sends more than Postgres stores is turned away, with nothing done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from api.errors import Problem, problem


class Slots:
    """How many batches may be in the database at once. Who gets no slot in time is sent away."""

    def __init__(self, number: int, wait_seconds: float) -> None:
        self._free = asyncio.Semaphore(number)
        self.wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Raises INGEST_BUSY (503)."""
        try:
            async with asyncio.timeout(self.wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise busy() from None
        try:
            yield
        finally:
            self._free.release()


class Share:
    """What one request holds of the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0

    def take(self, size: int) -> None:
        """Raises INGEST_BUSY (503)."""
        if size > self._room.left:
            raise busy()
        self._room.left -= size
        self._taken += size

    def give_back(self, size: int) -> None:
        self._room.left += size
        self._taken -= size

    def give_all_back(self) -> None:
        self.give_back(self._taken)


class Room:
    """Memory for all bodies together, in bytes."""

    def __init__(self, size: int) -> None:
        self.left = size

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        share = Share(self)
        try:
            yield share
        finally:
            share.give_all_back()


def busy() -> Problem:
    return problem(
        "INGEST_BUSY",
        "more batches are waiting than the database takes in",
        hint="Send it again after Retry-After. Nothing of it was stored.",
    )

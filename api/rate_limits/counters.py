"""Counts requests by key. A key belongs to one window of time, and is not asked for once that is over."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

WINDOW_SECONDS: Final = 60


class Counters(Protocol):
    async def add(self, key: str) -> int:
        """How many there are, this one included."""
        ...


class LocalCounters:
    """In this process. `limits` brings one as well, which starts a task for each request that looks through all keys.

    Counts are kept in two generations, of which the older one is dropped whole: nobody searches for what is over.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._ages_at = clock() + WINDOW_SECONDS

    async def add(self, key: str) -> int:
        return self.add_now(key)

    def add_now(self, key: str) -> int:
        if self._clock() >= self._ages_at:
            self._age()
        count = self._young.get(key)
        if count is None:
            count = self._old.pop(key, 0)
        self._young[key] = count = count + 1
        return count

    def raise_to(self, key: str, count: int) -> None:
        """Others have counted as well, and come to so many."""
        if count > self._young.get(key, 0):
            self._young[key] = count

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def _age(self) -> None:
        now = self._clock()
        self._old = self._young if now < self._ages_at + WINDOW_SECONDS else {}
        self._young = {}
        self._ages_at = now + WINDOW_SECONDS

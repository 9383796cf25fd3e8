"""Counts of the last minutes, for what is only worth knowing while it goes on."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Final, Generic, TypeVar

WINDOW_SECONDS: Final = 300.0
SLICE_SECONDS: Final = 10.0

Key = TypeVar("Key", bound=Hashable)


class Recent(Generic[Key]):
    """What was counted within WINDOW_SECONDS, to within a slice."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._total: Counter[Key] = Counter()
        self._slices: deque[tuple[float, Counter[Key]]] = deque()  # by when each began, the oldest first

    def add(self, key: Key, number: int) -> None:
        now = self._clock()
        if not self._slices or now >= self._slices[-1][0] + SLICE_SECONDS:
            self._forget(now)
            self._slices.append((now, Counter()))
        self._slices[-1][1][key] += number
        self._total[key] += number

    def total(self) -> Counter[Key]:
        self._forget(self._clock())
        return self._total

    def _forget(self, now: float) -> None:
        while self._slices and self._slices[0][0] <= now - WINDOW_SECONDS:
            self._total.subtract(self._slices.popleft()[1])

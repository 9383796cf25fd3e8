"""Idempotency keys of metered requests. A client that retries with the same X-Request-ID is billed once, within bounds:
a constant header must not make usage free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from time import monotonic
from typing import Final

from uuid_utils import uuid7

WINDOW_SECONDS: Final = 300.0
MAX_SHARED: Final = 3  # requests that may share a key, the first one included
MAX_REMEMBERED: Final = 100_000


class RetryKeys:
    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[bytes, tuple[str, float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def key_for(self, fingerprint: tuple[object, ...]) -> str:
        """The key of an earlier request with this fingerprint if this one can pass as its retry, else a new one."""
        now = self._clock()
        self._forget_until(now - WINDOW_SECONDS)
        digest = blake2b(repr(fingerprint).encode(), digest_size=16).digest()  # targets can be long
        key, first_seen, uses = self._seen.get(digest, ("", 0.0, MAX_SHARED))
        if uses >= MAX_SHARED:
            self._seen.pop(digest, None)  # so that the order stays that of first_seen
            key, first_seen, uses = new_key(), now, 0
        self._seen[digest] = key, first_seen, uses + 1
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return key

    def _forget_until(self, moment: float) -> None:
        while self._seen:
            oldest = next(iter(self._seen))
            if self._seen[oldest][1] >= moment:
                return
            del self._seen[oldest]


def new_key() -> str:
    """A UUIDv7: keys made one after the other are neighbours in the index."""
    return str(uuid7())

"""Counts that several sidecars share in Redis. Where that is away or slow, each counts for itself, from what it knew
last, until Redis is back: no request waits for it twice, and none fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import structlog
from limits.aio.storage import RedisStorage
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from api.rate_limits.counters import WINDOW_SECONDS, LocalCounters

log = structlog.get_logger(__name__)

ANSWER_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 1.0
PREFIX: Final = "goldleaves:rate_limits"
_LOOKED: Final = "looked"  # the key that is counted to find out whether counting works


@dataclass(slots=True)
class _Group:
    """Requests of one key that are counted by one call: those that came while the one before was under way."""

    counted: asyncio.Task[int | None]
    size: int = 0


class SharedCounters(Collector):
    """`limits` counts in Redis: one script a group of requests, in which the key gets its expiry."""

    def __init__(self, url: str, local: LocalCounters) -> None:
        self._local = local
        self._is_away = False
        self._forming: dict[str, _Group] = {}
        self._counting: dict[str, asyncio.Task[int | None]] = {}
        self._where = _without_credentials(url)
        # One attempt, since the library would make several, with pauses between them.
        self._pool = ConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
        )
        self._storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=PREFIX,
            connection_pool=self._pool,  # type: ignore[arg-type]  # as it is documented, and not annotated
        )

    async def add(self, key: str) -> int:
        own = self._local.add_now(key)
        if self._is_away:
            return own
        group = self._forming.get(key)
        if group is None:
            group = self._forming[key] = _Group(asyncio.create_task(self._count_group(key)))
        group.size += 1
        place = group.size
        last = await asyncio.shield(group.counted)
        if last is None:
            return own
        count = last - group.size + place
        self._local.raise_to(key, count)
        return max(own, count)  # more than Redis has where that came back without what it had

    async def run(self) -> None:
        """See again and again whether Redis is there. Runs until cancelled."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self._pool.disconnect()

    async def look(self) -> None:
        if self._is_away:
            await self._pool.disconnect(inuse_connections=False)
        try:
            await self._count(_LOOKED, 1)
        except Exception as error:
            self._lost(error)
            return
        if self._is_away:
            self._is_away = False
            log.info("redis_is_back", redis=self._where)

    def state(self) -> Literal["ok", "down"]:
        return "down" if self._is_away else "ok"

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "goldleaves_rate_limits_shared",
            "Whether rate limits are counted in Redis (1), or each sidecar counts for itself since that is away (0).",
            value=0 if self._is_away else 1,
        )

    async def _count_group(self, key: str) -> int | None:
        """How many there are with those who have come until the group before was counted. None: Redis is away."""
        if (before := self._counting.get(key)) is not None:
            await asyncio.wait([before])
        group = self._forming.pop(key)
        if self._is_away:
            return None
        self._counting[key] = group.counted
        try:
            return await self._count(key, group.size)
        except Exception as error:  # whatever the client library makes of it: no request fails for being counted
            self._lost(error)
            return None
        finally:
            del self._counting[key]

    async def _count(self, key: str, requests: int) -> int:
        # Twice the window: the clocks of those who share it differ.
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._storage.incr(key, 2 * WINDOW_SECONDS, requests)

    def _lost(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning(
                "redis_is_away",
                redis=self._where,
                error=f"{type(error).__name__}: {error}".rstrip(": "),
                consequence="each sidecar counts requests for itself",
            )


def _without_credentials(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]

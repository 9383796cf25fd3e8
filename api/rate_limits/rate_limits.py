"""The limit itself: so many requests in each minute. The minutes of organizations begin at seconds of their own, so
that not everybody who was refused comes back at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from time import time
from typing import Final
from uuid import UUID

from api.context import RequestContext
from api.errors import problem
from api.rate_limits.counters import WINDOW_SECONDS, Counters
from api.rate_limits.tiers import TierRateLimits

LIMIT: Final = b"ratelimit-limit"
REMAINING: Final = b"ratelimit-remaining"
RESET: Final = b"ratelimit-reset"
RETRY_AFTER: Final = b"retry-after"


class RateLimits:
    def __init__(self, tiers: TierRateLimits, counters: Counters, clock: Callable[[], float] = time) -> None:
        self._tiers = tiers
        self._counters = counters
        self._clock = clock

    async def take(self, context: RequestContext, organization_id: UUID, plan: str | None) -> None:
        """Count one request, and write into the context what its answer says of the limit. Raises RATE_LIMITED (429)
        when it is one too many. `plan` None: the organization has no access.
        """
        limit = self._tiers.of(plan)
        if limit is None:
            return
        number, passed = window_at(organization_id, self._clock())
        count = await self._counters.add(f"{organization_id}/{number}")
        seconds = b"%d" % ceil(WINDOW_SECONDS - passed)
        context.headers += (
            (LIMIT, b"%d" % limit),
            (REMAINING, b"%d" % max(0, limit - count)),
            (RESET, seconds),
        )
        if count > limit:
            context.headers.append((RETRY_AFTER, seconds))
            raise problem(
                "RATE_LIMITED",
                f"the organization has sent its {limit} requests of this minute",
                hint=f"Wait {seconds.decode()} s, as Retry-After says. RateLimit-Remaining tells beforehand.",
            )


def window_at(organization_id: UUID, now: float) -> tuple[int, float]:
    """The number of the organization's minute, and how many seconds of it have passed."""
    number, passed = divmod(now + organization_id.int % WINDOW_SECONDS, WINDOW_SECONDS)
    return int(number), passed

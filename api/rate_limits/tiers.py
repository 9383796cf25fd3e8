"""Requests a minute of organizations, by plan: `{"starter": {"api": 60}, "pro": {"api": 300}}` in TIER_RATE_LIMITS."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CLASS: Final = "api"
MOST: Final = 1_000_000
PLAN_CODE: Final = re.compile(r"[a-z0-9_-]{1,64}")
EXAMPLE: Final = 'write {"starter": {"api": 60}}'


@dataclass(frozen=True, slots=True)
class TierRateLimits:
    """Falsy without any: then there are no limits."""

    by_plan: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.by_plan)

    def __str__(self) -> str:
        """As it is configured."""
        return json.dumps({plan: {CLASS: limit} for plan, limit in self.by_plan.items()}) if self else ""

    def of(self, plan: str | None) -> int | None:
        """Requests a minute; None: as many as they like. Without access (plan None) the strictest of all holds."""
        if plan is None:
            return min(self.by_plan.values(), default=None)
        return self.by_plan.get(plan)


def parse_tier_rate_limits(text: str) -> TierRateLimits:
    """Raises ValueError, which says what is wrong in one line."""
    if not text.strip():
        return TierRateLimits()
    try:
        tiers = json.loads(text, object_pairs_hook=_each_once)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"it is not JSON; {EXAMPLE}") from None
    if not isinstance(tiers, dict):
        raise ValueError(f"expected an object of plans; {EXAMPLE}")
    return TierRateLimits({plan: _limit(plan, classes) for plan, classes in tiers.items()})


def _limit(plan: str, classes: object) -> int:
    if not PLAN_CODE.fullmatch(plan):  # a limit of a plan that cannot be would limit nobody, and nobody would know
        raise ValueError(f"{plan!r} is not the code of a plan: lowercase letters, digits, _ and -; {EXAMPLE}")
    if not isinstance(classes, dict) or list(classes) != [CLASS]:
        raise ValueError(f"of {plan!r} expected one limit, of the class {CLASS}; {EXAMPLE}")
    limit = classes[CLASS]
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST:
        raise ValueError(f"{CLASS} of {plan!r} is {limit!r}; expected requests a minute, from 1 to {MOST}")
    return limit


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)!r} is there twice")
    return found

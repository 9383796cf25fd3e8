"""What is answered: the outcome that Postgres gives, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from api.database import DatabaseError
from api.errors import Problem, problem

LOCKED: Final = "BILLING_PERIOD_LOCKED"
OUTCOMES: Final = ("accepted", "duplicate", "conflict", "rejected", "locked")

Count = Callable[[str, int], None]  # told how many events came to which of OUTCOMES
CountOf = Callable[[str], Count]  # the one for events of a source


def count_outcome(outcome: Mapping[str, Any], count: Count) -> None:
    """`rejected` without those that met a finalized period, which are `locked`."""
    if outcome["accepted"]:
        count("accepted", outcome["accepted"])
    if outcome["duplicates"]:
        count("duplicate", outcome["duplicates"])
    if outcome["conflicts"]:
        count("conflict", len(outcome["conflicts"]))
    if outcome["rejected"]:
        locked = sum(event["code"] == LOCKED for event in outcome["rejected"])
        count("locked", locked)
        count("rejected", len(outcome["rejected"]) - locked)


def not_stored(error: DatabaseError) -> Problem | DatabaseError:
    """What to raise for a batch that Postgres did not take."""
    if error.malformed:
        return problem(
            "INVALID_BODY",
            "the body is not JSON we can store",
            details=": ".join(filter(None, (error.message, error.details))) or str(error),
            hint='Send one event, an array of them or {"events": [...]}, as JSON in UTF-8. Nothing of it was stored.',
        )
    return error.problem() or error

"""Lists, a page at a time, the newest first, as Stripe answers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from api.stripe.fixtures.shape import listed
from api.stripe.standin.refusals import Refusal, missing_param
from api.stripe.standin.store import Json

PAGE: Final = 10
LONGEST: Final = 100


def page(objects: Iterable[Json], params: Mapping[str, Any], url: str, *, newest_first: bool = True) -> Json:
    """`objects` in the order in which they were made."""
    found = list(objects)
    if newest_first:
        found.reverse()
    limit = params.get("limit", PAGE)
    if not 1 <= limit <= LONGEST:
        raise Refusal(f"This value must be between 1 and {LONGEST}.", code="parameter_invalid_integer", param="limit")
    if "starting_after" in params:
        rest = found[_position(found, params["starting_after"], "starting_after") + 1 :]
        return listed(rest[:limit], url, has_more=len(rest) > limit)
    if "ending_before" in params:
        rest = found[: _position(found, params["ending_before"], "ending_before")]
        return listed(rest[-limit:], url, has_more=len(rest) > limit)
    return listed(found[:limit], url, has_more=len(found) > limit)


def is_within(value: int, wanted: Any) -> bool:
    """Of `created[gte]=…`."""
    if wanted is None:
        return True
    after, before = wanted.get("gt", value - 1), wanted.get("lt", value + 1)
    return bool(after < value < before and wanted.get("gte", value) <= value <= wanted.get("lte", value))


def _position(found: list[Json], id: str, param: str) -> int:
    for position, object in enumerate(found):
        if object["id"] == id:
            return position
    raise missing_param("object", id, param)

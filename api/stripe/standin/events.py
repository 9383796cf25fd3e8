"""Events that were sent, of either version: whoever got a thin one asks for the rest of it here."""

from __future__ import annotations

from api.stripe.standin.calls import Call
from api.stripe.standin.listing import is_within, page
from api.stripe.standin.parameters import PAGE, RANGE, TEXT, ListOf, Members
from api.stripe.standin.refusals import missing
from api.stripe.standin.store import Json

_VERSION_2 = "v2.core.event"


async def retrieve_event(call: Call) -> Json:
    return _found(call, "event")


async def retrieve_event_of_version_2(call: Call) -> Json:
    return _found(call, _VERSION_2)


async def list_events(call: Call) -> Json:
    params = call.params
    types = params.get("types", [params["type"]] if "type" in params else None)
    found = (
        one
        for one in call.account.store.all("event")
        if one["object"] == "event"
        and (types is None or one["type"] in types)
        and is_within(one["created"], params.get("created"))
    )
    return page(found, params, "/v1/events")


def _found(call: Call, object: str) -> Json:
    found = call.account.store.get("event", call.path["id"])
    if found is None or found["object"] != object:
        raise missing("event", call.path["id"])
    return found


CALLS = {
    ("GET", "/v1/events"): (list_events, Members({**PAGE, "type": TEXT, "types": ListOf(TEXT), "created": RANGE})),
    ("GET", "/v1/events/{id}"): (retrieve_event, Members({})),
    ("GET", "/v2/core/events/{id}"): (retrieve_event_of_version_2, Members({})),
}

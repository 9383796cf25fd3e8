"""What tests and the demo do to the stand-in, under /_control, where Stripe has nothing.

POST   /_control/faults            a Fault: the next calls fail
DELETE /_control/faults
GET    /_control/requests          what was asked, and how it was answered; ?path= how its path begins
DELETE /_control/requests
POST   /_control/objects           puts objects: {"objects": […]}, each under its "object" and id
GET    /_control/objects?object=   all of a kind
DELETE /_control/objects           one of a kind: ?object=&id=
DELETE /_control/data              all that it knows
POST   /_control/settings          {"webhook_url", "webhook_secret", "ahead" (seconds), "meter_events_a_second"}
POST   /_control/pay/{session}     somebody pays a checkout; {"copies": 2, "order": "shuffled"}: how its webhooks go out
POST   /_control/bill/{subscription}  {"start", "end"}: the invoice of that time, paid, with its webhooks
POST   /_control/send              {"event": …, "copies": 1}: sends an event
POST   /_control/meter_errors      {"identifiers": {identifier: text}, "code", "type"}: Stripe could not use these
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.stripe import fixtures
from api.stripe.standin.account import Account, Delivered
from api.stripe.standin.billing import bill
from api.stripe.standin.checkout import paid, session_of
from api.stripe.standin.handing_on import Localstripe
from api.stripe.standin.metering import Metering
from api.stripe.standin.refusals import Refusal
from api.stripe.standin.store import Json

_ORDERS: dict[str, Callable[[list[Json]], list[Json]]] = {
    "as it happened": list,
    "reversed": lambda events: list(reversed(events)),
    "shuffled": lambda events: random.sample(events, len(events)),
}
_KEYS = {"billing.meter_event": "identifier"}


def control_routes(account: Account, metering: Metering, localstripe: Localstripe | None) -> list[Route]:
    async def plan_fault(request: Request) -> Response:
        account.faults.plan(**await request.json())
        return JSONResponse({})

    async def forget_faults(request: Request) -> Response:
        account.faults.planned.clear()
        return JSONResponse({})

    async def requests(request: Request) -> Response:
        path = request.query_params.get("path", "/")
        return JSONResponse([one for one in account.requests if one["path"].startswith(path)])

    async def forget_requests(request: Request) -> Response:
        account.requests.clear()
        return JSONResponse({})

    async def put_objects(request: Request) -> Response:
        for object in (await request.json())["objects"]:
            kind = "event" if object["object"] == "v2.core.event" else object["object"]
            account.store.put(kind, object[_KEYS.get(kind, "id")], object)
        return JSONResponse({})

    async def objects(request: Request) -> Response:
        return JSONResponse(list(account.store.all(request.query_params["object"])))

    async def remove_object(request: Request) -> Response:
        found = account.store.remove(request.query_params["object"], request.query_params["id"])
        return JSONResponse(found, 200 if found is not None else 404)

    async def forget(request: Request) -> Response:
        account.store.clear()
        account.faults.planned.clear()
        account.requests.clear()
        return JSONResponse({})

    async def set_settings(request: Request) -> Response:
        wanted = await request.json()
        account.webhooks.url = wanted.get("webhook_url", account.webhooks.url)
        account.webhooks.secret = wanted.get("webhook_secret", account.webhooks.secret)
        if localstripe is not None and account.webhooks.url is not None:
            await localstripe.send_webhooks_to(account.webhooks.url, account.webhooks.secret)
        account.ahead = wanted.get("ahead", account.ahead)
        account.meter_events_a_second = wanted.get("meter_events_a_second", account.meter_events_a_second)
        return JSONResponse({})

    async def pay_session(request: Request) -> Response:
        wanted = await _json(request)
        session = session_of(account, request.path_params["id"])
        if session["status"] != "open":
            raise Refusal(f"The checkout is {session['status']}.")
        return _told(await _send_all(paid(account, session), wanted))

    async def bill_subscription(request: Request) -> Response:
        wanted = await _json(request)
        subscription = account.store.get("subscription", request.path_params["id"])
        if subscription is None:
            raise Refusal("No such subscription", 404)
        events = bill(account, metering, subscription, start=wanted["start"], end=wanted["end"])
        return _told(await _send_all(events, wanted))

    async def send(request: Request) -> Response:
        wanted = await request.json()
        return _told(await account.send(wanted["event"], wanted.get("copies", 1)))

    async def report_errors(request: Request) -> Response:
        wanted = await request.json()
        for identifier, text in wanted["identifiers"].items():
            account.store.put("invalid_meter_event", identifier, {"error_message": text})
        type = wanted.get("type", "v1.billing.meter.error_report_triggered")
        meter = next((one["id"] for one in account.store.all("billing.meter")), None)
        whole = fixtures.event_of_version_2(
            type,
            fixtures.meter_errors(
                wanted["identifiers"],
                code=wanted.get("code", "meter_event_customer_not_found"),
                start=account.now() - 10,
                end=account.now(),
            ),
            created=account.now(),
            meter=None if type.endswith("no_meter_found") else meter,
            id=account.new_id("evt_test"),
        )
        account.store.put("event", whole["id"], whole)
        return _told([await account.deliver(fixtures.thin(whole))])

    async def _send_all(events: list[Json], wanted: Json) -> list[Delivered]:
        """All of them before any copy, so that copies do not follow at once."""
        for event in events:
            account.store.put("event", event["id"], event)
        ordered = [
            event
            for _ in range(wanted.get("copies", 1))
            for event in _ORDERS[wanted.get("order", "as it happened")](events)
        ]
        return [await account.deliver(event) for event in ordered]

    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", "/faults", plan_fault),
        ("DELETE", "/faults", forget_faults),
        ("GET", "/requests", requests),
        ("DELETE", "/requests", forget_requests),
        ("POST", "/objects", put_objects),
        ("GET", "/objects", objects),
        ("DELETE", "/objects", remove_object),
        ("DELETE", "/data", forget),
        ("POST", "/settings", set_settings),
        ("POST", "/pay/{id}", pay_session),
        ("POST", "/bill/{id}", bill_subscription),
        ("POST", "/send", send),
        ("POST", "/meter_errors", report_errors),
    ]
    return [Route(f"/_control{path}", work, methods=[method]) for method, path, work in routes]


async def _json(request: Request) -> Json:
    body = await request.body()
    found: Json = await request.json() if body else {}
    return found


def _told(delivered: list[Delivered]) -> Response:
    """Each event that went out, in the order in which it did, and what it was answered."""
    told: list[dict[str, Any]] = [{"event": one.event, "status": one.status, "answer": one.answer} for one in delivered]
    return JSONResponse({"delivered": told})

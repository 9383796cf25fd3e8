"""All routes of the stand-in: Stripe's, its pages, and those that control it."""

from __future__ import annotations

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.stripe.standin import catalog, checkout, customers, events, invoices, metering
from api.stripe.standin.account import Account
from api.stripe.standin.calls import endpoint
from api.stripe.standin.control import control_routes
from api.stripe.standin.handing_on import Localstripe
from api.stripe.standin.metering import Metering
from api.stripe.standin.pages import page_routes
from api.stripe.standin.refusals import Refusal

# Where localstripe is there, these are its business alone: what one of the two has made, the other knows nothing of.
_OF_LOCALSTRIPE = ("/v1/customers", "/v1/products", "/v1/coupons")


def create_app(account: Account, localstripe: Localstripe | None = None) -> Starlette:
    counting = Metering()
    calls = {
        **catalog.CALLS,
        **checkout.CALLS,
        **customers.CALLS,
        **events.CALLS,
        **invoices.CALLS,
        **metering.CALLS,
        **metering.calls_of(counting),
    }
    routes = [
        Route(path, endpoint(account, work, takes, localstripe), methods=[method])
        for (method, path), (work, takes) in calls.items()
        if not (localstripe is not None and method == "POST" and path.startswith(_OF_LOCALSTRIPE))
    ]

    async def refused(request: Request, refusal: Exception) -> Response:
        if not isinstance(refusal, Refusal):
            raise refusal
        return JSONResponse(refusal.body(), refusal.status)

    async def unknown(request: Request, _: Exception) -> Response:
        if localstripe is not None and request.url.path.startswith("/v1/"):
            return await localstripe.answer(request)
        message = f"Unrecognized request URL ({request.method}: {request.url.path})."
        return JSONResponse(Refusal(message, HTTPStatus.NOT_FOUND).body(), HTTPStatus.NOT_FOUND)

    return Starlette(
        routes=[*routes, *page_routes(account), *control_routes(account, counting, localstripe)],
        exception_handlers={
            Refusal: refused,
            HTTPStatus.NOT_FOUND: unknown,
            HTTPStatus.METHOD_NOT_ALLOWED: unknown,
        },
    )

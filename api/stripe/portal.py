"""GET /api/billing/portal_link: Stripe's pages on which an owner changes plan and payment method, cancels, and sees
bills.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.database import Database, DatabaseError
from api.errors import problem
from api.stripe.banner import Account
from api.stripe.checkout import NOT_STORED
from api.stripe.failures import StripeError, unavailable
from api.stripe.owners import People

PORTAL_PATHS: Final = ("/api/billing/portal_link", "/billing/portal_link")


class Portal:
    def __init__(self, database: Database, people: People, account: Account) -> None:
        self._database = database
        self._people = people
        self._account = account

    async def open(self, request: Request) -> Response:
        """A link that is good for a short while.

        Errors: 401; 403 NOT_A_MEMBER, ROLE_REQUIRED, SCOPE_REQUIRED; 400 ORGANIZATION_REQUIRED, UNKNOWN_PARAMETER; 404
        NO_SUBSCRIPTION; 502 STRIPE_REFUSED; 503 STRIPE_UNAVAILABLE.
        Source: docs.stripe.com/api/customer_portal/sessions/create.
        """
        person = await self._people.find(request, _tenant_named(request))
        stripe = self._account.stripe
        url: str | None = None
        try:
            customer_id = await self._database.begin_portal(
                person.user_id, person.organization_id, is_configured=stripe is not None
            )
            if stripe is not None and customer_id is not None:
                return_url = f"{self._account.app_url}/billing"
                session = await stripe.ask(
                    lambda s: s.v1.billing_portal.sessions.create_async(
                        params={"customer": customer_id, "return_url": return_url}
                    )
                )
                await self._database.record_portal(person.user_id, person.organization_id, customer_id, person.caller)
                url = session.url
        except DatabaseError as error:
            raise error.problem() or error from None
        except StripeError as error:
            raise unavailable(error) from None
        return JSONResponse({"success": url is not None, "portal_url": url, **self._account.said()}, headers=NOT_STORED)


def _tenant_named(request: Request) -> str:
    query = request.query_params.multi_items()
    if unknown := [name for name, _ in query if name != "tenant_id"]:
        raise problem("UNKNOWN_PARAMETER", f"there is no parameter {unknown[0][:40]!r}", hint="Use tenant_id alone.")
    if len(query) > 1:
        raise problem("UNKNOWN_PARAMETER", "tenant_id was sent twice", hint="Send it once.")
    named = query[0][1] if query else ""
    if not named or "\0" in named:
        raise problem("ORGANIZATION_REQUIRED", "tenant_id is missing", hint="As in ?tenant_id=acme: an id or a slug.")
    return named

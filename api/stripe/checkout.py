"""POST /api/billing/create_checkout_session: a page of Stripe's on which an owner buys a plan.

What may be bought, and what Stripe is told of it, is decided in sql/stripe/checkout.sql. Asked twice for the same, it
is the same page: Stripe keeps what it answered under an idempotency key, as it was then. So a page that it gives again
is looked at, and another one is made where it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import structlog
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.database import BegunCheckout, Database, DatabaseError
from api.errors import problem
from api.ingestion.body import read_text, refuse_declared
from api.ingestion.content import content_of
from api.ingestion.limits import Room
from api.stripe.banner import Account
from api.stripe.failures import StripeAway, StripeBusy, StripeDenied, StripeError, StripeRefused, unavailable
from api.stripe.owners import People, Person

if TYPE_CHECKING:
    from stripe.checkout import Session

    from api.stripe.client import Stripe

CHECKOUT_PATHS: Final = ("/api/billing/create_checkout_session", "/billing/create_checkout_session")
MOST_BYTES: Final = 16 * 1024
BODIES_IN_MEMORY: Final = 256
MOST_TRIES: Final = 5
LONGEST_WAIT_SECONDS: Final = 2.0  # of somebody who waits for a page
NOT_STORED: Final = {"Cache-Control": "no-store"}

log = structlog.get_logger(__name__)

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Asked(BaseModel):
    """What is passed over, such as a coupon with a slip in its name, would be bought without it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: _Name
    tenant_id: _Name
    coupon: Annotated[str, StringConstraints(pattern=r"^[^\x00]{0,255}$")] | None = None


class Checkout:
    def __init__(self, database: Database, people: People, account: Account) -> None:
        self._database = database
        self._people = people
        self._account = account
        self._room = Room(BODIES_IN_MEMORY * MOST_BYTES)

    async def create(self, request: Request) -> Response:
        """Errors: 401; 403 NOT_A_MEMBER, ROLE_REQUIRED, SCOPE_REQUIRED; 400 INVALID_BODY; 404 PLAN_NOT_FOUND; 409
        SUBSCRIPTION_EXISTS, STRIPE_PRICE_MISSING; 413, 415; 502 STRIPE_REFUSED; 503 STRIPE_UNAVAILABLE.

        Source: docs.stripe.com/api/checkout/sessions/create.
        """
        self._people.require_somebody(request)
        asked = await self._read(request)
        person = await self._people.find(request, asked.tenant_id)
        try:
            session = await self._session(person, asked)
        except DatabaseError as error:
            raise error.problem() or error from None
        except StripeError as error:
            raise unavailable(error) from None
        return JSONResponse(
            {
                "success": session is not None,
                "checkout_url": session.url if session is not None else None,
                **self._account.said(),
                "publishable_key": self._account.publishable_key if session is not None else None,
            },
            headers=NOT_STORED,
        )

    async def _read(self, request: Request) -> Asked:
        content = content_of(request)
        if content.format != "events":
            raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be application/json", hint="Set Content-Type.")
        refuse_declared(request, MOST_BYTES)
        with self._room.share() as share:
            text = await read_text(request, content, MOST_BYTES, share)
        try:
            return Asked.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "the body"
            raise problem(
                "INVALID_BODY", f"{name[:80]}: {first['msg'][:200]}", hint='Send {"plan", "tenant_id", "coupon"?}.'
            ) from None

    async def _session(self, person: Person, asked: Asked) -> Session | None:
        """None: there is no key to make one with."""
        stripe = self._account.stripe
        begun = await self._database.begin_checkout(
            person.user_id,
            person.organization_id,
            asked.plan,
            asked.coupon or None,
            self._account.app_url,
            is_configured=stripe is not None,
        )
        if stripe is None or begun is None:
            return None
        for number in range(begun.number, begun.number + MOST_TRIES):
            made = await _make(stripe, begun, number)
            if made is None:
                continue
            is_new = await self._database.record_checkout(
                person.user_id, person.organization_id, made.id, asked.plan, begun.asked, person.caller
            )
            known = made if is_new else await _look_at(stripe, made.id)
            if known.status == "open":
                await self._close_others(stripe, person.organization_id, known.id)
                return known
            if known.status == "complete":
                await self._require_ended(person.organization_id, known)
        raise StripeAway("it gives back one checkout that is over after the other")

    async def _close_others(self, stripe: Stripe, organization_id: UUID, session_id: str) -> None:
        """So that nobody pays two, for two plans. Where somebody has paid one, and its webhooks are still on their way,
        this one is closed. Raises SUBSCRIPTION_EXISTS (409).
        """
        for other in await self._database.checkouts_beside(organization_id, session_id):
            try:
                closed = await _close(stripe, other)
            except StripeRefused:  # there is none any more
                continue
            except StripeError as error:
                log.warning("stripe_checkout_left_open", id=other, error=str(error))
                continue
            if closed.status == "complete":
                try:
                    await self._require_ended(organization_id, closed)
                except DatabaseError:
                    with contextlib.suppress(StripeError):
                        await _close(stripe, session_id)
                    raise

    async def _require_ended(self, organization_id: UUID, session: Session) -> None:
        of = session.subscription
        await self._database.require_ended(organization_id, of if of is None or isinstance(of, str) else of.id)


async def _close(stripe: Stripe, session_id: str) -> Session:
    """As it is then: expired, or complete where somebody has paid it."""
    known = await _look_at(stripe, session_id)
    if known.status != "open":
        return known
    try:
        return await stripe.ask(lambda s: s.v1.checkout.sessions.expire_async(session_id))
    except StripeRefused:  # it was paid at this moment
        return await _look_at(stripe, session_id)


async def _look_at(stripe: Stripe, session_id: str) -> Session:
    return await stripe.ask(lambda s: s.v1.checkout.sessions.retrieve_async(session_id))


async def _make(stripe: Stripe, begun: BegunCheckout, number: int) -> Session | None:
    """None: the key stands for something else, which a version of ours asked for that put it in other words."""
    params: Any = begun.params
    key = f"goldleaves:{begun.asked}:{number}"
    waited = 0.0
    while True:
        try:
            return await stripe.ask(
                lambda s: s.v1.checkout.sessions.create_async(params=params, options={"idempotency_key": key})
            )
        except StripeRefused as error:
            if error.code == "idempotency_error":
                return None
            raise
        except StripeDenied:
            raise
        except StripeBusy as error:
            # Somebody has pressed the button twice: the other request has the key.
            waited += max(error.pause, 0.2)
            if waited > LONGEST_WAIT_SECONDS:
                raise
            await asyncio.sleep(max(error.pause, 0.2))

"""POST /api/billing/stripe_webhook: what Stripe tells us. Whoever can sign it is Stripe; nobody else is asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from api.context import single_header
from api.database import DatabaseError, Settled
from api.errors import problem
from api.ingestion.body import pieces, refuse_declared, too_large
from api.ingestion.content import Content
from api.ingestion.limits import Room, Share

if TYPE_CHECKING:
    from api.stripe.inbox import Inbox
    from api.stripe.signature import Signatures

MOST_BYTES: Final = 1024 * 1024
BODIES_IN_MEMORY: Final = 64  # of that size, or very many of the usual one
# However fast some of it came: whoever sends has proved nothing yet, and what is held keeps others' bodies out.
BODY_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)

_AS_IT_COMES: Final = Content("events")


class StripeWebhook:
    """`signatures` None: there is no STRIPE_WEBHOOK_SECRET, so nothing can be believed."""

    def __init__(self, signatures: Signatures | None, inbox: Inbox) -> None:
        self._signatures = signatures
        self._inbox = inbox
        self._room = Room(BODIES_IN_MEMORY * MOST_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of its own, as EventsEndpoint is."""
        response = await self.receive(Request(scope, receive))
        await response(scope, receive, send)

    async def receive(self, request: Request) -> Response:
        """Store an event, apply it, then say that it was received. Safe to receive twice.

        Errors: 400 INVALID_SIGNATURE, INVALID_BODY; 408; 413; 503 STRIPE_NOT_CONFIGURED, INGEST_BUSY, without Postgres:
        Stripe sends it again, for three days. Source: docs.stripe.com/webhooks.
        """
        if self._signatures is None:
            raise problem("STRIPE_NOT_CONFIGURED", "STRIPE_WEBHOOK_SECRET is not set, so no webhook is believed")
        refuse_declared(request, MOST_BYTES)
        header = single_header(request.scope, b"stripe-signature")
        with self._room.share() as share:
            payload = await self._body(request, share)
            try:
                # Verified as it came: JSON that was read and written again is another text.
                text = payload.decode("utf-8")
            except UnicodeDecodeError:
                raise problem("INVALID_SIGNATURE", "Stripe signs UTF-8, and this is none") from None
            self._signatures.verify(text, header)
            if "\0" in text:  # which no JSON has, and would spoil a whole group
                raise problem("INVALID_BODY", "the body has a NUL in it")
            settled = await self._settle(text)
        return JSONResponse({"received": True, "outcome": settled.outcome, "message": settled.message})

    @staticmethod
    async def _body(request: Request, share: Share) -> bytes:
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in pieces(request, _AS_IT_COMES):
                    size += len(piece)
                    if size > MOST_BYTES:
                        raise too_large(MOST_BYTES)
                    share.take(len(piece))
                    chunks.append(piece)
        except TimeoutError:
            raise problem("REQUEST_TIMEOUT", f"the body did not come within {BODY_SECONDS:.0f} s") from None
        return b"".join(chunks)

    async def _settle(self, text: str) -> Settled:
        try:
            return await self._inbox.receive(text)
        except DatabaseError as error:
            if (answer := error.problem()) is not None:
                raise answer from None
            if error.malformed:
                raise problem("INVALID_BODY", "this is no JSON that can be stored") from None
            # Nothing that Stripe sends is our client's fault: it is asked to send it again.
            log.error("stripe_event_not_stored", state=error.state, error=error.message or str(error))
            raise problem("DATABASE_BUSY", "it could not be stored") from error

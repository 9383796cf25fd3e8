"""POST /v1/events: usage from the provider's own backend. The body goes to Postgres as it came; rules are there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.message import Message
from typing import Final
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.context import context_of
from api.database import Database, DatabaseError
from api.errors import Problem, problem
from api.middleware.tenant import organization_named
from api.tenants import Tenants

SOURCE: Final = "api"
UTF8: Final = "utf-8"
CONNECTIONS_LEFT: Final = 2
BODIES_IN_MEMORY: Final = 8  # of the largest size, or many more small ones: read, and waiting for the database


def events_endpoint(
    database: Database, tenants: Tenants, *, max_bytes: int, pool_size: int, wait_seconds: float
) -> Callable[[Request], Awaitable[Response]]:
    # The pool also resolves tenants and ships the spool: batches, which can take long, leave connections for that.
    slots = Slots(max(1, pool_size - CONNECTIONS_LEFT), wait_seconds)
    room = Room(BODIES_IN_MEMORY * max_bytes)

    async def receive_events(request: Request) -> Response:
        """Store a batch of usage events. Safe to send twice: `id` is the idempotency key.

        Errors: 401; 403 ROLE_REQUIRED, SCOPE_REQUIRED, NOT_A_MEMBER; 415, 413, 400 INVALID_BODY; 404
        ORGANIZATION_NOT_FOUND; 503 without Postgres.
        """
        _require_service(request)
        _require_json(request)
        with room.share() as share:
            body = await _read_text(request, max_bytes, share)
            try:
                organization_id = await _organization_id(request, tenants)
                async with slots.one():
                    key = context_of(request.scope).principal.key
                    outcome = await database.ingest(body, organization_id, SOURCE, "reject", key)
            except DatabaseError as error:
                if error.malformed:
                    raise _not_json(error) from None
                raise error.problem() or error from None
        return Response(outcome, media_type="application/json")

    return receive_events


class Slots:
    """How many batches may be in the database at once. Who gets no slot in time is sent away, with nothing done."""

    def __init__(self, number: int, wait_seconds: float) -> None:
        self._free = asyncio.Semaphore(number)
        self._wait_seconds = wait_seconds

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            yield
        finally:
            self._free.release()


class Room:
    """Memory for all bodies together: who sends more than Postgres takes in is turned away before it is gone."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes so many bytes, or raises INGEST_BUSY (503). They are given back at the end."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._left:
                raise _busy()
            self._left -= size
            taken += size

        try:
            yield take
        finally:
            self._left += taken


def _busy() -> Problem:
    return problem(
        "INGEST_BUSY",
        "more batches are waiting than the database takes in",
        hint="Send it again after Retry-After. Nothing of it was stored.",
    )


def _not_json(error: DatabaseError) -> Problem:
    return problem(
        "INVALID_BODY",
        "the body is not JSON we can store",
        details=": ".join(filter(None, (error.message, error.details))) or str(error),
        hint='Send {"events": [...]} or an array of events, as JSON in UTF-8. Nothing of it was stored.',
    )


def _require_service(request: Request) -> None:
    principal = context_of(request.scope).principal
    if principal.token is None and principal.key is None:
        raise problem("INVALID_TOKEN", "there is no token", hint="Send one of role service as a Bearer token.")
    if principal.key is not None and not principal.key.is_providers:
        raise problem("SCOPE_REQUIRED", "sending usage events needs a key of the provider (events:write)")
    if principal.role != "service":
        raise problem("ROLE_REQUIRED", "only role service sends usage events", hint="Usage is the provider's to write.")


def _require_json(request: Request) -> None:
    media_type = Message()
    media_type["Content-Type"] = request.headers.get("content-type", "")
    if media_type.get_content_type() != "application/json":
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be application/json", hint="Set Content-Type.")
    if (media_type.get_content_charset() or UTF8) != UTF8:
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be UTF-8", hint="Encode it as UTF-8.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to come uncompressed", hint="Leave Content-Encoding out.")


async def _read_text(request: Request, max_bytes: int, take: Callable[[int], None]) -> str:
    too_large = problem("BODY_TOO_LARGE", f"the body is larger than {max_bytes} bytes", hint="Send smaller batches.")
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks).decode("utf-8")
    except UnicodeDecodeError:
        raise problem("INVALID_BODY", "the body is not UTF-8", hint="Encode it as UTF-8.") from None
    except ClientDisconnect:
        raise problem("INVALID_BODY", "the body ended early", hint="Send all of it.") from None  # nobody reads this


async def _organization_id(request: Request, tenants: Tenants) -> UUID | None:
    """The organization of the whole batch, or None when each event names its own."""
    named = organization_named(request.scope)
    if named is None:
        return None
    principal = context_of(request.scope).principal
    tenant = (await tenants.resolve(principal, named)).tenant
    if tenant is None and principal.key is not None and principal.key.organization_id is not None:
        # As Postgres says of another organization that is there.
        raise problem("NOT_A_MEMBER", "this API key is for another organization", hint="Leave X-Organization-ID out.")
    if tenant is None:
        raise problem(
            "ORGANIZATION_NOT_FOUND",
            "there is no such organization",
            hint="X-Organization-ID takes the id or the slug of an organization.",
        )
    return tenant.organization_id

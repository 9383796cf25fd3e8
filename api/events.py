"""POST /v1/events: usage from the provider's own backend. The body goes to Postgres as it came; rules are there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.context import context_of
from api.database import Database, DatabaseError
from api.errors import problem
from api.middleware.tenant import organization_named
from api.tenants import Tenants

SOURCE: Final = "api"
CONNECTIONS_LEFT: Final = 2


def events_endpoint(
    database: Database, tenants: Tenants, *, max_bytes: int, pool_size: int
) -> Callable[[Request], Awaitable[Response]]:
    # The pool also resolves tenants and ships the spool: batches, which can take long, leave connections for that.
    slots = asyncio.Semaphore(max(1, pool_size - CONNECTIONS_LEFT))

    async def receive_events(request: Request) -> Response:
        """Store a batch of usage events. Safe to send twice: `id` is the idempotency key.

        Errors: 401; 403 ROLE_REQUIRED; 415, 413, 400 INVALID_BODY; 404 ORGANIZATION_NOT_FOUND; 503 without Postgres.
        """
        _require_service(request)
        _require_json(request)
        body = await _read_text(request, max_bytes)
        try:
            organization_id = await _organization_id(request, tenants)
            async with slots:
                outcome = await database.ingest(body, organization_id, SOURCE, "reject")
        except DatabaseError as error:
            if error.malformed:
                raise problem("INVALID_BODY", "the body is not JSON we can store", details=error.message) from None
            raise error.problem() or error from None
        return Response(outcome, media_type="application/json")

    return receive_events


def _require_service(request: Request) -> None:
    principal = context_of(request.scope).principal
    if principal.token is None:
        raise problem("INVALID_TOKEN", "there is no token", hint="Send one of role service as a Bearer token.")
    if principal.role != "service":
        raise problem("ROLE_REQUIRED", "only role service sends usage events", hint="Usage is the provider's to write.")


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise problem("UNSUPPORTED_MEDIA_TYPE", "the body has to be application/json", hint="Set Content-Type.")


async def _read_text(request: Request, max_bytes: int) -> str:
    too_large = problem("BODY_TOO_LARGE", f"the body is larger than {max_bytes} bytes", hint="Send smaller batches.")
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            chunks.append(chunk)
        return b"".join(chunks).decode("utf-8")
    except UnicodeDecodeError:
        raise problem("INVALID_BODY", "the body is not UTF-8") from None
    except ClientDisconnect:
        raise problem("INVALID_BODY", "the body ended early") from None  # nobody reads this


async def _organization_id(request: Request, tenants: Tenants) -> UUID | None:
    """The organization of the whole batch, or None when each event names its own."""
    named = organization_named(request.scope)
    if named is None:
        return None
    tenant = await tenants.resolve(context_of(request.scope).principal, named)
    if tenant is None:
        raise problem(
            "ORGANIZATION_NOT_FOUND",
            "there is no such organization",
            hint="X-Organization-ID takes the id or the slug of an organization.",
        )
    return tenant.organization_id

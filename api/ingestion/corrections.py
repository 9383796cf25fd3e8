"""DELETE and PUT /v1/events/{id}: what was recorded wrong is taken back, or replaced. Safe to send again."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.convertors import Convertor
from starlette.requests import Request
from starlette.responses import Response

from api.context import context_of
from api.database import Correction, Database, DatabaseError
from api.errors import problem
from api.ingestion.answers import not_stored
from api.ingestion.body import read_text, refuse_declared
from api.ingestion.callers import organization_id, require_service
from api.ingestion.content import content_of
from api.ingestion.limits import Room, Slots
from api.ingestion.source import SOURCE
from api.tenants import Tenants

MOST_BYTES: Final = 64 * 1024
MOST_AGENT: Final = 256
PARAMETERS: Final = ("source", "late", "reason")


class AnyId(Convertor[str]):
    """Ids of events may have slashes in them."""

    regex = ".+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class Corrections:
    def __init__(self, database: Database, tenants: Tenants, slots: Slots, room: Room) -> None:
        self._database = database
        self._tenants = tenants
        self._slots = slots
        self._room = room

    async def receive(self, request: Request) -> Response:
        """Void (DELETE) or amend (PUT) an event. Errors: as for POST; 404 EVENT_NOT_FOUND; 409 EVENT_VOIDED,
        EVENT_AMENDED, BILLING_PERIOD_LOCKED, IDEMPOTENCY_CONFLICT; 400 INVALID_EVENT.
        """
        require_service(request)
        try:
            if request.method == "DELETE":
                answer = await self._void(request)
            else:
                answer = await self._amend(request)
        except DatabaseError as error:
            raise not_stored(error) from None
        return Response(answer, media_type="application/json")

    async def _void(self, request: Request) -> str:
        correction = await self._correction(request)
        async with self._slots.one():
            return await self._database.void_event(correction)

    async def _amend(self, request: Request) -> str:
        content = content_of(request)
        if content.format != "events":
            raise problem("UNSUPPORTED_MEDIA_TYPE", "the event has to be application/json", hint="Set Content-Type.")
        refuse_declared(request, MOST_BYTES)
        with self._room.share() as share:
            event = await read_text(request, content, MOST_BYTES, share)
            correction = await self._correction(request)
            async with self._slots.one():
                return await self._database.amend_event(correction, event)

    async def _correction(self, request: Request) -> Correction:
        query = request.query_params
        for name, value in query.multi_items():
            if name not in PARAMETERS or len(query.getlist(name)) > 1:
                text = f"there is no parameter {name[:40]}" if name not in PARAMETERS else f"{name} was sent twice"
                raise problem("UNKNOWN_PARAMETER", text, hint=f"Use {', '.join(PARAMETERS)}, each once at most.")
            if "\0" in value:
                raise problem("INVALID_EVENT", f"{name} has a NUL in it", hint="Leave it out.")
        principal = context_of(request.scope).principal
        client = request.scope.get("client")
        caller = {
            "subject": principal.subject,
            "ip": client[0] if client else None,
            "user_agent": request.headers.get("user-agent", "")[:MOST_AGENT] or None,
            "request_id": context_of(request.scope).request_id,
        }
        return Correction(
            organization_id=await organization_id(request, self._tenants),
            id=_id(request),
            source=query.get("source") or SOURCE,
            late=query.get("late") or "reject",
            reason=query.get("reason") or None,
            key_id=principal.key.id if principal.key is not None else None,
            caller=json.dumps(caller),
        )


def _id(request: Request) -> str:
    segments = request.scope["raw_path"].split(b"/", 3)  # "", "v1" and "events", however they are written, and the id
    if len(segments) < 4:
        raise problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="Events are at /v1/events/{id}.")
    try:
        found = unquote_to_bytes(segments[3]).decode("utf-8")
    except UnicodeDecodeError:
        raise problem("INVALID_ENCODING", "the id in the path is not UTF-8") from None
    if "\0" in found:
        raise problem("INVALID_PATH", "the id in the path has a NUL in it")
    return found

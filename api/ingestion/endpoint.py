"""POST /v1/events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.context import context_of
from api.database import Database, DatabaseError
from api.group_commit import GroupCommit
from api.ingestion.answers import Count, CountOf, count_outcome, not_stored
from api.ingestion.batch import Batch, Format
from api.ingestion.body import pieces, read_text, refuse_declared
from api.ingestion.callers import organization_id, require_service
from api.ingestion.content import Content, content_of, invalid, structured
from api.ingestion.limits import Room, Share, Slots
from api.ingestion.lines import store_lines
from api.ingestion.source import SOURCE
from api.tenants import Tenants

LONGEST_LINE: Final = 1024 * 1024
MOST_BYTES: Final = 16 * 1024  # of a body that is stored with others


class EventsEndpoint:
    """Stores usage events. Safe to send twice: the id of an event is its idempotency key."""

    def __init__(
        self, database: Database, tenants: Tenants, count_of: CountOf, slots: Slots, room: Room, max_bytes: int
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._counts: Mapping[Format, Count] = {
            "events": count_of("api"),
            "ndjson": count_of("api"),
            "cloudevents": count_of("other"),
        }
        self._slots = slots
        self._room = room
        self._max_bytes = max_bytes
        self._groups = GroupCommit(_Batches(database), slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An application of its own: Starlette's way to call a function costs as much as all that is done here."""
        response = await self.receive(Request(scope, receive))
        await response(scope, receive, send)

    async def receive(self, request: Request) -> Response:
        """Errors: 401; 403 ROLE_REQUIRED, SCOPE_REQUIRED, NOT_A_MEMBER; 415, 413, 400 INVALID_BODY; 404
        ORGANIZATION_NOT_FOUND; 503 INGEST_BUSY, and without Postgres.
        """
        require_service(request)
        content = content_of(request)
        refuse_declared(request, self._max_bytes)
        with self._room.share() as share:
            try:
                if content.format == "ndjson":
                    outcome = await self._store_lines(request, content, share)
                else:
                    outcome = await self._store_body(request, content, share)
            except DatabaseError as error:
                raise not_stored(error) from None
        return Response(outcome, media_type="application/json")

    async def _store_body(self, request: Request, content: Content, share: Share) -> str:
        text = await read_text(request, content, self._max_bytes, share)
        if "\0" in text:  # which no JSON has, and would spoil a whole group
            raise invalid("the body has a NUL in it")
        if content.attributes is not None:
            text = structured(content.attributes, text)
        batch = Batch(text, await organization_id(request, self._tenants), self._key_id(request), content.format)
        if len(text) <= MOST_BYTES:
            outcome = await self._groups.store(batch)
        else:
            outcome = await self._store(batch)
        count_outcome(json.loads(outcome), self._counts[batch.format])
        return outcome

    async def _store_lines(self, request: Request, content: Content, share: Share) -> str:
        organization, key = await organization_id(request, self._tenants), self._key_id(request)

        async def store(lines: str) -> str:
            outcome = await self._store(Batch(lines, organization, key, "ndjson"))
            count_outcome(json.loads(outcome), self._counts[content.format])
            return outcome

        return await store_lines(pieces(request, content), min(self._max_bytes, LONGEST_LINE), share, store)

    async def _store(self, batch: Batch) -> str:
        async with self._slots.one():
            return await self._database.ingest(batch, SOURCE, "reject")  # unless the body says otherwise

    @staticmethod
    def _key_id(request: Request) -> UUID | None:
        key = context_of(request.scope).principal.key
        return key.id if key is not None else None


class _Batches:
    """Usage events as they are stored in groups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def size(self, asked: Batch) -> int:
        return len(asked.body)

    async def together(self, asked: Sequence[Batch]) -> Sequence[str | DatabaseError]:
        return await self._database.ingest_group(asked)

    async def alone(self, asked: Batch) -> str:
        return await self._database.ingest(asked, SOURCE, "reject")

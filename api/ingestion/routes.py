"""The paths of usage, and what they share: memory, and connections to Postgres."""

from __future__ import annotations

from typing import Final

from starlette.convertors import register_url_convertor
from starlette.routing import Route

from api.database import Database
from api.ingestion.answers import CountOf
from api.ingestion.corrections import AnyId, Corrections
from api.ingestion.endpoint import EventsEndpoint
from api.ingestion.limits import Room, Slots
from api.settings import Settings
from api.tenants import Tenants

# The pool also resolves tenants and ships the spool: batches, which can take long, leave connections for that.
CONNECTIONS_LEFT: Final = 2
BODIES_IN_MEMORY: Final = 8  # of the largest size, or many more small ones: read, and waiting for the database


def ingestion_routes(settings: Settings, database: Database, tenants: Tenants, count_of: CountOf) -> list[Route]:
    register_url_convertor("event_id", AnyId())
    slots = Slots(max(1, settings.database_pool_size - CONNECTIONS_LEFT), settings.ingest_wait_seconds)
    room = Room(BODIES_IN_MEMORY * settings.max_ingest_bytes)
    events = EventsEndpoint(database, tenants, count_of, slots, room, settings.max_ingest_bytes)
    corrections = Corrections(database, tenants, slots, room)
    return [
        Route("/v1/events", events, methods=["POST"]),
        Route("/v1/events/{id:event_id}", corrections.receive, methods=["DELETE", "PUT"]),
    ]

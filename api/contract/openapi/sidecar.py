"""The sidecar's own operations: usage from the provider's backend, health, and the documentation itself."""

from __future__ import annotations

from typing import Final

from api.contract.openapi.components import REQUEST_ID, SECURED, Json, refusals

_TEXT: Final = {"type": ["string", "null"], "maxLength": 256}

_EVENT: Final[Json] = {
    "type": "object",
    "description": "One fact that is metered. Fields that are not listed here are ignored.",
    "properties": {
        "id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 256,
            "description": "Idempotency key: within an organization the same id makes one event, for ever.",
        },
        "event": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_.:-]{1,128}$",
            "description": "What happened, such as `api.request`. Billed when a meter with a price counts events "
            "of this name.",
        },
        "quantity": {
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1e18,
            "description": "How much, in `unit`. Exact, with up to 18 decimals: it is never read as floating point.",
        },
        "time": {
            "type": ["string", "null"],
            "format": "date-time",
            "description": "When it happened: RFC 3339 with an offset, at most five years ago and not in the future. "
            "Without it: when it arrives.",
        },
        "organization_id": {
            "type": ["string", "null"],
            "format": "uuid",
            "description": "Who used it. Not needed with `X-Organization-ID` or with a key for one organization, and "
            "never another one than that.",
        },
        "unit": {**_TEXT, "description": "What `quantity` is in, for people."},
        "user_id": {**_TEXT, "description": "Who did it, by your id or ours."},
        "resource_id": {**_TEXT, "description": "What it happened to, such as the id of a document."},
        "request_id": {**_TEXT, "description": "The request that caused it."},
        "dimensions": {
            "type": ["object", "null"],
            "description": "Whatever else is worth keeping, at most 8 kB.",
        },
    },
    "required": ["id", "event", "quantity"],
}

_REFUSED_EVENT: Final[Json] = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"], "description": "The event's id; null when it has none."},
        "code": {"type": "string", "description": "A stable code."},
        "message": {"type": "string", "description": "Why, with the position in the batch where that helps."},
    },
    "required": ["id", "code", "message"],
}

_OUTCOME: Final[Json] = {
    "type": "object",
    "description": "What became of each event: accepted + duplicates + conflicts + rejected is what was sent.",
    "properties": {
        "accepted": {"type": "integer", "minimum": 0, "description": "Stored now."},
        "duplicates": {"type": "integer", "minimum": 0, "description": "Stored already, and counted once."},
        "conflicts": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/RefusedEvent"},
            "description": "`IDEMPOTENCY_CONFLICT`: the id is known with another event, quantity or resource.",
        },
        "rejected": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/RefusedEvent"},
            "description": "`INVALID_EVENT`, or `BILLING_PERIOD_LOCKED`: of a finalized period. Kept for the provider.",
        },
    },
    "required": ["accepted", "duplicates", "conflicts", "rejected"],
}

_STATUS: Final[Json] = {"type": "string", "enum": ["ok", "down"]}

_SPOOL: Final[Json] = {
    "type": "object",
    "description": "Metered requests that wait on disk for Postgres.",
    "properties": {
        "pending_bytes": {"type": "integer"},
        "oldest_seconds": {"type": "number", "description": "Age of the oldest record that waits."},
        "dropped": {"type": "integer", "description": "Records lost since the start because the spool was full."},
        "rejected": {"type": "integer", "description": "Records that Postgres has turned down since the start."},
        "full": {"type": "boolean"},
        "stalled": {"type": "boolean", "description": "What is oldest should have been delivered long ago."},
    },
    "required": ["pending_bytes", "oldest_seconds", "dropped", "rejected", "full", "stalled"],
}

_HEALTH: Final[Json] = {
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["ok", "degraded"]},
        "database": {"type": "object", "properties": {"status": _STATUS}, "required": ["status"]},
        "postgrest": {
            "type": "object",
            "properties": {
                "status": {
                    "type": "string",
                    "enum": ["ok", "waiting", "down"],
                    "description": "waiting: it is there, and waits for the database or for its schema.",
                }
            },
            "required": ["status"],
        },
        "migrations": {
            "type": "object",
            "properties": {
                "version": {
                    "type": ["string", "null"],
                    "description": "The newest one applied; null without a database.",
                },
                "pending": {
                    "type": ["array", "null"],
                    "items": {"type": "string"},
                    "description": "Those not applied yet.",
                },
                "unknown": {
                    "type": ["array", "null"],
                    "items": {"type": "string"},
                    "description": "Those applied that this sidecar does not know: of a newer version.",
                },
            },
            "required": ["version", "pending", "unknown"],
        },
        "spool": _SPOOL,
        "identity_keys": {
            "type": "object",
            "description": "The public keys that the identity provider signs with.",
            "properties": {
                "status": {
                    "type": "string",
                    "enum": ["unused", "ok", "stale", "down"],
                    "description": "stale: they could not be renewed. down: there were none since the start.",
                },
                "keys": {"type": "integer", "description": "How many."},
                "age_seconds": {"type": ["number", "null"], "description": "Since they were last read."},
            },
            "required": ["status"],
        },
        "tasks": {
            "type": "object",
            "properties": {"stopped": {"type": "array", "items": {"type": "string"}}},
            "required": ["stopped"],
        },
    },
    "required": ["status", "database", "postgrest", "migrations", "spool", "identity_keys", "tasks"],
}

SCHEMAS: Final[Json] = {
    "UsageEvent": _EVENT,
    "RefusedEvent": _REFUSED_EVENT,
    "IngestOutcome": _OUTCOME,
    "Health": _HEALTH,
}

_BATCH_EXAMPLE: Final = {
    "id": "render-8f14e45f",
    "event": "report.rendered",
    "quantity": 3,
    "unit": "page",
    "time": "2026-01-31T09:30:00Z",
    "resource_id": "report-17",
    "dimensions": {"format": "pdf"},
}

_OUTCOME_EXAMPLE: Final = {
    "accepted": 1,
    "duplicates": 0,
    "conflicts": [],
    "rejected": [{"id": "render-0", "code": "INVALID_EVENT", "message": "event 1: quantity is negative"}],
}

_HEALTH_EXAMPLE: Final = {
    "status": "ok",
    "database": {"status": "ok"},
    "postgrest": {"status": "ok"},
    "migrations": {"version": "0005_create_billing_tables", "pending": [], "unknown": []},
    "spool": {
        "pending_bytes": 0,
        "oldest_seconds": 0.0,
        "dropped": 0,
        "rejected": 0,
        "full": False,
        "stalled": False,
    },
    "identity_keys": {"status": "ok", "keys": 2, "age_seconds": 12.5},
    "tasks": {"stopped": []},
}

_SEND_EVENTS: Final[Json] = {
    "tags": ["Usage events"],
    "operationId": "send_events",
    "summary": "Send usage events",
    "description": "For the provider's backend, with a token of role `service` or an API key of the provider "
    "(`events:write`). Each event is judged by itself: one that cannot be counted is answered with the reason and does "
    "not stop the others. Safe to send again when the answer was lost: an `id` counts once.",
    "security": SECURED,
    "parameters": [{"$ref": "#/components/parameters/RequestId"}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"type": "array", "items": {"$ref": "#/components/schemas/UsageEvent"}},
                        {
                            "type": "object",
                            "properties": {
                                "events": {"type": "array", "items": {"$ref": "#/components/schemas/UsageEvent"}}
                            },
                            "required": ["events"],
                        },
                    ]
                },
                "example": [_BATCH_EXAMPLE],
            }
        },
    },
    "responses": {
        "200": {
            "description": "The batch was read. Look at `conflicts` and `rejected`.",
            "headers": REQUEST_ID,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/IngestOutcome"},
                    "example": _OUTCOME_EXAMPLE,
                }
            },
        },
        **refusals(
            (
                "INVALID_BODY",
                "NOT_A_MEMBER",
                "ROLE_REQUIRED",
                "SCOPE_REQUIRED",
                "ORGANIZATION_NOT_FOUND",
                "BODY_TOO_LARGE",
                "UNSUPPORTED_MEDIA_TYPE",
                "DATABASE_BUSY",
                "DATABASE_UNAVAILABLE",
                "INGEST_BUSY",
                "JWKS_UNAVAILABLE",
                "REQUEST_TIMEOUT",
            )
        ),
    },
}


def _health_answer(text: str) -> Json:
    content = {"schema": {"$ref": "#/components/schemas/Health"}, "example": _HEALTH_EXAMPLE}
    return {"description": text, "headers": REQUEST_ID, "content": {"application/json": content}}


_GET_HEALTH: Final[Json] = {
    "tags": ["Operations"],
    "operationId": "get_health",
    "summary": "What the sidecar needs, and whether it is there",
    "description": "Needs no token.",
    "security": [],
    "responses": {
        "200": _health_answer("All works."),
        "503": _health_answer(
            "A part is away or stopped, migrations are pending, the spool is full or stuck, "
            "or the keys of the identity provider cannot be had."
        ),
        **refusals(()),
    },
}

_GET_OPENAPI: Final[Json] = {
    "tags": ["Operations"],
    "operationId": "get_openapi",
    "summary": "This document",
    "description": "OpenAPI 3.1 of everything that the gateway and the sidecar answer. 404 when ENABLE_DOCS is false.",
    "security": [],
    "responses": {
        "200": {
            "description": "The document.",
            "headers": REQUEST_ID,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **refusals(("ROUTE_NOT_FOUND", "DATABASE_UNAVAILABLE", "DATABASE_BUSY")),
    },
}

TAGS: Final[list[Json]] = [
    {"name": "Usage events", "description": "Usage that the provider's backend reports."},
    {"name": "Operations", "description": "For those who run Goldleaves."},
]

PATHS: Final[Json] = {
    "/v1/events": {"post": _SEND_EVENTS},
    "/health": {"get": _GET_HEALTH},
    "/openapi.json": {"get": _GET_OPENAPI},
}

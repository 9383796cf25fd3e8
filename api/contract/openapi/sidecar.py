"""The sidecar's own operations: usage from the provider's backend, health, and the documentation itself."""

from __future__ import annotations

import json
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
            "description": "When it happened: RFC 3339 with an offset, at most five years ago and not in the future, "
            "but for what clocks differ by (EVENT_MAX_FUTURE). Without it: when it arrives.",
        },
        "organization_id": {
            "type": ["string", "null"],
            "format": "uuid",
            "description": "Who used it. Not needed with `X-Organization-ID` or with a key for one organization, and "
            "never another one than that.",
        },
        "unit": {**_TEXT, "description": "What `quantity` is in, for people."},
        "user_id": {**_TEXT, "description": "Who did it, by your id or ours."},
        "workspace_id": {**_TEXT, "description": "The workspace in which it was done, by your id or ours."},
        "resource_id": {**_TEXT, "description": "What it happened to, such as the id of a document."},
        "request_id": {**_TEXT, "description": "The request that caused it."},
        "dimensions": {
            "type": ["object", "null"],
            "description": "Whatever else is worth keeping, at most 8 kB.",
        },
        "context": {
            "type": ["object", "null"],
            "description": "Where it happened, for people: `type` and names.",
            "properties": {"type": {"enum": ["project", "workspace", "admin", "other"]}},
            "additionalProperties": {"type": "string", "maxLength": 200},
            "maxProperties": 8,
        },
        "late": {
            "type": ["string", "null"],
            "enum": ["adjust", "reject", None],
            "description": "What to do when its period is finalized: refuse it, or count it in the open one.",
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
        "index": {"type": "integer", "minimum": 0, "description": "Its position in the batch, from 0."},
        "line": {"type": "integer", "minimum": 1, "description": "Its line, of NDJSON alone."},
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
        "conflicts_total": {
            "type": "integer",
            "minimum": 0,
            "description": "Of NDJSON, of which at most 1,000 conflicts are listed.",
        },
        "rejected_total": {
            "type": "integer",
            "minimum": 0,
            "description": "Of NDJSON, of which at most 1,000 rejected events are listed.",
        },
    },
    "required": ["accepted", "duplicates", "conflicts", "rejected"],
}

_CLOUD_EVENT: Final[Json] = {
    "type": "object",
    "description": "A CloudEvent (1.0): `source` and `id` are its key, `type` is what happened. Attributes that are "
    "not listed here, and further members of `data`, become dimensions.",
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1, "maxLength": 256},
        "source": {"type": "string", "minLength": 1, "description": "Not `gateway` or `trigger`."},
        "type": {"type": "string", "pattern": "^[A-Za-z0-9_.:-]{1,128}$"},
        "time": {"type": ["string", "null"], "format": "date-time"},
        "subject": {"type": ["string", "null"], "description": "The organization that used it: its id or slug."},
        "data": {
            "type": ["object", "null"],
            "description": "`quantity` (1 when absent), `unit`, `user_id`, `workspace_id`, `resource_id`, "
            "`request_id`, `context`, `late`, as in a UsageEvent.",
        },
    },
    "required": ["specversion", "id", "source", "type"],
}

_CORRECTION: Final[Json] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid", "description": "Our id of the event that was corrected."},
        "void_id": {"type": "string", "format": "uuid", "description": "The row that takes it back."},
        "replacement_id": {
            "type": "string",
            "format": "uuid",
            "description": "The row in its place, when it was amended.",
        },
        "already": {"type": "boolean", "description": "It had been done before, and was done once."},
    },
    "required": ["id", "void_id", "already"],
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
        "redis": {
            "type": "object",
            "description": "Where sidecars count rate limits together.",
            "properties": {
                "status": {
                    "type": "string",
                    "enum": ["unused", "ok", "down"],
                    "description": "down: each sidecar counts for itself. All else works.",
                },
            },
            "required": ["status"],
        },
        "tasks": {
            "type": "object",
            "properties": {"stopped": {"type": "array", "items": {"type": "string"}}},
            "required": ["stopped"],
        },
    },
    "required": ["status", "database", "postgrest", "migrations", "spool", "identity_keys", "redis", "tasks"],
}

SCHEMAS: Final[Json] = {
    "UsageEvent": _EVENT,
    "CloudEvent": _CLOUD_EVENT,
    "Correction": _CORRECTION,
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

_CLOUD_EVENT_EXAMPLE: Final = {
    "specversion": "1.0",
    "id": "render-8f14e45f",
    "source": "https://reports.example.com",
    "type": "report.rendered",
    "subject": "olga",
    "data": {"quantity": 3, "unit": "page"},
}

_OUTCOME_EXAMPLE: Final = {
    "accepted": 1,
    "duplicates": 0,
    "conflicts": [],
    "rejected": [{"id": "render-0", "code": "INVALID_EVENT", "message": "event 1: quantity is negative", "index": 1}],
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
    "redis": {"status": "unused"},
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
                                "events": {"type": "array", "items": {"$ref": "#/components/schemas/UsageEvent"}},
                                "late": {"type": ["string", "null"], "enum": ["adjust", "reject", None]},
                            },
                            "required": ["events"],
                        },
                        {"$ref": "#/components/schemas/UsageEvent"},
                    ]
                },
                "example": [_BATCH_EXAMPLE],
            },
            "application/cloudevents+json": {
                "schema": {"$ref": "#/components/schemas/CloudEvent"},
                "example": _CLOUD_EVENT_EXAMPLE,
            },
            "application/cloudevents-batch+json": {
                "schema": {"type": "array", "items": {"$ref": "#/components/schemas/CloudEvent"}},
                "example": [_CLOUD_EVENT_EXAMPLE],
            },
            "application/x-ndjson": {
                "schema": {"type": "string", "description": "A UsageEvent a line, of any number."},
                "example": json.dumps(_BATCH_EXAMPLE),
            },
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


_CORRECTION_PARAMETERS: Final[list[Json]] = [
    {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
        "description": "The id that it was sent with, or the one that `usage_events` shows.",
    },
    {
        "name": "source",
        "in": "query",
        "schema": {"type": "string", "default": "api"},
        "description": "Where it came from: `api`, `gateway`, `trigger`, or the source of a CloudEvent.",
    },
    {
        "name": "late",
        "in": "query",
        "schema": {"type": "string", "enum": ["reject", "adjust"], "default": "reject"},
        "description": "What to do when its period is finalized: refuse, or correct it in the open one.",
    },
    {
        "name": "reason",
        "in": "query",
        "schema": {"type": "string", "maxLength": 500},
        "description": "Why, for the audit log.",
    },
    {"$ref": "#/components/parameters/RequestId"},
]


def _correction(operation: str, summary: str, description: str, *codes: str) -> Json:
    return {
        "tags": ["Usage events"],
        "operationId": operation,
        "summary": summary,
        "description": f"{description} For the provider's backend, as `POST /v1/events`. Nothing is changed or "
        "deleted: a row is added that takes the event back. Safe to send again.",
        "security": SECURED,
        "parameters": _CORRECTION_PARAMETERS,
        "responses": {
            "200": {
                "description": "It is done, now or before.",
                "headers": REQUEST_ID,
                "content": {
                    "application/json": {
                        "schema": {"$ref": "#/components/schemas/Correction"},
                        "example": _CORRECTION_EXAMPLE,
                    }
                },
            },
            **refusals(
                (
                    "INVALID_EVENT",
                    "UNKNOWN_PARAMETER",
                    "ORGANIZATION_REQUIRED",
                    "INVALID_ENCODING",
                    "INVALID_PATH",
                    "NOT_A_MEMBER",
                    "ROLE_REQUIRED",
                    "SCOPE_REQUIRED",
                    "ORGANIZATION_NOT_FOUND",
                    "EVENT_NOT_FOUND",
                    "EVENT_VOIDED",
                    "EVENT_AMENDED",
                    "BILLING_PERIOD_LOCKED",
                    "DATABASE_BUSY",
                    "DATABASE_UNAVAILABLE",
                    "INGEST_BUSY",
                    "JWKS_UNAVAILABLE",
                    *codes,
                )
            ),
        },
    }


_CORRECTION_EXAMPLE: Final = {
    "id": "01a1fe89-501f-7683-b5cb-a8abcaa31de8",
    "void_id": "01a1fe89-502d-73ef-a8dd-99e99ec1780a",
    "already": False,
}

_VOID_EVENT: Final[Json] = _correction("void_event", "Take an event back", "As if it had not happened.")

_AMEND_EVENT: Final[Json] = {
    **_correction(
        "amend_event",
        "Replace an event",
        "By the one in the body, which has an `id` of its own; what it leaves out is as it was.",
        "INVALID_BODY",
        "BODY_TOO_LARGE",
        "UNSUPPORTED_MEDIA_TYPE",
        "IDEMPOTENCY_CONFLICT",
        "REQUEST_TIMEOUT",
    ),
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": _EVENT["properties"], "required": ["id"]},
                "example": {"id": "render-8f14e45f-2", "quantity": 4},
            }
        },
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
    "/v1/events/{id}": {"delete": _VOID_EVENT, "put": _AMEND_EVENT},
    "/health": {"get": _GET_HEALTH},
    "/openapi.json": {"get": _GET_OPENAPI},
}

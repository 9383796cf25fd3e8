"""What many operations share: the error shape, headers, and how refusals are described."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from api.codes import CODES

Json = dict[str, Any]

# Any request can be answered with these, whatever its path.
EVERYWHERE: Final = ("AMBIGUOUS_HEADER", "INVALID_TOKEN", "HEADERS_TOO_LARGE", "INTERNAL_ERROR")

SECURED: Final = [{"bearer": []}]

COMPONENTS: Final[Json] = {
    "securitySchemes": {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A JWT with the claims `sub` and `role` (member, service or platform_admin), and perhaps "
            "`email` and `org_id`. `goldleaves token --sub ada` prints one for development.",
        }
    },
    "schemas": {
        "Error": {
            "type": "object",
            "description": "Every error, whoever answers. `message` starts with a stable code, or `code` is one of "
            "PostgREST's (PGRST…) or Postgres' (a SQLSTATE). See docs/errors.md.",
            "properties": {
                "code": {"type": "string", "description": "PT and the HTTP status when `message` has a stable code."},
                "message": {"type": "string", "description": "`STABLE_CODE: text`. Match the code, show the text."},
                "details": {"type": ["string", "null"]},
                "hint": {"type": ["string", "null"], "description": "What to do about it."},
            },
            "required": ["code", "message", "details", "hint"],
        }
    },
    "headers": {
        "X-Request-ID": {
            "description": "Names this request in usage events and in logs: the one you sent, else a new UUIDv7.",
            "schema": {"type": "string"},
        },
        "Retry-After": {"description": "Seconds to wait before you try again.", "schema": {"type": "integer"}},
    },
    "parameters": {
        "Organization": {
            "name": "X-Organization-ID",
            "in": "header",
            "description": "Id or slug of the organization that the request is for. Without it: the claim `org_id` "
            "of the token, else your default organization.",
            "schema": {"type": "string"},
        },
        "RequestId": {
            "name": "X-Request-ID",
            "in": "header",
            "description": "1 to 128 of A-Z a-z 0-9 . _ : -. A retry with the same one, within five minutes, is billed "
            "once.",
            "schema": {"type": "string"},
        },
    },
}


def refusals(codes: Iterable[str]) -> Json:
    """The responses for stable codes, one a status, with an example for each code."""
    by_status: dict[int, list[str]] = {}
    for code in sorted({*codes, *EVERYWHERE}):
        by_status.setdefault(CODES[code].status, []).append(code)
    return {str(status): refusal(*of_status) for status, of_status in sorted(by_status.items())}


def refusal(*codes: str) -> Json:
    status = CODES[codes[0]].status
    headers = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}
    if status == 503:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    return {
        "description": "\n".join(f"- `{code}`: {CODES[code].when}" for code in codes),
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "examples": {code: {"value": _example(code)} for code in codes},
            }
        },
    }


def _example(code: str) -> Json:
    known = CODES[code]
    return {"code": f"PT{known.status}", "message": f"{code}: {known.when}", "details": None, "hint": known.remedy}

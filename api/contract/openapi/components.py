"""What many operations share: the error shape, headers, and how refusals are described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from api.codes import CODES, PASSED_ON, Code

Json = dict[str, Any]

# Any request can be answered with these, whatever its path.
EVERYWHERE: Final = ("AMBIGUOUS_HEADER", "INVALID_API_KEY", "INVALID_TOKEN", "HEADERS_TOO_LARGE", "INTERNAL_ERROR")

# Naming the organization is no security, but so the Authorize dialog of the page asks for it once and for all requests.
SECURED: Final[list[Json]] = [{"bearer": []}, {"bearer": [], "organization": []}]

RATE_LIMIT: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
HEADERS_OF: Final[Mapping[int, Iterable[str]]] = {429: ("Retry-After", *RATE_LIMIT), 503: ("Retry-After",)}
REQUEST_ID: Final[Json] = {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}}

COMPONENTS: Final[Json] = {
    "securitySchemes": {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A JWT with the claims `sub` and `role` (member, service or platform_admin), and perhaps "
            "`email` and `org_id`. `goldleaves token --sub ada` prints one for development. Services send an API key "
            "instead (`gl_…`), which `create_api_key` makes.",
        },
        "organization": {
            "type": "apiKey",
            "in": "header",
            "name": "X-Organization-ID",
            "description": "Id or slug of the organization that a request is for. Without it: the claim `org_id` of "
            "the token, else your default organization.",
        },
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
        "RateLimit-Limit": {
            "description": "Requests a minute of your organization. No answer has it where there is no limit.",
            "schema": {"type": "integer"},
        },
        "RateLimit-Remaining": {"description": "Those left in this minute.", "schema": {"type": "integer"}},
        "RateLimit-Reset": {"description": "Seconds until the next minute begins.", "schema": {"type": "integer"}},
    },
    "parameters": {
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
    """The responses for codes of the catalogue, one a status, with an example for each code."""
    by_status: dict[int, list[str]] = {}
    for code in sorted({*codes, *EVERYWHERE}, key=lambda code: (code in PASSED_ON, code)):
        by_status.setdefault(known(code).status, []).append(code)
    return {str(status): _refusal(status, of_status) for status, of_status in sorted(by_status.items())}


def known(code: str) -> Code:
    return CODES.get(code) or PASSED_ON[code]


def _refusal(status: int, codes: list[str]) -> Json:
    headers = dict(REQUEST_ID)
    for name in HEADERS_OF.get(status, ()):
        headers[name] = {"$ref": f"#/components/headers/{name}"}
    return {
        "description": ", ".join(f"`{code}`" for code in codes),
        "headers": headers,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def examples() -> Json:
    """One error for each code. Their summaries are what the page shows in the list to choose from."""
    return {code: {"summary": code, "value": _example(code)} for code in sorted({*CODES, *PASSED_ON})}


def _example(code: str) -> Json:
    meaning = known(code)
    if code in PASSED_ON:
        return {"code": code, "message": meaning.when, "details": None, "hint": None}
    return {
        "code": f"PT{meaning.status}",
        "message": f"{code}: {meaning.when}",
        "details": None,
        "hint": meaning.remedy,
    }

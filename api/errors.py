"""The one error shape. PostgREST, SQL and the sidecar all answer `{"code", "message", "details", "hint"}`, and the
message starts with a stable code that clients match: `INVALID_TOKEN: the token has expired`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

# Every code that the sidecar itself raises, with its HTTP status. What SQL raises is listed where SQL raises it.
SIDECAR_CODES: Final[Mapping[str, int]] = {
    "AMBIGUOUS_HEADER": 400,
    "INVALID_BODY": 400,
    "ORGANIZATION_REQUIRED": 400,
    "INVALID_TOKEN": 401,
    "NOT_A_MEMBER": 403,
    "ROLE_REQUIRED": 403,
    "ROUTE_NOT_FOUND": 404,
    "ORGANIZATION_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "HEADERS_TOO_LARGE": 431,
    "INTERNAL_ERROR": 500,
    "DATABASE_UNAVAILABLE": 503,
    "DATABASE_BUSY": 503,
    "POSTGREST_UNAVAILABLE": 503,
}

_RETRY_AFTER_SECONDS: Final = "1"


class Problem(Exception):
    """An answer in the error shape, raised from anywhere below the correlation middleware."""

    def __init__(
        self, status: int, code: str, message: str, details: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.hint = hint

    def response(self) -> Response:
        body = {"code": self.code, "message": self.message, "details": self.details, "hint": self.hint}
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 503:
            headers["Retry-After"] = _RETRY_AFTER_SECONDS
        return Response(json.dumps(body), self.status, headers, media_type="application/json; charset=utf-8")


def problem(code: str, text: str, *, details: str | None = None, hint: str | None = None) -> Problem:
    """The problem for one of SIDECAR_CODES. `code` is "PT<status>", as PostgREST shows the errors that SQL raises."""
    status = SIDECAR_CODES[code]
    return Problem(status, f"PT{status}", f"{code}: {text}", details, hint)

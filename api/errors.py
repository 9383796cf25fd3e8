"""The one error shape. PostgREST, SQL and the sidecar all answer `{"code", "message", "details", "hint"}`, and the
message starts with a stable code that clients match: `INVALID_TOKEN: the token has expired`.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.responses import Response

from api.codes import CODES

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
    """The problem for a code of the catalogue. Its `code` is "PT<status>", as PostgREST shows what SQL raises.

    `hint` says what to do in this case; without one it is what the catalogue says.
    """
    status = CODES[code].status
    return Problem(status, f"PT{status}", f"{code}: {text}", details, hint or CODES[code].remedy)

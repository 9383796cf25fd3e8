"""What Stripe answers instead: a status, and an error with a type, and mostly a code, a message and a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass
class Refusal(Exception):
    message: str
    status: int = HTTPStatus.BAD_REQUEST
    code: str | None = None
    param: str | None = None
    type: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        error = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        return {"error": {name: value for name, value in error.items() if value is not None}}


def missing(kind: str, id: str) -> Refusal:
    return Refusal(f"No such {kind}: '{id}'", HTTPStatus.NOT_FOUND, "resource_missing", "id")


def missing_param(kind: str, id: str, param: str) -> Refusal:
    return Refusal(f"No such {kind}: '{id}'", HTTPStatus.BAD_REQUEST, "resource_missing", param)

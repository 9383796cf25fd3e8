"""How many bytes a request was, and its answer is, on the wire: as the client sent them, and as uvicorn writes them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.types import Message, Scope

BODILESS_STATUSES: Final = frozenset({204, 304})

_LINE_END: Final = 2
_FIELD: Final = len(": ") + _LINE_END
_REQUEST_LINE: Final = len("  HTTP/1.1") + _LINE_END
_STATUS_LINES: Final = {
    status.value: len(f"HTTP/1.1 {status.value} {status.phrase}") + _LINE_END for status in HTTPStatus
}
_NAMELESS_STATUS: Final = len("HTTP/1.1 999 ") + _LINE_END
_DATE: Final = len("date: Sun, 06 Nov 1994 08:49:37 GMT") + _LINE_END
_CLOSE: Final = len("connection: close") + _LINE_END
_CHUNKED: Final = len("transfer-encoding: chunked") + _LINE_END
_LAST_CHUNK: Final = len("0\r\n\r\n")


def request_head(scope: Scope) -> int:
    """What a body was framed with is not known."""
    query: bytes = scope["query_string"]
    target = len(scope["raw_path"]) + (len(query) + 1 if query else 0)
    return _REQUEST_LINE + len(scope["method"]) + target + _fields(scope["headers"]) + _LINE_END


def answer_head(scope: Scope, start: Message, *, is_chunked: bool) -> int:
    size = _STATUS_LINES.get(start["status"], _NAMELESS_STATUS) + _DATE + _fields(start["headers"]) + _LINE_END
    if is_chunked:
        size += _CHUNKED
    return size + _CLOSE if _is_last_of_its_connection(scope) else size


def answer_piece(body: bytes, *, is_chunked: bool, is_last: bool) -> int:
    """What a piece of a body comes to."""
    size = len(body)
    if is_chunked:
        if body:
            size += len(f"{size:x}") + 2 * _LINE_END
        if is_last:
            size += _LAST_CHUNK
    return size


def _fields(headers: list[tuple[bytes, bytes]]) -> int:
    return sum([len(name) + len(value) + _FIELD for name, value in headers])


def _is_last_of_its_connection(scope: Scope) -> bool:
    """uvicorn says so, and our protocol has it do that after each request for an upgrade."""
    if scope["http_version"] == "1.0":
        return True
    for name, value in scope["headers"]:
        if name == b"connection" and (b"close" in (said := value.lower()) or b"upgrade" in said):
            return True
    return False

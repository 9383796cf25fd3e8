"""What the crash test cannot time: when the last byte of a response leaves, its record is already in the file."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.context import RequestContext, Tenant, set_context
from api.middleware.usage import Usage
from api.routes import BillableRoutes
from api.spool import Spool, read_segment

START, BODY = "http.response.start", "http.response.body"


def started(status: int = 200, **headers: str) -> Message:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": START, "status": status, "headers": named}


def body(data: bytes, more: bool) -> Message:
    return {"type": BODY, "body": data, "more_body": more}


# A response, and the message with which a client has all of it.
RESPONSES: dict[str, tuple[str, list[Message], int]] = {
    "in one": ("GET", [started(), body(b"all", False)], 1),
    "chunked": ("GET", [started(), body(b"a", True), body(b"b", True), body(b"", False)], 3),
    "of known length": ("GET", [started(content_length="2"), body(b"a", True), body(b"b", True), body(b"", False)], 2),
    "of length 0": ("GET", [started(content_length="0"), body(b"", True), body(b"", False)], 0),
    "to a HEAD": ("HEAD", [started(content_length="99"), body(b"", False)], 0),
    "without content": ("DELETE", [started(204), body(b"", False)], 0),
}


@pytest.mark.parametrize(("method", "response", "last"), RESPONSES.values(), ids=RESPONSES.keys())
async def test_record_is_in_the_file_before_the_response_is_complete(
    tmp_path: Path, method: str, response: list[Message], last: int
) -> None:
    sent: list[tuple[Message, int]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append((message, len(records(tmp_path))))

    with Spool(tmp_path, 1024 * 1024) as spool:
        await respond(spool, method, response, send)
    assert [message for message, _ in sent] == response
    assert sent[last][1] == 1
    (record,) = records(tmp_path)
    assert record["dimensions"]["response_size"] == (sum(len(m.get("body", b"")) for m in response))


@pytest.mark.parametrize(("sent_before", "recorded"), [(0, 0), (1, 0), (2, 1)])
async def test_a_response_that_breaks_off_is_recorded_once_it_had_begun(
    tmp_path: Path, sent_before: int, recorded: int
) -> None:
    async def send(_: MutableMapping[str, Any]) -> None: ...

    with Spool(tmp_path, 1024 * 1024) as spool, pytest.raises(ConnectionError):
        await respond(spool, "GET", [started(), body(b"a", True)][:sent_before], send, breaks_off=True)
    assert len(records(tmp_path)) == recorded


async def respond(spool: Spool, method: str, response: list[Message], send: Send, *, breaks_off: bool = False) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        for message in response:
            await send(message)
        if breaks_off:
            raise ConnectionError

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {
        "type": "http",
        "method": method,
        "raw_path": b"/api/v1/cases",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    context = RequestContext("r", sent_by_client=False)
    context.received_at, context.started = datetime.now(UTC), perf_counter()
    context.tenant = Tenant(uuid4(), uuid4())
    set_context(scope, context)
    await Usage(app, spool, BillableRoutes(["/api/v1/cases"]))(scope, receive, send)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(record) for path in directory.glob("*.spool") for record in read_segment(path)[0]]

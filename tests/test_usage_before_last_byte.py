"""What the crash test cannot time: when the last byte of a response leaves, its record is already in the file."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message, Scope, Send

from api.answer import Answer
from api.context import RequestContext, Tenant, set_context
from api.endpoints import Endpoints
from api.routes import BillableRoutes, Targets
from api.spool import Spool, read_segment
from api.usage import Usage

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
    ((_, request),) = records(tmp_path)
    assert request["dimensions"]["response_size"] == (sum(len(m.get("body", b"")) for m in response))


@pytest.mark.parametrize(("sent_before", "billed"), [(0, []), (1, []), (2, ["api.request"])])
async def test_a_response_that_breaks_off_is_billed_once_it_had_begun(
    tmp_path: Path, sent_before: int, billed: list[str]
) -> None:
    async def send(_: MutableMapping[str, Any]) -> None: ...

    with Spool(tmp_path, 1024 * 1024) as spool:
        await respond(spool, "GET", [started(), body(b"a", True)][:sent_before], send)
    (record,) = records(tmp_path)
    assert [event["event"] for event in record] == ["traffic.bytes", *billed]


async def respond(spool: Spool, method: str, response: list[Message], send: Send) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "raw_path": b"/api/v1/cases",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    routes = BillableRoutes(["/api/v1/cases"])
    context = RequestContext("r", sent_by_client=False, target=Targets(routes).find(scope))
    context.tenant = Tenant(uuid4(), uuid4())
    set_context(scope, context)
    answer = Answer(scope, context, receive, send, Usage(spool, Endpoints(routes), "full"))
    for message in response:
        await answer.send(message)
    answer.end()


def records(directory: Path) -> list[list[dict[str, Any]]]:
    """The events of each record."""
    found = [record for path in directory.glob("*.spool") for record in read_segment(path)[0]]
    return [json.loads(f"[{record.decode()}]") for record in found]

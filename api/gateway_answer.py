"""Asking the gateway for what is then answered in another shape: as the caller, whose token it forwards."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope

from api.context import context_of
from api.errors import problem

# Of the request, what PostgREST is told. The rest (Accept, Range, Prefer, …) is about our answer, or about rows.
_FORWARDED: Final = frozenset({b"user-agent", b"x-organization-id"})
_PASSED_ON: Final = frozenset({b"content-type", b"retry-after", b"www-authenticate"})


class GatewayAnswer:
    """What the gateway would have sent to the client."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    async def receive(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = message["headers"]
        else:
            self.body += message.get("body", b"")

    def passed_on(self) -> Response:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self._headers if name in _PASSED_ON
        }
        return Response(self.body, self.status, headers)


async def ask(gateway: ASGIApp, scope: Scope, receive: Receive, query: bytes) -> GatewayAnswer | None:
    """The answer as JSON; None when the client hung up meanwhile."""
    if not context_of(scope).target.is_document:  # the path says so only once it is decoded
        raise problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="Leave percent-encoding out of it.")
    headers = [(name, value) for name, value in scope["headers"] if name in _FORWARDED]
    asked = {
        **scope,
        "method": "GET",
        "query_string": query,
        "headers": [*headers, (b"accept", b"application/json")],
    }
    answer = GatewayAnswer()
    await gateway(asked, receive, answer.receive)
    return answer if answer.status else None

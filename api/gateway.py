"""The gateway: `/api/v1/<anything>` is PostgREST's `/<anything>`, streamed both ways, answered as PostgREST does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from tempfile import SpooledTemporaryFile
from typing import IO, Final
from urllib.parse import unquote_to_bytes

from starlette.types import Message, Receive, Scope, Send

from api.context import RequestContext, context_of
from api.correlation import HEADER as REQUEST_ID
from api.endpoints import Endpoints
from api.errors import Problem, problem
from api.middleware.tenant import HEADER as ORGANIZATION
from api.middleware.tenant import organization_named
from api.patience import Patience, Waiting
from api.routes import GATEWAY_PREFIX, missing_in_report, report_query
from api.upstream import Body, Headers, Upstream, UpstreamError

WATCH_AFTER_SECONDS: Final = 0.05  # quicker answers are not worth a task that waits for the client to hang up
READS: Final = frozenset({"GET", "HEAD"})
SMALL_BODY_BYTES: Final = 64 * 1024
KEPT_IN_MEMORY_BYTES: Final = 1024 * 1024
MOST_CHUNKED_BYTES: Final = 256 * 1024 * 1024  # kept here until the last chunk is there, so not without end

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Not forwarded as they came: framing, what the gateway says itself, what only it is asked (CORS), and what clients may
# not say about themselves.
NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"host",
    b"expect",
    b"content-length",
    b"authorization",
    b"forwarded",
    b"x-forwarded-for",
    b"x-real-ip",
    b"origin",
    b"access-control-request-method",
    b"access-control-request-headers",
    REQUEST_ID,
    ORGANIZATION,
}
NOT_PASSED_ON: Final = HOP_BY_HOP | {b"date"}  # the server sends its own Date
# PostgREST takes `cases%00…` for `cases`, which nobody is billed for, and writes the rest into its own headers.
CONTROL_CHARACTER: Final = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff])")
CORS_ANSWERS: Final = b"access-control-"  # PostgREST invites every page, and the middleware only those allowed
# Text in another encoding breaks PostgREST: it answers 500 in plain text, or cuts the connection.
ENCODED_NON_ASCII: Final = re.compile(rb"%[89A-Fa-f]")
# How errors about PostgREST's connection begin: its own, and those of a server that stops, starts, or lost a process.
# Where the server was killed under a query and said nothing, PostgREST has no code, and answers 400.
CONNECTION_ERROR: Final = re.compile(rb'^\{"code":"(|PGRST00[0-3]|57P0[1-3]|08...|53300)"')
MAY_BE_CONNECTION_ERROR: Final = frozenset({400, 500, 503, 504})
PREFER: Final = b"prefer"
RELATIVE_TO_POSTGREST: Final = frozenset({b"location", b"content-location"})


class ClientGone(Exception):
    """The client hung up. There is nobody to answer."""


class Gateway:
    """An ASGI application."""

    def __init__(self, upstream: Upstream, patience: Patience, endpoints: Endpoints) -> None:
        self._upstream = upstream
        self._patience = patience
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        path = context.target.upstream
        if path is None:
            raise problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="The API is at /api/v1/.")
        key = context.principal.key
        if key is not None and key.is_providers:
            raise problem("SCOPE_REQUIRED", "keys of the provider are for POST /v1/events, and for nothing else")
        if CONTROL_CHARACTER.search(path):
            raise problem("INVALID_PATH", "the path has a control character", hint="Leave %00 to %1F and %7F out.")
        _require_utf8(scope)
        body = RequestBody(scope, receive)
        # A write may be done whatever becomes of its client, so it runs to its end and is metered by its status.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        hang_up = HangUp(body, task) if scope["method"] in READS else None
        waiting = self._patience.begin(task)
        try:
            await self._exchange(scope, path, body, send, waiting)
        except asyncio.CancelledError:
            if waiting.was_in_vain:
                waiting.absorb()
                raise _database_away() from None
            if hang_up is None or not hang_up.happened:
                raise
            hang_up.absorb()
        except ClientGone:
            pass
        except UpstreamError:
            raise problem(
                "POSTGREST_UNAVAILABLE",
                "PostgREST cannot be reached or went away",
                hint="Try again in a moment. What was asked may have been done.",
            ) from None
        finally:
            waiting.end()
            if hang_up is not None:
                hang_up.stop_watching()

    async def _exchange(self, scope: Scope, path: bytes, body: RequestBody, send: Send, waiting: Waiting) -> None:
        query = _query(scope)
        target = path + b"?" + query if query else path
        to_send = await body.to_send()
        answer = await self._upstream.begin(scope["method"], target, _request_headers(scope), to_send)
        try:
            waiting.end()
            if 200 <= answer.status < 300:
                self._endpoints.learn(path)
            chunk, more = b"", True
            if answer.status in MAY_BE_CONNECTION_ERROR:
                while more and len(chunk) < SMALL_BODY_BYTES:
                    part, more = await answer.read()
                    chunk += part
                if CONNECTION_ERROR.search(chunk):
                    raise _database_away()
            headers = _response_headers(answer.headers)
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            if chunk or not more:
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
            while more:
                chunk, more = await answer.read()
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
        finally:
            self._upstream.end(answer)


class RequestBody:
    """What the client sends, read once. `consumed` is set when nothing more will come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self.consumed = asyncio.Event()
        self.client_gone = False
        self._declared: int | None = 0  # None: chunked
        for name, value in scope["headers"]:
            if name == b"content-length":
                self._declared = int(value)
            elif name == b"transfer-encoding":
                self._declared = None
        if self._declared == 0:
            self.consumed.set()

    async def to_send(self) -> bytes | Body | None:
        if self.consumed.is_set():
            return None
        if self._declared is None:
            return await self._whole()
        if self._declared > SMALL_BODY_BYTES:
            return Body(self._chunks(), self._declared)
        return b"".join([chunk async for chunk in self._chunks()])

    async def _whole(self) -> bytes | Body:
        """PostgREST takes chunks that break off for all there is, and writes it, when nobody is left to be billed.
        So they go on once the last one is here, under their length; large ones lie on disk meanwhile.

        Raises BODY_TOO_LARGE (413).
        """
        kept = SpooledTemporaryFile(KEPT_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by whoever reads it, or with its last reference
        async for chunk in self._chunks():
            kept.write(chunk)
            if kept.tell() > MOST_CHUNKED_BYTES:
                kept.close()
                raise problem(
                    "BODY_TOO_LARGE",
                    f"a body in chunks has at most {MOST_CHUNKED_BYTES} bytes",
                    hint="Send Content-Length: then it may be of any size.",
                )
        length = kept.tell()
        kept.seek(0)
        return kept.read() if length <= SMALL_BODY_BYTES else Body(_pieces(kept), length)

    async def client_hangs_up(self) -> None:
        await self.consumed.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_gone = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_gone = True
                raise ClientGone
            if chunk := message.get("body", b""):
                yield chunk
            if not message.get("more_body", False):
                self.consumed.set()
                return


async def _pieces(kept: IO[bytes]) -> AsyncIterator[bytes]:
    with kept:
        while piece := kept.read(SMALL_BODY_BYTES):
            yield piece


class HangUp:
    """Cancels the running exchange when the client goes away before it ends: nobody waits for what PostgREST does."""

    def __init__(self, body: RequestBody, exchange: asyncio.Task[None]) -> None:
        self._exchange = exchange
        self._body = body
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._begin)
        self._over = False
        self.happened = False

    def absorb(self) -> None:
        """The cancellation was ours and ends here."""
        self._exchange.uncancel()

    def stop_watching(self) -> None:
        self._over = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        await self._body.client_hangs_up()
        if not self._over:
            self.happened = True
            self._exchange.cancel()


def _database_away() -> Problem:
    """What PostgREST says then names hosts and ports, and has clients wait for up to half a minute."""
    return problem(
        "DATABASE_UNAVAILABLE",
        "PostgREST cannot reach the database, or was cut off from it",
        hint="Try again in a moment. What was asked may have been done.",
    )


def _query(scope: Scope) -> bytes:
    query: bytes = scope["query_string"]
    target = context_of(scope).target
    if target.organization is None:
        return query
    if missing := missing_in_report(target, query):
        raise problem(
            "INVALID_RANGE",
            f"{' and '.join(missing)} of the report {'is' if len(missing) == 1 else 'are'} missing",
            hint="As in ?from=2026-01-01&to=2026-02-01, where to is the first moment that does not belong to it.",
        )
    return report_query(query)


def _require_utf8(scope: Scope) -> None:
    headers = scope["headers"]
    if not b"".join([value for _, value in headers]).isascii():
        for name, value in headers:
            if name not in NOT_FORWARDED and not _is_utf8(value):
                raise problem("INVALID_ENCODING", f"the header {name.decode('ascii')} is not UTF-8")
    query: bytes = scope["query_string"]
    if ENCODED_NON_ASCII.search(query) and not _is_utf8(unquote_to_bytes(query)):
        raise problem("INVALID_ENCODING", "the query is not UTF-8 where it is percent-encoded")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _request_headers(scope: Scope) -> Headers:
    context: RequestContext = context_of(scope)
    named = _named_in_connection(scope["headers"])
    dropped = NOT_FORWARDED | named if named else NOT_FORWARDED
    headers = [header for header in scope["headers"] if header[0] not in dropped]
    preferences = [value for name, value in headers if name == PREFER]
    if len(preferences) > 1:  # SQL is shown only one header of a name, while PostgREST heeds them all
        headers = [header for header in headers if header[0] != PREFER]
        headers.append((PREFER, b", ".join(preferences)))
    headers.append((REQUEST_ID, context.request_id.encode()))
    if context.principal.token is not None:
        headers.append((b"authorization", b"Bearer " + context.principal.token.encode()))
    # Always what the tenant was resolved from, and never what came: PostgREST must not see another name than we did.
    organization = str(context.tenant.organization_id) if context.tenant is not None else organization_named(scope)
    if organization is not None:
        headers.append((ORGANIZATION, organization.encode()))
    if client := scope.get("client"):
        headers.append((b"x-forwarded-for", client[0].encode()))
    return headers


def _response_headers(answered: Headers) -> Headers:
    headers = []
    for name, value in answered:
        if name in NOT_PASSED_ON or name.startswith(CORS_ANSWERS):
            continue
        if name in RELATIVE_TO_POSTGREST and value.startswith(b"/"):
            value = GATEWAY_PREFIX + value
        headers.append((name, value))
    return headers


def _named_in_connection(headers: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """RFC 9110, 7.6.1: headers listed in Connection are for this hop only."""
    listed = [value for name, value in headers if name == b"connection"]
    if not listed or listed in ([b"keep-alive"], [b"Keep-Alive"], [b"close"]):
        return frozenset()
    return frozenset(token.strip().lower() for value in listed for token in value.split(b","))

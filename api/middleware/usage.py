"""Meters what members ask of billable routes: one record in the spool before the last byte of the response leaves.

So a response that a client has in full is always on record, whatever happens to this process next.
"""

from __future__ import annotations

import json
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import RequestContext, Tenant, context_of
from api.errors import Problem, problem
from api.retries import RetryKeys, new_key
from api.routes import BillableRoutes, raw_path
from api.spool import Spool

FREE_STATUSES: Final = frozenset({401, 403, 429})
BODILESS_STATUSES: Final = frozenset({204, 304})
MAX_USER_AGENT: Final = 256
MAX_NAMED: Final = 80


class Usage:
    def __init__(self, app: ASGIApp, spool: Spool, routes: BillableRoutes) -> None:
        self._app = app
        self._spool = spool
        self._routes = routes
        self._retries = RetryKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        meterable = scope["type"] == "http" and scope["method"] != "OPTIONS"
        route = self._routes.match(raw_path(scope), scope["query_string"]) if meterable else None
        tenant = context_of(scope).tenant if route is not None else None
        if route is not None and tenant is None and context_of(scope).principal.role == "member":
            raise _no_tenant(context_of(scope))
        if route is None or tenant is None:
            await self._app(scope, receive, send)
            return
        response = MeteredResponse(scope, send, route, tenant, self._spool, self._retries)
        try:
            await self._app(scope, receive, response.send)
        finally:
            response.cut_short()


def _no_tenant(context: RequestContext) -> Problem:
    """What tenancy.enter says in SQL. It is said here, since by the time PostgREST asks there could be such a tenant,
    and nobody would be billed for the answer.
    """
    tried = context.tried
    if tried is not None and context.principal.key is not None:
        return problem(
            "NOT_A_MEMBER",
            f"this API key is not for organization {tried[:MAX_NAMED]}",
            hint="Leave X-Organization-ID out: a key is for one organization.",
        )
    if tried is not None:
        return problem(
            "NOT_A_MEMBER",
            f"you are not a member of organization {tried[:MAX_NAMED]}",
            hint="GET /organizations without X-Organization-ID lists yours.",
        )
    return problem(
        "ORGANIZATION_REQUIRED",
        "no organization was chosen and you have no default one",
        hint="Send X-Organization-ID (id or slug), or a token with the claim org_id.",
    )


class MeteredResponse:
    """Watches one response go by, and records it once: before its end, or when it is cut short after it began."""

    def __init__(self, scope: Scope, send: Send, route: str, tenant: Tenant, spool: Spool, retries: RetryKeys) -> None:
        self._scope = scope
        self._send = send
        self._route = route
        self._tenant = tenant
        self._spool = spool
        self._retries = retries
        self._start: Message | None = None  # held back, since a response without a body ends with its headers
        self._status = 0
        self._size = 0
        self._content_length: int | None = None
        self._started = False
        self._recorded = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            self._status = message["status"]
            self._content_length = self._declared_length(message)
            return
        if message["type"] == "http.response.body":
            self._size += len(message.get("body", b""))
            complete = self._content_length is not None and self._size >= self._content_length
            if complete or not message.get("more_body", False):
                self._record()
            if self._start is not None:
                start, self._start = self._start, None
                self._started = True
                await self._send(start)
        await self._send(message)

    def cut_short(self) -> None:
        """The client hung up, or PostgREST went away in the middle: what was sent counts as sent."""
        if self._started:
            self._record()

    def _declared_length(self, start: Message) -> int | None:
        if self._scope["method"] == "HEAD" or self._status in BODILESS_STATUSES:
            return 0
        for name, value in start.get("headers", ()):
            if name == b"content-length" and value.isdigit():
                return int(value)
        return None

    def _record(self) -> None:
        if self._recorded:
            return
        self._recorded = True
        if self._status in FREE_STATUSES or self._status >= 500:
            return
        context = context_of(self._scope)
        self._spool.append(json.dumps(self._event(context), separators=(",", ":")).encode())

    def _event(self, context: RequestContext) -> dict[str, object]:
        client = self._scope.get("client")
        return {
            "id": self._key(context),
            "event": "api.request",
            "quantity": 1,
            "unit": "request",
            "time": context.received_at.isoformat(timespec="microseconds"),
            "organization_id": str(self._tenant.organization_id),
            "user_id": str(self._tenant.user_id) if self._tenant.user_id is not None else None,
            "request_id": context.request_id,
            "dimensions": {
                "endpoint": self._route,
                "method": self._scope["method"],
                "status_code": self._status,
                "duration_ms": context.elapsed_ms(),
                "response_size": self._size,
                "client_ip": client[0] if client else None,
                "user_agent": self._user_agent(),
                **({"api_key_id": str(context.principal.key.id)} if context.principal.key is not None else {}),
            },
        }

    def _key(self, context: RequestContext) -> str:
        if not context.sent_by_client:
            return new_key()
        scope = self._scope
        target = raw_path(scope), scope["query_string"]
        who = self._tenant, context.principal.key
        return self._retries.key_for((who, context.request_id, scope["method"], target))

    def _user_agent(self) -> str | None:
        for name, value in self._scope["headers"]:
            if name == b"user-agent":
                text: str = value.decode("utf-8", "replace")[:MAX_USER_AGENT]
                return text.replace("\0", "")
        return None

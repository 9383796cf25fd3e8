"""Watches answers go by, whoever gives them, and tells of their ends: how long they took, who was refused what, and
which conversions succeeded. Nothing is held back or changed.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import context_of
from api.metrics import OTHER, Metrics
from api.refusals import NAMELESS, Answer, Refusal, Refusals, read_answer
from api.routes import upstream_path

MOST_BYTES: Final = 16 * 1024  # of an error's body
CONVERSION: Final = b"/rpc/convert_to_organization"


class Observation:
    def __init__(self, app: ASGIApp, metrics: Metrics, refusals: Refusals) -> None:
        self._app = app
        self._metrics = metrics
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        status = 0
        body = b""

        async def watch(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and len(body) < MOST_BYTES:
                body += message.get("body", b"")[: MOST_BYTES - len(body)]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.request_ended(_part(scope), status, perf_counter() - started)
            if status >= 400:
                self._refused(scope, status, body)
            elif 200 <= status < 300 and _is_conversion(scope):
                self._metrics.converted()

    def _refused(self, scope: Scope, status: int, body: bytes) -> None:
        context = context_of(scope)
        answer = read_answer(body) if body else _without_body(scope, status)
        self._metrics.refused(answer.code)
        if answer.code == "CONVERSION_FAILED":
            self._metrics.conversion_failed(answer.details)
        principal, tenant, client = context.principal, context.tenant, scope.get("client")
        refusal = Refusal(
            code=answer.code,
            organization_id=tenant.organization_id if tenant is not None else None,
            subject=principal.subject,
            key_id=principal.key.id if principal.key is not None else None,
            ip=client[0] if client else None,
            role=principal.role,
        )
        self._refusals.note(
            refusal,
            user_id=tenant.user_id if tenant is not None else None,
            detail=answer.details if answer.code == "CONVERSION_FAILED" else answer.text,
        )


def _without_body(scope: Scope, status: int) -> Answer:
    """What is refused to HEAD is told by its status alone, and by what we know of it."""
    context = context_of(scope)
    if status == 403 and context.tenant is None and context.tried is not None:
        return Answer("NOT_A_MEMBER", f"HEAD for organization {context.tried}", "")
    return NAMELESS


def _part(scope: Scope) -> str:
    if upstream_path(scope) is not None:
        return "gateway"
    return "events" if scope["path"] == "/v1/events" else OTHER


def _is_conversion(scope: Scope) -> bool:
    """PostgREST decodes paths. Only POST can convert: a function that writes is refused to the others."""
    path = upstream_path(scope)
    return path is not None and scope["method"] == "POST" and unquote_to_bytes(path) == CONVERSION

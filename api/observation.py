"""Tells of the ends of requests: how long they took, who was refused what, and which conversions succeeded."""

from __future__ import annotations

from time import perf_counter
from typing import Final
from urllib.parse import unquote_to_bytes

import structlog
from starlette.types import Scope

from api.answer import Answer
from api.context import context_of
from api.metrics import OTHER, Metrics
from api.refusals import NAMELESS, Refusal, Refusals, Said, read_answer

log = structlog.get_logger(__name__)

CONVERSION: Final = b"/rpc/convert_to_organization"


class Observation:
    def __init__(self, metrics: Metrics, refusals: Refusals) -> None:
        self._metrics = metrics
        self._refusals = refusals

    def request_ended(self, answer: Answer) -> None:
        scope, context = answer.scope, answer.context
        status = context.status
        self._metrics.request_ended(_part(scope), status, perf_counter() - context.started)
        if status >= 400:
            self._refused(scope, status, answer.error)
        elif 200 <= status < 300 and _is_conversion(scope):
            self._metrics.converted()
        log.debug(
            "request",
            request_id=context.request_id,
            method=scope["method"],
            path=scope["path"],
            duration_ms=context.elapsed_ms(),
        )

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


def _without_body(scope: Scope, status: int) -> Said:
    """What is refused to HEAD is told by its status alone, and by what we know of it."""
    context = context_of(scope)
    if status == 403 and context.tenant is None and context.tried is not None:
        return Said("NOT_A_MEMBER", f"HEAD for organization {context.tried}", "")
    return NAMELESS


def _part(scope: Scope) -> str:
    if context_of(scope).target.upstream is not None:
        return "gateway"
    return "events" if scope["path"].startswith("/v1/events") else OTHER


def _is_conversion(scope: Scope) -> bool:
    """PostgREST decodes paths. Only POST can convert: a function that writes is refused to the others."""
    path = context_of(scope).target.upstream
    return path is not None and scope["method"] == "POST" and unquote_to_bytes(path) == CONVERSION

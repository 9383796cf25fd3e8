"""Answers for what went wrong in the layers inside, in the one error shape."""

from __future__ import annotations

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from api.context import context_of
from api.errors import Problem, problem

log = structlog.get_logger(__name__)


class Failures:
    """A Problem is answered as it says, and anything else is logged and answered INTERNAL_ERROR (500)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Problem as answer:
            if context_of(scope).answer_began:
                raise  # the server cuts the connection: the client must not take half an answer for a whole one
            await answer.response()(scope, receive, send)
        except HTTPException as error:
            response = _problem_of(error).response()
            response.headers.update(error.headers or {})
            await response(scope, receive, send)
        except Exception:
            context = context_of(scope)
            log.exception("request_failed", request_id=context.request_id, method=scope["method"], path=scope["path"])
            if context.answer_began:
                raise
            text, details = "something went wrong on our side", f"request {context.request_id}"
            await problem("INTERNAL_ERROR", text, details=details).response()(scope, receive, send)


def _problem_of(error: HTTPException) -> Problem:
    """What Starlette's router raises: no such path, or not this method."""
    if error.status_code == 405:
        return problem("METHOD_NOT_ALLOWED", "this path does not take that method")
    return problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="The API is at /api/v1/.")

"""The outermost layer: it names a request, reads what it is for, and has it metered, whatever becomes of it.

It alone watches answers go by. The layers inside read and write the context.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from api.answer import Answer, Meter
from api.context import RequestContext, set_context
from api.correlation import HEADER, request_name
from api.observation import Observation
from api.routes import Targets


class Entry:
    def __init__(self, app: ASGIApp, targets: Targets, meter: Meter, observation: Observation) -> None:
        self._app = app
        self._targets = targets
        self._meter = meter
        self._observation = observation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, sent_by_client = request_name(scope)
        context = RequestContext(request_id, sent_by_client, self._targets.find(scope))
        context.headers.append((HEADER, request_id.encode("ascii")))
        set_context(scope, context)
        answer = Answer(scope, context, receive, send, self._meter)
        try:
            await self._app(scope, answer.receive, answer.send)
        finally:
            answer.end()
            self._observation.request_ended(answer)

"""Hard quotas of requests. One is taken before a request is forwarded, and given back when its answer is not billed;
Postgres counts, so that all sidecars together never let one too many through.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import context_of
from api.database import Database, DatabaseError
from api.errors import Problem, problem
from api.usage import is_free

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 2.0
MOST_OWED: Final = 100_000


class Quotas:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._owed: deque[tuple[UUID, datetime]] = deque(maxlen=MOST_OWED)  # what Postgres was away for

    async def forward(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, organization_id: UUID) -> None:
        """Have the request answered. Raises QUOTA_EXCEEDED (402), and 503 when Postgres is away: then nobody knows."""
        context = context_of(scope)
        taken_at = context.received_at
        await self._take(organization_id)
        is_taken, is_billed = True, False

        async def send_counted(message: Message) -> None:
            # Before the answer goes out, so that who reads it finds what it says.
            nonlocal is_taken
            if is_taken and message["type"] == "http.response.start" and is_free(message["status"]):
                is_taken = False
                await self._give_back(organization_id, taken_at)
            await send(message)

        try:
            await app(scope, receive, send_counted)
        except Problem as answer:  # given further out, and billed like any other
            is_billed = not is_free(answer.status)
            raise
        finally:
            if is_taken and not is_billed and not context.answer_began:
                await self._give_back(organization_id, taken_at)

    async def run(self) -> None:
        """Give back what could not be given back at once. Runs until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            for _ in range(len(self._owed)):
                await self._give_back(*self._owed.popleft())

    async def _take(self, organization_id: UUID) -> None:
        try:
            refusal = await self._database.take_request(organization_id)
        except DatabaseError as error:
            raise error.problem() or error from None
        if refusal is not None:
            raise _exceeded(refusal)

    async def _give_back(self, organization_id: UUID, taken_at: datetime) -> None:
        try:
            await self._database.give_back_request(organization_id, taken_at)
        except DatabaseError as error:
            self._owed.append((organization_id, taken_at))
            log.warning("quota_not_given_back", state=error.state, error=error.message or str(error))


def _exceeded(refusal: dict[str, Any]) -> Problem:
    """As billing.raise_quota_exceeded() says it in SQL."""
    feature, limit, used, resets_at = (refusal[name] for name in ("feature", "limit", "used", "resets_at"))
    return problem(
        "QUOTA_EXCEEDED",
        f"{used} of {limit} {feature} are used, and 1 more would be over the limit",
        details=json.dumps({**refusal, "asked": 1}),
        hint=f"It begins anew at {resets_at}. Until then, ask for a plan with more.",
    )

"""How long the gateway waits for PostgREST: as long as the database is alive.

A query of staff may take minutes, and PostgREST says at once when the database is gone. One that hangs, or whose host
is gone without a word, leaves PostgREST waiting for ever: then whoever waits for it is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

PATIENCE_SECONDS: Final = 5.0


class Patience:
    """`database_answers` may take a while to tell that it does not."""

    def __init__(self, database_answers: Callable[[], Awaitable[bool]]) -> None:
        self._database_answers = database_answers
        self._probe: asyncio.Task[bool] | None = None

    def begin(self, task: asyncio.Task[Any]) -> Waiting:
        """The task that runs starts to wait."""
        return Waiting(self._answers, task)

    async def _answers(self) -> bool:
        """Asked once for all who want to know at the same time."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.ensure_future(self._database_answers())
        return await asyncio.shield(self._probe)


class Waiting:
    """Cancels the task that waits once the database does not answer."""

    def __init__(self, answers: Callable[[], Awaitable[bool]], task: asyncio.Task[Any]) -> None:
        self._task = task
        self._answers = answers
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._begin)
        self._over = False
        self.was_in_vain = False

    def end(self) -> None:
        self._over = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def absorb(self) -> None:
        """The cancellation was ours and ends here."""
        self._task.uncancel()

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            if not await self._answers():
                break
            await asyncio.sleep(PATIENCE_SECONDS)
        if not self._over:
            self.was_in_vain = True
            self._task.cancel()

"""What organizations may do at the gateway: the plan in force, and whether a hard quota counts their requests.

Postgres answers, once for the first request of an organization. Those that go on asking are then read again together,
every few seconds and beside the requests, so that none of these waits for it.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import structlog

from api.context import Allowance
from api.database import Database, DatabaseError

log = structlog.get_logger(__name__)

READ_EVERY_SECONDS: Final = 2.0
READ_AT_ONCE: Final = 500


class Allowances:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[UUID, Allowance] = {}
        self._asked_for: set[UUID] = set()  # since they were read last
        self._reading: dict[UUID, asyncio.Task[Allowance]] = {}

    async def of(self, organization_id: UUID) -> Allowance:
        """Raises DatabaseError when it has to ask and cannot."""
        self._asked_for.add(organization_id)
        known = self._known.get(organization_id)
        return known if known is not None else await self._first(organization_id)

    async def run(self) -> None:
        """Read again what is in use, and forget the rest. Runs until cancelled."""
        while True:
            await asyncio.sleep(READ_EVERY_SECONDS)
            try:
                await self.read_again()
            except DatabaseError as error:
                log.warning("allowances_not_read", state=error.state, error=error.message or str(error))

    async def read_again(self) -> None:
        """What was known stays where Postgres is away: without it no request would be answered anyhow."""
        asked_for, self._asked_for = self._asked_for, set()
        before = self._known
        self._known = {id_: known for id_, known in before.items() if id_ in asked_for}
        organizations = list(self._known)
        for start in range(0, len(organizations), READ_AT_ONCE):
            self._known |= await self._database.gateway_limits(organizations[start : start + READ_AT_ONCE])

    async def _first(self, organization_id: UUID) -> Allowance:
        """Asked once for all requests that want to know at the same time."""
        reading = self._reading.get(organization_id)
        if reading is None:
            reading = self._reading[organization_id] = asyncio.create_task(self._read(organization_id))
            reading.add_done_callback(lambda _: self._reading.pop(organization_id, None))
        return await asyncio.shield(reading)

    async def _read(self, organization_id: UUID) -> Allowance:
        found = await self._database.gateway_limits([organization_id])
        self._known |= found
        return found[organization_id]

"""Everything the sidecar asks of Postgres: a handful of functions, called with parameters. All of its SQL is here.

One pool (SQLAlchemy's, which reconnects at checkout and so survives a restart of Postgres). Batches of events go
through as one text parameter that Postgres parses; see docs/decisions/0002-sidecar-database-access.md.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Result, Row, Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from api.codes import CODES
from api.context import Tenant
from api.errors import Problem, problem

CONNECT_TIMEOUT_SECONDS: Final = 3
POOL_TIMEOUT_SECONDS: Final = 3
STATEMENT_TIMEOUT_MS: Final = 30_000
HEALTH_TIMEOUT_SECONDS: Final = 2

_INGEST: Final = "select metering.receive_events(%s, %s::uuid, %s, %s)::text"
_REJECT: Final = "select metering.record_rejection(%s, %s::jsonb, %s, %s)"

# Classes of SQLSTATE. What was sent is at fault, and would be again: data, constraints, limits, raised by ourselves.
_REFUSALS: Final = ("22", "21", "23", "54", "P0001", "PT4")
# The server is away, starting, stopping or out of connections; or it gave way to somebody else.
_AWAY: Final = ("08", "53", "57P")
_BUSY: Final = ("40", "55P03", "57014")


class DatabaseError(Exception):
    """Postgres did not do what was asked. `state` is the SQLSTATE, None when the server was not reached."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error).strip())
        self.state: str | None = None
        self.message = self.details = self.hint = ""
        self._unencodable = isinstance(error, psycopg.DataError) and error.sqlstate is None  # a NUL in a text
        if isinstance(error, psycopg.Error):
            self.state = error.sqlstate
            self.message = error.diag.message_primary or ""
            self.details = error.diag.message_detail or ""
            self.hint = error.diag.message_hint or ""

    @property
    def refused(self) -> bool:
        """The data was refused: sending it again is useless."""
        return self._unencodable or (self.state is not None and self.state.startswith(_REFUSALS))

    @property
    def malformed(self) -> bool:
        """What was refused is not JSON that Postgres can hold."""
        return self._unencodable or (self.state is not None and self.state.startswith(("22", "54")))

    def problem(self) -> Problem | None:
        """The answer for the client; None when this should not have happened at all."""
        if self.state is not None and self.state.startswith("PT") and self.state[2:].isdigit():
            known = CODES.get(self.message.partition(":")[0])
            hint = self.hint or (known.remedy if known is not None else None)
            return Problem(int(self.state[2:]), self.state, self.message, self.details or None, hint)
        if not self._unencodable and (self.state is None or self.state.startswith(_AWAY)):
            return problem("DATABASE_UNAVAILABLE", "the database cannot be reached", hint="Try again in a moment.")
        if self.state is not None and self.state.startswith(_BUSY):
            return problem("DATABASE_BUSY", "the database is busy with another change", hint="Try again in a moment.")
        return None


class Database:
    def __init__(self, url: str, pool_size: int) -> None:
        given = conninfo_to_dict(url)
        conninfo = make_conninfo(
            url,
            connect_timeout=given.get("connect_timeout") or CONNECT_TIMEOUT_SECONDS,
            application_name="goldleaves-sidecar",
            options=f"{given.get('options') or ''} -c statement_timeout={STATEMENT_TIMEOUT_MS}".strip(),
        )

        async def connect(*_: Any, **__: Any) -> psycopg.AsyncConnection[Any]:
            return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)

        self._engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=connect,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=True,
            use_native_hstore=False,
        )

    async def close(self) -> None:
        await self._engine.dispose()

    async def identify(
        self, subject: str | None, email: str | None, role: str, organization: str | None
    ) -> Tenant | None:
        """The user (made when unknown) and the organization; None when there is no such organization for them."""
        identity = func.tenancy.identify(subject, email, role, organization).table_valued("user_id", "organization_id")
        row = await self._first(select(identity.c.user_id, identity.c.organization_id))
        if row is None or row.organization_id is None:
            return None
        return Tenant(_uuid(row.user_id) if row.user_id is not None else None, _uuid(row.organization_id))

    async def ingest(self, events: str, organization_id: UUID | None, source: str, late: str) -> str:
        """Store usage events given as JSON text. Returns the outcome as JSON text."""
        row = await self._first(_INGEST, events, organization_id, source, late)
        return str(row[0]) if row is not None else ""

    async def record_rejection(self, source: str, event: str, code: str, message: str) -> None:
        await self._first(_REJECT, source, event, code, message)

    async def maintain(self) -> None:
        await self._first(select(func.ops.maintain()))

    async def health(self) -> dict[str, Any]:
        async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
            row = await self._first(select(func.ops.health()))
        return dict(row[0]) if row is not None else {}

    async def _first(self, statement: Select[Any] | str, *parameters: object) -> Row[Any] | None:
        """The first row. SQL given as text goes to the driver as it is, with its parameters."""
        result: Result[Any]
        try:
            async with self._engine.connect() as connection:
                if isinstance(statement, str):
                    result = await connection.exec_driver_sql(statement, parameters)
                else:
                    result = await connection.execute(statement)
                return result.first()
        except DBAPIError as error:
            raise DatabaseError(error.orig or error) from None
        except (PoolTimeout, psycopg.Error, OSError) as error:
            raise DatabaseError(error) from None


def _uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))

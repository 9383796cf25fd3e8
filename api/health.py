"""GET /health: what the sidecar needs, and whether it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.database import Database, DatabaseError
from api.spool import Spool
from api.upstream import Upstream, UpstreamError

PROBE_TIMEOUT_SECONDS: Final = 2.0


def health_endpoint(
    database: Database, spool: Spool, postgrest: Upstream, migrations: Path, stopped_tasks: Callable[[], list[str]]
) -> Callable[[Request], Awaitable[Response]]:
    known = _known_migrations(migrations)  # read once: later there may be no descriptor left to read them with

    async def health(_: Request) -> Response:
        """200 while all works; 503 when a part is away or stopped, migrations are pending, or the spool is stuck."""
        facts, postgrest_is_up = await asyncio.gather(_database_facts(database), _answers(postgrest))
        pending = None if facts is None else sorted(known - set(facts.get("applied", [])))
        spool_state = spool.state()
        spool_is_ok = not spool_state.full and not spool_state.stalled
        stopped = stopped_tasks()
        is_ok = facts is not None and postgrest_is_up and not pending and spool_is_ok and not stopped
        return JSONResponse(
            {
                "status": "ok" if is_ok else "degraded",
                "database": {"status": "down" if facts is None else "ok"},
                "postgrest": {"status": "ok" if postgrest_is_up else "down"},
                "migrations": {"version": None if facts is None else facts.get("version"), "pending": pending},
                "spool": asdict(spool_state),
                "tasks": {"stopped": stopped},
            },
            status_code=200 if is_ok else 503,
        )

    return health


async def _database_facts(database: Database) -> dict[str, Any] | None:
    try:
        return await database.health()
    except (DatabaseError, OSError):  # TimeoutError is one
        return None


async def _answers(postgrest: Upstream) -> bool:
    try:
        async with (
            asyncio.timeout(PROBE_TIMEOUT_SECONDS),
            postgrest.exchange("GET", b"/rpc/health", [(b"accept", b"application/json")]) as answer,
        ):
            while (await answer.read())[1]:
                pass
            return answer.status == 200
    except (UpstreamError, OSError):
        return False


def _known_migrations(directory: Path) -> set[str]:
    return {path.stem for path in directory.glob("*.sql") if not path.name.endswith(".rollback.sql")}

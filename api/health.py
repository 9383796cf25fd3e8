"""GET /health: what the sidecar needs, and whether it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.database import Database, DatabaseError
from api.jwks import KeySet
from api.schema_version import compare, known_migrations
from api.spool import Spool
from api.upstream import Upstream, UpstreamError

if TYPE_CHECKING:
    from api.rate_limits.shared_counters import SharedCounters

PROBE_TIMEOUT_SECONDS: Final = 2.0


def health_endpoint(
    database: Database,
    spool: Spool,
    postgrest: Upstream,
    stopped_tasks: Callable[[], list[str]],
    identity_keys: KeySet | None,
    shared_counters: SharedCounters | None,
) -> Callable[[Request], Awaitable[Response]]:
    known_migrations()  # while there are descriptors to read them with
    probe = _Probe(database, postgrest)

    async def health(_: Request) -> Response:
        """200 while all works; 503 when a part is away or stopped, migrations are pending, the spool is stuck, or the
        keys of the identity provider were never had.

        Without Redis all works, and each sidecar counts for itself.
        Unknown migrations are an upgrade that is under way, unless the sidecar has met them at its start.
        """
        facts, postgrest_status = await probe.result()
        difference = None if facts is None else compare(facts.get("applied", ()))
        schema_is_ok = difference is not None and not difference.pending and not database.is_refused
        spool_state = spool.state()
        spool_is_ok = not spool_state.full and not spool_state.stalled
        stopped = stopped_tasks()
        keys_are_ok = identity_keys is None or identity_keys.are_known
        is_ok = schema_is_ok and postgrest_status == "ok" and spool_is_ok and keys_are_ok and not stopped
        return JSONResponse(
            {
                "status": "ok" if is_ok else "degraded",
                "database": {"status": "down" if facts is None else "ok"},
                "postgrest": {"status": postgrest_status},
                "migrations": {
                    "version": None if facts is None else facts.get("version"),
                    "pending": None if difference is None else difference.pending,
                    "unknown": None if difference is None else difference.unknown,
                },
                "spool": asdict(spool_state),
                "identity_keys": {"status": "unused"} if identity_keys is None else identity_keys.state(),
                "redis": {"status": "unused" if shared_counters is None else shared_counters.state()},
                "tasks": {"stopped": stopped},
            },
            status_code=200 if is_ok else 503,
        )

    return health


class _Probe:
    """Made once for all who ask meanwhile: anybody may ask, and the connections are the customers'."""

    def __init__(self, database: Database, postgrest: Upstream) -> None:
        self._database = database
        self._postgrest = postgrest
        self._running: asyncio.Task[tuple[dict[str, Any] | None, str]] | None = None

    async def result(self) -> tuple[dict[str, Any] | None, str]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._make())
        return await asyncio.shield(self._running)

    async def _make(self) -> tuple[dict[str, Any] | None, str]:
        facts, status = await asyncio.gather(_database_facts(self._database), _status(self._postgrest))
        return facts, status


async def _database_facts(database: Database) -> dict[str, Any] | None:
    try:
        return await database.health()
    except (DatabaseError, OSError):  # TimeoutError is one
        return None


async def _status(postgrest: Upstream) -> str:
    """ok, down, or waiting: it is there, and waits for the database or for what it has to know of that."""
    try:
        async with (
            asyncio.timeout(PROBE_TIMEOUT_SECONDS),
            postgrest.exchange("GET", b"/rpc/health", [(b"accept", b"application/json")]) as answer,
        ):
            while (await answer.read())[1]:
                pass
            return "ok" if answer.status == 200 else "waiting"
    except TimeoutError:
        return "waiting"
    except (UpstreamError, OSError):
        return "down"

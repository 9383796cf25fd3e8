"""`python -m api.serve`: the sidecar as one process. SIGTERM drains it: finish what runs, ship the spool, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import structlog
import uvicorn
import uvloop

from api.app import create_app
from api.cors import AllowedOrigins
from api.database import Database, DatabaseError, SchemaMismatch
from api.logs import configure_logs
from api.protocol import Limits, limited_protocol
from api.settings import FINISH_REQUESTS_SECONDS, Settings, SettingsError, load_settings
from api.spool import Spool, SpoolError, records_left

log = structlog.get_logger(__name__)


KEEP_ALIVE_SECONDS: Final = 65
RESERVED_DESCRIPTORS: Final = 128
MAX_DESCRIPTORS: Final = 65_536  # more would only be memory for idle clients
OBJECTS_PER_COLLECTION: Final = 10_000  # young ones. A request makes hundreds, and nearly all of them go by themselves


class Server(uvicorn.Server):
    """uvicorn, except that a signal that asks for an orderly end is not raised again after it: the exit code is 0. A
    second one ends what the first one waits for. Nothing is lost by that: the spool is on disk.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop, serving = asyncio.get_running_loop(), asyncio.current_task()
        assert serving is not None  # noqa: S101
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, serving)
        yield

    def _end(self, serving: asyncio.Task[None]) -> None:
        if self.should_exit:
            serving.cancel()
        self.should_exit = True


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level)
        directory = settings.spool_dir or settings.state_dir / "spool"
        with Spool(directory, settings.spool_max_bytes) as spool:
            exit_code = serve(settings, spool)
            state = spool.state()
        log.info("sidecar_stopped", records_left=records_left(directory), **asdict(state))
        return exit_code
    except (SettingsError, SpoolError, SchemaMismatch) as error:
        print(error, file=sys.stderr)
        return 2


def serve(settings: Settings, spool: Spool) -> int:
    limits = Limits(
        connections=_most_connections(_raise_descriptor_limit()),
        head_seconds=settings.request_head_seconds,
        body_seconds=settings.request_body_seconds,
    )
    app = create_app(settings, spool)
    protocol = limited_protocol(limits, AllowedOrigins(settings.allowed_origins), app.metrics.refused)
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.gateway_port,
            http=protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FINISH_REQUESTS_SECONDS,
        )
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(_refuse_other_schemas(settings))
        _collect_garbage_seldom()
        log.info("sidecar_started", host=settings.host, port=settings.gateway_port)
        runner.run(server.serve())
    return 0 if server.started else 1


async def _refuse_other_schemas(settings: Settings) -> None:
    """Raises SchemaMismatch. A database that is away is no reason not to start: it is asked again before it is used."""
    database = Database(settings.require("database_url"), pool_size=1)
    try:
        await database.check_schema()
    except SchemaMismatch:
        raise
    except DatabaseError as error:
        log.warning("started_without_database", state=error.state, error=error.message or str(error))
    finally:
        await database.close()


def _collect_garbage_seldom() -> None:
    """What is there now stays, and is not looked at again: by default, that is a third of what a request costs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_PER_COLLECTION, 20, 20)


def _raise_descriptor_limit() -> int:
    """How many files and sockets this process may have open, after asking for all it can get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def _most_connections(descriptors: int) -> int:
    """Each client may need a second one, to PostgREST. The spool and the database are never to go without."""
    return max(1, (descriptors - RESERVED_DESCRIPTORS) // 2)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m api.serve`: the sidecar as one process. SIGTERM drains it: finish what runs, ship the spool, exit 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import structlog
import uvicorn
import uvloop

from api.app import create_app
from api.logs import configure_logs
from api.settings import Settings, SettingsError, load_settings
from api.spool import Spool, SpoolError

log = structlog.get_logger(__name__)

FINISH_REQUESTS_SECONDS: Final = 10
KEEP_ALIVE_SECONDS: Final = 65


class Server(uvicorn.Server):
    """uvicorn, except that a signal that asks for an orderly end is not raised again after it: the exit code is 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level)
        with Spool(settings.spool_dir or settings.state_dir / "spool", settings.spool_max_bytes) as spool:
            return serve(settings, spool)
    except (SettingsError, SpoolError) as error:
        print(error, file=sys.stderr)
        return 2


def serve(settings: Settings, spool: Spool) -> int:
    server = Server(
        uvicorn.Config(
            create_app(settings, spool),
            host=settings.host,
            port=settings.gateway_port,
            http="httptools",
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
    log.info("sidecar_started", host=settings.host, port=settings.gateway_port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve())
    log.info("sidecar_stopped", **asdict(spool.state()))
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())

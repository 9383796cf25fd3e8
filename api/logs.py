"""Logs are JSON lines on stderr, ours and those of the libraries. Never a token, never a body.

A line that cannot be written is lost, and nothing else: a full disk under the log must not fail requests.
"""

from __future__ import annotations

import contextlib
import logging
import sys

import structlog


class LossyLogger(structlog.WriteLogger):
    """Writes lines, and never raises for want of room or of an open file."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure_logs(level: str) -> None:
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: LossyLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.EventRenamer("event"),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.raiseExceptions = False  # nor do those of the libraries complain about lines that they cannot write
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and end are ours to tell
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request, and a URL may hold a secret
    logging.basicConfig(handlers=[handler], level=max(logging.INFO, logging.getLevelNamesMapping()[level]), force=True)

"""`python -m api.dev.standby`: a sidecar in waiting. It has imported the libraries, which takes most of a start.

Its standard input is a socket. `load` makes it import our own code, as that is now: it answers `ready`, or says where
that failed and ends. `serve` makes it the sidecar. When whoever holds the other end goes away, it ends too.
"""

from __future__ import annotations

import importlib
import socket
import sys
import traceback
from pathlib import Path
from typing import Final

LOAD: Final = b"load"
READY: Final = b"ready"
SERVE: Final = b"serve"

# Not one of them ours, or its code would be that of before the save. One that is missing here is only imported later.
LIBRARIES: Final = (
    "httptools",
    "jwt",
    "psycopg",
    "pydantic_settings",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "starlette.applications",
    "structlog",
    "uvicorn",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)


def main() -> int:
    control = socket.socket(fileno=sys.stdin.fileno())
    for name in LIBRARIES:
        importlib.import_module(name)
    if control.recv(len(LOAD)) != LOAD:
        return 0
    try:
        serve = importlib.import_module("api.serve")
    except Exception as error:  # whatever the new code does
        control.sendall(where(error, Path.cwd()).encode())
        return 1
    control.sendall(READY)
    if control.recv(len(SERVE)) != SERVE:
        return 0
    return int(serve.main())


def where(error: Exception, project: Path) -> str:
    """`path:line: Type: message`, the line being the innermost one of the project."""
    summary = traceback.TracebackException.from_exception(error)
    text = " ".join("".join(summary.format_exception_only()).splitlines()[-1].split())
    if isinstance(error, SyntaxError) and error.filename:
        place: tuple[str, int | None] = error.filename, error.lineno
    else:
        ours = [frame for frame in summary.stack if Path(frame.filename).is_relative_to(project)]
        if not ours:
            return text
        place = ours[-1].filename, ours[-1].lineno
    path = Path(place[0])
    return f"{path.relative_to(project) if path.is_relative_to(project) else path}:{place[1]}: {text}"


if __name__ == "__main__":
    sys.exit(main())

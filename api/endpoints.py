"""The endpoint that traffic is counted by: the pattern of a route, never what a client made up. There are as many as
there are routes, relations and functions, and one for all else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

import structlog
from starlette.routing import Match, Route
from starlette.types import Scope

from api.database import Database, DatabaseError
from api.routes import GATEWAY_PREFIX, BillableRoutes, Target, raw_path

log = structlog.get_logger(__name__)

OTHER: Final = "other"
READ_EVERY_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 10.0
MOST_LEARNT: Final = 10_000

_PREFIX: Final = GATEWAY_PREFIX.decode()
_RPC: Final = "/rpc/"


class Endpoints:
    def __init__(self, billable: BillableRoutes) -> None:
        self._billable = billable
        self._routes: tuple[Route, ...] = ()
        self._plain: dict[str, str] = {}  # patterns of ours that are a path themselves
        self._served: dict[bytes, str] = {b"/": f"{_PREFIX}/"}  # paths at PostgREST

    def add_routes(self, routes: Iterable[object]) -> None:
        """Those of our own."""
        self._routes += tuple(route for route in routes if isinstance(route, Route))
        self._plain = {r.path_format: r.path_format for r in self._routes if "{" not in r.path_format}

    def of(self, scope: Scope, target: Target) -> str:
        if target.upstream is None or target.is_own_route:
            return self._plain.get(scope["path"]) or self._pattern_of(scope)
        return target.billable or self._served.get(target.upstream) or self._found(scope, target.upstream)

    def learn(self, path: bytes) -> None:
        """PostgREST has something at this path, as the client wrote it."""
        if path not in self._served and len(self._served) < MOST_LEARNT and (name := _name(path)) is not None:
            self._served[name.encode()] = _PREFIX + name

    async def keep_read(self, database: Database) -> None:
        """Read from the catalog what there is, again and again. Runs until cancelled."""
        while True:
            pause = READ_EVERY_SECONDS
            try:
                described = await database.describe_api()
            except DatabaseError as error:
                log.warning("endpoints_unread", state=error.state, error=error.message or str(error))
                pause = RETRY_SECONDS
            else:
                names = [f"/{view['name']}" for view in described.get("views", ())]
                names += [f"{_RPC}{function['name']}" for function in described.get("functions", ())]
                self._served.update((name.encode(), _PREFIX + name) for name in names)
            await asyncio.sleep(pause)

    def _pattern_of(self, scope: Scope) -> str:
        return next((r.path_format for r in self._routes if r.matches(scope)[0] is not Match.NONE), OTHER)

    def _found(self, scope: Scope, path: bytes) -> str:
        route = self._billable.of_path(raw_path(scope))
        if route is not None:
            return route
        name = _name(path)
        return OTHER if name is None else self._served.get(name.encode(), OTHER)


def _name(path: bytes) -> str | None:
    """`/cases` of `/c%61ses`, `/rpc/health`: what can be a relation or a function."""
    try:
        segments = [unquote(segment, errors="strict") for segment in path[1:].decode("ascii").split("/")]
    except UnicodeDecodeError:
        return None
    is_function = len(segments) == 2 and segments[0] == "rpc"
    return "/" + "/".join(segments) if (is_function or len(segments) == 1) and segments[-1] else None

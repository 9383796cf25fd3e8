"""How paths are read. PostgREST decodes each segment, so what is billed compares decoded ones too: `/api/v1/c%61ses` is
`/api/v1/cases`, and `/api/v1/cases2` is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

GATEWAY_PREFIX: Final = b"/api/v1"


def raw_path(scope: Scope) -> bytes:
    """The path as the client sent it, without the query."""
    path: bytes = scope["raw_path"]
    return path


def upstream_path(scope: Scope) -> bytes | None:
    """The path behind the gateway prefix, as the client sent it; None when the request is not for the gateway."""
    path = raw_path(scope)
    rest = path[len(GATEWAY_PREFIX) :]
    if not path.startswith(GATEWAY_PREFIX) or (rest and not rest.startswith(b"/")):
        return None
    return rest or b"/"


class BillableRoutes:
    """Finds the billable route of a path, by whole segments."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = {tuple(route.encode().strip(b"/").split(b"/")): route for route in routes}
        self._lengths = sorted({len(segments) for segments in self._routes}, reverse=True)

    def match(self, path: bytes) -> str | None:
        segments = [unquote_to_bytes(segment) for segment in path[1:].split(b"/")]
        for length in self._lengths:
            route = self._routes.get(tuple(segments[:length]))
            if route is not None:
                return route
        return None

"""How targets are read. PostgREST decodes each segment, so what is billed compares decoded ones too: `/api/v1/c%61ses`
is `/api/v1/cases`, and `/api/v1/cases2` is not. Rows that come embedded in those of another table are billed alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

GATEWAY_PREFIX: Final = b"/api/v1"

_PARAMETER_ENDS: Final = re.compile(rb"[&;]")  # PostgREST takes both
_EMBEDDED: Final = re.compile(rb"([^(),]*)\(")


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
    """Finds the billable route of a request: of its path, by whole segments, else of what its query embeds."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = {tuple(route.encode().strip(b"/").split(b"/")): route for route in routes}
        self._lengths = sorted({len(segments) for segments in self._routes}, reverse=True)
        self._tables = {segments[-1]: route for segments, route in self._routes.items()}

    def match(self, path: bytes, query: bytes = b"") -> str | None:
        route = self._of_path(path)
        if route is None and b"(" in unquote_to_bytes(query):
            return next((self._tables[name] for name in _embedded_names(query) if name in self._tables), None)
        return route

    def _of_path(self, path: bytes) -> str | None:
        segments = [unquote_to_bytes(segment) for segment in path[1:].split(b"/")]
        for length in self._lengths:
            route = self._routes.get(tuple(segments[:length]))
            if route is not None:
                return route
        return None


def _embedded_names(query: bytes) -> Iterator[bytes]:
    """The tables in `select=id,alias:cases!hint(title),...clients(name)`: what stands in front of parentheses."""
    for parameter in _PARAMETER_ENDS.split(query):
        name, _, value = parameter.replace(b"+", b" ").partition(b"=")
        if unquote_to_bytes(name) == b"select":
            for match in _EMBEDDED.finditer(unquote_to_bytes(value)):
                yield _table_named(match[1])


def _table_named(embedding: bytes) -> bytes:
    """`cases` of `alias:"cases"!hint`. In quotes, a backslash stands for the character behind it."""
    table = embedding.rpartition(b":")[2].partition(b"!")[0].strip().removeprefix(b"...")
    return table.replace(b"\\", b"").strip(b'" \t')

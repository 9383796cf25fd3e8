"""How targets are read. PostgREST decodes each segment, so what is billed compares decoded ones too: `/api/v1/c%61ses`
is `/api/v1/cases`, and `/api/v1/cases2` is not. Rows that come embedded in those of another table are billed alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

GATEWAY_PREFIX: Final = b"/api/v1"

# Ids and slugs need no percent-encoding, so what has some is no organization.
REPORT: Final = re.compile(
    rb"(?:/api)?/billing/(?P<report>usage-summary|usage-report)/(?P<organization>[A-Za-z0-9-]{1,63})"
)
INVOICE: Final = re.compile(
    rb"(?:/api)?/billing/(?:invoices/[A-Za-z0-9_.-]{1,80}|(?P<preview>preview-invoice(?:\.csv|\.html)?))"
)

_PARAMETER_ENDS: Final = re.compile(rb"[&;]")  # PostgREST takes both
_AN_ARRAY: Final = re.compile(rb"(?:\{|%7B)", re.IGNORECASE)
_EMBEDDED: Final = re.compile(rb"([^(),]*)\(")


def raw_path(scope: Scope) -> bytes:
    """The path as the client sent it, without the query."""
    path: bytes = scope["raw_path"]
    return path


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is for."""

    upstream: bytes | None = None  # its path at PostgREST; None: PostgREST is not asked
    billable: str | None = None  # the billable route
    organization: str | None = None  # that the path names: whatever else is said of it loses
    is_document: bool = False  # made here of what PostgREST answers

    @property
    def is_own_route(self) -> bool:
        """It is answered at a path of its own, and not at the gateway's."""
        return self.upstream is None or self.organization is not None or self.is_document


def report_query(query: bytes) -> bytes:
    """The query of a report for PostgREST, which wants `group_by={endpoint,method}` where people and their libraries
    write `group_by=endpoint,method`, or `group_by=endpoint&group_by=method`.
    """
    names: list[bytes] = []
    others: list[bytes] = []
    for parameter in _PARAMETER_ENDS.split(query):
        name, _, value = parameter.partition(b"=")
        if name == b"group_by" and not _AN_ARRAY.match(value):
            names += [value] if value else []
        else:
            others.append(parameter)
    return b"&".join(others + ([b"group_by=%7B" + b",".join(names) + b"%7D"] if names else []))


def missing_in_report(target: Target, query: bytes) -> list[str]:
    """What a report over time cannot be made without."""
    if target.upstream != b"/rpc/usage_report":
        return []
    given = {parameter.partition(b"=")[0] for parameter in _PARAMETER_ENDS.split(query)}
    return [name for name in ("from", "to") if name.encode() not in given]


PLANS_ROUTES: Final = ("/api/billing/plans", "/billing/plans")
STRIPE_WEBHOOK_ROUTES: Final = ("/api/billing/stripe_webhook", "/billing/webhook", "/webhooks/stripe")
REPORT_ROUTES: Final = tuple(
    f"{mount}/billing/{report}/{{tenant_id}}" for mount in ("/api", "") for report in ("usage-summary", "usage-report")
)
NOWHERE: Final = Target()
_PLANS: Final = frozenset(path.encode() for path in PLANS_ROUTES)


class Targets:
    """Reads targets, each once."""

    def __init__(self, billable: BillableRoutes) -> None:
        self._billable = billable

    def find(self, scope: Scope) -> Target:
        path = raw_path(scope)
        if path.startswith(GATEWAY_PREFIX):
            upstream = path[len(GATEWAY_PREFIX) :]
            if upstream.startswith(b"/"):
                is_billable = scope["method"] != "OPTIONS"
                return Target(upstream, self._billable.match(path, scope["query_string"]) if is_billable else None)
        elif report := REPORT.fullmatch(path):
            function = b"/rpc/" + report["report"].replace(b"-", b"_")
            return Target(function, organization=report["organization"].decode("ascii"))
        elif path in _PLANS:
            return Target(b"/plans", is_document=True)
        elif invoice := INVOICE.fullmatch(path):
            return Target(b"/rpc/preview_invoice" if invoice["preview"] else b"/rpc/invoice_document", is_document=True)
        return NOWHERE


class BillableRoutes:
    """Finds the billable route of a request: of its path, by whole segments, else of what its query embeds."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = {tuple(route.encode().strip(b"/").split(b"/")): route for route in routes}
        self._lengths = sorted({len(segments) for segments in self._routes}, reverse=True)
        self._tables = {segments[-1]: route for segments, route in self._routes.items()}

    def match(self, path: bytes, query: bytes = b"") -> str | None:
        route = self.of_path(path)
        if route is None and b"(" in unquote_to_bytes(query):
            return next((self._tables[name] for name in _embedded_names(query) if name in self._tables), None)
        return route

    def of_path(self, path: bytes) -> str | None:
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

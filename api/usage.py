"""What a request is metered as: always `traffic.bytes`, and `api.request` where it is billed. Both are one record in
the spool. Traffic of nobody whom we know is the platform's own.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, Literal
from uuid import UUID

import orjson
from starlette.types import Scope

from api.answer import Answer
from api.context import RequestContext, Tenant
from api.endpoints import Endpoints
from api.retries import RetryKeys, new_key
from api.routes import raw_path
from api.spool import Spool

IpDetail = Literal["truncated", "full", "none"]

PLATFORM: Final = Tenant(None, UUID(int=0))
FREE_STATUSES: Final = frozenset({401, 402, 403, 429})
HUNG_UP: Final = 499  # as nginx calls it: the client went away before it had an answer
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD: Final = "OTHER"
ADMIN: Final = {"type": "admin"}
STAFF: Final = frozenset({"service", "platform_admin"})
KEPT_BITS: Final = {4: 24, 6: 48}  # of an address that is truncated
MAX_USER_AGENT: Final = 256


class Usage:
    """Records requests. Never a reason for one to fail."""

    def __init__(self, spool: Spool, endpoints: Endpoints, ip_detail: IpDetail) -> None:
        self._spool = spool
        self._endpoints = endpoints
        self._ip_detail = ip_detail
        self._retries = RetryKeys()

    def record(self, answer: Answer) -> None:
        events = self._events(answer)
        self._spool.append(orjson.dumps(events)[1:-1])

    def _events(self, answer: Answer) -> list[dict[str, object]]:
        context, scope = answer.context, answer.scope
        status = context.status if answer.was_answered else HUNG_UP
        client = scope.get("client")
        tenant = context.tenant or PLATFORM
        dimensions = {
            "endpoint": self._endpoints.of(scope, context.target),
            "method": scope["method"] if scope["method"] in METHODS else OTHER_METHOD,
            "status_code": status,
            "duration_ms": context.elapsed_ms(),
            "ip": address_shown(client[0], self._ip_detail) if client else None,
            "user_agent": _user_agent(scope),
        }
        common: dict[str, object] = {
            "time": context.received_at,
            "organization_id": tenant.organization_id,
            "user_id": tenant.user_id,
            "request_id": context.request_id,
        }
        if context.principal.role in STAFF:
            common["context"] = ADMIN
        traffic = {
            # A retry goes over the wire again, so its traffic is never that of the first attempt.
            "id": new_key(),
            "event": "traffic.bytes",
            "quantity": answer.bytes_received + answer.bytes_sent if answer.was_answered else answer.bytes_received,
            "unit": "byte",
            **common,
            "dimensions": dimensions,
        }
        route = context.target.billable
        if route is None or context.tenant is None or is_free(status):
            return [traffic]
        key = context.principal.key
        request = {
            "id": self._key(scope, context),
            "event": "api.request",
            "quantity": 1,
            "unit": "request",
            **common,
            "dimensions": {
                **dimensions,
                "endpoint": route,
                "response_size": answer.body_bytes,
                **({"api_key_id": key.id} if key is not None else {}),
            },
        }
        return [traffic, request]

    def _key(self, scope: Scope, context: RequestContext) -> str:
        if not context.sent_by_client:
            return new_key()
        target = raw_path(scope), scope["query_string"]
        who = context.tenant, context.principal.key
        return self._retries.key_for((who, context.request_id, scope["method"], target))


def is_free(status: int) -> bool:
    """Whether a request that was answered so is not billed, and uses up no quota."""
    return status in FREE_STATUSES or status == HUNG_UP or status >= 500


@lru_cache(maxsize=4096)
def address_shown(address: str, detail: IpDetail) -> str | None:
    """An address as it is stored. Truncated, it names a network of a provider's customers, not one of them."""
    if detail == "none":
        return None
    try:
        parsed = ip_address(address)
    except ValueError:  # of a Unix socket, say
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if detail == "full":
        return str(parsed)
    return str(ip_network((parsed, KEPT_BITS[parsed.version]), strict=False).network_address)


def _user_agent(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"user-agent":
            text: str = value.decode("utf-8", "replace")[:MAX_USER_AGENT]
            return text.replace("\0", "")
    return None

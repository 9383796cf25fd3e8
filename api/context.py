"""What is learnt about a request on its way inwards, kept in its ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Final
from uuid import UUID

from starlette.types import Scope

from api.auth import ANONYMOUS, Principal
from api.errors import problem
from api.routes import Target

_KEY: Final = "goldleaves"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who is metered: the user and the organization that Postgres resolved for the request."""

    user_id: UUID | None
    organization_id: UUID


@dataclass(frozen=True, slots=True)
class Resolution:
    """What Postgres made of the organization that a request is for: `tried` by name or, without one, by default."""

    tenant: Tenant | None
    tried: str | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What decides how much an organization may ask for."""

    plan: str | None  # in force; None: the organization has no access
    counts_requests: bool  # a hard quota does


@dataclass(slots=True)
class RequestContext:
    request_id: str
    sent_by_client: bool  # the request id came with the request, so a retry would carry it again
    target: Target
    received_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=perf_counter)
    principal: Principal = ANONYMOUS
    tenant: Tenant | None = None
    tried: str | None = None  # the organization that is not there, or not the caller's, when there is no tenant
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # for the answer, whoever gives it
    status: int = 0  # of the answer, once somebody gave it
    answer_began: bool = False  # the client has some of it

    def elapsed_ms(self) -> float:
        return round((perf_counter() - self.started) * 1000, 3)


def set_context(scope: Scope, context: RequestContext) -> None:
    scope[_KEY] = context


def context_of(scope: Scope) -> RequestContext:
    context: RequestContext = scope[_KEY]
    return context


def single_header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header that may come once.

    Raises AMBIGUOUS_HEADER (400): of two values, the gateway and PostgREST could each believe another one.
    """
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        text = f"{name.decode('latin-1')} was sent {len(values)} times"
        raise problem("AMBIGUOUS_HEADER", text, hint="Send it once.")
    return values[0] if values else None

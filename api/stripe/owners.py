"""Who asks for a checkout or the portal, and for which organization. Whether they own it, Postgres says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from starlette.requests import Request

from api.allowances import Allowances
from api.context import context_of
from api.database import DatabaseError
from api.errors import problem
from api.rate_limits.rate_limits import RateLimits
from api.tenants import Tenants

MOST_AGENT: Final = 256


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who asks for an organization that they are in, or were a moment ago."""

    user_id: UUID
    organization_id: UUID
    caller: str  # as the audit log takes it, as JSON text


class People:
    def __init__(self, tenants: Tenants, allowances: Allowances, rate_limits: RateLimits | None) -> None:
        self._tenants = tenants
        self._allowances = allowances
        self._rate_limits = rate_limits

    @staticmethod
    def require_somebody(request: Request) -> None:
        """Before anything of a body is taken in. Raises INVALID_TOKEN (401), ROLE_REQUIRED, SCOPE_REQUIRED (403)."""
        principal = context_of(request.scope).principal
        if principal.key is not None:
            raise problem(
                "SCOPE_REQUIRED",
                "no API key may do this, whatever its scopes",
                hint="People do it, with a token of role member.",
            )
        if principal.token is None:
            raise problem("INVALID_TOKEN", "there is no token", hint="Send that of an owner as a Bearer token.")
        if principal.role != "member":
            raise problem(
                "ROLE_REQUIRED",
                f"an owner of the organization does this, and not {principal.role}",
                hint="Staff does it at Stripe.",
            )

    async def find(self, request: Request, organization: str) -> Person:
        """Raises what require_somebody() does, and NOT_A_MEMBER (403), RATE_LIMITED (429): each request is one to
        Stripe, which takes so many of all our tenants together.
        """
        self.require_somebody(request)
        context = context_of(request.scope)
        principal = context.principal
        try:
            tenant = (await self._tenants.resolve(principal, organization)).tenant
            if tenant is None or tenant.user_id is None:
                raise problem(
                    "NOT_A_MEMBER",
                    "you are not a member of this organization",
                    hint="GET /organizations without X-Organization-ID lists yours.",
                )
            if self._rate_limits is not None:
                allowance = await self._allowances.of(tenant.organization_id)
                await self._rate_limits.take(context, tenant.organization_id, allowance.plan)
        except DatabaseError as error:
            raise error.problem() or error from None
        client = request.scope.get("client")
        caller = {
            "ip": client[0] if client else None,
            "user_agent": request.headers.get("user-agent", "")[:MOST_AGENT] or None,
            "request_id": context.request_id,
        }
        return Person(tenant.user_id, tenant.organization_id, json.dumps(caller))

"""Forwards what an organization may still ask: within the rate limit of its plan, and within its hard quotas."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from api.allowances import Allowances
from api.context import context_of
from api.database import DatabaseError
from api.quotas import Quotas
from api.rate_limits.rate_limits import RateLimits


class AllowanceOfTenant:
    """RATE_LIMITED (429) for any request of a tenant, QUOTA_EXCEEDED (402) for billable ones."""

    def __init__(self, app: ASGIApp, allowances: Allowances, rate_limits: RateLimits | None, quotas: Quotas) -> None:
        self._app = app
        self._allowances = allowances
        self._rate_limits = rate_limits
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        tenant = context.tenant
        if tenant is None:
            await self._app(scope, receive, send)
            return
        organization_id = tenant.organization_id
        try:
            allowance = await self._allowances.of(organization_id)
        except DatabaseError as error:
            raise error.problem() or error from None
        if self._rate_limits is not None:
            await self._rate_limits.take(context, organization_id, allowance.plan)
        if allowance.counts_requests and context.target.billable is not None:
            await self._quotas.forward(self._app, scope, receive, send, organization_id)
        else:
            await self._app(scope, receive, send)

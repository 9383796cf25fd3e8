"""Finds out for which organization a member asks, before the request is forwarded, so that what is metered is exactly
the organization that PostgREST will use.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from api.context import RequestContext, context_of, single_header
from api.database import DatabaseError
from api.errors import Problem, problem
from api.tenants import Tenants

HEADER = b"x-organization-id"
MAX_NAMED: Final = 80
# PostgREST can answer with these before it has asked the database who it is. What we remember of them is then all that
# they are billed by, so it is forgotten.
UNASKED: Final = frozenset({300, 400, 404, 405, 406, 413, 415, 416})


class TenantResolution:
    """Sets the tenant of a member's request. Unresolved, what is billable is refused here, and the rest goes on:
    PostgREST refuses it.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        path = context.target.upstream
        if path is None or context.principal.role != "member":
            await self._app(scope, receive, send)
            return
        try:
            resolution = await self._tenants.resolve(context.principal, organization_named(scope))
        except DatabaseError as error:
            raise error.problem() or error from None
        context.tenant, context.tried = resolution.tenant, resolution.tried
        if context.tenant is None and context.target.billable is not None:
            raise _no_tenant(context)
        try:
            await self._app(scope, receive, send)
        finally:
            # POST to a function: create_organization, accept_invitation and the like.
            if context.status in UNASKED or (scope["method"] == "POST" and path.startswith(b"/rpc/")):
                self._tenants.forget(context.principal)


def organization_named(scope: Scope) -> str | None:
    """The organization as the client named it: in the path, else by header, else by the token's claim. UUID or slug."""
    context = context_of(scope)
    if context.target.organization is not None:
        return context.target.organization
    header = single_header(scope, HEADER)
    named = header.decode("latin-1").strip() if header is not None else ""
    return named or context.principal.organization


def _no_tenant(context: RequestContext) -> Problem:
    """What tenancy.enter says in SQL. It is said here, since by the time PostgREST asks there could be such a tenant,
    and nobody would be billed for the answer.
    """
    tried = context.tried
    if tried is not None and context.principal.key is not None:
        return problem(
            "NOT_A_MEMBER",
            f"this API key is not for organization {tried[:MAX_NAMED]}",
            hint="Leave X-Organization-ID out: a key is for one organization.",
        )
    if tried is not None:
        return problem(
            "NOT_A_MEMBER",
            f"you are not a member of organization {tried[:MAX_NAMED]}",
            hint="GET /organizations without X-Organization-ID lists yours.",
        )
    return problem(
        "ORGANIZATION_REQUIRED",
        "no organization was chosen and you have no default one",
        hint="Send X-Organization-ID (id or slug), or a token with the claim org_id.",
    )

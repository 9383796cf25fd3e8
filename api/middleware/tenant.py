"""Finds out for which organization a member asks, before the request is forwarded, so that what is metered is exactly
the organization that PostgREST will use.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import context_of, single_header
from api.database import DatabaseError
from api.routes import upstream_path
from api.tenants import Tenants

HEADER = b"x-organization-id"
# PostgREST can answer with these before it has asked the database who it is. What we remember of them is then all that
# they are billed by, so it is forgotten.
UNASKED: Final = frozenset({300, 400, 404, 405, 406, 413, 415, 416})


class TenantResolution:
    """Sets the tenant of a member's request. Unresolved, the request goes on: Usage refuses what is billable, and
    PostgREST the rest.
    """

    def __init__(self, app: ASGIApp, tenants: Tenants) -> None:
        self._app = app
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = upstream_path(scope) if scope["type"] == "http" else None
        if path is None or context_of(scope).principal.role != "member":
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        try:
            resolution = await self._tenants.resolve(context.principal, organization_named(scope))
        except DatabaseError as error:
            raise error.problem() or error from None
        context.tenant, context.tried = resolution.tenant, resolution.tried

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in UNASKED:
                self._tenants.forget(context.principal)
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            if scope["method"] == "POST" and path.startswith(b"/rpc/"):
                self._tenants.forget(context.principal)  # create_organization, accept_invitation and the like


def organization_named(scope: Scope) -> str | None:
    """The organization as the client named it: header first, then the token's claim. UUID or slug."""
    header = single_header(scope, HEADER)
    named = header.decode("latin-1").strip() if header is not None else ""
    return named or context_of(scope).principal.organization

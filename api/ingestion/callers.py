"""Who may send usage, and for which organization."""

from __future__ import annotations

from uuid import UUID

from starlette.requests import Request

from api.context import context_of
from api.errors import problem
from api.middleware.tenant import organization_named
from api.tenants import Tenants


def require_service(request: Request) -> None:
    """Raises INVALID_TOKEN (401), SCOPE_REQUIRED and ROLE_REQUIRED (403)."""
    principal = context_of(request.scope).principal
    if principal.token is None and principal.key is None:
        raise problem("INVALID_TOKEN", "there is no token", hint="Send one of role service as a Bearer token.")
    if principal.key is not None and not principal.key.is_providers:
        raise problem("SCOPE_REQUIRED", "sending usage events needs a key of the provider (events:write)")
    if principal.role != "service":
        raise problem("ROLE_REQUIRED", "only role service sends usage events", hint="Usage is the provider's to write.")


async def organization_id(request: Request, tenants: Tenants) -> UUID | None:
    """The organization of the whole request, or None when each event names its own.

    Raises ORGANIZATION_NOT_FOUND (404), and NOT_A_MEMBER (403) for a key of another one.
    """
    named = organization_named(request.scope)
    if named is None:
        return None
    principal = context_of(request.scope).principal
    tenant = (await tenants.resolve(principal, named)).tenant
    if tenant is None and principal.key is not None and principal.key.organization_id is not None:
        # As Postgres says of another organization that is there, word for word.
        raise problem(
            "NOT_A_MEMBER",
            "this API key is for another organization",
            hint="Leave X-Organization-ID out: this key is for one organization.",
        )
    if tenant is None:
        raise problem(
            "ORGANIZATION_NOT_FOUND",
            "there is no such organization",
            hint="X-Organization-ID takes the id or the slug of an organization.",
        )
    return tenant.organization_id

"""POST /api/billing/report-usage: reports of usage are made and sent now, and not when their hour is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from api.context import context_of
from api.database import Database, DatabaseError
from api.errors import problem
from api.ingestion.body import read_text, refuse_declared
from api.ingestion.callers import organization_id
from api.ingestion.content import Content
from api.ingestion.limits import Room
from api.stripe.banner import Account
from api.tenants import Tenants

if TYPE_CHECKING:
    from api.stripe.reporting import Reporting

REPORT_USAGE_PATHS: Final = ("/api/billing/report-usage", "/billing/report-usage")
SECONDS: Final = 20.0  # a proxy in front may give up after thirty
MOST_BYTES: Final = 16 * 1024
BODIES_IN_MEMORY: Final = 64


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tenant_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None


def report_routes(database: Database, tenants: Tenants, account: Account, reporting: Reporting | None) -> list[Route]:
    report = ReportUsage(database, tenants, account, reporting)
    return [Route(path, report.receive, methods=["POST"]) for path in REPORT_USAGE_PATHS]


class ReportUsage:
    def __init__(self, database: Database, tenants: Tenants, account: Account, reporting: Reporting | None) -> None:
        self._database = database
        self._tenants = tenants
        self._account = account
        self._reporting = reporting
        self._room = Room(BODIES_IN_MEMORY * MOST_BYTES)

    async def receive(self, request: Request) -> Response:
        """Errors: 401; 403 ROLE_REQUIRED, SCOPE_REQUIRED, NOT_A_MEMBER; 400 INVALID_BODY; 404 ORGANIZATION_NOT_FOUND;
        413; 503 without Postgres. That Stripe does not answer is none: what waits is sent by itself.
        """
        _require_provider(request)
        try:
            organization = await self._organization(request)
            answer: dict[str, object] = {"sent": 0, "units": {}}
            if self._reporting is not None:
                tally = await self._reporting.report_now(organization, SECONDS)
                answer = {"sent": tally.sent, "units": dict(tally.units)}
            waiting = await self._database.report_backlog(organization)
        except DatabaseError as error:
            raise error.problem() or error from None
        return JSONResponse(
            {
                **answer,
                "pending": waiting.pending,
                "rejected": waiting.rejected,
                "uncertain": waiting.uncertain,
                **self._account.said(),
                "invoice_mode": waiting.invoice_mode,
            }
        )

    async def _organization(self, request: Request) -> UUID | None:
        """Which one it is for; None: all. A key for one organization is for that."""
        named = await organization_id(request, self._tenants)
        asked = await self._read(request)
        principal = context_of(request.scope).principal
        if asked.tenant_id is not None:
            tenant = (await self._tenants.resolve(principal, asked.tenant_id)).tenant
            if tenant is None:
                raise problem(
                    "ORGANIZATION_NOT_FOUND",
                    "there is no such organization",
                    hint="tenant_id is the id or the slug of an organization.",
                )
            if named is not None and named != tenant.organization_id:
                raise problem("INVALID_BODY", "tenant_id is another organization than X-Organization-ID")
            named = tenant.organization_id
        if named is None and principal.key is not None:
            return principal.key.organization_id
        return named

    async def _read(self, request: Request) -> Asked:
        refuse_declared(request, MOST_BYTES)
        with self._room.share() as share:
            text = await read_text(request, Content("events"), MOST_BYTES, share)
        if not text.strip():
            return Asked()
        try:
            return Asked.model_validate_json(text)
        except ValidationError as error:
            raise problem(
                "INVALID_BODY",
                f"the body is no JSON of {{tenant_id}}: {error.errors()[0]['msg']}",
                hint="It may be left out.",
            ) from None


def _require_provider(request: Request) -> None:
    """Raises INVALID_TOKEN (401), SCOPE_REQUIRED and ROLE_REQUIRED (403)."""
    principal = context_of(request.scope).principal
    if principal.token is None and principal.key is None:
        raise problem("INVALID_TOKEN", "there is no token", hint="Send one of role platform_admin or service.")
    if principal.key is not None and not principal.key.is_providers:
        raise problem("SCOPE_REQUIRED", "reporting usage needs a key of the provider (events:write)")
    if principal.role not in ("platform_admin", "service"):
        raise problem(
            "ROLE_REQUIRED", "only the provider reports usage", hint="Send a token of role platform_admin or service."
        )

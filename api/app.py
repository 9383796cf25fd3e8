"""The sidecar, put together: routes, middlewares in their order, and what runs beside the requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from api.auth import IdentityProvider, TokenVerifier
from api.cors import AllowedOrigins
from api.database import Database, DatabaseError
from api.docs import docs_routes
from api.errors import Problem, problem
from api.gateway import Gateway
from api.health import health_endpoint
from api.ingestion.endpoint import EventsEndpoint
from api.jwks import JwksError, KeySet
from api.keys import ApiKeys
from api.metrics import METRICS_PATH, Metrics, metrics_endpoint
from api.middleware.authentication import Authentication
from api.middleware.client_address import ClientAddress
from api.middleware.correlation import CorrelationId
from api.middleware.cors import Cors
from api.middleware.failures import Failures
from api.middleware.observation import Observation
from api.middleware.tenant import TenantResolution
from api.middleware.timer import Timer
from api.middleware.usage import Usage
from api.patience import Patience
from api.refusals import Refusals
from api.routes import GATEWAY_PREFIX, BillableRoutes
from api.sender import Sender
from api.settings import Settings, SettingsError
from api.spool import Spool
from api.tenants import Tenants
from api.tokens import Exchange
from api.upstream import Upstream

log = structlog.get_logger(__name__)

MAINTENANCE_SECONDS: Final = 3600.0
MAINTENANCE_RETRY_SECONDS: Final = 10.0
RESTART_SECONDS: Final = 1.0


def create_app(settings: Settings, spool: Spool) -> Starlette:
    """The ASGI application, with a spool that is open. Raises SettingsError when a needed setting is missing, or names
    a file that is not what it should be.
    """
    database = Database(settings.require("database_url"), settings.database_pool_size, settings.event_max_future)
    provider = _identity_provider(settings)
    verifier = TokenVerifier(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience, provider)
    keys = ApiKeys(database, Exchange(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience))
    tenants = Tenants(database)
    postgrest = Upstream(settings.require("postgrest_url"))
    metrics = Metrics(spool, database)
    refusals = Refusals(database, metrics)
    token = settings.metrics_token
    show_metrics = metrics_endpoint(metrics, token.get_secret_value() if token is not None else None)
    tasks = Tasks()
    events = EventsEndpoint(
        database,
        tenants,
        metrics.events,
        max_bytes=settings.max_ingest_bytes,
        pool_size=settings.database_pool_size,
        wait_seconds=settings.ingest_wait_seconds,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        sender = Sender(spool, database, metrics.events)
        to_finish = [
            tasks.start("shipping", sender.run),
            tasks.start("refusals", refusals.run),
            tasks.start("key-uses", keys.run),
        ]
        beside = [
            tasks.start("syncing", spool.keep_synced),
            tasks.start("maintenance", lambda: _maintain(database)),
            *([tasks.start("identity-keys", provider.keys.keep_fresh)] if provider is not None else ()),
        ]
        try:
            yield
        finally:
            postgrest.close()
            sender.close()
            refusals.close()
            keys.close()
            await asyncio.wait(to_finish, timeout=settings.spool_drain_seconds)
            for task in (*to_finish, *beside):
                task.cancel()
            await asyncio.gather(*to_finish, *beside, return_exceptions=True)
            await database.close()

    app = Starlette(
        routes=[
            Mount(GATEWAY_PREFIX.decode(), Gateway(postgrest, Patience(database.answers))),
            Route("/v1/events", events.receive, methods=["POST"]),
            Route(
                "/health",
                health_endpoint(database, spool, postgrest, tasks.stopped, provider.keys if provider else None),
            ),
            *([Route(METRICS_PATH, show_metrics)] if settings.metrics_are_served else ()),
            *(docs_routes(database) if settings.docs_are_served else ()),
        ],
        middleware=[
            Middleware(ClientAddress, proxies=settings.trusted_proxies),
            Middleware(CorrelationId),
            Middleware(Observation, metrics=metrics, refusals=refusals),
            Middleware(Cors, allowed=AllowedOrigins(settings.allowed_origins)),
            Middleware(Failures),
            Middleware(Timer),
            Middleware(Authentication, verifier=verifier, keys=keys),
            Middleware(TenantResolution, tenants=tenants),
            Middleware(Usage, spool=spool, routes=BillableRoutes(settings.billable_routes)),
        ],
        exception_handlers={HTTPException: _answer_http_exception, Problem: _answer_problem},
        lifespan=lifespan,
    )
    app.state.metrics = metrics
    # A redirect would say http: and whatever Host came, behind a proxy that takes https: as well.
    app.router.redirect_slashes = False
    return app


def _identity_provider(settings: Settings) -> IdentityProvider | None:
    if settings.jwt_jwks_url is None:
        return None
    try:
        keys = KeySet(settings.jwt_jwks_url, settings.jwt_jwks_refresh_seconds)
    except JwksError as error:
        raise SettingsError(f"JWT_JWKS_URL is {settings.jwt_jwks_url}: {error}.") from None
    exchange = Exchange(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience)
    return IdentityProvider(keys, exchange, settings.jwt_role_claim)


class Tasks:
    """What runs beside the requests. One that fails is started again after a pause; until then /health names it."""

    def __init__(self) -> None:
        self._running: dict[str, bool] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(self._keep(name, run), name=name)

    def stopped(self) -> list[str]:
        return sorted(name for name, is_running in self._running.items() if not is_running)

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            self._running[name] = True
            try:
                await run()
            except Exception:  # a mistake of ours, which must not end metering unnoticed
                log.exception("task_failed", task=name)
            else:
                return
            finally:
                self._running[name] = False
            await asyncio.sleep(RESTART_SECONDS)


async def _maintain(database: Database) -> None:
    """Make partitions ahead, at start and every hour."""
    while True:
        pause = MAINTENANCE_SECONDS
        try:
            await database.maintain()
        except DatabaseError as error:
            log.warning("maintenance_failed", state=error.state, error=error.message or str(error))
            pause = MAINTENANCE_RETRY_SECONDS
        await asyncio.sleep(pause)


async def _answer_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101
    return error.response()


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    """What Starlette's router raises: no such path, or not this method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 405:
        answer = problem("METHOD_NOT_ALLOWED", "this path does not take that method").response()
    else:
        answer = problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="The API is at /api/v1/.").response()
    answer.headers.update(error.headers or {})
    return answer

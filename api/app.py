"""The sidecar, put together: routes, middlewares in their order, and what runs beside the requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

import structlog
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from api.alerts import Alerts
from api.allowances import Allowances
from api.auth import IdentityProvider, TokenVerifier
from api.closing import Closing
from api.context import context_of
from api.cors import AllowedOrigins
from api.database import Database
from api.docs import docs_routes
from api.endpoints import Endpoints
from api.gateway import Gateway
from api.health import health_endpoint
from api.ingestion.routes import ingestion_routes
from api.invoices.routes import invoice_routes
from api.jwks import JwksError, KeySet
from api.keys import ApiKeys
from api.metrics import METRICS_PATH, Metrics, metrics_endpoint
from api.middleware.allowance import AllowanceOfTenant
from api.middleware.authentication import Authentication
from api.middleware.client_address import ClientAddress
from api.middleware.cors import Cors
from api.middleware.entry import Entry
from api.middleware.failures import Failures
from api.middleware.tenant import TenantResolution
from api.observation import Observation
from api.patience import Patience
from api.plans import plans_routes
from api.quotas import Quotas
from api.rate_limits.counters import LocalCounters
from api.rate_limits.rate_limits import RateLimits
from api.refusals import Refusals
from api.routes import REPORT_ROUTES, STRIPE_WEBHOOK_ROUTES, BillableRoutes, Targets
from api.scheduler import Rollups, every_hour
from api.sender import Sender
from api.settings import Settings, SettingsError
from api.spool import Spool
from api.stripe.backlog import EventBacklog
from api.stripe.banner import Account
from api.stripe.inbox import Inbox
from api.stripe.owners import People
from api.stripe.report_usage import report_routes
from api.stripe.routes import owner_routes
from api.stripe.webhook import StripeWebhook
from api.stripe.worker import Reapplying
from api.subscriptions import Subscriptions
from api.tenants import Tenants
from api.tokens import Exchange
from api.upstream import Upstream
from api.usage import Usage
from api.webhooks.backlog import WebhookBacklog
from api.webhooks.receiver import Receiver
from api.webhooks.sending import AT_ONCE, WebhookSender
from api.webhooks.signing import Signer

if TYPE_CHECKING:
    from api.rate_limits.shared_counters import SharedCounters
    from api.stripe.client import Stripe
    from api.stripe.invoice_items import InvoiceItems
    from api.stripe.reconciliation import Reconciling
    from api.stripe.refetch import Refetching
    from api.stripe.reporting import Reporting

log = structlog.get_logger(__name__)

RESTART_SECONDS: Final = 1.0


def create_app(settings: Settings, spool: Spool) -> Sidecar:
    """The ASGI application, with a spool that is open. Raises SettingsError when a needed setting is missing, or names
    a file that is not what it should be.
    """
    database = Database(settings.require("database_url"), settings.database_pool_size, settings.event_max_future)
    provider = _identity_provider(settings)
    verifier = TokenVerifier(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience, provider)
    keys = ApiKeys(database, Exchange(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience))
    tenants = Tenants(database)
    postgrest = Upstream(settings.require("postgrest_url"))
    rollups = Rollups(database)
    alerts = Alerts(database)
    subscriptions = Subscriptions(database)
    closing = Closing(database, settings.billing_grace) if settings.close_periods else None
    allowances, quotas = Allowances(database), Quotas(database)
    local_counters = LocalCounters()
    shared_counters = _shared_counters(settings, local_counters)
    webhooks, webhook_backlog = _webhook_sender(settings, database), WebhookBacklog(database)
    tiers = settings.tier_rate_limits
    rate_limits = RateLimits(tiers, shared_counters or local_counters) if tiers else None
    stripe = _stripe(settings)
    refetching = _refetching(database, stripe)
    invoice_items = _invoice_items(database, stripe)
    reporting = _reporting(database, stripe)
    reconciling = _reconciling(database, stripe)
    people = People(tenants, allowances, rate_limits)
    account = Account(stripe, settings.stripe_publishable_key, settings.app_url)
    inbox, stripe_backlog = Inbox(database, _stripe_mode(settings)), EventBacklog(database)
    hears_stripe = settings.stripe_webhook_secret is not None or settings.stripe_secret_key is not None
    of_stripe = (inbox, stripe_backlog) if hears_stripe else ()
    collectors = (
        one
        for one in (
            *(closing, shared_counters, webhooks),
            *(stripe, refetching, invoice_items, reporting, reconciling, *of_stripe),
        )
        if one is not None
    )
    metrics = Metrics(spool, database, rollups, alerts, webhook_backlog, *collectors)
    refusals = Refusals(database, metrics)
    token = settings.metrics_token
    show_metrics = metrics_endpoint(metrics, token.get_secret_value() if token is not None else None)
    tasks = Tasks()

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        sender = Sender(spool, database, metrics.events_of("gateway"))
        to_finish = [
            tasks.start("shipping", sender.run),
            tasks.start("refusals", refusals.run),
            tasks.start("key-uses", keys.run),
            *([tasks.start("webhooks", webhooks.run)] if webhooks is not None else ()),
        ]
        beside = [
            tasks.start("syncing", spool.keep_synced),
            tasks.start("repeats", metrics.repeated_events.keep_read),
            tasks.start("maintenance", lambda: every_hour("maintenance", database.maintain)),
            tasks.start("storage-snapshots", lambda: every_hour("storage_snapshots", database.take_storage_snapshots)),
            tasks.start("rollups", rollups.run),
            tasks.start("alerts", alerts.run),
            tasks.start("subscriptions", subscriptions.run),
            tasks.start("allowances", allowances.run),
            tasks.start("quotas", quotas.run),
            tasks.start("webhook-backlog", webhook_backlog.keep_read),
            tasks.start("endpoints", lambda: endpoints.keep_read(database)),
            *([tasks.start("stripe-events", Reapplying(database, inbox).run)] if hears_stripe else ()),
            *([tasks.start("stripe-backlog", stripe_backlog.keep_read)] if hears_stripe else ()),
            *([tasks.start("stripe-refetches", refetching.run)] if refetching is not None else ()),
            *([tasks.start("stripe-invoice-items", invoice_items.run)] if invoice_items is not None else ()),
            *([tasks.start("stripe-reports", reporting.run)] if reporting is not None else ()),
            *([tasks.start("stripe-reconciliation", reconciling.run)] if reconciling is not None else ()),
            *([tasks.start("closing", closing.run)] if closing is not None else ()),
            *([tasks.start("redis", shared_counters.run)] if shared_counters is not None else ()),
            *([tasks.start("identity-keys", provider.keys.keep_fresh)] if provider is not None else ()),
        ]
        try:
            yield
        finally:
            postgrest.close()
            sender.close()
            refusals.close()
            keys.close()
            if webhooks is not None:
                webhooks.close()
            await asyncio.wait(to_finish, timeout=settings.spool_drain_seconds)
            for task in (*to_finish, *beside):
                task.cancel()
            await asyncio.gather(*to_finish, *beside, return_exceptions=True)
            if stripe is not None:
                await stripe.close()
            await database.close()

    billable = BillableRoutes(settings.billable_routes)
    endpoints = Endpoints(billable)
    gateway = Gateway(postgrest, Patience(database.answers), endpoints)
    router = Router(
        [
            # In the order of how much they are asked for: they are tried one after the other.
            *ingestion_routes(settings, database, tenants, metrics.events_of),
            *(Route(path, gateway, methods=["GET"]) for path in REPORT_ROUTES),
            *invoice_routes(gateway),
            *_stripe_webhook_routes(settings, inbox),
            *owner_routes(database, people, account),
            *report_routes(database, tenants, account, reporting),
            *plans_routes(gateway),
            Route(
                "/health",
                health_endpoint(
                    database, spool, postgrest, tasks.stopped, provider.keys if provider else None, shared_counters
                ),
            ),
            *([Route(METRICS_PATH, show_metrics)] if settings.metrics_are_served else ()),
            *(docs_routes(database) if settings.docs_are_served else ()),
        ],
        # A redirect would say http: and whatever Host came, behind a proxy that takes https: as well.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    endpoints.add_routes(router.routes)
    app: ASGIApp = Dispatch(gateway, router)
    app = AllowanceOfTenant(app, allowances, rate_limits, quotas)
    app = TenantResolution(app, tenants)
    app = Authentication(app, verifier, keys)
    app = Failures(app)
    app = Cors(app, AllowedOrigins(settings.allowed_origins))
    usage = Usage(spool, endpoints, settings.usage_ip)
    app = Entry(app, Targets(billable), usage, Observation(metrics, refusals))
    if settings.trusted_proxies:
        app = ClientAddress(app, settings.trusted_proxies)
    return Sidecar(app, router, metrics)


class Sidecar:
    """The ASGI application."""

    def __init__(self, app: ASGIApp, router: Router, metrics: Metrics) -> None:
        self.router = router
        self.metrics = metrics
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # without one, Starlette's router answers in plain text
        await (self._app if scope["type"] == "http" else self.router)(scope, receive, send)


class Dispatch:
    """To the gateway without a detour: most requests are for it."""

    def __init__(self, gateway: Gateway, router: Router) -> None:
        self._gateway = gateway
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = context_of(scope).target
        await (self._router if target.is_own_route else self._gateway)(scope, receive, send)


def _shared_counters(settings: Settings, local: LocalCounters) -> SharedCounters | None:
    if settings.redis_url is None or not settings.tier_rate_limits:
        return None
    from api.rate_limits.shared_counters import SharedCounters  # which takes a while, and memory

    return SharedCounters(settings.redis_url, local)


def _identity_provider(settings: Settings) -> IdentityProvider | None:
    if settings.jwt_jwks_url is None:
        return None
    try:
        keys = KeySet(settings.jwt_jwks_url, settings.jwt_jwks_refresh_seconds)
    except JwksError as error:
        raise SettingsError(f"JWT_JWKS_URL is {settings.jwt_jwks_url}: {error}.") from None
    exchange = Exchange(settings.require("jwt_secret"), settings.jwt_algorithm, settings.jwt_audience)
    return IdentityProvider(keys, exchange, settings.jwt_role_claim)


def _stripe_webhook_routes(settings: Settings, inbox: Inbox) -> list[Route]:
    """They are there without a secret, too: then they say what is missing."""
    signatures = None
    if (secrets := settings.stripe_webhook_secret) is not None:
        from api.stripe.signature import Signatures  # which takes a while

        signatures = Signatures([secret.strip() for secret in secrets.get_secret_value().split(",")])
    webhook = StripeWebhook(signatures, inbox)
    return [Route(path, webhook, methods=["POST"]) for path in STRIPE_WEBHOOK_ROUTES]


def _stripe_mode(settings: Settings) -> bool | None:
    """Whether the key is one of live mode; None: there is no key."""
    key = settings.stripe_secret_key
    return None if key is None else key.get_secret_value().split("_")[1] == "live"


def _stripe(settings: Settings) -> Stripe | None:
    """None: there is no key, and nothing is asked of Stripe."""
    if settings.stripe_secret_key is None:
        return None
    from api.stripe.client import Stripe  # whose SDK takes a while to import

    return Stripe(settings.stripe_secret_key.get_secret_value(), settings.stripe_api_base)


def _refetching(database: Database, stripe: Stripe | None) -> Refetching | None:
    if stripe is None:
        return None
    from api.stripe.refetch import Refetching

    return Refetching(database, stripe)


def _invoice_items(database: Database, stripe: Stripe | None) -> InvoiceItems | None:
    if stripe is None:
        return None
    from api.stripe.invoice_items import InvoiceItems

    return InvoiceItems(database, stripe)


def _reporting(database: Database, stripe: Stripe | None) -> Reporting | None:
    if stripe is None:
        return None
    from api.stripe.reporting import Reporting

    return Reporting(database, stripe)


def _reconciling(database: Database, stripe: Stripe | None) -> Reconciling | None:
    if stripe is None:
        return None
    from api.stripe.reconciliation import Reconciling

    return Reconciling(database, stripe)


def _webhook_sender(settings: Settings, database: Database) -> WebhookSender | None:
    """None: messages wait until there is a WEBHOOK_URL."""
    if settings.webhook_url is None:
        return None
    return WebhookSender(
        database, Receiver(settings.webhook_url, Signer(settings.require("webhook_secret")), connections=AT_ONCE)
    )


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

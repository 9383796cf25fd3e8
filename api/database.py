"""Everything the sidecar asks of Postgres: a handful of functions, called with parameters. All of its SQL is here.

One pool (SQLAlchemy's, which reconnects at checkout and so survives a restart of Postgres). Batches of events go
through as one text parameter that Postgres parses; see docs/decisions/0002-sidecar-database-access.md. What happens
while Postgres is away, hangs, or has another schema: docs/decisions/0007-when-a-part-is-away.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from traceback import clear_frames
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.waiting import wait_async
from sqlalchemy import Result, Row, Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import QueuePool

from api.auth import ApiKey
from api.codes import CODES
from api.context import Allowance, Resolution, Tenant
from api.errors import Problem, problem
from api.ingestion.batch import Batch
from api.schema_version import compare

CONNECT_TIMEOUT_SECONDS: Final = 3
POOL_TIMEOUT_SECONDS: Final = 3
STATEMENT_TIMEOUT_MS: Final = 30_000
HEALTH_TIMEOUT_SECONDS: Final = 2
# A server that hangs enforces no timeout of its own. Waiting for a connection includes making one, or trying it out.
CHECKOUT_TIMEOUT_SECONDS: Final = CONNECT_TIMEOUT_SECONDS + POOL_TIMEOUT_SECONDS
ANSWER_SECONDS: Final = 3  # in which a server that is well says that a statement took too long
CALL_TIMEOUT_SECONDS: Final = STATEMENT_TIMEOUT_MS / 1000 + ANSWER_SECONDS
QUICK_CALL_TIMEOUT_SECONDS: Final = 5
PATIENT_CALL_TIMEOUT_SECONDS: Final = 600
WAIT_INTERVAL_SECONDS: Final = 0.1

_INGEST: Final = "select metering.receive_events(%s, %s::uuid, %s, %s, %s::uuid, %s, %s)::text"
_INGEST_GROUP: Final = """
  select outcome::text, error_state, error_message, error_details, error_hint
  from metering.receive_group(%b::text[], %b::uuid[], %b::uuid[], %b::text[], %b::text[], %s)
  order by position
"""
_HEALTH: Final = select(func.ops.health())
_DUE_PERIODS: Final = "select organization_id, period_start, due_at from billing.due_periods(%s, %s, %s::uuid[])"
_CLOSE_PERIOD: Final = "select billing.close_period(%s, %s)"
_GATEWAY_LIMITS: Final = """
  select o.id, l.allowed ->> 'plan' as plan, (l.allowed -> 'counts_requests')::boolean as counts_requests
  from unnest(%s::uuid[]) as o (id)
  cross join lateral (select billing.gateway_limits(o.id) as allowed) l
"""
_TAKE_REQUEST: Final = "select billing.take_request(%s)"
_GIVE_BACK_REQUEST: Final = "select billing.give_back_request(%s, %s)"
_LET_STATEMENTS_TAKE: Final = "select set_config('statement_timeout', %s, false)"
_NOTHING: Final = "select 1"
_REJECT_LATE: Final = "reject"
_REPEATED: Final = """
  select source, organization_id, duplicates, conflicts, locked
  from metering.repeated_events(make_interval(secs => %s))
  limit %s
"""
_VOID: Final = "select metering.void_event(%s::uuid, %s, %s, %s, %s, %s::uuid, %s::jsonb)::text"
_AMEND: Final = "select metering.amend_event(%s::uuid, %s, %s::jsonb, %s, %s, %s, %s::uuid, %s::jsonb, %s)::text"
_NOTE_KEY_USE: Final = "select tenancy.note_key_use(%s::jsonb)"
_REJECT: Final = "select metering.record_rejection(%s, %s::jsonb, %s, %s)"
_CLAIM_WEBHOOKS: Final = "select * from notifications.claim_webhooks(%s, %s)"
_WEBHOOK_DELIVERED: Final = "select notifications.mark_webhook_delivered(%s, %s, %s, %s)"
_WEBHOOK_FAILED: Final = "select notifications.mark_webhook_failed(%s, %s, %s, %s, %s, %s)"
_POSTPONE_WEBHOOK: Final = "select notifications.postpone_webhook(%s, %s, %s, %s)"
_WEBHOOK_BACKLOG: Final = "select pending, dead, oldest_seconds from notifications.webhook_backlog()"
_RECEIVE_STRIPE: Final = """
  select outcome, message, error_state, error_message
  from stripe.receive_events(%b::text[], %s, %s)
  order by position
"""
_DUE_STRIPE_EVENTS: Final = "select id from stripe.due_events(%s, %s)"
_APPLY_STRIPE_EVENT: Final = "select outcome, message from stripe.apply_event(%s)"
_FAIL_STRIPE_EVENT: Final = "select stripe.fail_event(%s, %s)"
_STRIPE_BACKLOG: Final = "select pending, dead, unlinked, oldest_seconds from stripe.event_backlog()"
_BEGIN_CHECKOUT: Final = "select stripe.begin_checkout(%s, %s, %s, %s, %s, %s)"
_RECORD_CHECKOUT: Final = "select stripe.record_checkout(%s, %s, %s, %s, %s, %s::jsonb)"
_CHECKOUTS_BESIDE: Final = "select stripe.checkouts_beside(%s, %s)"
_REQUIRE_ENDED: Final = "select stripe.require_ended(%s, %s)"
_BEGIN_PORTAL: Final = "select stripe.begin_portal(%s, %s, %s)"
_RECORD_PORTAL: Final = "select stripe.record_portal(%s, %s, %s, %s::jsonb)"
_CLAIM_REFETCHES: Final = "select object_type, object_id, asked from stripe.claim_refetches(%s, %s)"
_RECEIVE_FETCHED: Final = "select stripe.receive_fetched(%s, %s, %s, %s::jsonb, %s)"
_REFETCH_FAILED: Final = "select stripe.mark_refetch_failed(%s, %s, %s, %s, %s)"
_POSTPONE_REFETCH: Final = "select stripe.postpone_refetch(%s, %s, %s, %s)"
_DROP_REFETCH: Final = "select stripe.drop_refetch(%s, %s, %s)"
_BUILD_REPORTS: Final = "select meters, made from stripe.build_reports(%s, %s, %s::uuid, %s)"
_CLAIM_REPORTS: Final = "select * from stripe.claim_reports(%s, %s, %s, %s, %s::uuid)"
_RECORD_REPORTS: Final = "select stripe.record_reports(%s::jsonb)"
_TEND_REPORTS: Final = "select stripe.tend_reports(%s, %s)"
_REPORT_BACKLOG: Final = """
  select pending, rejected, uncertain, oldest_seconds, invoice_mode from stripe.report_backlog(%s::uuid)
"""
_CLAIM_ITEMS: Final = "select * from stripe.claim_invoice_items(%s, %s, %s)"
_ACKNOWLEDGE_ITEM: Final = "select stripe.acknowledge_invoice_item(%s, %s, %s)"
_RETRY_ITEM: Final = "select stripe.retry_invoice_item(%s, %s, %s, %s)"
_POSTPONE_ITEM: Final = "select stripe.postpone_invoice_item(%s, %s, %s, %s)"
_REJECT_ITEM: Final = "select stripe.reject_invoice_item(%s, %s, %s, %s)"
_RENEW_ITEM: Final = "select stripe.renew_invoice_item(%s, %s, %s)"
_ITEM_BACKLOG: Final = "select pending, uncertain, rejected, oldest_seconds from stripe.invoice_item_backlog()"
_CLAIM_RECONCILIATIONS: Final = "select organization_id, period_start from stripe.claim_reconciliations(%s, %s)"
_RECONCILIATION_QUESTION: Final = "select stripe.reconciliation_question(%s, %s)"
_RECONCILE: Final = """
  select kind, subject, ours, theirs, explained, drift, cause from stripe.reconcile(%s, %s, %s::jsonb)
"""
_STRIPE_DRIFT: Final = "select units, amounts, organizations from stripe.drift()"
_RECORD_REFUSALS: Final = "select audit.record_refusals(%s::jsonb)"

# Classes of SQLSTATE. What was sent is at fault, and would be again: data, constraints, limits, raised by ourselves.
_REFUSALS: Final = ("22", "21", "23", "54", "P0001", "PT4")
# The server is away, starting, stopping or out of connections; or it gave way to somebody else.
_AWAY: Final = ("08", "53", "57P")
_BUSY: Final = ("40", "55P03", "57014")
_PASSING: Final = ("08", "57P", "40")
# There is nothing to ask for the schema: nobody has migrated this database, or not enough of it.
_NO_SCHEMA: Final = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
)

RV = TypeVar("RV")


@dataclass(frozen=True, slots=True)
class Correction:
    """Which event is to be corrected, and who says so."""

    organization_id: UUID | None
    id: str
    source: str
    late: str
    reason: str | None
    key_id: UUID | None
    caller: str  # as metering.void_event() takes it, as JSON text


@dataclass(frozen=True, slots=True)
class Repeats:
    """How many events of a source an organization was sent again, or too late."""

    source: str
    organization_id: UUID
    duplicates: int
    conflicts: int
    locked: int


@dataclass(frozen=True, slots=True)
class DuePeriod:
    """A billing period that is to be closed."""

    organization_id: UUID
    period_start: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class ClaimedWebhook:
    """A message to the provider's application, which is ours to send for a while. `body` is what is signed."""

    organization_id: UUID
    id: UUID
    type: str
    attempts: int
    body: str


@dataclass(frozen=True, slots=True)
class WaitingWebhooks:
    """Messages that are not delivered: that wait, and that nobody tries to send any more."""

    pending: int
    dead: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of an event of Stripe's: applied, duplicate, stale, ignored, unlinked, pending or dead."""

    outcome: str
    message: str


@dataclass(frozen=True, slots=True)
class StripeBacklog:
    """Events of Stripe that are not applied: that are tried again, that are not, and whose customer is nobody's."""

    pending: int
    dead: int
    unlinked: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class BegunCheckout:
    """What Stripe is to be sent. `asked` and `number` are its idempotency key: the first says what makes two checkouts
    the same, the second counts those that are over.
    """

    params: dict[str, Any]
    asked: str
    number: int


@dataclass(frozen=True, slots=True)
class Refetch:
    """An object that Stripe is to be asked for. `asked` is how often that was wanted, until it was claimed."""

    object_type: str
    object_id: str
    asked: int


@dataclass(frozen=True, slots=True)
class ClaimedReport:
    """Usage of an hour, which is ours to tell Stripe of, or to have canceled there, for a while."""

    organization_id: UUID
    meter_code: str
    quantity: int
    identifier: str
    customer_id: str
    event_name: str
    happened_at: datetime
    is_canceling: bool
    attempts: int


@dataclass(frozen=True, slots=True)
class WaitingReports:
    """Reports of usage that Stripe has not acknowledged, and whose invoice counts from now on."""

    pending: int
    rejected: int
    uncertain: int
    oldest_seconds: float
    invoice_mode: str


@dataclass(frozen=True, slots=True)
class ClaimedItem:
    """An amount for Stripe's invoice, which is ours to send for a while. `amount` is in Stripe's smallest units.
    `is_lost`: it is to be looked for there.
    """

    organization_id: UUID
    id: UUID
    attempts: int
    idempotency_key: str
    is_lost: bool
    created_at: datetime
    customer_id: str
    subscription_id: str | None
    amount: int
    currency: str
    description: str
    period_start: datetime
    period_end: datetime
    tax_behavior: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WaitingItems:
    """Amounts that Stripe does not have, or may not have."""

    pending: int
    uncertain: int
    rejected: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class FiredAlerts:
    """What came of looking at alerts: whose could not be looked at, and why; whether more organizations wait."""

    fired: int
    failed: list[tuple[str, str]]
    more: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections to Postgres: how many there may be, and how many are lent out now."""

    size: int
    in_use: int


class DatabaseError(Exception):
    """Postgres did not do what was asked. `state` is the SQLSTATE, None when the server was not reached."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error).strip())
        self.state: str | None = None
        self.message = self.details = self.hint = ""
        self._unencodable = isinstance(error, psycopg.DataError) and error.sqlstate is None  # a NUL in a text
        self._broken = isinstance(error, psycopg.OperationalError) and not isinstance(
            error, psycopg.errors.ConnectionTimeout
        )
        if isinstance(error, psycopg.Error):
            self.state = error.sqlstate
            self.message = error.diag.message_primary or ""
            self.details = error.diag.message_detail or ""
            self.hint = error.diag.message_hint or ""

    @classmethod
    def raised(cls, state: str, message: str, details: str | None, hint: str | None) -> DatabaseError:
        """What a function of ours has caught, and returned beside what it did."""
        error = cls(RuntimeError(message))
        error.state, error.message, error.details, error.hint = state, message, details or "", hint or ""
        return error

    @property
    def passing(self) -> bool:
        """The connection broke, or the transaction gave way to another: the next attempt may well do it."""
        return (self._broken and self.state is None) or (self.state is not None and self.state.startswith(_PASSING))

    @property
    def refused(self) -> bool:
        """The data was refused: sending it again is useless."""
        return self._unencodable or (self.state is not None and self.state.startswith(_REFUSALS))

    @property
    def away(self) -> bool:
        """The server was not reached, did not answer, or is stopping: whatever was asked, it did not do it."""
        return self.state is None or self.state.startswith(_AWAY)

    @property
    def timed_out(self) -> bool:
        """It took longer than a statement may."""
        return self.state == "57014"

    @property
    def held_up(self) -> bool:
        """It was not waited for who holds a lock."""
        return self.state == "55P03"

    @property
    def malformed(self) -> bool:
        """What was refused is not JSON that Postgres can hold."""
        return self._unencodable or (self.state is not None and self.state.startswith(("22", "54")))

    def problem(self) -> Problem | None:
        """The answer for the client; None when this should not have happened at all."""
        if self.state is not None and self.state.startswith("PT") and self.state[2:].isdigit():
            known = CODES.get(self.message.partition(":")[0])
            hint = self.hint or (known.remedy if known is not None else None)
            return Problem(int(self.state[2:]), self.state, self.message, self.details or None, hint)
        if not self._unencodable and (self.state is None or self.state.startswith(_AWAY)):
            return problem("DATABASE_UNAVAILABLE", "the database cannot be reached", hint="Try again in a moment.")
        if self.state is not None and self.state.startswith(_BUSY):
            return problem("DATABASE_BUSY", "the database is busy with another change", hint="Try again in a moment.")
        return None


class SchemaMismatch(DatabaseError):
    """The database has other migrations than this code. Nothing is read from it, or written to it."""

    def __init__(self, text: str) -> None:
        super().__init__(RuntimeError(text))
        self.message = text

    def problem(self) -> Problem:
        return problem(
            "SCHEMA_MISMATCH",
            "the database has another version than the gateway",
            hint="Try again later. Operators: the gateway's log says what mends it.",
        )


class _Connection(psycopg.AsyncConnection[Any]):
    """One that is dropped when a wait for it is cancelled. psycopg would ask the server to cancel, and wait for that:
    a server that hangs does neither.
    """

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = WAIT_INTERVAL_SECONDS,
        timeout: float | None = None,  # noqa: ASYNC109 - as psycopg declares it
    ) -> RV:
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class Database:
    def __init__(self, url: str, pool_size: int, event_max_future: timedelta = timedelta(minutes=5)) -> None:
        given = conninfo_to_dict(url)
        conninfo = make_conninfo(
            url,
            connect_timeout=given.get("connect_timeout") or CONNECT_TIMEOUT_SECONDS,
            application_name="goldleaves-sidecar",
            options=f"{given.get('options') or ''} -c statement_timeout={STATEMENT_TIMEOUT_MS}".strip(),
        )

        async def connect(*_: Any, **__: Any) -> psycopg.AsyncConnection[Any]:
            return await _Connection.connect(conninfo, autocommit=True)

        self._connect = connect
        self._pool_size = pool_size
        self._event_max_future = event_max_future
        self._engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=connect,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=True,
            use_native_hstore=False,
        )
        self._schema_is_ours = False
        self._mismatch = False

    async def close(self) -> None:
        await self._engine.dispose()

    async def answers(self) -> bool:
        """Whether the server says anything to a new connection, a refusal too, before that times out."""
        try:
            await (await self._connect()).close()
        except psycopg.errors.ConnectionTimeout:
            return False
        except psycopg.Error:
            return True
        return True

    def pool(self) -> Pool:
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101
        return Pool(self._pool_size, pool.checkedout())

    @property
    def is_refused(self) -> bool:
        """Whether the database was reached and has another schema than ours."""
        return self._mismatch

    async def check_schema(self) -> None:
        """Raises SchemaMismatch, or another DatabaseError when the database cannot be asked."""
        await self._first(_NOTHING, within=QUICK_CALL_TIMEOUT_SECONDS)

    async def identify(self, subject: str | None, email: str | None, role: str, organization: str | None) -> Resolution:
        """The user (made when unknown) and the organization; no tenant when there is no such organization for them."""
        identity = func.tenancy.identify(subject, email, role, organization).table_valued(
            "user_id", "organization_id", "default_organization_id"
        )
        columns = select(identity.c.user_id, identity.c.organization_id, identity.c.default_organization_id)
        row = await self._first(columns, within=QUICK_CALL_TIMEOUT_SECONDS)
        assert row is not None  # noqa: S101 - the function returns one row
        user_id, organization_id, default_id = (None if value is None else _uuid(value) for value in row)
        tried = organization or (str(default_id) if default_id is not None else None)
        return Resolution(Tenant(user_id, organization_id) if organization_id is not None else None, tried)

    async def find_api_key(self, prefix: str, digest: bytes) -> ApiKey | None:
        """The key with this SHA-256 that is good now."""
        key = func.tenancy.find_api_key(prefix, digest).table_valued("id", "kind", "organization_id")
        columns = select(key.c.id, key.c.kind, key.c.organization_id)
        row = await self._first(columns, within=QUICK_CALL_TIMEOUT_SECONDS)
        if row is None:
            return None
        organization_id = _uuid(row.organization_id) if row.organization_id is not None else None
        return ApiKey(_uuid(row.id), row.kind == "provider", organization_id)

    async def note_key_use(self, uses: Mapping[UUID, datetime]) -> None:
        """When each of these keys was used last."""
        times = json.dumps({str(key): used.isoformat() for key, used in uses.items()})
        await self._first(_NOTE_KEY_USE, times, within=QUICK_CALL_TIMEOUT_SECONDS)

    async def gateway_limits(self, organizations: Sequence[UUID]) -> dict[UUID, Allowance]:
        rows = await self._rows(_GATEWAY_LIMITS, list(organizations), within=QUICK_CALL_TIMEOUT_SECONDS)
        return {_uuid(row.id): Allowance(row.plan, bool(row.counts_requests)) for row in rows}

    async def take_request(self, organization_id: UUID) -> dict[str, Any] | None:
        """Take one request of each hard quota that counts it; else which one refuses it, and nothing is taken."""
        row = await self._first(_TAKE_REQUEST, organization_id, within=QUICK_CALL_TIMEOUT_SECONDS)
        return None if row is None or row[0] is None else dict(row[0])

    async def give_back_request(self, organization_id: UUID, taken_at: datetime) -> None:
        await self._first(_GIVE_BACK_REQUEST, organization_id, taken_at, within=QUICK_CALL_TIMEOUT_SECONDS)

    async def ingest(self, batch: Batch, source: str, late: str) -> str:
        """Store usage events. Returns the outcome as JSON text."""
        row = await self._first(
            _INGEST,
            batch.body,
            batch.organization_id,
            source,
            late,
            batch.key_id,
            batch.format,
            self._event_max_future,
        )
        return str(row[0]) if row is not None else ""

    async def ingest_group(self, batches: Sequence[Batch]) -> list[str | DatabaseError]:
        """Store several batches of the API in one transaction, each by itself, and return what became of each."""
        bodies, organizations, keys, formats = (list(column) for column in zip(*batches, strict=True))
        lates = [_REJECT_LATE] * len(bodies)
        rows = await self._rows(_INGEST_GROUP, bodies, organizations, keys, formats, lates, self._event_max_future)
        return [str(row.outcome) if row.error_state is None else DatabaseError.raised(*list(row)[1:]) for row in rows]

    async def void_event(self, what: Correction) -> str:
        """Take an event back. Returns what metering.void_event() does, as JSON text."""
        row = await self._first(
            _VOID, what.organization_id, what.id, what.source, what.late, what.reason, what.key_id, what.caller
        )
        return str(row[0]) if row is not None else ""

    async def amend_event(self, what: Correction, event: str) -> str:
        """Put another event, given as JSON text, in the place of one."""
        row = await self._first(
            _AMEND,
            what.organization_id,
            what.id,
            event,
            what.source,
            what.late,
            what.reason,
            what.key_id,
            what.caller,
            self._event_max_future,
        )
        return str(row[0]) if row is not None else ""

    async def record_rejection(self, source: str, event: str, code: str, message: str) -> None:
        await self._first(_REJECT, source, event, code, message)

    async def record_refusals(self, refusals: str) -> None:
        """Add to the audit log. `refusals`: what audit.record_refusals() takes, as JSON text."""
        await self._first(_RECORD_REFUSALS, refusals)

    async def repeated_events(self, within_seconds: float, most: int) -> list[Repeats]:
        """Those who repeat the most first."""
        rows = await self._rows(_REPEATED, within_seconds, most, within=QUICK_CALL_TIMEOUT_SECONDS)
        return [Repeats(row[0], _uuid(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in map(tuple, rows)]

    async def maintain(self) -> None:
        await self._first(select(func.ops.maintain()))

    async def take_storage_snapshots(self) -> None:
        await self._first(select(func.metering.take_storage_snapshots()))

    async def roll_up(self, most: int) -> dict[str, Any]:
        """Roll up about so many events at most, and say what came of it: see sql/metering/roll_up.sql."""
        row = await self._first(select(func.metering.roll_up(most)))
        return dict(row[0]) if row is not None else {}

    async def fire_alerts(self, most: int) -> FiredAlerts:
        """Tell of thresholds that so many organizations at most have crossed: see sql/billing/fire_alerts.sql."""
        row = await self._first(select(func.billing.fire_alerts(most)))
        assert row is not None  # noqa: S101 - the function returns one row
        report = dict(row[0])
        failed = [(str(one["organization_id"]), str(one["error"])) for one in report["failed"]]
        return FiredAlerts(int(report["fired"]), failed, bool(report["more"]))

    async def advance_subscriptions(self, most: int) -> int:
        """Tell of what has begun of the subscriptions of so many organizations at most. Returns of how many it was."""
        row = await self._first(select(func.billing.advance_subscriptions(most)))
        return int(row[0]) if row is not None else 0

    async def due_periods(self, grace: timedelta, most: int, without: Collection[UUID]) -> list[DuePeriod]:
        """The billing periods that are to be closed now, one an organization, those that waited longest first."""
        rows = await self._rows(_DUE_PERIODS, grace, most, list(without))
        return [DuePeriod(_uuid(row.organization_id), row.period_start, row.due_at) for row in rows]

    async def close_period(self, period: DuePeriod, within: float = CALL_TIMEOUT_SECONDS) -> int | None:
        """Close it, and say how many invoices that made. None: somebody else is closing it."""
        row = await self._first(_CLOSE_PERIOD, period.organization_id, period.period_start, within=within)
        return int(row[0]) if row is not None and row[0] is not None else None

    async def claim_webhooks(self, most: int, lease: timedelta) -> list[ClaimedWebhook]:
        """Messages that are due, in the order in which they were written, and ours until the lease ends."""
        rows = await self._rows(_CLAIM_WEBHOOKS, most, lease)
        return [ClaimedWebhook(_uuid(r.organization_id), _uuid(r.id), r.type, r.attempts, r.body) for r in rows]

    async def mark_webhook_delivered(self, message: ClaimedWebhook, status: int | None) -> None:
        await self._first(_WEBHOOK_DELIVERED, message.organization_id, message.id, message.attempts, status)

    async def mark_webhook_failed(
        self, message: ClaimedWebhook, status: int | None, error: str, after: timedelta
    ) -> bool:
        """Whether that was the last attempt."""
        row = await self._first(
            _WEBHOOK_FAILED, message.organization_id, message.id, message.attempts, status, error, after
        )
        return row is not None and bool(row[0])

    async def postpone_webhook(self, message: ClaimedWebhook, after: timedelta) -> None:
        """Give it back unsent."""
        await self._first(_POSTPONE_WEBHOOK, message.organization_id, message.id, message.attempts, after)

    async def webhook_backlog(self) -> WaitingWebhooks:
        row = await self._first(_WEBHOOK_BACKLOG, within=QUICK_CALL_TIMEOUT_SECONDS)
        assert row is not None  # noqa: S101 - the function returns one row
        return WaitingWebhooks(row.pending, row.dead, row.oldest_seconds)

    async def build_reports(
        self, *, is_live: bool, most: int, organization_id: UUID | None, also_unended: bool
    ) -> tuple[int, int]:
        """Make reports of usage. Returns of how many meters, and how many: with fewer than `most` meters it is all."""
        row = await self._first(_BUILD_REPORTS, is_live, most, organization_id, also_unended)
        assert row is not None  # noqa: S101 - the function returns one row
        return row.meters, row.made

    async def claim_reports(
        self, *, is_live: bool, meters: int, each: int, lease: timedelta, organization_id: UUID | None
    ) -> list[ClaimedReport]:
        """Reports that are due, of one meter of an organization after the other, and ours until the lease ends."""
        rows = await self._rows(_CLAIM_REPORTS, is_live, meters, each, lease, organization_id)
        return [
            ClaimedReport(
                _uuid(r.organization_id),
                r.meter_code,
                int(r.quantity),
                r.identifier,
                r.customer_id,
                r.event_name,
                r.happened_at,
                r.status == "canceling",
                r.attempts,
            )
            for r in rows
        ]

    async def record_reports(self, outcomes: str) -> None:
        """`outcomes` as stripe.record_reports() takes them."""
        await self._first(_RECORD_REPORTS, outcomes)

    async def tend_reports(self, *, is_live: bool, also_sweep: bool) -> None:
        await self._first(_TEND_REPORTS, is_live, also_sweep)

    async def report_backlog(self, organization_id: UUID | None = None) -> WaitingReports:
        row = await self._first(_REPORT_BACKLOG, organization_id, within=QUICK_CALL_TIMEOUT_SECONDS)
        assert row is not None  # noqa: S101 - the function returns one row
        return WaitingReports(row.pending, row.rejected, row.uncertain, row.oldest_seconds, row.invoice_mode)

    async def claim_invoice_items(self, most: int, lease: timedelta, is_live: bool) -> list[ClaimedItem]:
        rows = await self._rows(_CLAIM_ITEMS, most, lease, is_live)
        return [ClaimedItem(_uuid(row[0]), _uuid(row[1]), *row[2:]) for row in map(tuple, rows)]

    async def acknowledge_invoice_item(self, item: ClaimedItem, stripe_id: str) -> None:
        await self._first(_ACKNOWLEDGE_ITEM, item.organization_id, item.id, stripe_id)

    async def retry_invoice_item(self, item: ClaimedItem, error: str) -> None:
        await self._first(_RETRY_ITEM, item.organization_id, item.id, item.attempts, error)

    async def postpone_invoice_item(self, item: ClaimedItem, after: timedelta) -> None:
        await self._first(_POSTPONE_ITEM, item.organization_id, item.id, item.attempts, after)

    async def reject_invoice_item(self, item: ClaimedItem, error: str) -> None:
        await self._first(_REJECT_ITEM, item.organization_id, item.id, item.attempts, error)

    async def renew_invoice_item(self, item: ClaimedItem) -> None:
        await self._first(_RENEW_ITEM, item.organization_id, item.id, item.attempts)

    async def claim_reconciliations(self, most: int, lease: timedelta) -> list[tuple[UUID, datetime]]:
        """Billing periods that are to be reconciled with Stripe, ours until the lease ends."""
        rows = await self._rows(_CLAIM_RECONCILIATIONS, most, lease)
        return [(_uuid(row.organization_id), row.period_start) for row in rows]

    async def reconciliation_question(self, organization_id: UUID, period_start: datetime) -> dict[str, Any] | None:
        """What Stripe is to be asked of a period. None: there is none."""
        row = await self._first(_RECONCILIATION_QUESTION, organization_id, period_start)
        return row[0] if row is not None else None

    async def reconcile_stripe(
        self, organization_id: UUID, period_start: datetime, theirs: str
    ) -> list[tuple[str, str, Decimal, Decimal | None, Decimal, Decimal, str]]:
        """Compare what Stripe said, given as JSON text, and store what differs: kind, subject, ours, theirs, what
        explains the difference, drift and cause.
        """
        rows = await self._rows(_RECONCILE, organization_id, period_start, theirs)
        return [(row[0], row[1], row[2], row[3], row[4], row[5], row[6]) for row in map(tuple, rows)]

    async def stripe_drift(self) -> tuple[Decimal, Decimal, int]:
        """What drifts: units of usage, amounts, and organizations."""
        row = await self._first(_STRIPE_DRIFT)
        assert row is not None  # noqa: S101 - the function returns one row
        return row.units, row.amounts, int(row.organizations)

    async def invoice_item_backlog(self) -> WaitingItems:
        row = await self._first(_ITEM_BACKLOG, within=QUICK_CALL_TIMEOUT_SECONDS)
        assert row is not None  # noqa: S101 - the function returns one row
        return WaitingItems(row.pending, row.uncertain, row.rejected, row.oldest_seconds)

    async def receive_stripe_events(
        self, payloads: Sequence[str], is_live: bool | None, waits: bool
    ) -> list[Settled | DatabaseError]:
        """Store and apply events in one transaction, each by itself, and return what became of each. `is_live`: the
        mode of our key, None without one. `waits`: for who closes a period, but not for long.
        """
        rows = await self._rows(_RECEIVE_STRIPE, list(payloads), is_live, waits)
        return [
            Settled(row.outcome, row.message or "")
            if row.error_state is None
            else DatabaseError.raised(row.error_state, row.error_message, None, None)
            for row in rows
        ]

    async def due_stripe_events(self, most: int, lease: timedelta) -> list[str]:
        """Ids of events that are to be tried again, ours until the lease ends."""
        return [str(row[0]) for row in await self._rows(_DUE_STRIPE_EVENTS, most, lease)]

    async def apply_stripe_event(self, event_id: str) -> Settled | None:
        """None: somebody else has."""
        row = await self._first(_APPLY_STRIPE_EVENT, event_id)
        return Settled(row.outcome, row.message or "") if row is not None else None

    async def fail_stripe_event(self, event_id: str, error: str) -> bool:
        """Whether that was the last attempt."""
        row = await self._first(_FAIL_STRIPE_EVENT, event_id, error)
        return row is not None and bool(row[0])

    async def stripe_backlog(self) -> StripeBacklog:
        row = await self._first(_STRIPE_BACKLOG, within=QUICK_CALL_TIMEOUT_SECONDS)
        assert row is not None  # noqa: S101 - the function returns one row
        return StripeBacklog(row.pending, row.dead, row.unlinked, row.oldest_seconds)

    async def begin_checkout(
        self,
        user_id: UUID,
        organization_id: UUID,
        plan: str,
        coupon: str | None,
        app_url: str,
        *,
        is_configured: bool,
    ) -> BegunCheckout | None:
        """What Stripe is to be asked for; None where it is not `is_configured`."""
        row = await self._first(
            _BEGIN_CHECKOUT,
            user_id,
            organization_id,
            plan,
            coupon,
            app_url,
            is_configured,
            within=QUICK_CALL_TIMEOUT_SECONDS,
        )
        if row is None or row[0] is None:
            return None
        return BegunCheckout(dict(row[0]["params"]), str(row[0]["asked"]), int(row[0]["number"]))

    async def record_checkout(
        self, user_id: UUID, organization_id: UUID, session_id: str, plan: str, asked: str, caller: str
    ) -> bool:
        """Whether it is one that was not known."""
        row = await self._first(_RECORD_CHECKOUT, user_id, organization_id, session_id, plan, asked, caller)
        return row is not None and bool(row[0])

    async def checkouts_beside(self, organization_id: UUID, session_id: str) -> list[str]:
        """Others of the organization that may still be open."""
        rows = await self._rows(_CHECKOUTS_BESIDE, organization_id, session_id, within=QUICK_CALL_TIMEOUT_SECONDS)
        return [str(row[0]) for row in rows]

    async def require_ended(self, organization_id: UUID, subscription_id: str | None) -> None:
        await self._first(_REQUIRE_ENDED, organization_id, subscription_id, within=QUICK_CALL_TIMEOUT_SECONDS)

    async def begin_portal(self, user_id: UUID, organization_id: UUID, *, is_configured: bool) -> str | None:
        """The customer whose portal it is; None where it is not `is_configured`."""
        row = await self._first(
            _BEGIN_PORTAL, user_id, organization_id, is_configured, within=QUICK_CALL_TIMEOUT_SECONDS
        )
        return str(row[0]) if row is not None and row[0] is not None else None

    async def record_portal(self, user_id: UUID, organization_id: UUID, customer_id: str, caller: str) -> None:
        await self._first(_RECORD_PORTAL, user_id, organization_id, customer_id, caller)

    async def claim_refetches(self, most: int, lease: timedelta) -> list[Refetch]:
        """Objects that Stripe is to be asked for, ours until the lease ends."""
        rows = await self._rows(_CLAIM_REFETCHES, most, lease)
        return [Refetch(row.object_type, row.object_id, int(row.asked)) for row in rows]

    async def receive_fetched(self, one: Refetch, found: str, at: datetime) -> None:
        """Store and apply what Stripe says of an object, given as JSON text, as an event of that moment."""
        await self._first(_RECEIVE_FETCHED, one.object_type, one.object_id, one.asked, found, at)

    async def mark_refetch_failed(self, one: Refetch, error: str, after: timedelta) -> None:
        await self._first(_REFETCH_FAILED, one.object_type, one.object_id, one.asked, error, after)

    async def postpone_refetch(self, one: Refetch, after: timedelta) -> None:
        """Give it back without an attempt."""
        await self._first(_POSTPONE_REFETCH, one.object_type, one.object_id, one.asked, after)

    async def drop_refetch(self, one: Refetch) -> None:
        await self._first(_DROP_REFETCH, one.object_type, one.object_id, one.asked)

    async def health(self) -> dict[str, Any]:
        """What is known of any schema: this call does not ask for ours."""
        async with asyncio.timeout(HEALTH_TIMEOUT_SECONDS):
            row = await self._first(_HEALTH, within=HEALTH_TIMEOUT_SECONDS)
        return dict(row[0]) if row is not None else {}

    async def describe_api(self) -> dict[str, Any]:
        row = await self._first(select(func.ops.describe_api()))
        return dict(row[0]) if row is not None else {}

    async def _first(
        self, statement: Select[Any] | str, *parameters: object, within: float = CALL_TIMEOUT_SECONDS
    ) -> Row[Any] | None:
        rows = await self._rows(statement, *parameters, within=within)
        return rows[0] if rows else None

    async def _rows(
        self, statement: Select[Any] | str, *parameters: object, within: float = CALL_TIMEOUT_SECONDS
    ) -> Sequence[Row[Any]]:
        """All rows. SQL given as text goes to the driver as it is, with its parameters."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(CHECKOUT_TIMEOUT_SECONDS) as limit, self._engine.connect() as connection:
                limit.reschedule(clock() + within)
                if not self._schema_is_ours and statement is not _HEALTH:
                    await self._require_our_schema(connection)
                if within <= CALL_TIMEOUT_SECONDS:
                    return await _execute(connection, statement, parameters)
                await _execute(connection, _LET_STATEMENTS_TAKE, (f"{within - ANSWER_SECONDS:.0f}s",))
                try:
                    return await _execute(connection, statement, parameters)
                finally:
                    await connection.invalidate()  # nobody else's statements may take as long
        except DBAPIError as error:
            # SQLAlchemy's frames refer to the error, which refers to them: a body would stay until that is noticed.
            clear_frames(error.__traceback__)
            raise DatabaseError(error.orig or error) from None
        except TimeoutError:
            raise DatabaseError(TimeoutError("Postgres does not answer")) from None
        except (PoolTimeout, psycopg.Error, OSError) as error:
            raise DatabaseError(error) from None

    async def _require_our_schema(self, connection: AsyncConnection) -> None:
        """Asked for before each call until it was right once. From then on, one that is newer is an upgrade under
        way, and what runs goes on. Raises SchemaMismatch.
        """
        try:
            rows = await _execute(connection, _HEALTH)
        except DBAPIError as error:
            if not isinstance(error.orig, _NO_SCHEMA):
                raise
            rows = ()
        difference = compare(rows[0][0]["applied"] if rows else ())
        self._mismatch = bool(difference)
        if difference:
            raise SchemaMismatch(str(difference))
        self._schema_is_ours = True


async def _execute(
    connection: AsyncConnection, statement: Select[Any] | str, parameters: Any = ()
) -> Sequence[Row[Any]]:
    result: Result[Any]
    if isinstance(statement, str):
        result = await connection.exec_driver_sql(statement, parameters)
    else:
        result = await connection.execute(statement)
    return result.all()


def _uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))

"""Lives of customers at Stripe: the events that Stripe sends of them, in the versions of its API, and what they must
come to here. The second is worked out in Python from what happened, and not from the events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import inf
from typing import Any
from uuid import UUID

from api.stripe import fixtures
from api.stripe.fixtures import LATEST, Json, since_basil
from tests.harness import Database
from tests.usage import Connection

DAY = 86_400
GRACE = 7 * DAY
# Whole days, so that planned moments lie ahead or behind whatever the hour is.
BEGINNING = int((datetime.now(UTC) - timedelta(days=40)).replace(hour=0, minute=0, second=0, microsecond=0).timestamp())

Render = Callable[[str], Json]


def always(made: Json) -> Render:
    """The same in all versions."""
    return lambda version: made


@dataclass(frozen=True)
class Told:
    """An event, in any version. Its id says nothing of its place, and is the same in each life that is lived again."""

    type: str
    at: int
    number: int
    token: str
    render: Render
    before: Render | None = None
    only_since_basil: bool = False

    @property
    def id(self) -> str:
        return f"evt_{sha256(f'{self.number}/{self.type}'.encode()).hexdigest()[:8]}_{self.token}"

    def event(self, version: str = LATEST) -> Json:
        made = self.render(version)
        previous = None
        if self.before is not None:
            was = self.before(version)
            previous = {name: value for name, value in was.items() if made.get(name) != value}
        return fixtures.event(self.type, made, created=self.at, previous=previous, id=self.id, api_version=version)


@dataclass(frozen=True)
class State:
    """A subscription as Stripe has it."""

    status: str = "active"
    plan: str = "pro"
    start: int = BEGINNING
    end: int = BEGINNING + 60 * DAY
    trial_end: int | None = None
    cancel_at: int | None = None
    cancel_at_period_end: bool = False
    canceled_at: int | None = None
    ended_at: int | None = None
    payment_method: str | None = "pm_card"
    latest_invoice: str | None = None
    without_payment_method: str = "create_invoice"
    pause_collection: Json | None = None

    @property
    def end_at(self) -> float:
        return self.cancel_at or (self.end if self.cancel_at_period_end else inf)

    @property
    def status_here(self) -> str:
        return {"unpaid": "past_due", "incomplete_expired": "canceled"}.get(self.status, self.status)


@dataclass
class Life:
    """What happens to one customer. Times are seconds since the life began."""

    token: str
    told: list[Told] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    payments: dict[str, int] = field(default_factory=dict)
    refunds: list[tuple[str, int]] = field(default_factory=list)  # of which charge, how much
    disputes: list[str] = field(default_factory=list)
    invoices: dict[str, str] = field(default_factory=dict)  # their status
    features: list[str] = field(default_factory=list)
    email: str | None = None
    payment_method: str | None = None
    deleted_at: int | None = None

    def name(self, what: str) -> str:
        return f"{what}_{self.token}"

    @property
    def customer(self) -> str:
        return self.name("cus")

    def tell(self, type: str, at: int, render: Render, before: Render | None = None, **rest: Any) -> None:
        self.told.append(Told(type, BEGINNING + at, len(self.told), self.token, render, before, **rest))

    def events(self, version: str = LATEST) -> list[Json]:
        return [told.event(version) for told in self.told if since_basil(version) or not told.only_since_basil]

    def subscribe(self, at: int, name: str = "sub", **state: Any) -> Subscription:
        subscription = Subscription(self, self.name(name), at, State(**state))
        self.subscriptions.append(subscription)
        self.tell("customer.subscription.created", at, subscription.render())
        return subscription

    def change_customer(self, at: int, **members: Any) -> None:
        was = {"email": self.email, "payment_method": self.payment_method}
        self.email, self.payment_method = (members.get(name, value) for name, value in was.items())
        now = {"email": self.email, "payment_method": self.payment_method}
        self.tell("customer.updated", at, self._customer(now), self._customer(was))

    def delete_customer(self, at: int) -> None:
        self.deleted_at = BEGINNING + at
        self.tell("customer.deleted", at, self._customer({"email": self.email, "payment_method": self.payment_method}))

    def _customer(self, members: Json) -> Render:
        return lambda version: fixtures.customer(self.customer, **members)

    def have(self, at: int, *features: str) -> None:
        self.features = sorted(features)
        self.tell(
            "entitlements.active_entitlement_summary.updated",
            at,
            lambda version: fixtures.entitlement_summary(*features, customer=self.customer),
        )

    def check_out(self, at: int, organization: UUID) -> None:
        session = fixtures.checkout_session(
            self.name("cs"), customer=self.customer, subscription="sub", metadata={"organization_id": str(organization)}
        )
        self.tell("checkout.session.completed", at, lambda version: session)

    def refund(self, at: int, charge: str, before: int, amount: int, of: str = "in", total: int = 4900) -> None:
        """`amount` more of what the invoice `of` was paid by, of which `before` was paid back already."""

        def render(refunded: int) -> Render:
            return lambda version: fixtures.charge(
                self.name(charge),
                customer=self.customer,
                amount=total,
                refunded=refunded,
                invoice=self.name(of),
                payment_intent=self.name(f"pi_{of}"),
                api_version=version,
            )

        self.refunds.append((self.name(charge), amount))
        self.tell("charge.refunded", at, render(before + amount), render(before))

    def dispute(self, at: int, charge: str, of: str = "in") -> None:
        made = fixtures.dispute(
            self.name("dp"), charge=self.name(charge), payment_intent=self.name(f"pi_{of}"), created=BEGINNING + at
        )
        self.disputes.append(made["id"])
        self.tell("charge.dispute.created", at, lambda version: made)


@dataclass
class Subscription:
    life: Life
    id: str
    begun_at: int
    state: State
    states: list[tuple[int, State]] = field(init=False)  # also what only its invoices say

    def __post_init__(self) -> None:
        self.states = [(BEGINNING + self.begun_at, self.state)]

    def render(self) -> Render:
        state = self.state
        return lambda version: fixtures.subscription(
            self.id,
            customer=self.life.customer,
            status=state.status,
            prices=[fixtures.price(f"price_{state.plan}", product=f"prod_{state.plan}")],
            start=state.start,
            end=state.end,
            created=BEGINNING + self.begun_at,
            payment_method=state.payment_method,
            api_version=version,
            trial_end=state.trial_end,
            cancel_at=state.cancel_at,
            cancel_at_period_end=state.cancel_at_period_end,
            canceled_at=state.canceled_at,
            ended_at=state.ended_at,
            latest_invoice=state.latest_invoice,
            pause_collection=state.pause_collection,
            trial_settings={"end_behavior": {"missing_payment_method": state.without_payment_method}},
        )

    def change(self, at: int, type: str = "updated", **members: Any) -> None:
        before = self.render()
        self.state = replace(self.state, **members)
        self.states.append((BEGINNING + at, self.state))
        self.life.tell(
            f"customer.subscription.{type}", at, self.render(), before if type in ("updated", "deleted") else None
        )

    def delete(self, at: int, **members: Any) -> None:
        ended = {"canceled_at": BEGINNING + at, "ended_at": BEGINNING + at} | members
        before = self.state.status
        self.state = replace(self.state, status="canceled", **ended)
        self.states.append((BEGINNING + at, self.state))
        assert before != "canceled"
        self.life.tell("customer.subscription.deleted", at, self.render())

    def will_end(self, at: int) -> None:
        self.life.tell("customer.subscription.trial_will_end", at, self.render())

    def bill(self, at: int, name: str = "in", *outcomes: tuple[str, int], total: int = 4900) -> None:
        """An invoice that is finalized at `at`, and what becomes of it: payment_failed, paid, voided, …, and when."""
        life, charge = self.life, f"ch_{name}"
        created = BEGINNING + at

        def render(status: str, paid_at: int | None = None) -> Render:
            is_charged = status == "paid"
            return lambda version: fixtures.invoice(
                life.name(name),
                customer=life.customer,
                subscription=self.id,
                status=status,
                total=total,
                created=created,
                paid_at=paid_at,
                charge=life.name(charge) if is_charged else None,
                payment_intent=life.name(f"pi_{name}"),
                api_version=version,
            )

        life.invoices[life.name(name)] = "open"
        life.tell("invoice.finalized", at, render("open"))
        for outcome, then in outcomes:
            now = self.states[-1][1]
            match outcome:
                case "payment_failed":
                    life.tell("invoice.payment_failed", then, render("open"))
                    if now.status == "active":
                        self.states.append((BEGINNING + then, replace(now, status="past_due")))
                case "paid":
                    life.invoices[life.name(name)] = "paid"
                    life.payments[life.name(name)] = total
                    life.tell("invoice.paid", then, render("paid", BEGINNING + then))
                    payment = fixtures.invoice_payment(
                        life.name(f"inpay_{name}"),
                        invoice=life.name(name),
                        payment_intent=life.name(f"pi_{name}"),
                        amount=total,
                    )
                    life.tell("invoice_payment.paid", then, always(payment), only_since_basil=True)
                    if now.status in ("past_due", "unpaid", "incomplete"):
                        self.states.append((BEGINNING + then, replace(now, status="active")))
                case _:
                    status = {"voided": "void", "marked_uncollectible": "uncollectible"}[outcome]
                    life.invoices[life.name(name)] = status
                    life.tell(f"invoice.{outcome}", then, render(status))


# What must come of it


@dataclass(frozen=True)
class Phase:
    at: float
    subscription: str | None
    status: str
    plan: str
    grace_ends_at: float | None = None


def phases_of(life: Life) -> list[Phase]:
    """Of each subscription what it was and will be; at each moment the one that lives and was begun last counts."""
    own = {subscription.id: _points(life, subscription) for subscription in life.subscriptions}
    begun = {subscription.id: subscription.begun_at for subscription in life.subscriptions}
    phases = [Phase(-inf, None, "active", "starter")]
    last: tuple[str, str, str] | None = None
    for moment in sorted({at for points in own.values() for at, _, _ in points}):
        there = []
        for id, points in own.items():
            until_now = [point for point in points if point[0] <= moment]
            if until_now:
                _, status, plan = until_now[-1]
                lives = status not in ("canceled", "incomplete", "incomplete_expired")
                there.append((lives, begun[id], id, status, plan))
        _, _, id, status, plan = max(there)
        if (id, status, plan) != last:
            last = (id, status, plan)
            grace = {"past_due": moment + GRACE, "unpaid": moment}.get(status)
            phases.append(Phase(moment, id, State(status=status).status_here, plan, grace))
    return phases


def _points(life: Life, subscription: Subscription) -> list[tuple[float, str, str]]:
    seconds: dict[int, State] = dict(subscription.states)  # of one second the last state counts
    ordered = sorted(seconds.items())
    points: list[tuple[float, str, str]] = []
    for number, (at, state) in enumerate(ordered):
        until = ordered[number + 1][0] if number + 1 < len(ordered) else inf
        since = ordered[number - 1][0] if number else -inf
        began: float = at
        if state.status_here == "canceled" and state.ended_at is not None and since < state.ended_at < at:
            began = state.ended_at
        points.append((began, state.status, state.plan))
        if state.status == "trialing" and state.trial_end and at < state.trial_end < min(until, state.end_at):
            has_method = state.payment_method or life.payment_method
            after = (
                "active"
                if has_method
                else {"pause": "paused", "cancel": "canceled"}.get(state.without_payment_method, "active")
            )
            points.append((state.trial_end, after, state.plan))
        if state.status_here != "canceled" and at < state.end_at < until:
            points.append((state.end_at, "canceled", state.plan))
    return sorted(points, key=lambda point: point[0])


def expected(life: Life) -> dict[str, Any]:
    """The rows that a life ends in, ids without what is other in each life that is lived again."""
    now = datetime.now(UTC).timestamp()
    phases = phases_of(life)

    def plain(id: str | None) -> str | None:
        return None if id is None else id.removesuffix(f"_{life.token}")

    return {
        "phases": [
            (phase.at, plain(phase.subscription), phase.status, phase.plan, phase.grace_ends_at) for phase in phases
        ],
        "plan": [phase.plan for phase in phases if phase.at <= now][-1],
        "subscriptions": sorted(
            (plain(one.id), state.status, state.plan, state.trial_end, state.ended_at, state.start, state.end)
            for one in life.subscriptions
            for state in [one.states[-1][1]]
        ),
        "invoices": sorted((plain(id), status) for id, status in life.invoices.items()),
        "payments": sorted((plain(id), amount) for id, amount in life.payments.items()),
        "refunds": sorted((plain(id), amount) for id, amount in life.refunds),
        "disputes": sorted(plain(id) for id in life.disputes),
        "features": life.features,
        "customer": (life.email, life.payment_method is not None, life.deleted_at),
    }


def found(connection: Connection, organization: UUID, token: str) -> dict[str, Any]:
    """The same rows as there are. As who may see all."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        fetched = connection.execute(query.replace("$1", f"'{organization}'")).fetchall()
        return [
            tuple(value.removesuffix(f"_{token}") if isinstance(value, str) else value for value in row)
            for row in fetched
        ]

    return {
        "phases": rows(
            """
            select extract(epoch from f.starts_at)::double precision, s.id, f.status, f.plan_code,
              extract(epoch from f.grace_ends_at)::double precision
            from billing.subscription_phases f
            left join stripe.subscriptions s
              on s.organization_id = f.organization_id and s.subscription_id = f.subscription_id
            where f.organization_id = $1 order by f.starts_at
            """
        ),
        "plan": rows("select plan from tenancy.organizations where id = $1")[0][0],
        "subscriptions": sorted(
            rows(
                """
            select id, status, plan_code, extract(epoch from trial_end)::bigint, extract(epoch from ended_at)::bigint,
              extract(epoch from current_period_start)::bigint, extract(epoch from current_period_end)::bigint
            from stripe.subscriptions where organization_id = $1
            """
            )
        ),
        "invoices": sorted(rows("select id, status from stripe.invoices where organization_id = $1")),
        "payments": sorted(
            rows("select reference, amount_cents::bigint from billing.payments where organization_id = $1")
        ),
        "refunds": sorted(
            (reference.split(f"_{token}:")[0], amount)
            for reference, amount in rows(
                "select reference, amount_cents::bigint from billing.refunds where organization_id = $1"
            )
        ),
        "disputes": sorted(id for (id,) in rows("select id from stripe.disputes where organization_id = $1")),
        "features": [
            feature
            for (feature,) in rows(
                """
                select feature from billing.entitlement_overrides
                where organization_id = $1 and created_by = 'stripe' and is_granted order by 1
                """
            )
        ],
        "customer": rows(
            """
            select email, has_payment_method, extract(epoch from deleted_at)::bigint
            from stripe.customers where organization_id = $1
            """
        )[0],
    }


# Everything that must be the same in whatever order it came: also what the model above says nothing of.
ALL_ROWS = {
    "phases": """
        select starts_at, subscription_id, status, plan_code, grace_ends_at, reason, made_by, fee_by_stripe
        from billing.subscription_phases""",
    "subscriptions": "select id, trial_end, has_payment_method, created_by, managed_by from billing.subscriptions",
    "mirror": "select s.*, null as organization_id from stripe.subscriptions s",
    "invoices": "select i.*, null as organization_id from stripe.invoices i",
    "payments": """
        select invoice_id, stripe_invoice_id, kind, amount_cents, method, reference, paid_at, recorded_by
        from billing.payments""",
    "refunds": "select amount_cents, reference, refunded_at, recorded_by from billing.refunds",
    "disputes": "select d.*, null as organization_id from stripe.disputes d",
    "customers": "select id, email, has_payment_method, deleted_at from stripe.customers",
    "entitlements": "select feature from stripe.entitlements",
    "overrides": """
        select feature, kind, is_granted, limit_value, enforcement, reason, created_by
        from billing.entitlement_overrides""",
}


def insert_bare_organization(connection: Connection, name: str) -> UUID:
    """Quickly: there are hundreds."""
    made = connection.execute(
        """
        with owner as (
          insert into tenancy.users (subject, email) values (%(name)s, %(name)s || '@x.example') returning id
        )
        insert into tenancy.organizations (kind, name, slug, owner_user_id)
        select 'organization', %(name)s, %(name)s, id from owner returning id
        """,
        {"name": name},
    ).fetchone()
    assert made
    organization: UUID = made[0]
    return organization


def price_plans(database: Database) -> None:
    """Prices price_starter, price_pro and price_firm are these plans."""
    with database.connect() as connection:
        connection.execute(
            """
            insert into stripe.plan_prices (price_id, plan_code)
            select 'price_' || p.plan, p.plan from unnest('{starter,pro,firm}'::text[]) as p (plan)
            """
        )


def link(connection: Connection, organization: UUID, customer: str) -> None:
    """As staff does it."""
    with connection.transaction():
        connection.execute("set local role goldleaves_kernel")
        connection.execute("select stripe.lock_customer(%s)", [customer])
        connection.execute("select stripe.link_customer(%s, %s, false, 'test')", [organization, customer])
        connection.execute("select stripe.apply_waiting(%s, true)", [customer])


def receive(sidecar: Connection, payloads: Sequence[str]) -> list[str]:
    """In one transaction. Returns what came of each."""
    rows = sidecar.execute(
        'select coalesce(outcome, error_message) from stripe.receive_events(%s, null) order by "position"',
        [list(payloads)],
    ).fetchall()
    return [outcome for (outcome,) in rows]


def apply_what_is_due(superuser: Connection, sidecar: Connection, token: str) -> None:
    """What the sidecar's worker does when time has come, for the events of one life."""
    for _ in range(3):
        due = superuser.execute(
            """
            select id from stripe.webhook_events
            where status in ('received', 'failed') and id like %s order by created_at desc, id
            """,
            [f"%_{token}"],
        ).fetchall()
        for (id,) in due:
            sidecar.execute("select * from stripe.apply_event(%s)", [id])

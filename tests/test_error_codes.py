"""Every stable code that the sources can raise is raised here, for real, with its status. The list comes from scanning
the sources: a code that nobody has provoked fails the test on the day it is written.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from functools import partial
from http.client import HTTPResponse
from typing import Any, cast
from uuid import uuid4

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from starlette.requests import Request

from api.codes import CODES, PASSED_ON
from api.contract.error_reference import error_reference, raised_codes
from api.errors import Problem
from api.jwks import KeySet
from api.settings import PROJECT
from api.stripe.webhook import StripeWebhook
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack, free_port, insert_organization
from tests.observe import database_away, eventually
from tests.sql_requests import Caller, enter, run
from tests.stripe_server import StripeServer, stripe_server
from tests.usage import month, value

MAX_INGEST_BYTES = 4096
LIMITED_PLAN = "firm"

# What clients are promised, whoever raises it.
PROMISED = {
    "BILLING_PERIOD_LOCKED": 409,
    "PERIOD_NOT_ENDED": 409,
    "NOT_A_MEMBER": 403,
    "ROLE_REQUIRED": 403,
    "USER_NOT_PROVISIONED": 403,
    "ORGANIZATION_REQUIRED": 400,
}
PROMISED_IN_OUTCOMES = {"INVALID_EVENT", "BILLING_PERIOD_LOCKED", "IDEMPOTENCY_CONFLICT"}

_CODE = r"([A-Z]+(?:_[A-Z]+)+)"


def codes_in(folder: str) -> set[str]:
    return {code for code, paths in raised_codes().items() if any(path.startswith(folder) for path in paths)}


@dataclass(frozen=True)
class World:
    stack: RunningStack
    organization: Organization
    stripe: StripeServer

    def ask(
        self, method: str, path: str, token: str | None = None, *, direct: bool = False, **request: Any
    ) -> httpx.Response:
        base = self.stack.postgrest_url if direct else self.stack.gateway_url
        headers = [("Authorization", f"Bearer {token}")] if token is not None else []
        headers += request.pop("headers", [])
        with httpx.Client(base_url=base, timeout=60, trust_env=False) as client:
            return client.request(method, path, headers=headers, **request)

    def member(self, role: str = "owner") -> str:
        return self.stack.token(self.organization[role].subject)

    def stranger(self) -> str:
        """Somebody whom the sidecar has to ask Postgres about."""
        return self.stack.token(f"stranger-{uuid4()}")

    def close(self, function: str, start: date | None, role: str = "platform_admin") -> httpx.Response:
        return self.ask(
            "POST",
            f"/api/v1/rpc/{function}",
            self.stack.token("staff", role=role),
            headers=[("X-Organization-ID", self.organization.slug)],
            json={"period_start": start and start.isoformat()},
        )

    def found(self, **details: str) -> httpx.Response:
        body = {"name": "Firm", "slug": f"o-{uuid4().hex[:8]}", **details}
        return self.ask("POST", "/api/v1/rpc/create_organization", self.member(), json=body)

    def send(self, content: str, **request: Any) -> httpx.Response:
        headers = [("Content-Type", "application/json"), *request.pop("headers", [])]
        token = request.pop("token", None) or self.stack.token("backend", role="service")
        return self.ask("POST", "/v1/events", token, headers=headers, content=content, **request)

    def outcome(self, **event: object) -> dict[str, Any]:
        body = {"id": str(uuid4()), "event": "api.request", "quantity": 1, **event}
        answer = self.send(json.dumps([body]), headers=[("X-Organization-ID", str(self.organization.id))])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def world(open_stack: OpenStack, make_organization: MakeOrganization) -> Iterator[World]:
    with (
        stripe_server() as stripe,
        open_stack(
            max_ingest_bytes=MAX_INGEST_BYTES,
            ingest_wait_seconds=0.5,
            request_body_seconds=0.5,
            tier_rate_limits=f'{{"{LIMITED_PLAN}": {{"api": 1}}}}',
            stripe_secret_key=SecretStr(stripe.key),
            stripe_api_base=stripe.url,
            stripe_webhook_secret=SecretStr(stripe.secret),
        ) as stack,
    ):
        world = World(stack, make_organization(stack.database, "acme"), stripe)
        assert world.close("finalize_period", month(1)).status_code == 200
        yield world


# A subscription, as functions write it: staff in one transaction, which is taken back.
START = "select billing.start_subscription(%(org)s, 'pro', 0, true, null)"
CHECKOUT = """
    select stripe.begin_checkout(o.owner_user_id, o.id, 'pro', null, 'https://app.example.com', true)
    from tenancy.organizations o where o.id = %(org)s
"""
LINK = "select stripe.link_customer(%(org)s, '{}', false, 'test')"
AT_STRIPE = (
    """
    insert into billing.subscriptions (organization_id, id, created_by, managed_by)
    values (%(org)s, %(org)s, 'test', 'stripe')
    """,
    """
    insert into billing.subscription_phases (organization_id, starts_at, subscription_id, status, plan_code, made_by)
    values (%(org)s, clock_timestamp(), %(org)s, 'active', 'pro', 'stripe')
    """,
)
DELETE_PHASES = "delete from billing.subscription_phases where organization_id = %(org)s"


def from_finalized_period(world: World) -> httpx.Response:
    return world.close("recalculate_period", month(1))


def from_busy_period(world: World) -> httpx.Response:
    """A writer that stays. Half a minute of patience is shortened for the test, the way to it is not."""
    with world.stack.database.connect() as superuser:
        found = superuser.execute(
            "select pg_get_functiondef('billing.take_period_lock(uuid)'::regprocedure)"
        ).fetchone()
        assert found and "'2s'" in found[0] and "1 .. 15" in found[0]
        superuser.execute(found[0].replace("'2s'", "'20ms'").replace("1 .. 15", "1 .. 2"))
        try:
            with superuser.transaction():
                superuser.execute("select billing.share_period_locks(array[%s::uuid])", [world.organization.id])
                return world.close("finalize_period", month(2))
        finally:
            superuser.execute(found[0])


def from_wrong_isolation_level(world: World) -> str:
    with world.stack.database.connect("authenticator") as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(psycopg.Error) as refused, connection.transaction():
            enter(connection, Caller("platform_admin", "staff", str(world.organization.id)))
            connection.execute("select api.finalize_period(%s::date)", [month(2)])
    return f"{refused.value.sqlstate} {refused.value.diag.message_primary}"


def from_two_organizations_in_one_transaction(world: World) -> str:
    """Two slots of the period lock: finalizers that took them in different orders would deadlock."""
    return refusal_in_sql(
        world,
        "select billing.take_period_lock(%(org)s)",
        """
        select billing.take_period_lock(other.id)
        from (
          select id from (select gen_random_uuid() as id from generate_series(1, 100)) as candidates
          where billing.period_lock_slot(id) <> billing.period_lock_slot(%(org)s)
          limit 1
        ) as other
        """,
    )


def from_a_wrong_year(world: World) -> str:
    return refusal_in_sql(world, "select billing.ensure_periods(%(org)s, now() - interval '100 years', now())")


def from_a_later_period(world: World) -> str:
    return refusal_in_sql(
        world,
        """
        insert into tenancy.organizations (name, slug, owner_user_id)
        select 'Later', 'later', owner_user_id from tenancy.organizations where id = %(org)s
        """,
        """
        select billing.ensure_periods(id, now() - interval '3 months', now())
        from tenancy.organizations where slug = 'later'
        """,
        """
        select billing.finalize_period(id, (date_trunc('month', now()) - interval '1 month')::date)
        from tenancy.organizations where slug = 'later'
        """,
    )


def from_an_organization_without_owner(world: World) -> str:
    """Policies keep people from removing themselves; this keeps two owners from removing each other."""
    return refusal_in_sql(world, "delete from tenancy.memberships where organization_id = %(org)s and role = 'owner'")


def from_deleting_what_is_billed(world: World) -> httpx.Response:
    organization = f"/api/v1/organizations?id=eq.{world.organization.id}"
    return world.ask("DELETE", organization, world.member())


def from_a_personal_organization(world: World, *requests: tuple[str, dict[str, str]]) -> httpx.Response:
    """What the last one of several POSTs of somebody new is answered."""
    token = world.stranger()
    for path, body in requests:
        answer = world.ask("POST", f"/api/v1/{path}", token, json=body)
    return answer


def from_a_conversion_that_breaks(world: World) -> httpx.Response:
    with world.stack.database.connect() as superuser:
        superuser.execute(
            "alter table tenancy.organizations add constraint nobody check (kind = 'personal' or slug <> 'broken')"
        )
        try:
            return from_a_personal_organization(
                world, ("rpc/convert_to_organization", {"name": "Broken", "slug": "broken"})
            )
        finally:
            superuser.execute("alter table tenancy.organizations drop constraint nobody")


def refusal_in_sql(world: World, *statements: str) -> str:
    """What the last one of several statements in a transaction says. Nobody reaches these functions over HTTP."""
    with world.stack.database.connect() as superuser, superuser.transaction(force_rollback=True):
        for statement in statements[:-1]:
            run(superuser, statement, {"org": world.organization.id})
        with pytest.raises(psycopg.Error) as refused:
            run(superuser, statements[-1], {"org": world.organization.id})
    return f"{refused.value.sqlstate} {refused.value.diag.message_primary}"


def from_person_without_organization(world: World, *, direct: bool = False) -> httpx.Response:
    """They belong to one, but have not said that it is the one."""
    subject = f"nobody-{uuid4()}"
    with world.stack.database.connect() as superuser:
        superuser.execute(
            """
            with person as (insert into tenancy.users (subject) values (%s) returning id)
            insert into tenancy.memberships (organization_id, user_id, role) select %s, id, 'viewer' from person
            """,
            [subject, world.organization.id],
        )
    return world.ask("GET", "/cases" if direct else "/api/v1/cases", world.stack.token(subject), direct=direct)


def from_another_id(world: World) -> httpx.Response:
    mine = f"/api/v1/cases?id=eq.{uuid4()}"
    assert world.ask("POST", "/api/v1/cases", world.member(), json={"id": mine[-36:], "title": "A case"}).is_success
    return world.ask("PATCH", mine, world.member(), json={"id": str(uuid4())})


def rejected(world: World, **event: object) -> str:
    [refusal] = world.outcome(**event)["rejected"]
    return f"PT200 {refusal['code']}: {refusal['message']}"


def conflicting(world: World) -> str:
    event_id = str(uuid4())
    assert world.outcome(id=event_id, quantity=1)["accepted"] == 1
    [conflict] = world.outcome(id=event_id, quantity=2)["conflicts"]
    return f"PT200 {conflict['code']}: {conflict['message']}"


def from_two_organizations(world: World) -> httpx.Response:
    headers = [("X-Organization-ID", world.organization.slug), ("X-Organization-ID", str(world.organization.id))]
    return world.ask("GET", "/api/v1/cases", world.member(), headers=headers)


def from_what_nobody_foresaw(world: World) -> httpx.Response:
    with world.stack.database.connect() as superuser:
        superuser.execute("revoke execute on function tenancy.identify from sidecar")
        try:
            return world.ask("GET", "/api/v1/cases", world.stranger())
        finally:
            superuser.execute("grant execute on function tenancy.identify to sidecar")


def from_database_that_is_away(world: World) -> httpx.Response:
    with database_away(world.stack.database):
        return world.ask("GET", "/api/v1/cases", world.stranger())


def from_restored_database(world: World) -> httpx.Response:
    """The real thing takes a second cluster: see test_restore.py. Here the one that is recorded is another."""
    identifier = "update metering.generations set system_identifier = - system_identifier"
    with world.stack.database.connect() as superuser:
        superuser.execute(identifier)
        try:
            return world.send("[]")
        finally:
            superuser.execute(identifier)


def from_database_of_another_version(world: World) -> httpx.Response:
    """A sidecar that could not know it when it started."""
    rename = "update yoyo._yoyo_migration set migration_id = %s || substr(migration_id, %s)"
    world.stack.stop()
    with world.stack.database.connect() as superuser:
        superuser.execute(rename, ["x", 1])
    with database_away(world.stack.database):
        world.stack.launch()
        assert eventually(lambda: answers(world.stack.gateway_url), bool, seconds=60)
    try:
        return world.send("[]")
    finally:
        with world.stack.database.connect() as superuser:
            superuser.execute(rename, ["", 2])


def without_a_webhook_secret(_: World) -> str:
    """Which this stack has. There is no inbox where nothing is believed."""
    webhook = StripeWebhook(None, cast(Any, None))
    with ThreadPoolExecutor(1) as thread, pytest.raises(Problem) as refused:
        thread.submit(asyncio.run, webhook.receive(Request({"type": "http", "headers": []}))).result()
    return f"{refused.value.code} {refused.value.message}"


def from_unreachable_keys(_: World) -> str:
    """Nobody listens there. A loop of its own needs a thread of its own."""
    key_set = KeySet(f"http://127.0.0.1:{free_port()}/jwks.json", refresh_seconds=300)
    with ThreadPoolExecutor(1) as thread, pytest.raises(Problem) as refused:
        thread.submit(asyncio.run, key_set.find("key-1", "RS256")).result()
    return f"{refused.value.code} {refused.value.message}"


def from_stripe(world: World, *, status: int) -> httpx.Response:
    """Where an owner asks for a checkout, and Stripe answers with the status."""
    with world.stack.database.connect() as superuser:
        superuser.execute("select stripe.set_price('pro', 'price_of_pro')")
    world.stripe.fail(path="/v1/checkout", kind="status", status=status)
    try:
        body = {"plan": "pro", "tenant_id": world.organization.slug}
        return world.ask("POST", "/api/billing/create_checkout_session", world.member(), json=body)
    finally:
        world.stripe.mend()


def answers(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False)
    except httpx.TransportError:
        return False
    return True


def from_database_that_is_busy(world: World) -> httpx.Response:
    """Somebody holds the users, and an operator cancels who waits for them."""
    waiting = """
        select pg_cancel_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = 'sidecar' and wait_event_type = 'Lock'
    """
    with world.stack.database.connect() as holder, world.stack.database.connect() as operator, holder.transaction():
        holder.execute("lock table tenancy.users in access exclusive mode")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(world.ask, "GET", "/api/v1/cases", world.stranger())
            deadline = time.monotonic() + 20
            while not operator.execute(waiting).fetchall() and not answer.done():
                assert time.monotonic() < deadline, "the sidecar does not wait for the lock"
                time.sleep(0.02)
            return answer.result(timeout=20)


def from_too_many_requests(world: World) -> httpx.Response:
    """Three of them, since a minute could begin in between."""
    limited = insert_organization(world.stack.database, f"limited-{uuid4().hex[:8]}", roles=("owner",))
    with world.stack.database.connect() as superuser:
        superuser.execute("update tenancy.organizations set plan = %s where id = %s", [LIMITED_PLAN, limited.id])
    token = world.stack.token(limited["owner"].subject)
    return [world.ask("GET", "/api/v1/organizations", token) for _ in range(3)][-1]


def from_a_quota_of_none(world: World) -> httpx.Response:
    limited = insert_organization(world.stack.database, f"limited-{uuid4().hex[:8]}", roles=("owner",))
    with world.stack.database.connect() as superuser:
        superuser.execute(
            """
            insert into billing.entitlement_overrides (
              organization_id, feature, kind, limit_value, enforcement, meter_code, created_by
            )
            values (%s, 'requests', 'limit_per_period', 0, 'hard', 'api.request', 'staff')
            """,
            [limited.id],
        )
    return world.ask("GET", "/api/v1/cases", world.stack.token(limited["owner"].subject))


def from_a_foreign_page(world: World) -> httpx.Response:
    headers = [("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "GET")]
    return world.ask("OPTIONS", "/api/v1/cases", headers=headers)


def from_postgrest_that_is_away(world: World) -> httpx.Response:
    token = world.member()
    world.stack.stop("postgrest")
    try:
        return world.ask("GET", "/api/v1/cases", token)
    finally:
        world.stack.start("postgrest")


def from_more_batches_than_go_in(world: World) -> httpx.Response:
    with world.stack.database.connect(autocommit=False) as holder, ThreadPoolExecutor(8) as pool:
        holder.execute("lock table metering.event_keys in access exclusive mode")
        batch = json.dumps([{"id": "1", "event": "x", "quantity": 1, "organization_id": str(world.organization.id)}])
        # One after the other, since those that come together go in together: until no slot is left for the next one.
        waiting, refused = [], set[Future[httpx.Response]]()
        while not refused:
            waiting.append(pool.submit(world.send, batch))
            refused, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        holder.rollback()
    return refused.pop().result()


def from_raw_bytes(world: World, sent: bytes) -> httpx.Response:
    """What the HTTP server itself answers, before there is a request."""
    url = httpx.URL(world.stack.gateway_url)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(sent)
        response = HTTPResponse(connection)
        response.begin()
        return httpx.Response(response.status, headers=response.getheaders(), content=response.read())


def making_a_key(world: World, **details: object) -> httpx.Response:
    body = {"name": "A key", "scopes": ["data:read"], **details}
    return world.ask("POST", "/api/v1/rpc/create_api_key", world.member(), json=body)


def changing_a_key(world: World, verb: str, key_id: object) -> httpx.Response:
    return world.ask("POST", f"/api/v1/rpc/{verb}_api_key", world.member(), json={"id": str(key_id)})


def from_a_key_that_was_rotated(world: World) -> httpx.Response:
    key_id = making_a_key(world).json()["id"]
    assert changing_a_key(world, "rotate", key_id).is_success
    return changing_a_key(world, "rotate", key_id)


def from_a_revoked_key(world: World) -> httpx.Response:
    """The gateway has just seen it work, so PostgREST is asked."""
    made = making_a_key(world).json()
    assert world.ask("GET", "/api/v1/cases", made["key"]).is_success
    assert changing_a_key(world, "revoke", made["id"]).is_success
    return world.ask("GET", "/api/v1/cases", made["key"])


def usage(world: World, function: str = "usage_summary", **arguments: str) -> httpx.Response:
    return world.ask("GET", f"/api/v1/rpc/{function}", world.member(), params=arguments)


def rpc(world: World, function: str, **arguments: object) -> httpx.Response:
    return world.ask("POST", f"/api/v1/rpc/{function}", world.member(), json=arguments)


def report(world: World, start: str, end: str, **arguments: str) -> httpx.Response:
    return usage(world, "usage_report", **{"from": start, "to": end, **arguments})


def from_a_hundred_alerts(world: World) -> str:
    return refusal_in_sql(
        world,
        """
        insert into billing.usage_alerts (organization_id, threshold_kind, threshold)
        select %(org)s, 'absolute', n from generate_series(1, 94) n""",
        "select set_config('role', 'platform_admin', true), set_config('app.current_org', %(org)s::text, true)",
        "select billing.create_usage_alert('absolute', 95, null, null)",
    )


def by_staff(world: World, function: str, **arguments: object) -> httpx.Response:
    token = world.stack.token("staff", role="platform_admin")
    return world.ask("POST", f"/api/v1/rpc/{function}", token, json=arguments)


def correcting(world: World, function: str, **arguments: object) -> httpx.Response:
    token = world.stack.token("staff", role="platform_admin")
    headers = [("X-Organization-ID", world.organization.slug)]
    return world.ask("POST", f"/api/v1/rpc/{function}", token, headers=headers, json=arguments)


def from_more_than_is_left(world: World) -> httpx.Response:
    limit = {"feature": "scans", "kind": "limit_per_period", "limit_value": 9, "enforcement": "hard"}
    correcting(world, "set_entitlement", **limit).raise_for_status()
    return correcting(world, "reserve_quota", feature="scans", n=10)


def from_another_reservation(world: World) -> httpx.Response:
    correcting(world, "set_entitlement", feature="pages", limit_value=9, kind="limit_per_period").raise_for_status()
    correcting(world, "reserve_quota", feature="pages", n=1, reference="book").raise_for_status()
    return correcting(world, "reserve_quota", feature="pages", n=2, reference="book")


# An invoice of 25 by hand, and what it takes to ask about it.
INVOICE = (
    "select billing.ensure_periods(%(org)s, now(), now())",
    """
    insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
    select organization_id, organization_id, '2020-0001', period_start, period_end, 'usd', 25
    from billing.billing_periods where organization_id = %(org)s and period_end > now() and period_start < now()
    """,
)
PAYMENT = "select (billing.record_payment(%(org)s, %(org)s, 20, 'cash', 'r1', null)).id"
REFUND = f"select billing.record_refund(%(org)s, ({PAYMENT}), {{}}, 'r2', {{}})"


def of_nothing(world: World, function: str, **arguments: object) -> httpx.Response:
    """Of the invoice of a month in which nothing was used."""
    with world.stack.database.connect() as superuser:
        invoice = value(superuser, "select id from billing.invoices where organization_id = %s", world.organization.id)
    return correcting(world, function, invoice_id=str(invoice), **arguments)


def from_paying_a_statement(world: World) -> str:
    return refusal_in_sql(
        world,
        "set local session_replication_role = replica",
        "update billing.invoices set kind = 'statement', number = null where organization_id = %(org)s",
        "set local session_replication_role = origin",
        """
        select billing.write_off_invoice(i.organization_id, i.id, 'gone')
        from billing.invoices i where i.organization_id = %(org)s
        """,
    )


def amending(world: World, *, event_id: str | None = None, **event: object) -> httpx.Response:
    event = {"id": str(uuid4()), **event}
    return correcting(world, "amend_usage_event", event_id=event_id or recorded(world), event=event)


def recorded(world: World, key: str | None = None) -> str:
    """A usage event, by its id."""
    key = key or str(uuid4())
    assert world.outcome(id=key)["accepted"] == 1
    with world.stack.database.connect() as superuser:
        return str(value(superuser, "select id from metering.usage_events where idempotency_key = %s", key))


def from_an_event_that_was_voided(world: World) -> httpx.Response:
    event_id = recorded(world)
    assert correcting(world, "void_usage_event", event_id=event_id).is_success
    return amending(world, event_id=event_id)


def from_an_event_that_was_amended(world: World) -> httpx.Response:
    event_id = recorded(world)
    assert amending(world, event_id=event_id, quantity=2).is_success
    return correcting(world, "void_usage_event", event_id=event_id)


def from_an_id_that_is_taken(world: World) -> httpx.Response:
    taken = str(uuid4())
    recorded(world, taken)
    return amending(world, id=taken)


def from_a_rejected_event_that_was_dismissed(world: World) -> httpx.Response:
    key = str(uuid4())
    rejected(world, id=key, quantity=-1)
    with world.stack.database.connect() as superuser:
        rejected_id = value(superuser, "select id from metering.rejected_events where event ->> 'id' = %s", key)
    assert correcting(world, "dismiss_rejected_event", rejected_id=str(rejected_id)).is_success
    return correcting(world, "replay_rejected_event", rejected_id=str(rejected_id))


def invite(world: World, email: str | None = None, role: str = "viewer") -> httpx.Response:
    body = {"email": email or f"{uuid4()}@example.com", "role": role}
    return world.ask("POST", "/api/v1/rpc/create_invitation", world.member(), json=body)


def accept(world: World, code: str, **claims: Any) -> httpx.Response:
    token = world.stack.token(f"guest-{uuid4()}", **claims)
    return world.ask("POST", "/api/v1/rpc/accept_invitation", token, json={"code": code})


def from_an_invitation(world: World, *, meanwhile: str = "id = id", **claims: Any) -> httpx.Response:
    invitation = invite(world).json()
    with world.stack.database.connect() as superuser:
        run(superuser, f"update tenancy.invitations set {meanwhile} where id = %s", [invitation["id"]])
    return accept(world, invitation["code"], **{"email": invitation["email"], **claims})


def from_a_second_invitation(world: World) -> httpx.Response:
    return invite(world, invite(world).json()["email"])


def from_removing_nobody(world: World) -> httpx.Response:
    return world.ask("POST", "/api/v1/rpc/remove_member", world.member(), json={"user_id": str(uuid4())})


Raised = Callable[[World], httpx.Response | str]

SQL_CODES: Mapping[str, tuple[int, Raised]] = {
    "ADOPTION_BLOCKED": (409, lambda world: refusal_in_sql(world, "select tenancy.adopt_table('tenancy.users')")),
    "API_KEY_NOT_FOUND": (404, lambda world: changing_a_key(world, "revoke", uuid4())),
    "API_KEY_ROTATED": (409, from_a_key_that_was_rotated),
    "ALREADY_A_MEMBER": (409, lambda world: invite(world, world.organization["viewer"].email)),
    "ALREADY_AN_ORGANIZATION": (
        409,
        lambda world: world.ask(
            "POST", "/api/v1/rpc/convert_to_organization", world.member(), json={"name": "Again", "slug": "again"}
        ),
    ),
    "AUDITED_TABLE": (409, lambda world: refusal_in_sql(world, "truncate tenancy.memberships")),
    "AUDIT_APPEND_ONLY": (409, lambda world: refusal_in_sql(world, "truncate audit.log cascade")),
    "BILLING_ENTITY_NOT_FOUND": (404, lambda world: usage(world, "preview_invoice", billing_entity_type="user")),
    "BILLING_PERIOD_LOCKED": (409, from_finalized_period),
    "CONVERSION_FAILED": (500, from_a_conversion_that_breaks),
    "CONVERSION_ONLY": (
        409,
        lambda world: refusal_in_sql(world, "update tenancy.organizations set kind = 'personal' where id = %(org)s"),
    ),
    "COUNT_NOT_EXACT": (
        400,
        lambda world: world.ask("GET", "/api/v1/cases", world.member(), headers=[("Prefer", "count=planned")]),
    ),
    "CREDIT_NOTE_NOT_FOUND": (
        404,
        lambda world: refusal_in_sql(world, *INVOICE, REFUND.format(5, "gen_random_uuid()")),
    ),
    "CREDIT_TOO_HIGH": (409, lambda world: of_nothing(world, "create_credit_note", reason="wrong")),
    "CUSTOMER_LINKED": (409, lambda world: refusal_in_sql(world, LINK.format("cus_1"), LINK.format("cus_2"))),
    "DATABASE_RESTORED": (503, from_restored_database),
    "DAY_NOT_ENDED": (409, lambda world: by_staff(world, "remake_storage_snapshots", day="2999-01-01")),
    "EMAIL_NOT_VERIFIED": (403, partial(from_an_invitation, email_verified=False)),
    "EVENT_AMENDED": (409, from_an_event_that_was_amended),
    "EVENT_NOT_FOUND": (404, lambda world: correcting(world, "void_usage_event", event_id=str(uuid4()))),
    "EVENT_VOIDED": (409, from_an_event_that_was_voided),
    "IDEMPOTENCY_CONFLICT": (409, from_an_id_that_is_taken),
    "ID_IS_FIXED": (409, from_another_id),
    "INVALID_ANCHOR_DAY": (400, lambda world: correcting(world, "set_billing_schedule", billing_anchor_day=32)),
    "INVALID_API_KEY": (401, from_a_revoked_key),
    "INVALID_BILLING_PROFILE": (400, lambda world: rpc(world, "set_billing_profile", country="Germany")),
    "INVALID_BILLING_TERMS": (400, lambda world: correcting(world, "set_billing_terms", tax_percent=101)),
    "ALERT_NOT_FOUND": (404, lambda world: rpc(world, "delete_usage_alert", id=str(uuid4()))),
    "INVALID_ALERT": (400, lambda world: rpc(world, "create_usage_alert", threshold_kind="absolute", threshold=0)),
    "INVALID_BUDGET": (400, lambda world: rpc(world, "set_budget", amount_cents=0.5)),
    "TOO_MANY_ALERTS": (409, from_a_hundred_alerts),
    "INVALID_BODY": (400, lambda world: world.send("5")),
    "INVALID_CREDIT_NOTE": (400, lambda world: of_nothing(world, "create_credit_note", reason="wrong", lines=[])),
    "INVALID_CURRENCY": (
        400,
        lambda world: refusal_in_sql(world, "update tenancy.organizations set currency = 'abc' where id = %(org)s"),
    ),
    "INVALID_EMAIL": (400, lambda world: invite(world, "nobody")),
    "INVALID_ENTITLEMENT": (400, lambda world: correcting(world, "set_entitlement", feature="No", limit_value=1)),
    "INVALID_EVENT": (400, partial(amending, quantity=-1)),
    "INVALID_EXPIRY": (400, lambda world: making_a_key(world, expires_at="2000-01-01")),
    "INVALID_FILTER": (400, lambda world: usage(world, filter='{"meter": "nothing"}')),
    "INVALID_GRANULARITY": (
        400,
        lambda world: report(world, "2026-01-01", "2026-01-02", granularity="year"),
    ),
    "INVALID_GROUP_BY": (400, partial(usage, group_by="{color}")),
    "INVALID_METER": (400, lambda world: by_staff(world, "create_meter", code="No", unit="u", description="d")),
    "INVALID_NAME": (400, lambda world: world.found(name=" ")),
    "INVALID_PAYMENT": (400, lambda world: of_nothing(world, "write_off_invoice", reason="")),
    "INVALID_PLAN": (400, lambda world: by_staff(world, "create_plan", code="No", name="n")),
    "INVALID_PRICE": (400, lambda world: by_staff(world, "create_price", meter="api.request")),
    "INVALID_QUANTITY": (400, lambda world: correcting(world, "reserve_quota", feature="members", n=0)),
    "INVALID_RANGE": (400, lambda world: report(world, "yesterday", "2026-01-02")),
    "INVALID_REPLAY": (400, lambda world: by_staff(world, "replay_webhooks", status="sent")),
    "INVALID_SCOPE": (400, lambda world: making_a_key(world, scopes=["events:write"])),
    "INVALID_ROLE": (400, lambda world: invite(world, role="boss")),
    "INVALID_SLUG": (400, lambda world: world.found(slug="No Slug")),
    "INVALID_SUBSCRIPTION": (400, lambda world: correcting(world, "start_subscription", plan="pro", trial_days=-1)),
    "INVALID_STRIPE_ID": (400, lambda world: correcting(world, "link_stripe_customer", customer_id="no id")),
    "INVALID_TIMEZONE": (400, lambda world: world.found(timezone="Mars/Olympus")),
    "INVALID_TOKEN": (401, lambda world: world.ask("GET", "/cases", world.stack.token(None), direct=True)),
    "INVALID_WEIGHT": (400, lambda world: by_staff(world, "set_operation_weight", operation="task_create", weight=-1)),
    "INVITATION_EMAIL_MISMATCH": (403, partial(from_an_invitation, email="other@example.com")),
    "INVITATION_EXPIRED": (410, partial(from_an_invitation, meanwhile="expires_at = now() - interval '1 second'")),
    "INVITATION_NOT_FOUND": (404, lambda world: accept(world, "0" * 32, email="guest@example.com")),
    "INVITATION_PENDING": (409, from_a_second_invitation),
    "INVITATION_REVOKED": (410, partial(from_an_invitation, meanwhile="revoked_at = now()")),
    "INVITATION_USED": (409, partial(from_an_invitation, meanwhile="accepted_at = now()")),
    "INVOICE_NOT_FOUND": (404, lambda world: usage(world, "invoice_document", invoice_id=str(uuid4()))),
    "ISOLATION_LEVEL": (500, from_wrong_isolation_level),
    "LAST_OWNER": (409, from_an_organization_without_owner),
    "LEDGER_APPEND_ONLY": (409, lambda world: refusal_in_sql(world, "truncate billing.balance_entries")),
    "LEDGER_INCONSISTENT": (
        409,
        lambda world: refusal_in_sql(
            world,
            *INVOICE,
            "set constraints all immediate",
            """
            insert into billing.balance_entries (organization_id, currency, kind, amount_cents, invoice_id)
            values (%(org)s, 'usd', 'negative_invoice', 25, %(org)s)
            """,
        ),
    ),
    "MEMBER_NOT_FOUND": (404, from_removing_nobody),
    "METER_EXISTS": (
        409,
        lambda world: by_staff(
            world, "create_meter", code="api.request", unit="request", description="Requests", event_name="api.request"
        ),
    ),
    "METER_FIXED": (409, lambda world: refusal_in_sql(world, "update metering.meters set unit = 'other'")),
    "METERED_TABLE": (409, lambda world: refusal_in_sql(world, "truncate app.documents")),
    "METER_NOT_FOUND": (404, lambda world: by_staff(world, "delete_meter", code="nothing")),
    "NOTHING_TO_WRITE_OFF": (409, lambda world: of_nothing(world, "write_off_invoice", reason="gone")),
    "NO_SUBSCRIPTION": (404, lambda world: correcting(world, "pause_subscription")),
    "NOT_A_MEMBER": (
        403,
        lambda world: world.ask("GET", "/cases", world.member(), headers=[("X-Organization-ID", "other")], direct=True),
    ),
    "ONE_ORGANIZATION_A_TRANSACTION": (409, from_two_organizations_in_one_transaction),
    "ORGANIZATION_BILLED": (409, from_deleting_what_is_billed),
    "ORGANIZATION_NOT_FOUND": (
        404,
        lambda world: world.ask(
            "GET",
            "/api/v1/cases",
            world.stack.token("staff", role="platform_admin"),
            headers=[("X-Organization-ID", "nowhere")],
        ),
    ),
    "ORGANIZATION_REQUIRED": (400, partial(from_person_without_organization, direct=True)),
    "PAYMENT_METHOD_REQUIRED": (
        409,
        lambda world: refusal_in_sql(
            world,
            START.replace("true", "false"),
            "select billing.resume_subscription(%(org)s, null)",
        ),
    ),
    "PAYMENT_NOT_FOUND": (
        404,
        lambda world: correcting(world, "record_refund", payment_id=str(uuid4()), amount_cents=1, reference="r1"),
    ),
    "PAYMENT_TOO_HIGH": (
        409,
        lambda world: of_nothing(world, "record_payment", amount_cents=1, method="cash", reference="r1"),
    ),
    "PERIOD_BUSY": (503, from_busy_period),
    "PERIOD_NOT_ENDED": (409, lambda world: world.close("finalize_period", month(0))),
    "PERIOD_NOT_FOUND": (404, lambda world: world.close("finalize_period", date(1999, 1, 1))),
    "PERIOD_OUT_OF_ORDER": (409, from_a_later_period),
    "PLAN_EXISTS": (409, lambda world: by_staff(world, "create_plan", code="starter", name="Starter")),
    "PLAN_NOT_FOUND": (404, lambda world: by_staff(world, "change_plan", code="none")),
    "PLAN_OF_SUBSCRIPTION": (
        409,
        lambda world: refusal_in_sql(world, START, "update tenancy.organizations set plan = 'firm' where id = %(org)s"),
    ),
    "PRICE_EXISTS": (
        409,
        lambda world: by_staff(
            world, "create_price", meter="api.request", unit_amount_cents=25, effective_from="2001-01-01"
        ),
    ),
    "PRICE_FIXED": (409, lambda world: refusal_in_sql(world, "update billing.prices set unit_amount_cents = 0")),
    "ENTITLEMENT_NOT_FOUND": (404, lambda world: correcting(world, "remove_entitlement", feature="none")),
    "FEATURE_REQUIRED": (403, lambda world: correcting(world, "reserve_quota", feature="none")),
    "RESERVATION_CONFLICT": (409, from_another_reservation),
    "RESERVATION_NOT_FOUND": (
        404,
        lambda world: correcting(world, "release_quota", feature="members", reference="none"),
    ),
    "FEATURE_NOT_FOUND": (404, lambda world: by_staff(world, "remove_plan_feature", plan="pro", feature="none")),
    "CURRENCY_FIXED": (
        409,
        lambda world: refusal_in_sql(world, "update tenancy.organizations set currency = 'eur' where id = %(org)s"),
    ),
    "PERIOD_REQUIRED": (400, lambda world: world.close("finalize_period", None)),
    "PERSONAL_OWNER": (
        409,
        lambda world: from_a_personal_organization(
            world, ("rpc/create_invitation", {"email": "heir@example.com", "role": "owner"})
        ),
    ),
    "QUOTA_EXCEEDED": (402, from_more_than_is_left),
    "REFERENCE_TAKEN": (
        409,
        lambda world: refusal_in_sql(world, *INVOICE, PAYMENT, PAYMENT.replace("20", "21")),
    ),
    "REFUND_TOO_HIGH": (409, lambda world: refusal_in_sql(world, *INVOICE, REFUND.format(21, "null"))),
    "REJECTED_EVENT_NOT_FOUND": (
        404,
        lambda world: correcting(world, "dismiss_rejected_event", rejected_id=str(uuid4())),
    ),
    "REJECTED_EVENT_RESOLVED": (409, from_a_rejected_event_that_was_dismissed),
    "REPORT_TOO_LONG": (
        400,
        lambda world: report(world, "2000-01-01", "2026-01-01", granularity="hour"),
    ),
    "ROLE_REQUIRED": (403, lambda world: world.close("finalize_period", month(1), role="service")),
    "SCOPE_REQUIRED": (
        403,
        lambda world: world.ask("GET", "/api/v1/rpc/usage_summary", making_a_key(world).json()["key"]),
    ),
    "STATEMENT_NOT_PAYABLE": (409, from_paying_a_statement),
    "STRIPE_PRICE_MISSING": (409, lambda world: refusal_in_sql(world, "delete from stripe.plan_prices", CHECKOUT)),
    "STRIPE_PRICE_TAKEN": (
        409,
        lambda world: refusal_in_sql(
            world, """select stripe.set_plan_prices('{"pro": "price_of_both", "firm": "price_of_both"}')"""
        ),
    ),
    "STRIPE_UNKNOWN": (
        409,
        lambda world: refusal_in_sql(world, 'select stripe.require_known(\'{"status": "hibernating"}\')'),
    ),
    "SUBSCRIPTION_AT_STRIPE": (
        409,
        lambda world: refusal_in_sql(world, *AT_STRIPE, "select billing.pause_subscription(%(org)s, null)"),
    ),
    "SUBSCRIPTION_CHANGED": (
        409,
        lambda world: refusal_in_sql(world, START, "select billing.pause_subscription(%(org)s, now())"),
    ),
    "SUBSCRIPTION_ENDING": (
        409,
        lambda world: refusal_in_sql(
            world,
            START,
            "select billing.cancel_subscription(%(org)s, true, null, null)",
            "select billing.change_subscription(%(org)s, 'firm', true, null)",
        ),
    ),
    "SUBSCRIPTION_EXISTS": (409, lambda world: refusal_in_sql(world, START, START)),
    "SUBSCRIPTION_FIXED": (409, lambda world: refusal_in_sql(world, START, DELETE_PHASES)),
    "SUBSCRIPTION_NOT_ACTIVE": (
        409,
        lambda world: refusal_in_sql(
            world, START.replace("true", "false"), "select billing.mark_past_due(%(org)s, null, null)"
        ),
    ),
    "SLUG_TAKEN": (409, lambda world: world.found(slug="acme")),
    "TIME_OUT_OF_RANGE": (400, from_a_wrong_year),
    "USER_NOT_PROVISIONED": (403, lambda world: world.ask("GET", "/cases", world.stranger(), direct=True)),
    "WEBHOOK_NOT_FOUND": (404, lambda world: by_staff(world, "replay_webhook", message_id=str(uuid4()))),
    "WORKSPACE_LIMIT": (
        403,
        lambda world: from_a_personal_organization(
            world, ("workspaces", {"name": "First"}), ("workspaces", {"name": "Second"})
        ),
    ),
}

API_CODES: Mapping[str, tuple[int, Raised]] = {
    "AMBIGUOUS_HEADER": (400, from_two_organizations),
    "BODY_TOO_LARGE": (413, lambda world: world.send("[" + " " * MAX_INGEST_BYTES + "]")),
    "DATABASE_BUSY": (503, from_database_that_is_busy),
    "DATABASE_UNAVAILABLE": (503, from_database_that_is_away),
    "HEADERS_TOO_LARGE": (431, lambda world: world.ask("GET", "/health", headers=[("X-Long", "x" * 70_000)])),
    "INGEST_BUSY": (503, from_more_batches_than_go_in),
    "INTERNAL_ERROR": (500, from_what_nobody_foresaw),
    "INVALID_API_KEY": (401, lambda world: world.ask("GET", "/api/v1/cases", f"gl_{'0' * 12}_{'0' * 64}")),
    "INVALID_BODY": (400, lambda world: world.send("{")),
    "INVALID_ENCODING": (400, lambda world: world.ask("GET", "/api/v1/cases?title=eq.%FF", world.member())),
    "INVALID_EVENT": (
        400,
        lambda world: world.ask("DELETE", "/v1/events/1?reason=%00", world.stack.token("backend", role="service")),
    ),
    "INVALID_PATH": (400, lambda world: world.ask("GET", "/api/v1/cases%00", world.member())),
    "INVALID_RANGE": (
        400,
        lambda world: world.ask("GET", f"/billing/usage-report/{world.organization.slug}", world.member()),
    ),
    "INVALID_SIGNATURE": (400, lambda world: world.ask("POST", "/webhooks/stripe", content="{}")),
    "INVALID_TOKEN": (401, lambda world: world.ask("GET", "/api/v1/cases", "no.to.ken")),
    "JWKS_UNAVAILABLE": (503, from_unreachable_keys),
    "MALFORMED_REQUEST": (400, lambda world: from_raw_bytes(world, b"nonsense\r\n\r\n")),
    "METHOD_NOT_ALLOWED": (405, lambda world: world.ask("GET", "/v1/events", world.member())),
    "NOT_A_MEMBER": (
        403,
        lambda world: world.ask("GET", "/api/v1/cases", world.member(), headers=[("X-Organization-ID", "other")]),
    ),
    "ORGANIZATION_REQUIRED": (400, from_person_without_organization),
    "ORGANIZATION_NOT_FOUND": (404, lambda world: world.send("[]", headers=[("X-Organization-ID", "nowhere")])),
    "ORIGIN_NOT_ALLOWED": (403, from_a_foreign_page),
    "POSTGREST_UNAVAILABLE": (503, from_postgrest_that_is_away),
    "QUOTA_EXCEEDED": (402, from_a_quota_of_none),
    "RATE_LIMITED": (429, from_too_many_requests),
    "REQUEST_TIMEOUT": (
        408,
        lambda world: from_raw_bytes(world, b"POST /api/v1/cases HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
    ),
    "ROLE_REQUIRED": (403, lambda world: world.send("[]", token=world.member())),
    "ROUTE_NOT_FOUND": (404, lambda world: world.ask("GET", "/nothing/here", world.member())),
    "SCOPE_REQUIRED": (403, lambda world: world.send("[]", token=making_a_key(world).json()["key"])),
    "SCHEMA_MISMATCH": (503, from_database_of_another_version),
    "STRIPE_NOT_CONFIGURED": (503, without_a_webhook_secret),
    "STRIPE_REFUSED": (502, partial(from_stripe, status=402)),
    "STRIPE_UNAVAILABLE": (503, partial(from_stripe, status=500)),
    "UNKNOWN_PARAMETER": (
        400,
        lambda world: world.ask("DELETE", "/v1/events/1?sauce=x", world.stack.token("backend", role="service")),
    ),
    "UNSUPPORTED_MEDIA_TYPE": (
        415,
        lambda world: world.ask("POST", "/v1/events", world.stack.token("backend", role="service"), content="[]"),
    ),
}


def test_every_code_in_the_sources_is_raised_here() -> None:
    assert codes_in("sql/") == set(SQL_CODES)
    assert codes_in("api/") == set(API_CODES)


def test_every_code_is_in_the_catalogue_and_every_one_of_it_is_raised() -> None:
    assert set(raised_codes()) == set(CODES)


def test_reference_is_up_to_date() -> None:
    """`goldleaves errors --write` makes it."""
    assert (PROJECT / "docs/errors.md").read_text() == error_reference()


def test_promised_codes_exist_with_their_status() -> None:
    assert {code: SQL_CODES[code][0] for code in PROMISED} == PROMISED
    assert codes_in("sql/") >= PROMISED_IN_OUTCOMES


@pytest.mark.parametrize("code", SQL_CODES)
def test_code_of_sql(world: World, code: str) -> None:
    status, raised = SQL_CODES[code]
    assert CODES[code].status == status
    assert code_of(raised(world)) == (status, code)


@pytest.mark.parametrize("code", API_CODES)
def test_code_of_the_sidecar(world: World, code: str) -> None:
    status, raised = API_CODES[code]
    assert CODES[code].status == status
    assert code_of(raised(world)) == (status, code)


def rows_of(world: World, name: str, *, method: str = "GET", **request: Any) -> httpx.Response:
    return world.ask(method, f"/api/v1/{name}", world.member(), **request)


def inserted(world: World, **case: object) -> httpx.Response:
    return rows_of(world, "cases", method="POST", json=case)


def from_the_same_id_twice(world: World) -> httpx.Response:
    case = {"id": str(uuid4()), "title": "One"}
    assert inserted(world, **case).status_code == 201
    return inserted(world, **case)


def from_behind_the_last_row(world: World) -> httpx.Response:
    return rows_of(world, "cases?offset=1000000", headers=[("Prefer", "count=exact")])


def from_one_row_asked_for(world: World) -> httpx.Response:
    return rows_of(world, f"cases?id=eq.{uuid4()}", headers=[("Accept", "application/vnd.pgrst.object+json")])


def from_a_query_that_is_stopped(world: World) -> httpx.Response:
    """As the time limit does, which is too long to wait for."""
    stop = """
        select count(pg_cancel_backend(pid)) from pg_stat_activity
        where datname = current_database() and usename = 'authenticator' and wait_event_type = 'Lock'
    """
    database = world.stack.database
    with ThreadPoolExecutor() as pool, database.connect(autocommit=False) as holder, database.connect() as stopper:
        holder.execute("lock table app.cases in access exclusive mode")
        asked = pool.submit(rows_of, world, "cases")
        assert eventually(lambda: stopper.execute(stop).fetchone(), (1,).__eq__) == (1,)
        return asked.result()


PASSED_ON_CODES: Mapping[str, Callable[[World], httpx.Response]] = {
    "PGRST100": lambda world: rows_of(world, "cases?status=is_like.open"),
    "PGRST102": lambda world: rows_of(world, "cases", method="POST", content="{"),
    "PGRST103": from_behind_the_last_row,
    "PGRST116": from_one_row_asked_for,
    "PGRST200": lambda world: rows_of(world, "cases?select=id,invoices(id)"),
    "PGRST202": lambda world: rows_of(world, "rpc/usage_summary?month=1"),
    "PGRST204": lambda world: inserted(world, title="One", color="red"),
    "22P02": lambda world: rows_of(world, "cases?id=eq.1"),
    "23502": lambda world: inserted(world, status="open"),
    "23503": lambda world: inserted(world, title="One", client_id=str(uuid4())),
    "23505": from_the_same_id_twice,
    "23514": lambda world: inserted(world, title=" "),
    "25006": lambda world: rows_of(world, "rpc/sign_in"),
    "42P01": lambda world: rows_of(world, "nowhere"),
    "57014": from_a_query_that_is_stopped,
    "42501": lambda world: rows_of(world, "invoices", method="POST", json={"number": "1"}),
    "42703": lambda world: rows_of(world, "cases?select=color"),
}
# PostgREST looks a relation up before it asks Postgres, from version 13 on.
ALSO = {"42P01": "PGRST205"}


def test_every_code_that_is_passed_on_is_provoked_here() -> None:
    assert set(PASSED_ON_CODES) == set(PASSED_ON)


@pytest.mark.parametrize("code", PASSED_ON_CODES)
def test_code_that_is_passed_on(world: World, code: str) -> None:
    answer = PASSED_ON_CODES[code](world)
    body = answer.json()
    assert set(body) == {"code", "message", "details", "hint"}, body
    assert body["code"] in (code, ALSO.get(code)), body
    assert answer.status_code == PASSED_ON[code].status, body


def code_of(answer: httpx.Response | str) -> tuple[int, str]:
    """Status and stable code, of an answer in the error shape or of "PTnnn CODE: text"."""
    if isinstance(answer, httpx.Response):
        body = answer.json()
        assert set(body) == {"code", "message", "details", "hint"}, body
        assert body["code"] == f"PT{answer.status_code}", body
        answer = f"{body['code']} {body['message']}"
    match = re.fullmatch(rf"PT(\d{{3}}) {_CODE}: \S.*", answer, re.DOTALL)
    assert match, answer
    return int(match[1]), match[2]


def test_reasons_are_said_beside_the_events(world: World) -> None:
    assert rejected(world, quantity=-1).startswith("PT200 INVALID_EVENT: ")
    assert conflicting(world).startswith("PT200 IDEMPOTENCY_CONFLICT: ")


def test_late_usage_is_rejected_by_the_code_of_its_period(world: World) -> None:
    assert rejected(world, time=f"{month(1)}T12:00:00Z").startswith("PT200 BILLING_PERIOD_LOCKED: ")


@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer", "billing"])
@pytest.mark.parametrize("function", ["finalize_period", "recalculate_period"])
def test_no_tenant_closes_a_period(world: World, function: str, role: str) -> None:
    answer = world.ask("POST", f"/api/v1/rpc/{function}", world.member(role), json={"period_start": str(month(1))})
    assert code_of(answer) == (403, "ROLE_REQUIRED")


def test_nobody_without_a_token_closes_a_period(world: World) -> None:
    answer = world.ask("POST", "/api/v1/rpc/finalize_period", json={"period_start": str(month(1))})
    assert answer.status_code == 401

"""What each role may do inside its own organization: the grid, as data, and tests generated from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Member, Organization
from tests.sql_requests import Caller, Connection, enter, refusal_or_count, request, run

# r read, w insert and update, d delete.
GRID: Mapping[str, Mapping[str, str]] = {
    "owner": {
        "invitations": "rwd",
        "organization": "rwd",
        "members": "rwd",
        "rooms": "rwd",
        "app": "rwd",
        "usage": "r",
        "invoices": "r",
        "alerts": "r",
        "audit": "r",
    },
    "admin": {
        "invitations": "rwd",
        "organization": "rw",
        "members": "rw",
        "rooms": "rw",
        "app": "rwd",
        "usage": "r",
        "invoices": "r",
        "alerts": "r",
        "audit": "r",
    },
    "member": {
        "invitations": "",
        "organization": "r",
        "members": "r",
        "rooms": "r",
        "app": "rw",
        "usage": "r",
        "invoices": "",
        "alerts": "r",
        "audit": "",
    },
    "viewer": {
        "invitations": "",
        "organization": "r",
        "members": "r",
        "rooms": "r",
        "app": "r",
        "usage": "r",
        "invoices": "",
        "alerts": "",
        "audit": "",
    },
    "billing": {
        "invitations": "",
        "organization": "r",
        "members": "r",
        "rooms": "r",
        "app": "",
        "usage": "r",
        "invoices": "r",
        "alerts": "r",
        "audit": "",
    },
}
VERBS = {"r": ("select",), "w": ("insert", "update"), "d": ("delete",)}

# Founding an organization, inviting people and what becomes of invitations are functions: see test_invitations.py.
BY_FUNCTION = {("organization", "insert"), ("members", "insert")} | {
    ("invitations", verb) for verb in ("insert", "update", "delete")
}


@dataclass(frozen=True)
class Table:
    """A table, and the statements that its writers use. Where nobody writes, the plainest ones have to be refused."""

    name: str
    insert: str = "default values"
    update: str = ""
    where: str = "true"


# %(outsider)s is a person who is no member yet, %(colleague)s one who is.
AREAS: Mapping[str, tuple[Table, ...]] = {
    "organization": tuple(
        Table(f"{schema}.organizations", update="name = 'Renamed'", where="id = tenancy.current_org()")
        for schema in ("tenancy", "api")
    ),
    "members": tuple(
        Table(
            f"{schema}.memberships",
            insert="(organization_id, user_id, role) values (tenancy.current_org(), %(outsider)s, 'viewer')",
            update="role = 'billing'",
            where="user_id = %(colleague)s",
        )
        for schema in ("tenancy", "api")
    ),
    "rooms": tuple(
        Table(f"{schema}.workspaces", "(name) values ('New')", "name = 'Changed'") for schema in ("tenancy", "api")
    ),
    "invitations": (
        Table("tenancy.invitations", update="revoked_at = now()"),
        Table("api.pending_invitations", update="role = 'viewer'"),
    ),
    "app": tuple(
        Table(f"{schema}.{name}", f"({column}) values ('New')", f"{column} = 'Changed'")
        for schema in ("app", "api")
        for name, column in (("clients", "name"), ("cases", "title"), ("documents", "title"))
    ),
    "usage": (
        Table("metering.usage_events", update="quantity = 0"),
        Table("stripe.report_marks", update="acknowledged_xid = '4'"),
        Table("metering.storage_snapshots", update="bytes = 0"),
        Table("api.storage_snapshots", update="day_end = now()"),
        Table("api.usage_events", update="units = 0"),
        Table("api.billing_events", update="quantity = 0"),
    ),
    "audit": (
        Table("audit.log", update="actor_id = 'nobody'"),
        Table("api.audit_log", update="actor_id = 'nobody'"),
    ),
    # Written by functions alone: see test_usage_alerts.py.
    "alerts": (
        *(
            Table(f"{schema}.{name}", update=f"{column} = 1")
            for schema in ("billing", "api")
            for name, column in (("usage_alerts", "threshold"), ("budgets", "amount_cents"))
        ),
        *(Table(f"{schema}.notification_log", update="value = 1") for schema in ("notifications", "api")),
    ),
    "invoices": (
        Table("billing.billing_periods", update="status = 'open'"),
        Table("billing.invoices", update="total_cents = 0"),
        Table("billing.invoice_lines", update="amount_cents = 0"),
        Table("api.billing_periods", update="status = 'open'"),
        Table("api.invoices", update="total_cents = 0"),
        Table("api.invoice_lines", update="amount_cents = 0"),
        Table("billing.balance_entries", update="amount_cents = 0"),
        Table("api.balances", update="balance_cents = 0"),
        Table("billing.subscriptions", update="has_payment_method = true"),
        Table("billing.subscription_phases", update="plan_code = 'firm'"),
        Table("api.billing_subscriptions", update="plan = 'firm'"),
        Table("api.subscription_phases", update="plan = 'firm'"),
        *(Table(f"{schema}.entitlement_overrides", update="limit_value = 1e9") for schema in ("billing", "api")),
        *(
            Table(f"{schema}.{name}", update=f"{column} = 0")
            for schema in ("billing", "api")
            for name, column in (
                ("credit_notes", "total_cents"),
                ("credit_note_lines", "amount_cents"),
                ("payments", "amount_cents"),
                ("refunds", "amount_cents"),
            )
        ),
    ),
}


@dataclass(frozen=True)
class World:
    database: Database
    busy: Organization  # has a row of everything
    fresh: Organization  # has people, and no billing that would keep it from being deleted
    outsider: UUID


@pytest.fixture(scope="module")
def world(shared_database: Database, make_organization: MakeOrganization) -> World:
    busy, fresh = (make_organization(shared_database, slug) for slug in ("busy", "fresh"))
    with shared_database.connect() as superuser:
        fill(superuser, busy)
        found = superuser.execute("insert into tenancy.users (subject) values ('outsider') returning id").fetchone()
        assert found
    return World(shared_database, busy, fresh, found[0])


def fill(superuser: Connection, organization: Organization) -> None:
    values = {"org": organization.id, "id": uuid4()}
    for change in (
        """
        insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
        values (%(org)s, '2026-01-01Z', '2026-02-01Z', 'UTC')""",
        """
        insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
        values (%(org)s, %(id)s, '2026-0001', '2026-01-01Z', '2026-02-01Z', 'usd', 25)""",
        """
        insert into billing.invoice_lines (organization_id, invoice_id, line_number, meter_code, description, unit,
          events, quantity, unit_amount_cents, amount_cents)
        values (%(org)s, %(id)s, 1, 'api.request', 'Requests', 'request', 1, 1, 25, 25)""",
        """
        insert into billing.payments (organization_id, id, invoice_id, amount_cents, method, reference, recorded_by)
        values (%(org)s, %(id)s, %(id)s, 20, 'cash', 'r1', 'test')""",
        """
        with note as (
          insert into billing.credit_notes (organization_id, id, invoice_id, currency, reason, issued_by, reference,
            subtotal_cents, tax_cents, total_cents, to_balance_cents)
          values (%(org)s, %(id)s, %(id)s, 'usd', 'wrong', 'test', 'r1', 10, 0, 10, 5)
        ), line as (
          insert into billing.credit_note_lines (organization_id, credit_note_id, line_number, invoice_id,
            invoice_line_number, description, amount_cents)
          values (%(org)s, %(id)s, 1, %(id)s, 1, 'Requests', 10)
        )
        insert into billing.balance_entries (organization_id, currency, kind, amount_cents, credit_note_id)
        values (%(org)s, 'usd', 'credit_note', 5, %(id)s)""",
        """
        insert into billing.refunds (organization_id, payment_id, amount_cents, reference, recorded_by)
        values (%(org)s, %(id)s, 5, 'r1', 'test')""",
        "insert into billing.subscriptions (organization_id, id, created_by) values (%(org)s, %(id)s, 'test')",
        """
        insert into billing.subscription_phases (organization_id, starts_at, subscription_id, status, plan_code,
          made_by, announced_at)
        values (%(org)s, now(), %(id)s, 'active', 'pro', 'test', now())""",
        "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'A workspace')",
        """
        insert into tenancy.invitations (organization_id, email, role, code_sha256, invited_by, expires_at)
        select id, 'new@example.com', 'viewer', sha256('code'), owner_user_id, '2099-01-01Z'
        from tenancy.organizations where id = %(org)s""",
        "insert into app.clients (organization_id, name) values (%(org)s, 'A client')",
        "insert into app.cases (organization_id, title) values (%(org)s, 'A case')",
        "insert into app.documents (organization_id, title) values (%(org)s, 'A document')",  # records doc.upload
        """
        insert into stripe.report_marks (organization_id, meter_code, acknowledged_generation, acknowledged_xid)
        values (%(org)s, 'doc.upload', 1, '3')""",
        "insert into billing.budgets (organization_id, amount_cents) values (%(org)s, 100)",
        """
        insert into billing.entitlement_overrides (organization_id, feature, kind, created_by)
        values (%(org)s, 'audit_log', 'boolean', 'test')""",
        """
        insert into notifications.notification_log (organization_id, kind, threshold_kind, threshold, period_start,
          value)
        values (%(org)s, 'usage_alert', 'absolute', 1, '2026-01-01Z', 1)""",
        """
        insert into metering.storage_snapshots (organization_id, day, day_end, bytes)
        values (%(org)s, '2026-01-01', '2026-01-02Z', 1)""",
    ):
        run(superuser, change, values)


@pytest.fixture
def connection(world: World) -> Iterator[Connection]:
    with world.database.connect("authenticator") as opened:
        yield opened


def statement(table: Table, verb: str) -> str:
    return {
        "select": f"select 1 from {table.name} where {table.where}",
        "insert": f"insert into {table.name} {table.insert}",
        "update": f"update {table.name} set {table.update} where {table.where}",
        "delete": f"delete from {table.name} where {table.where}",
    }[verb]


@pytest.mark.parametrize("verb", [verb for verbs in VERBS.values() for verb in verbs])
@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("role", ROLES)
def test_grid(world: World, connection: Connection, role: str, area: str, verb: str) -> None:
    letter = next(letter for letter, verbs in VERBS.items() if verb in verbs)
    expected = letter in GRID[role][area] and (area, verb) not in BY_FUNCTION
    organization = world.fresh if area == "organization" else world.busy
    colleague = organization["member" if role == "viewer" else "viewer"]
    parameters = {"outsider": world.outsider, "colleague": colleague.id}

    wrong = []
    with request(connection, Caller("member", organization[role].subject)):
        for table in AREAS[area]:
            outcome = refusal_or_count(connection, statement(table, verb), parameters)
            refused = outcome == 0 or isinstance(outcome, psycopg.errors.InsufficientPrivilege)
            if refused == expected or (isinstance(outcome, psycopg.Error) and not refused):
                wrong.append(f"{statement(table, verb)}: {outcome}")
    assert wrong == []


@pytest.mark.parametrize("role", ROLES)
def test_usage_summary_is_for_whoever_reads_usage(world: World, connection: Connection, role: str) -> None:
    with request(connection, Caller("member", world.busy[role].subject, path="/rpc/usage_summary")):
        rows = connection.execute("select meter, events from api.usage_summary()").fetchall()
    assert rows == [("doc.upload", 1)]


@pytest.mark.parametrize("role", ROLES)
def test_nobody_changes_their_own_membership(world: World, connection: Connection, role: str) -> None:
    me = {"me": world.busy[role].id}
    with request(connection, Caller("member", world.busy[role].subject)):
        for change in (
            *(f"update tenancy.memberships set role = '{other}' where user_id = %(me)s" for other in ROLES),
            "delete from tenancy.memberships where user_id = %(me)s",
            """
            insert into tenancy.memberships (organization_id, user_id, role)
            values (tenancy.current_org(), %(me)s, 'owner')
            on conflict (organization_id, user_id) do update set role = excluded.role""",
        ):
            outcome = refusal_or_count(connection, change, me)
            assert outcome == 0 or isinstance(outcome, psycopg.errors.InsufficientPrivilege), f"{change}: {outcome}"


@pytest.mark.parametrize("role", [role for role in ROLES if role != "owner"])
def test_only_owners_make_change_and_remove_owners(world: World, connection: Connection, role: str) -> None:
    people = {"owner": world.busy["owner"].id, "colleague": world.busy["member"].id, "outsider": world.outsider}
    with request(connection, Caller("member", world.busy[role].subject)):
        for change in (
            "insert into api.memberships (organization_id, user_id, role)"
            " values (tenancy.current_org(), %(outsider)s, 'owner')",
            "update api.memberships set role = 'owner' where user_id = %(colleague)s",
            "update api.memberships set role = 'viewer' where user_id = %(owner)s",
            "delete from api.memberships where user_id = %(owner)s",
        ):
            outcome = refusal_or_count(connection, change, people)
            assert outcome == 0 or isinstance(outcome, psycopg.errors.InsufficientPrivilege), f"{change}: {outcome}"


def test_an_owner_makes_changes_and_removes_other_owners(world: World, connection: Connection) -> None:
    with request(connection, Caller("member", world.busy["owner"].subject)):
        person = {"colleague": world.busy["member"].id}
        for change in (
            "update api.memberships set role = 'owner' where user_id = %(colleague)s",
            "update api.memberships set role = 'admin' where user_id = %(colleague)s",
            "update api.memberships set role = 'owner' where user_id = %(colleague)s",
            "delete from api.memberships where user_id = %(colleague)s",
        ):
            assert run(connection, change, person).rowcount == 1


def test_an_owner_remains_when_two_remove_each_other_at_once(world: World, make_organization: MakeOrganization) -> None:
    """Neither removes themselves, and each sees the other one as it was: without a lock both leave."""
    organization = make_organization(world.database, "two-owners", roles=("owner", "admin"))
    first, second = organization["owner"], organization["admin"]
    with world.database.connect() as superuser:
        superuser.execute("update tenancy.memberships set role = 'owner' where organization_id = %s", [organization.id])

        barrier = Barrier(2)

        def demote(me: Member, other: Member) -> None:
            with world.database.connect("authenticator", autocommit=False) as opened:
                enter(opened, Caller("member", me.subject))
                barrier.wait(10)
                with suppress(psycopg.Error):  # one of them may be refused, or give way in a deadlock
                    opened.execute("update api.memberships set role = 'viewer' where user_id = %s", [other.id])
                    with suppress(BrokenBarrierError):
                        barrier.wait(1)  # both have changed before either commits, unless one makes the other wait
                    opened.commit()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(demote, (first, second), (second, first)))

        owners = superuser.execute(
            "select count(*) from tenancy.memberships where organization_id = %s and role = 'owner'", [organization.id]
        ).fetchone()
    assert owners and owners[0] >= 1

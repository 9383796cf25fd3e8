"""Isolation: of another organization nothing can be read, counted, changed or guessed, in any table, by anybody.

The tables come from the catalog, so a new one is covered, or noticed, the day it is added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization, RunningStack
from tests.own_tables import own_tables
from tests.sql_requests import Caller, Connection, refusal_or_count, request, run

# Refusals of triggers, which fire for rows that the policies let through.
OF_ROWS_THEMSELVES = ("ID_IS_FIXED", "ORGANIZATION_BILLED")

# How to make a row of each tenant table, in an order in which foreign keys hold (a document makes
# the current period, hence the first period comes before). %(org)s is the organization.
ROWS: Mapping[str, str] = {
    "tenancy.organizations": "select 1",  # the organization itself
    "tenancy.memberships": "select 1",  # its people
    **dict.fromkeys(("audit.log", "audit.personal", "audit.heads"), "select 1"),  # that these came
    "tenancy.invitations": """
        insert into tenancy.invitations (organization_id, id, email, role, code_sha256, invited_by, expires_at)
        select %(org)s, %(id)s, 'secret@example.com', 'owner', sha256('secret'), owner_user_id, '2099-01-01Z'
        from tenancy.organizations where id = %(org)s""",
    "tenancy.workspaces": "insert into tenancy.workspaces (organization_id, id, name) values (%(org)s, %(id)s, 'x')",
    "tenancy.api_keys": """
        insert into tenancy.api_keys (id, kind, organization_id, name, prefix, key_sha256, scopes)
        values (%(id)s, 'organization', %(org)s, 'secret', right(%(id)s::text, 12), sha256('secret'),
          '{data:read,data:write,usage:read}')""",
    "billing.billing_periods": """
        insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
        values (%(org)s, '2020-01-01Z', '2020-02-01Z', 'UTC')""",
    "app.clients": "insert into app.clients (organization_id, id, name) values (%(org)s, %(id)s, 'Secret & Sons')",
    "app.cases": """
        insert into app.cases (organization_id, id, client_id, title) values (%(org)s, %(id)s, %(id)s, 'Secret')""",
    "app.documents": """
        insert into app.documents (organization_id, id, case_id, title) values (%(org)s, %(id)s, %(id)s, 'Secret')""",
    "metering.usage_events": """
        insert into metering.usage_events (organization_id, occurred_at, source, event_name, quantity,
          recorded_generation)
        values (%(org)s, %(at)s, 'test', 'api.request', 1, 1)""",
    "metering.operation_weights": """
        insert into metering.operation_weights (organization_id, operation, effective_from, weight)
        values (%(org)s, 'secret', '2020-01-01Z', 9)""",
    "metering.usage_rollups": """
        insert into metering.usage_rollups (organization_id, grain, meter_code, bucket_start, meter_version,
          billing_entity_id, groups, events, value)
        values (%(org)s, 'hour', 'api.request', '2020-01-01Z', 1, %(org)s, '{}', 1, 1)""",
    "metering.unique_values": """
        insert into metering.unique_values (organization_id, grain, meter_code, bucket_start, meter_version,
          billing_entity_id, groups, value_hash, events)
        values (%(org)s, 'hour', 'api.request', '2020-01-01Z', 1, %(org)s, '{}', %(id)s, 1)""",
    "metering.repeated_batches": """
        insert into metering.repeated_batches (organization_id, source, accepted, duplicates, conflicts, locked)
        values (%(org)s, 'test', 0, 1, 0, 0)""",
    "metering.storage_snapshots": """
        insert into metering.storage_snapshots (organization_id, day, day_end, bytes)
        values (%(org)s, '2020-01-01', '2020-01-02Z', 9)""",
    "metering.event_keys": """
        insert into metering.event_keys (organization_id, key, fact) values (%(org)s, %(id)s, %(id)s)""",
    "metering.rejected_events": """
        insert into metering.rejected_events (organization_id, source, code, message, event)
        values (%(org)s, 'test', 'INVALID_EVENT', 'secret', '{}')""",
    "billing.invoices": """
        insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
        values (%(org)s, %(id)s, '2020-0001', '2020-01-01Z', '2020-02-01Z', 'usd', 25)""",
    "billing.invoice_lines": """
        insert into billing.invoice_lines (organization_id, invoice_id, line_number, meter_code, description, unit,
          events, quantity, unit_amount_cents, amount_cents)
        values (%(org)s, %(id)s, 1, 'api.request', 'secret', 'request', 1, 1, 25, 25)""",
    "billing.billing_profiles": """
        insert into billing.billing_profiles (organization_id, billing_entity_type, legal_name)
        values (%(org)s, 'organization', 'Secret & Sons Ltd')""",
    "billing.billing_terms": "insert into billing.billing_terms (organization_id, tax_percent) values (%(org)s, 9)",
    "billing.payments": """
        insert into billing.payments (organization_id, id, invoice_id, amount_cents, method, reference, recorded_by)
        values (%(org)s, %(id)s, %(id)s, 25, 'secret', 'secret', 'test')""",
    "billing.credit_notes": """
        insert into billing.credit_notes (organization_id, id, invoice_id, currency, reason, issued_by, reference,
          subtotal_cents, tax_cents, total_cents, to_balance_cents)
        values (%(org)s, %(id)s, %(id)s, 'usd', 'secret', 'test', 'secret', 10, 0, 10, 10)""",
    "billing.credit_note_lines": """
        insert into billing.credit_note_lines (organization_id, credit_note_id, line_number, invoice_id,
          invoice_line_number, description, amount_cents)
        values (%(org)s, %(id)s, 1, %(id)s, 1, 'secret', 10)""",
    "billing.balance_entries": """
        insert into billing.balance_entries (organization_id, id, currency, kind, amount_cents, credit_note_id)
        values (%(org)s, %(id)s, 'usd', 'credit_note', 10, %(id)s)""",
    "billing.refunds": """
        insert into billing.refunds (organization_id, id, payment_id, amount_cents, reference, recorded_by)
        values (%(org)s, %(id)s, %(id)s, 5, 'secret', 'test')""",
    "billing.subscriptions": """
        insert into billing.subscriptions (organization_id, id, created_by) values (%(org)s, %(id)s, 'test')""",
    "billing.subscription_phases": """
        insert into billing.subscription_phases (organization_id, starts_at, subscription_id, status, plan_code,
          made_by, announced_at)
        values (%(org)s, now(), %(id)s, 'active', 'pro', 'test', now())""",
    "billing.usage_alerts": """
        insert into billing.usage_alerts (organization_id, id, threshold_kind, threshold)
        values (%(org)s, %(id)s, 'absolute', 12345)""",
    "billing.budgets": "insert into billing.budgets (organization_id, amount_cents) values (%(org)s, 12345)",
    # It has failed before and is tried again later, else the sidecar removes it.
    "billing.alert_queue": """
        insert into billing.alert_queue (organization_id, id, attempts, due_at)
        values (%(org)s, %(id)s, 1, '2099-01-01Z')""",
    "notifications.notification_log": """
        insert into notifications.notification_log (organization_id, id, kind, threshold_kind, threshold, period_start,
          value)
        values (%(org)s, %(id)s, 'usage_alert', 'absolute', 12345, '2020-01-01Z', 99999)""",
    "stripe.report_marks": """
        insert into stripe.report_marks (organization_id, meter_code, acknowledged_generation, acknowledged_xid)
        values (%(org)s, 'api.request', 1, '3')""",
    # Settled, else the sidecar tries to apply it, to send it, or to report it.
    "stripe.webhook_events": """
        insert into stripe.webhook_events (organization_id, id, type, created_at, is_live, payload, status)
        values (%(org)s, %(id)s, 'isolation.secret', now(), false, '{}', 'dead')""",
    "stripe.customers": """
        insert into stripe.customers (organization_id, id, email, is_live, linked_by)
        values (%(org)s, %(id)s, 'secret@example.com', false, 'test')""",
    "stripe.subscriptions": """
        insert into stripe.subscriptions (organization_id, id, customer_id, subscription_id, status, is_live,
          latest_event_id, latest_event_at)
        values (%(org)s, %(id)s, %(id)s, %(id)s, 'active', false, 'secret', now())""",
    "stripe.invoices": """
        insert into stripe.invoices (organization_id, id, customer_id, hosted_invoice_url, is_live, latest_event_id,
          latest_event_at)
        values (%(org)s, %(id)s, %(id)s, 'https://secret.example.com', false, 'secret', now())""",
    "stripe.disputes": """
        insert into stripe.disputes (organization_id, id, charge_id, amount_cents, currency, created_at)
        values (%(org)s, %(id)s, 'secret', 25, 'usd', now())""",
    "stripe.checkout_sessions": """
        insert into stripe.checkout_sessions (organization_id, id, plan_code, created_by)
        values (%(org)s, %(id)s, 'pro', 'secret')""",
    "stripe.entitlements": "insert into stripe.entitlements (organization_id, feature) values (%(org)s, 'secret')",
    "stripe.report_queue": """
        insert into stripe.report_queue (organization_id, id, meter_code, bucket_start, queued_at)
        values (%(org)s, %(id)s, 'api.request', '2020-01-01Z', '2099-01-01Z')""",
    "stripe.reported_usage": """
        insert into stripe.reported_usage (organization_id, meter_code, bucket_start, quantity)
        values (%(org)s, 'api.request', '2020-01-01Z', 12345)""",
    # Closed, else the sidecar looks at it.
    "stripe.report_periods": """
        insert into stripe.report_periods (organization_id, meter_code, period_start, carried, closed_at)
        values (%(org)s, 'api.request', '2020-01-01Z', 0.12345, now())""",
    "stripe.report_positions": """
        insert into stripe.report_positions (organization_id, meter_code, generation, xid)
        values (%(org)s, 'api.request', 1, '3')""",
    "stripe.meter_event_reports": """
        insert into stripe.meter_event_reports (organization_id, meter_code, bucket_start, sequence, quantity,
          identifier, customer_id, event_name, period_start, status, generation, xid)
        values (%(org)s, 'api.request', '2020-01-01Z', 1, 12345, %(id)s, %(id)s, 'secret', '2020-01-01Z',
          'acknowledged', 1, '3')""",
    "stripe.invoice_items": """
        insert into stripe.invoice_items (organization_id, id, kind, meter_code, customer_id, amount_cents, currency,
          description, period_start, period_end, status)
        values (%(org)s, %(id)s, 'credit', 'api.request', %(id)s, -25, 'usd', 'secret', '2020-01-01Z', '2020-02-01Z',
          'acknowledged')""",
    "stripe.reconciliations": """
        insert into stripe.reconciliations (organization_id, period_start, kind, subject, ours, drift, cause)
        values (%(org)s, '2020-01-01Z', 'usage', 'api.request', 12345, 0, 'secret')""",
    "stripe.reconciled_periods": """
        insert into stripe.reconciled_periods (organization_id, period_start) values (%(org)s, '2020-01-01Z')""",
    "billing.entitlement_overrides": """
        insert into billing.entitlement_overrides (organization_id, feature, kind, reason, created_by)
        values (%(org)s, 'secret', 'boolean', 'secret', 'secret')""",
    "billing.quota_counters": """
        insert into billing.quota_counters (organization_id, feature, period_start, granted)
        values (%(org)s, 'secret', '2020-01-01Z', 9)""",
    "billing.quota_reservations": """
        insert into billing.quota_reservations (organization_id, feature, reference, period_start, amount)
        values (%(org)s, 'secret', 'secret', '2020-01-01Z', 9)""",
    "notifications.webhook_messages": """
        insert into notifications.webhook_messages (organization_id, id, type, payload)
        values (%(org)s, %(id)s, 'isolation.secret', '{}')""",
}
VERBS = ("select", "insert", "update", "delete")
# Rows of no organization in these are everybody's.
SHARED = ("metering.operation_weights", "api.operation_weights")
# Views of the provider's staff alone.
STAFFS = (
    *("api.rejected_events", "api.webhook_messages"),
    *("api.stripe_webhook_events", "api.stripe_meter_event_reports", "api.stripe_reconciliations"),
    "api.stripe_invoice_items",
)


def rows() -> Mapping[str, str]:
    """Those of your own tables, too, which refer to ours."""
    return {**ROWS, **{table.name: table.row for table in own_tables()}}


TENANT_RELATIONS = """
  select n.nspname || '.' || c.relname, c.relkind::text, k.attname, parent.oid::regclass::text,
    substring(pg_get_expr(c.relpartbound, c.oid) from 'FROM \\(''([^'']+)''\\)')
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute k on k.attrelid = c.oid and not k.attisdropped and k.attnum > 0
    and k.attname = case
      when n.nspname in ('tenancy', 'api') and c.relname = 'organizations' then 'id'
      when n.nspname = 'api' and c.relname = 'usage_events' then 'tenant_id'
      else 'organization_id'
    end
  left join pg_inherits i on i.inhrelid = c.oid
  left join pg_class parent on parent.oid = i.inhparent
  where c.relkind in ('r', 'p', 'v', 'm', 'f')
    and n.nspname !~ '^(pg_|information_schema$)'
  order by 1
"""


@dataclass(frozen=True)
class Relation:
    """A table, partition or view that shows rows of tenants, and the column that says whose."""

    name: str
    kind: str
    key: str
    parent: str | None
    partition_start: str | None

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(*self.name.split("."))


@dataclass(frozen=True)
class World:
    """Two organizations with a row in every tenant table."""

    database: Database
    attacker: Organization
    victim: Organization
    attacker_row_id: UUID
    victim_row_id: UUID
    relations: tuple[Relation, ...]

    @property
    def tables(self) -> list[Relation]:
        return [relation for relation in self.relations if relation.kind in ("r", "p")]

    @property
    def views(self) -> list[Relation]:
        return [relation for relation in self.relations if relation.name.startswith("api.")]


def tenant_relations(connection: Connection) -> tuple[Relation, ...]:
    return tuple(Relation(*row) for row in connection.execute(TENANT_RELATIONS).fetchall())


def fill(database: Database, organization: Organization, relations: tuple[Relation, ...]) -> UUID:
    """One row a table at least, with the same id in each, and one in every partition."""
    row_id = uuid4()
    with database.connect(autocommit=False) as connection:
        starts = [relation.partition_start for relation in relations if relation.parent]
        for name, statement in rows().items():
            if "%(at)s" not in statement:
                run(connection, statement, {"org": organization.id, "id": row_id})
                continue
            for start in starts:
                run(connection, statement, {"org": organization.id, "id": row_id, "at": start})
            assert starts, f"{name} has no partitions"
    return row_id


@pytest.fixture(scope="module")
def world(stack: RunningStack, make_organization: MakeOrganization) -> World:
    attacker = make_organization(stack.database, "attacker")
    victim = make_organization(stack.database, "victim")
    with stack.database.connect() as connection:
        relations = tenant_relations(connection)
    own, foreign = (fill(stack.database, organization, relations) for organization in (attacker, victim))
    return World(stack.database, attacker, victim, own, foreign, relations)


@pytest.fixture
def connection(world: World) -> Iterator[Connection]:
    with world.database.connect("authenticator") as opened:
        yield opened


def test_a_row_can_be_made_of_every_tenant_table(world: World) -> None:
    known = rows()
    unknown = [table.name for table in world.tables if table.name not in known and table.parent not in known]
    assert not unknown, f"new tenant tables {unknown}: say in ROWS how to make a row of each"
    assert set(known) <= {table.name for table in world.tables}, "ROWS names tables that are gone"

    with world.database.connect() as superuser:
        for relation in world.relations:
            for organization in (world.attacker, world.victim):
                assert rows_of(superuser, relation, organization) > 0, f"{relation.name}: {organization.slug} has none"


def rows_of(superuser: Connection, relation: Relation, organization: Organization | None) -> int:
    """Rows of the organization, and those that everybody reads. Without one: these alone."""
    where = sql.SQL("{} = %s or ({} is null and %s)").format(*[sql.Identifier(relation.key)] * 2)
    query = sql.SQL("select count(*) from {} where {}").format(relation.identifier, where)
    found = run(superuser, query, [organization.id if organization else None, relation.name in SHARED]).fetchone()
    assert found
    return int(found[0])


def test_row_level_security_is_enabled_and_forced_on_every_tenant_table(world: World) -> None:
    with world.database.connect() as superuser:
        open_tables = superuser.execute(
            """
            select oid::regclass::text from pg_class
            where oid = any (%s::regclass[]) and not (relrowsecurity and relforcerowsecurity)
            """,
            [[table.name for table in world.tables]],
        ).fetchall()
    assert open_tables == []


def test_nobody_truncates_a_tenant_table(world: World) -> None:
    with world.database.connect() as superuser:
        allowed = superuser.execute(
            """
            select t.name, r.rolname
            from unnest(%s::text[]) as t (name), pg_roles r
            where has_table_privilege(r.oid, t.name, 'truncate')
              and r.rolname !~ '^pg_' and not r.rolsuper
              and r.rolname not in ('goldleaves_owner', 'goldleaves_migrator') -- own the tables; RLS asks nobody here
            """,
            [[table.name for table in world.tables]],
        ).fetchall()
    assert allowed == []


Callers = Callable[[World], Caller]


def _member(role: str) -> Callers:
    return lambda world: Caller("member", world.attacker[role].subject)


def _key(world: World) -> Caller:
    return Caller("member", claims={"goldleaves_key": str(world.attacker_row_id)})


CALLERS: Mapping[str, Callers] = {
    **{f"{role} of another organization": _member(role) for role in ROLES},
    "API key of another organization": _key,
    "person without an organization": lambda world: Caller("member", "stranger", path="/organizations"),
    "member without a tenant context": lambda world: Caller("member", "stranger", pre_request=False),
    "anon": lambda world: Caller("anon"),
    "anon naming the organization": lambda world: Caller("anon", organization=str(world.victim.id)),
    "service": lambda world: Caller("service", "backend"),
    "service for the organization": lambda world: Caller("service", "backend", organization=str(world.victim.id)),
    "service without a tenant context": lambda world: Caller("service", "backend", pre_request=False),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", CALLERS)
def test_nothing_of_another_organization(world: World, connection: Connection, name: str, verb: str) -> None:
    assert leaks(world, connection, CALLERS[name](world), verb) == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [name for name in CALLERS if "without a tenant context" not in name])
def test_settings_left_on_a_pooled_connection_open_nothing(
    world: World, connection: Connection, name: str, verb: str
) -> None:
    leak_context(connection, world.victim)
    assert leaks(world, connection, CALLERS[name](world), verb) == []


def leaks(world: World, connection: Connection, caller: Caller, verb: str) -> list[str]:
    """What the caller reached of the victim, over every relation and every way to ask."""
    with world.database.connect() as superuser:
        superuser.execute("insert into tenancy.users (subject) values ('stranger') on conflict do nothing")
        own = {relation: rows_of(superuser, relation, world.attacker) for relation in world.relations}
        everybodys = {relation: rows_of(superuser, relation, None) for relation in world.relations}
        rows = {relation: victim_row(superuser, relation, world.victim) for relation in world.relations}
        writable = {(relation, verb): granted(superuser, caller.role, relation, verb) for relation in world.relations}
    belongs = caller.role == "member" and caller.subject != "stranger"
    found: list[str] = []
    with request(connection, caller):
        for relation in world.relations:
            columns = writable[relation, verb]
            for statement, allowed in attempts(relation, verb, world, rows[relation], own[relation], columns):
                limit = allowed if belongs else min(allowed, everybodys[relation]) if verb == "select" else 0
                outcome = refusal_or_count(connection, statement)
                if isinstance(outcome, psycopg.errors.IntegrityError) or str(outcome).startswith(OF_ROWS_THEMSELVES):
                    refused = limit > 0  # about foreign rows, it says that the policies had let the statement pass
                elif isinstance(outcome, psycopg.Error):
                    # Nobody writes into a view of several tables, rights or not.
                    unwritable = isinstance(outcome, psycopg.errors.ObjectNotInPrerequisiteState)
                    refused = isinstance(outcome, psycopg.errors.InsufficientPrivilege) or (
                        unwritable and relation.kind == "v"
                    )
                else:
                    refused = verb != "insert" and outcome <= limit
                if not refused:
                    found.append(f"{statement.as_string(connection)}: {outcome}, {limit} rows allowed")
    return found


def leak_context(connection: Connection, victim: Organization) -> None:
    """What a careless `set_config(…, false)` would leave behind on a pooled connection."""
    for name, value in {
        "app.current_org": str(victim.id),
        "app.current_user_id": str(victim["owner"].id),
        "app.current_org_role": "owner",
        "app.my_organizations": f"{{{victim.id}}}",
    }.items():
        connection.execute("select set_config(%s, %s, false)", [name, value])


def victim_row(superuser: Connection, relation: Relation, victim: Organization) -> dict[str, Any]:
    query = sql.SQL("select to_jsonb(t) from {} t where {} = %s limit 1").format(
        relation.identifier, sql.Identifier(relation.key)
    )
    found = run(superuser, query, [victim.id]).fetchone()
    assert found
    row: dict[str, Any] = found[0]
    return row


def attempts(
    relation: Relation, verb: str, world: World, row: dict[str, Any], own: int, granted_columns: list[str]
) -> Iterator[tuple[sql.Composed, int]]:
    """Statements and how many rows each may touch at most: those of the caller's own organization."""
    table, key, victim = relation.identifier, sql.Identifier(relation.key), sql.Literal(world.victim.id)
    where = sql.SQL("where {} = {}").format(key, victim)
    if verb == "select":
        yield sql.SQL("select 1 from {} {}").format(table, where), 0
        yield sql.SQL("select 1 from {} where {} <> {}").format(table, key, sql.Literal(world.attacker.id)), 0
        yield sql.SQL("select 1 from {}").format(table), own
        organizations = 2 if relation.name in SHARED else 1
        yield sql.SQL("select {} from {} group by 1 having count(*) > 0").format(key, table), organizations
        yield sql.SQL("select 1 from {} {} for share").format(table, where), 0
    elif verb == "insert":
        for columns in (granted_columns, [relation.key]):
            if columns:
                yield insertion(relation, columns, row, sql.SQL("")), 0
                yield insertion(relation, columns, row, sql.SQL("on conflict do nothing")), 0
    elif verb == "update":
        for column in granted_columns or [relation.key]:
            setting = sql.SQL("update {} set {} = {}").format(table, sql.Identifier(column), literal(row[column]))
            yield setting, own  # without a where clause no select policy helps: the update policy stands alone
            yield sql.SQL("{} {}").format(setting, where), 0
            yield sql.SQL("{} {} returning *").format(setting, where), 0
        yield sql.SQL("update {} set {} = {}").format(table, key, victim), 0
    else:
        yield sql.SQL("delete from {}").format(table), own
        yield sql.SQL("delete from {} {}").format(table, where), 0
        yield sql.SQL("delete from {} {} returning *").format(table, where), 0


def granted(superuser: Connection, role: str, relation: Relation, verb: str) -> list[str]:
    """The columns that the role may write, where a row can be written at all."""
    if verb not in ("insert", "update"):
        return []
    found = superuser.execute(
        """
        select attname from pg_attribute
        where attrelid = %(table)s::regclass and attnum > 0 and not attisdropped
          and has_column_privilege(%(role)s, attrelid, attnum, %(verb)s)
          and pg_column_is_updatable(attrelid, attnum, false)
        order by attnum
        """,
        {"table": relation.name, "role": role, "verb": verb},
    ).fetchall()
    return [name for (name,) in found]


def insertion(relation: Relation, columns: list[str], row: dict[str, Any], suffix: sql.SQL) -> sql.Composed:
    """The victim's row once more, or a new one beside it, in the columns that may be written."""
    return sql.SQL("insert into {} ({}) values ({}) {}").format(
        relation.identifier,
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(literal(row[column]) for column in columns),
        suffix,
    )


def literal(value: object) -> sql.Literal:
    return sql.Literal(json.dumps(value) if isinstance(value, dict) else value)


@pytest.mark.parametrize("role", ROLES)
def test_a_foreign_organization_in_the_header_or_claim_is_refused(
    world: World, connection: Connection, role: str
) -> None:
    subject = world.attacker[role].subject
    for caller in (
        *(Caller("member", subject, name) for name in (str(world.victim.id), world.victim.slug)),
        Caller("member", subject, claims={"org_id": str(world.victim.id)}),
        *(Caller("member", subject, world.victim.slug, path=path) for path in ("/organizations", "/rpc/sign_in", "/")),
    ):
        with pytest.raises(psycopg.Error) as refused, request(connection, caller):
            pass
        assert refused.value.sqlstate == "PT403"
        assert str(refused.value).startswith("NOT_A_MEMBER: ")


# Over HTTP, through PostgREST itself and through the gateway.


@pytest.fixture(params=["postgrest", "gateway"])
def client(request: pytest.FixtureRequest, stack: RunningStack, world: World) -> Iterator[httpx.Client]:
    """An owner of the attacking organization."""
    subject = world.attacker["owner"].subject
    base = stack.postgrest_url if request.param == "postgrest" else f"{stack.gateway_url}/api/v1"
    headers = {"Authorization": f"Bearer {stack.token(subject)}"}
    with httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False) as opened:
        yield opened


def test_reads_of_every_view_show_nothing_foreign(world: World, client: httpx.Client) -> None:
    victim, own = world.victim.id, world.attacker.id
    for view in world.views:
        path = "/" + view.name.removeprefix("api.")
        for query in (
            "",
            f"{view.key}=eq.{victim}",
            f"{view.key}=neq.{own}",
            f"{view.key}=in.({own},{victim})",
            f"or=({view.key}.eq.{victim},{view.key}.is.null)",
            f"not.and=({view.key}.eq.{own},{view.key}.not.is.null)",
            f"{view.key}=gt.00000000-0000-0000-0000-000000000000&order={view.key}.desc",
        ):
            answer = client.get(path, params=query, headers={"Prefer": "count=exact"})
            if view.name in STAFFS:
                assert answer.status_code == 403, answer.text
                continue
            assert answer.status_code == 200, answer.text
            rows = answer.json()
            everybodys = {None} if view.name in SHARED else set()
            assert {row[view.key] for row in rows} <= {str(own), *everybodys}, f"{path}?{query}"
            assert str(victim) not in answer.text
            assert answer.headers["content-range"].endswith(f"/{len(rows)}"), f"{path}?{query} counts what it hides"


@pytest.mark.parametrize("table", ["clients", "cases", "documents", "invoices"])
def test_a_foreign_id_looks_like_none(world: World, client: httpx.Client, table: str) -> None:
    text_column = {"clients": "name", "invoices": "number"}.get(table, "title")
    for method in ("GET", "PATCH", "DELETE"):
        body = {text_column: "stolen"} if method == "PATCH" else None
        foreign, absent = (
            client.request(
                method,
                f"/{table}",
                params={"id": f"eq.{row_id}"},
                json=body,
                headers={"Prefer": "return=representation"},
            )
            for row_id in (world.victim_row_id, uuid4())
        )
        assert (foreign.status_code, foreign.text) == (absent.status_code, absent.text)
        assert foreign.text == "[]" or foreign.status_code == 403


def test_embedding_shows_nothing_foreign(world: World, client: httpx.Client) -> None:
    for query in (
        "/organizations?select=*,memberships(*),clients(*),cases(*),documents(*),billing_periods(*)",
        "/cases?select=*,documents(*),clients(*),organizations(*)",
        f"/cases?select=*,documents!inner(*)&documents.id=eq.{world.victim_row_id}&documents.organization_id=eq.{world.victim.id}",
        "/invoices?select=*,invoice_lines(*),billing_periods(*)",
        "/memberships?select=*,organizations(*)",
    ):
        answer = client.get(query)
        assert answer.status_code == 200, answer.text
        assert str(world.victim.id) not in answer.text
        assert world.victim.slug not in answer.text


@pytest.mark.parametrize("count", ["exact", "planned", "estimated"])
def test_counts_do_not_tell_what_others_have(world: World, client: httpx.Client, count: str) -> None:
    """The planner's statistics are of the whole table, so an estimate can say what is in rows that nobody may read."""
    with world.database.connect() as superuser:
        superuser.execute("delete from app.clients where name = 'The secret merger'")
        superuser.execute(
            """
            insert into app.clients (organization_id, name)
            select %s, 'The secret merger' from generate_series(1, 900)
            """,
            [world.victim.id],
        )
        superuser.execute(
            "insert into app.clients (organization_id, name) select %s, 'Mine ' || n from generate_series(1, 1000) n",
            [world.attacker.id],
        )
        superuser.execute("analyze app.clients")
    totals = []
    for name in ("The secret merger", "There is no such client"):
        answer = client.get("/clients", params={"name": f"eq.{name}"}, headers={"Prefer": f"count={count}"})
        totals.append((answer.status_code, answer.headers.get("content-range")))
    assert totals[0] == totals[1]
    assert totals[0] == ((200, "*/0") if count == "exact" else (400, None))


@pytest.mark.parametrize(("table", "column"), [("documents", "case_id"), ("cases", "client_id")])
def test_foreign_keys_are_no_oracle(world: World, client: httpx.Client, table: str, column: str) -> None:
    foreign, absent = (
        client.post(f"/{table}", json={"title": "x", column: str(target)}, headers={"Prefer": "return=representation"})
        for target in (world.victim_row_id, uuid4())
    )
    assert foreign.status_code == absent.status_code == 409
    assert foreign.text == absent.text


@pytest.mark.parametrize("resolution", ["", "merge-duplicates", "ignore-duplicates"])
@pytest.mark.parametrize("table", ["clients", "cases", "documents", "memberships"])
def test_rows_for_a_foreign_organization_are_refused(
    world: World, client: httpx.Client, table: str, resolution: str
) -> None:
    bodies = {
        "clients": {"id": str(world.victim_row_id), "name": "x"},
        "cases": {"id": str(world.victim_row_id), "title": "x"},
        "documents": {"id": str(world.victim_row_id), "title": "x"},
        "memberships": {"user_id": str(world.attacker["owner"].id), "role": "owner"},
    }
    preference = "return=representation" + (f",resolution={resolution}" if resolution else "")
    foreign, absent = (
        client.post(f"/{table}", json={**bodies[table], "organization_id": str(target)}, headers={"Prefer": preference})
        for target in (world.victim.id, uuid4())
    )
    assert foreign.status_code == absent.status_code == 403
    assert foreign.text == absent.text


def test_the_id_of_a_foreign_row_is_free_to_use(world: World, client: httpx.Client) -> None:
    """A refusal would say that the id exists somewhere."""
    for resolution in ("ignore-duplicates", "merge-duplicates"):
        preference = f"return=representation,resolution={resolution}"
        answers = []
        for row_id in (world.victim_row_id, uuid4()):
            body = {"id": str(row_id), "title": "x"}
            answer = client.post("/cases", json=body, headers={"Prefer": preference})
            if answer.is_success and answer.json():
                assert answer.json()[0]["organization_id"] == str(world.attacker.id)
            answers.append(answer.status_code)
            client.delete("/cases", params={"title": "eq.x"})
        assert answers[0] == answers[1]
    with world.database.connect() as superuser:
        row = superuser.execute(
            "select title from app.cases where organization_id = %s and id = %s", [world.victim.id, world.victim_row_id]
        ).fetchone()
    assert row == ("Secret",)


def test_own_rows_cannot_be_given_away(world: World, client: httpx.Client) -> None:
    for table in ("clients", "cases", "documents", "memberships"):
        answer = client.patch(
            f"/{table}",
            params={"organization_id": f"eq.{world.attacker.id}"},
            json={"organization_id": str(world.victim.id)},
        )
        assert answer.status_code == 403, answer.text


def test_functions_serve_no_foreign_organization(world: World, client: httpx.Client) -> None:
    for name in (str(world.victim.id), world.victim.slug):
        foreign = client.post("/rpc/usage_summary", json={}, headers={"X-Organization-ID": name})
        absent = client.post("/rpc/usage_summary", json={}, headers={"X-Organization-ID": "no-such-organization"})
        assert foreign.status_code == absent.status_code == 403
        assert foreign.text.replace(name, "no-such-organization") == absent.text


def test_anonymous_and_service_read_no_view(stack: RunningStack, world: World) -> None:
    organization = {"X-Organization-ID": str(world.victim.id)}
    with httpx.Client(base_url=stack.postgrest_url, trust_env=False) as plain:
        for view in world.views:
            path = "/" + view.name.removeprefix("api.")
            assert plain.get(path, headers=organization).status_code == 401
            bearer = {"Authorization": f"Bearer {stack.token('backend', role='service')}"}
            assert plain.get(path, headers=organization | bearer).status_code == 403

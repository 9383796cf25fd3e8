"""Every change of money, membership or policy is in the audit log, whoever made it: who, when, from where, what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.audit_log import PLATFORM, broken, entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization, RunningStack
from tests.own_tables import own_tables
from tests.sql_requests import Caller, Connection, enter, request, run
from tests.usage import event, ingest, moment, month, value

# Tables whose changes are not in the log, and why. All others are watched; a new table is noticed here.
NOT_WATCHED = {
    "app.cases": "the tenants' own data; whoever wants it watched adopts tables of their own",
    "app.clients": "the same",
    "app.documents": "the same; what counts of it is usage",
    "billing.alert_queue": "whose alerts are to be looked at; who has looked removes it",
    "billing.currencies": "ISO 4217, the same for everybody, and written by migrations alone",
    "billing.defaults": "settings of the deployment, written by each migration run",
    "billing.invoice_lines": "written with their invoice, and never again",
    "billing.quota_counters": "counts with each act that is granted, and locks nobody else out",
    "billing.quota_reservations": "the same",
    "billing.usage_alerts": "each organization is given some; who adds or removes one is in the log",
    "metering.event_keys": "facts, not changes: they only grow",
    "metering.generations": "the same",
    "metering.meter_versions": "written with each change of a meter, which is told",
    "metering.rejected_events": "what becomes of one is in the log, by the functions that resolve it",
    "metering.repeated_batches": "the same",
    "metering.rollup_position": "how far rollups have come",
    "metering.storage_snapshots": "made from usage, and made again on request",
    "metering.stored_resources": "made with the triggers of a metered table, by whoever changes the schema",
    "metering.unique_values": "made from usage by rollups",
    "metering.usage_events": "the same; a fact in a finalized period cannot change",
    "metering.usage_rollups": "made from usage by rollups",
    "ops.releases": "the text of each release, which only grows",
    "ops.released_objects": "how things looked when they were released; it follows each release",
    "notifications.notification_log": "what was told, which only grows",
    "notifications.webhook_messages": "messages and what became of them; who replays one is in the log",
    "stripe.checkout_sessions": "a checkout that was begun is in the log, by the function that begins it",
    "stripe.disputes": "what Stripe says; your application is told",
    "stripe.entitlements": "what Stripe says; the features that follow from it are in the log",
    "stripe.invoice_items": "an outbox of what invoices and credits say, and what became of it",
    "stripe.invoices": "what Stripe says; the payments that follow from it are in the log",
    "stripe.meter_event_reports": "an outbox of usage, and what became of it",
    "stripe.reconciled_periods": "when a period was compared with Stripe",
    "stripe.reconciliations": "what the last comparison with Stripe found",
    "stripe.refetches": "what Stripe is to be asked for; who has asked removes it",
    "stripe.report_marks": "how far a report has come; it moves with each one",
    "stripe.report_periods": "what is left of usage that was reported; it changes with each report",
    "stripe.report_positions": "until where reports were made; it moves with each one",
    "stripe.report_queue": "whose usage is to be reported; who has reported it removes it",
    "stripe.reported_usage": "made from usage by reports",
    "stripe.subscriptions": "what Stripe says; the subscription and phases that follow from it are in the log",
    "stripe.webhook_events": "what Stripe sent; what follows from it is in the log, and who replays one",
    "tenancy.users": "made by signing in; what a person may do is their memberships",
}
# A credit note is all of these, or refused: 10 are taken off an invoice of 25 of which 20 are paid.
CREDITED = ("billing.credit_notes", "billing.credit_note_lines", "billing.balance_entries")
CREDIT = """
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
    values (%(org)s, 'usd', 'credit_note', 5, %(id)s)
"""
# %(org)s is an organization, %(user)s somebody who is no member yet. What a table refuses to everybody is not here.
CHANGES: Mapping[str, Mapping[str, str]] = {
    "tenancy.organizations": {
        "created": """
            insert into tenancy.organizations (id, name, slug, owner_user_id)
            values (%(id)s, 'New', 'brand-new', %(user)s)
        """,
        "changed": "update tenancy.organizations set plan = 'pro' where id = %(org)s",
        "removed": "delete from tenancy.organizations where id = %(org)s",
    },
    "tenancy.memberships": {
        "created": """
            insert into tenancy.memberships (organization_id, user_id, role) values (%(org)s, %(user)s, 'viewer')
        """,
        "changed": "update tenancy.memberships set role = 'admin' where organization_id = %(org)s and role = 'viewer'",
        "removed": "delete from tenancy.memberships where organization_id = %(org)s and role = 'viewer'",
    },
    "tenancy.invitations": {
        "created": """
            insert into tenancy.invitations (organization_id, id, email, role, code_sha256, invited_by, expires_at)
            select %(org)s, %(id)s, 'guest@example.com', 'viewer', sha256('x'), owner_user_id, now() + interval '7 days'
            from tenancy.organizations where id = %(org)s
        """,
        "changed": "update tenancy.invitations set revoked_at = now() where organization_id = %(org)s",
        "removed": "delete from tenancy.invitations where organization_id = %(org)s",
    },
    "tenancy.workspaces": {
        "created": "insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'Room')",
        "changed": "update tenancy.workspaces set name = 'Hall' where organization_id = %(org)s",
        "removed": "delete from tenancy.workspaces where organization_id = %(org)s",
    },
    "tenancy.api_keys": {
        "created": """
            insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
            values ('organization', %(org)s, 'Robot', left(md5(%(org)s::text), 12), sha256('x'), '{data:read}')
        """,
        "changed": "update tenancy.api_keys set revoked_at = now() where organization_id = %(org)s",
        "removed": "delete from tenancy.api_keys where organization_id = %(org)s",
    },
    "billing.billing_periods": {
        "changed": """
            update billing.billing_periods set status = 'finalized', finalized_at = now()
            where organization_id = %(org)s
        """,
        "removed": "delete from billing.billing_periods where organization_id = %(org)s",
    },
    "billing.invoices": {
        "created": """
            insert into billing.invoices (organization_id, number, period_start, period_end, currency, total_cents)
            select organization_id, '2020-0001', period_start, period_end, 'usd', 25
            from billing.billing_periods where organization_id = %(org)s
        """,
    },
    "billing.payments": {
        "created": """
            insert into billing.payments (organization_id, invoice_id, amount_cents, method, reference, recorded_by)
            values (%(org)s, %(id)s, 5, 'cash', 'r2', 'test')
        """,
    },
    "billing.refunds": {
        "created": """
            insert into billing.refunds (organization_id, payment_id, amount_cents, reference, recorded_by)
            values (%(org)s, %(id)s, 20, 'r1', 'test')
        """,
    },
    **{table: {"created": CREDIT} for table in CREDITED},
    "billing.prices": {
        "created": """
            insert into billing.prices (meter_code, currency, effective_from, unit_amount_cents)
            values ('api.request', 'eur', now(), 30)
        """,
    },
    "billing.plans": {
        "created": "insert into billing.plans (code, name) values ('brand-new', 'New')",
        "changed": "update billing.plans set is_public = false where code = 'firm'",
        "removed": "delete from billing.plans where code = 'brand-new'",
    },
    "billing.plan_features": {
        "created": "insert into billing.plan_features (plan_code, feature, kind) values ('starter', 'new', 'boolean')",
        "changed": "update billing.plan_features set limit_value = 9 where plan_code = 'starter'",
        "removed": "delete from billing.plan_features where plan_code = 'starter'",
    },
    "billing.billing_profiles": {
        "created": """
            insert into billing.billing_profiles (organization_id, billing_entity_type, legal_name)
            values (%(org)s, 'organization', 'Ltd')
        """,
        "changed": "update billing.billing_profiles set legal_name = 'Inc' where organization_id = %(org)s",
        "removed": "delete from billing.billing_profiles where organization_id = %(org)s",
    },
    "billing.billing_terms": {
        "created": "insert into billing.billing_terms (organization_id) values (%(org)s)",
        "changed": "update billing.billing_terms set tax_percent = 20 where organization_id = %(org)s",
        "removed": "delete from billing.billing_terms where organization_id = %(org)s",
    },
    "billing.budgets": {
        "created": "insert into billing.budgets (organization_id, amount_cents) values (%(org)s, 100)",
        "changed": "update billing.budgets set amount_cents = 200 where organization_id = %(org)s",
        "removed": "delete from billing.budgets where organization_id = %(org)s",
    },
    "billing.subscriptions": {
        "created": "insert into billing.subscriptions (organization_id, created_by) values (%(org)s, 'test')",
        "changed": "update billing.subscriptions set has_payment_method = true where organization_id = %(org)s",
        "removed": "delete from billing.subscriptions where organization_id = %(org)s",
    },
    "billing.subscription_phases": {
        "created": """
            insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by)
            values (%(org)s, now() + interval '1 day', 'active', 'pro', 'test')
        """,
        "removed": "delete from billing.subscription_phases where organization_id = %(org)s",
    },
    "billing.entitlement_overrides": {
        "created": """
            insert into billing.entitlement_overrides (organization_id, feature, kind, created_by)
            values (%(org)s, 'new', 'boolean', 'test')
        """,
        "changed": "update billing.entitlement_overrides set is_granted = false where organization_id = %(org)s",
        "removed": "delete from billing.entitlement_overrides where organization_id = %(org)s",
    },
    "stripe.customers": {
        "created": """
            insert into stripe.customers (organization_id, id, is_live, linked_by)
            values (%(org)s, 'cus_told', false, 'test')
        """,
        "changed": "update stripe.customers set has_payment_method = true where organization_id = %(org)s",
        "removed": "delete from stripe.customers where organization_id = %(org)s",
    },
    "stripe.plan_prices": {
        "created": "insert into stripe.plan_prices (price_id, plan_code) values ('price_told', 'pro')",
        "changed": "update stripe.plan_prices set plan_code = 'firm' where price_id = 'price_told'",
        "removed": "delete from stripe.plan_prices where price_id = 'price_told'",
    },
    "stripe.meters": {
        "created": """
            insert into stripe.meters (meter_code, id, event_name) values ('doc.upload', 'mtr_told', 'doc.upload.told')
        """,
        "changed": "update stripe.meters set event_name = 'doc.upload.again' where id = 'mtr_told'",
        "removed": "delete from stripe.meters where id = 'mtr_told'",
    },
    "metering.meters": {
        "created": "insert into metering.meters (code, event_name, unit, description) values ('x', 'x', 'x', 'x')",
        "changed": "update metering.meters set group_by = '{kind}' where code = 'doc.upload'",
    },
    "metering.operation_weights": {
        "created": """
            insert into metering.operation_weights (organization_id, operation, effective_from, weight)
            values (%(org)s, 'task_create', '2020-01-01Z', 3)
        """,
        "changed": "update metering.operation_weights set weight = 4 where organization_id = %(org)s",
        "removed": "delete from metering.operation_weights where organization_id = %(org)s",
    },
}
TARGETS = {
    "tenancy.organizations": "organization",
    "tenancy.memberships": "membership",
    "tenancy.invitations": "invitation",
    "tenancy.workspaces": "workspace",
    "tenancy.api_keys": "api_key",
    "billing.billing_periods": "billing_period",
    "billing.invoices": "invoice",
    "billing.payments": "payment",
    "billing.refunds": "refund",
    "billing.credit_notes": "credit_note",
    "billing.credit_note_lines": "credit_note_line",
    "billing.balance_entries": "balance_entry",
    "billing.prices": "price",
    "billing.plans": "plan",
    "billing.plan_features": "plan_feature",
    "billing.billing_profiles": "billing_profile",
    "billing.billing_terms": "billing_terms",
    "billing.budgets": "budget",
    "billing.subscriptions": "subscription",
    "billing.subscription_phases": "subscription_phase",
    "billing.entitlement_overrides": "entitlement_override",
    "stripe.customers": "stripe_customer",
    "stripe.plan_prices": "stripe_price",
    "stripe.meters": "stripe_meter",
    "metering.meters": "meter",
    "metering.operation_weights": "operation_weight",
}
# Made while usage is recorded, which waits for nobody.
NOT_TOLD = {("billing.billing_periods", "created")}
# Beside invoices, they only grow.
LEDGERS = ("billing.payments", "billing.refunds", *CREDITED)
# billing.guard_invoices(), guard_prices(), guard_subscription_phases() and metering.guard_meters() refuse them.
IMPOSSIBLE = {
    *((ledger, verb) for ledger in LEDGERS for verb in ("changed", "removed")),
    ("billing.invoices", "changed"),
    ("billing.invoices", "removed"),
    ("billing.prices", "changed"),
    ("billing.prices", "removed"),
    ("billing.subscription_phases", "changed"),
    ("metering.meters", "removed"),
}
# Nobody's: told in the chain of the platform.
OF_THE_PLATFORM = (
    "billing.prices",
    "billing.plans",
    "billing.plan_features",
    "stripe.plan_prices",
    "stripe.meters",
    "metering.meters",
)
# Of these a row is made before it is changed or removed.
OF_THEIR_OWN = (
    "billing.plans",
    "billing.billing_profiles",
    "billing.billing_terms",
    "billing.budgets",
    "billing.subscriptions",
    "billing.subscription_phases",
    "billing.entitlement_overrides",
    "stripe.customers",
    "stripe.plan_prices",
    "stripe.meters",
    "metering.operation_weights",
)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def superuser(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as connection:
        yield connection


def test_every_table_is_watched_or_has_a_reason(superuser: Connection) -> None:
    tables = superuser.execute(
        """
        select c.oid::regclass::text,
          exists (
            select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
            where t.tgrelid = c.oid and p.pronamespace = 'audit'::regnamespace and t.tgtype & 1 = 1
              and t.tgenabled = 'O'
          ),
          exists (
            select from pg_trigger t where t.tgrelid = c.oid and t.tgname = 'watch_truncate' and t.tgenabled = 'O'
          )
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition
          and n.nspname in ('tenancy', 'app', 'metering', 'billing', 'stripe', 'notifications', 'ops')
        """
    ).fetchall()
    assert {name for name, watched, _ in tables if not watched} == set(NOT_WATCHED)
    told = {*CHANGES, "ops.policy_releases", *(table.name for table in own_tables() if table.schema == "app")}
    assert {name for name, watched, truncate in tables if watched and truncate} == told


def test_every_watched_table_tells_of_every_verb() -> None:
    verbs = {(table, verb) for table in CHANGES for verb in ("created", "changed", "removed")}
    assert verbs - {(table, verb) for table in CHANGES for verb in CHANGES[table]} == NOT_TOLD | IMPOSSIBLE


@pytest.mark.parametrize(("table", "verb"), [(table, verb) for table in CHANGES for verb in CHANGES[table]])
def test_a_change_is_told(superuser: Connection, organization: Organization, table: str, verb: str) -> None:
    """Even of a superuser at psql."""
    with superuser.transaction(force_rollback=True):
        found = superuser.execute("insert into tenancy.users (subject) values ('somebody') returning id").fetchone()
        assert found
        known = {"org": organization.id, "user": found[0], "id": uuid4()}
        if table in ("billing.billing_periods", "billing.invoices", *LEDGERS):
            superuser.execute(
                """
                insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
                values (%s, '2020-01-01Z', '2020-02-01Z', 'UTC')
                """,
                [organization.id],
            )
            if table in LEDGERS:
                issue_paid_invoice(superuser, known)
        elif verb != "created" and table.startswith(("tenancy.", *OF_THEIR_OWN)) and table != "tenancy.organizations":
            run(superuser, CHANGES[table]["created"], known)
        chain = PLATFORM if table in OF_THE_PLATFORM else organization.id
        if (table, verb) == ("tenancy.organizations", "created"):
            chain = known["id"]
        superuser.execute("set constraints all immediate")
        so_far = length(superuser, chain)

        run(superuser, CHANGES[table][verb], known)
        told = [e for e in entries(superuser, chain, so_far) if e.action == f"{TARGETS[table]}.{verb}"]

        assert told, entries(superuser, chain, so_far)
        assert {(e.actor_type, e.actor_id) for e in told} == {("database", "postgres")}
        assert all((e.before is None) == (verb == "created") for e in told)
        assert all((e.after is None) == (verb == "removed") for e in told)
        assert broken(superuser) == []


def issue_paid_invoice(superuser: Connection, known: Mapping[str, object]) -> None:
    """Of 25, of which 20 are paid."""
    for statement in (
        """
        insert into billing.invoices (organization_id, id, number, period_start, period_end, currency, total_cents)
        values (%(org)s, %(id)s, '2020-0001', '2020-01-01Z', '2020-02-01Z', 'usd', 25)
        """,
        """
        insert into billing.invoice_lines (organization_id, invoice_id, line_number, meter_code, description, unit,
          events, quantity, unit_amount_cents, amount_cents)
        values (%(org)s, %(id)s, 1, 'api.request', 'Requests', 'request', 1, 1, 25, 25)
        """,
        """
        insert into billing.payments (organization_id, id, invoice_id, amount_cents, method, reference, recorded_by)
        values (%(org)s, %(id)s, %(id)s, 20, 'cash', 'r1', 'test')
        """,
    ):
        run(superuser, statement, known)


def test_of_an_update_what_changed_is_told(superuser: Connection, organization: Organization) -> None:
    viewer = organization["viewer"].id
    superuser.execute(
        "update tenancy.memberships set role = 'admin' where organization_id = %s and user_id = %s",
        [organization.id, viewer],
    )
    told = entries(superuser, organization.id)[-1]
    assert (told.action, told.target_id) == ("membership.changed", str(viewer))
    assert (told.changed_columns, told.before, told.after) == (["role"], {"role": "viewer"}, {"role": "admin"})


def test_what_changes_nothing_is_not_told(superuser: Connection, organization: Organization) -> None:
    so_far = length(superuser, organization.id)
    superuser.execute("update tenancy.memberships set role = role where organization_id = %s", [organization.id])
    assert length(superuser, organization.id) == so_far


def test_that_a_key_was_used_is_not_told(superuser: Connection, organization: Organization) -> None:
    run(superuser, CHANGES["tenancy.api_keys"]["created"], {"org": organization.id})
    so_far = length(superuser, organization.id)
    superuser.execute("update tenancy.api_keys set last_used_at = now() where organization_id = %s", [organization.id])
    assert length(superuser, organization.id) == so_far


def test_no_secret_is_in_the_log(superuser: Connection, organization: Organization) -> None:
    for table in ("tenancy.api_keys", "tenancy.invitations"):
        run(superuser, CHANGES[table]["created"], {"org": organization.id, "id": uuid4()})
    superuser.execute(
        "update tenancy.api_keys set key_sha256 = sha256('y') where organization_id = %s", [organization.id]
    )
    changed = entries(superuser, organization.id)[-1]
    assert (changed.changed_columns, changed.after) == (["key_sha256"], {"key_sha256": "hidden"})
    said = value(
        superuser,
        """
        select (select string_agg(concat(l.*), '') from audit.log l)
          || (select string_agg(p.data::text, '') from audit.personal p)
        """,
    )
    for secret in ("x", "y"):
        assert value(superuser, "select encode(sha256(%s), 'hex')", secret.encode()) not in said


def test_keys_of_the_provider_are_the_platforms_business(superuser: Connection, organization: Organization) -> None:
    so_far = length(superuser, organization.id)
    superuser.execute(
        """
        insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
        values ('provider', %s, 'Backend', 'abcdef012345', sha256('x'), '{events:write}')
        """,
        [organization.id],
    )
    assert length(superuser, organization.id) == so_far
    assert entries(superuser, PLATFORM)[-1].action == "api_key.created"


def test_a_policy_tells_what_it_was(shared_database: Database, superuser: Connection) -> None:
    """A release writes down how the tables look that it changed."""
    released = [entry for entry in entries(superuser, PLATFORM) if entry.target_id == "app.cases"]
    assert {(e.action, e.actor_type, e.actor_id) for e in released} == {
        ("policy.changed", "database", "goldleaves_migrator")
    }
    assert released[-1].after is not None and "cases_read" in released[-1].after["policies"]

    with shared_database.connect("goldleaves_migrator") as migrator:
        migrator.execute(
            """
            insert into ops.policy_releases (table_name, fingerprint, live)
            values ('app.cases', 'x', '{"policies": {}}')
            """
        )
    told = entries(superuser, PLATFORM)[-1]
    assert (told.before, told.after) == (released[-1].after, {"policies": {}})


def test_what_was_rolled_back_leaves_nothing(superuser: Connection, organization: Organization) -> None:
    so_far = length(superuser, organization.id)
    change = "update tenancy.organizations set plan = %s where id = %s"
    with superuser.transaction(force_rollback=True):
        superuser.execute(change, ["pro", organization.id])
        superuser.execute("set constraints all immediate")
        assert length(superuser, organization.id) == so_far + 1
    with superuser.transaction():
        with superuser.transaction(force_rollback=True):
            superuser.execute(change, ["firm", organization.id])
        superuser.execute(change, ["pro", organization.id])
    (told,) = entries(superuser, organization.id, so_far)
    assert told.after == {"plan": "pro"}
    assert broken(superuser) == []


def test_recording_usage_touches_no_chain(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Though it makes billing periods: nobody waits there."""
    with shared_database.connect("sidecar", autocommit=False) as sidecar, superuser.transaction(force_rollback=True):
        superuser.execute("lock table audit.pending, audit.log, audit.heads in access exclusive mode")
        sidecar.execute("set lock_timeout = '1s'")
        assert ingest(sidecar, [event(str(n), moment(n, days=1)) for n in range(1, 4)], organization.id).accepted == 3
        sidecar.commit()


# Functions of schema api that change something for platform_admin, and what is told then. All others refuse it.
STAFF: dict[str, tuple[str, set[str]]] = {
    "finalize_period": ("select api.finalize_period(%(first_day)s)", {"invoice.created", "billing_period.changed"}),
    "create_api_key": ("select api.create_api_key('A key', '{events:write}')", {"api_key.created"}),
    "rotate_api_key": ("select api.rotate_api_key(%(key)s)", {"api_key.created", "api_key.changed"}),
    "revoke_api_key": ("select api.revoke_api_key(%(key)s)", {"api_key.changed"}),
    "void_usage_event": ("select api.void_usage_event(%(event)s)", {"usage_event.voided"}),
    "amend_usage_event": (
        """select api.amend_usage_event(%(event)s, '{"id": "mended", "quantity": 2}')""",
        {"usage_event.amended"},
    ),
    "replay_rejected_event": (
        """select api.replay_rejected_event(%(rejected)s, '{"id": "mended", "event": "doc.upload", "quantity": 2}')""",
        {"rejected_event.replayed"},
    ),
    "dismiss_rejected_event": ("select api.dismiss_rejected_event(%(rejected)s)", {"rejected_event.dismissed"}),
    "create_meter": ("select api.create_meter('x', 'unit', 'Things', 'x')", {"meter.created"}),
    "change_meter": ("select api.change_meter('doc.upload', group_by => '{kind}')", {"meter.changed"}),
    "delete_meter": ("select api.delete_meter('doc.upload')", {"meter.changed"}),
    "set_operation_weight": ("select api.set_operation_weight('task_create', 3)", {"operation_weight.created"}),
    "create_plan": ("select api.create_plan('new', 'New')", {"plan.created"}),
    "change_plan": ("select api.change_plan('pro', 'For professionals')", {"plan.changed"}),
    "set_plan_feature": ("select api.set_plan_feature('pro', 'new')", {"plan_feature.created"}),
    "remove_plan_feature": ("select api.remove_plan_feature('pro', 'members')", {"plan_feature.removed"}),
    "create_price": ("select api.create_price('traffic.bytes', unit_amount_cents => 1)", {"price.created"}),
    "set_plan": ("select api.set_plan('pro')", {"organization.changed"}),
    "set_billing_schedule": ("select api.set_billing_schedule('Asia/Tokyo')", {"organization.changed"}),
    "set_billing_profile": ("select api.set_billing_profile('Ltd')", {"billing_profile.created"}),
    "set_billing_terms": ("select api.set_billing_terms(tax_percent => 20)", {"billing_terms.created"}),
}
_INVOICE = "(select id from api.invoices where organization_id = tenancy.current_org())"
_PAYMENT = "(select id from api.payments where organization_id = tenancy.current_org())"
_ISSUE = "select api.finalize_period(%(first_day)s)"
_PAY = f"select api.record_payment({_INVOICE}, 25, 'cash', 'r1')"
STAFF |= {
    "create_credit_note": (
        f"select api.create_credit_note({_INVOICE}, 'wrong')",
        {"credit_note.created", "credit_note_line.created", "balance_entry.created"},
    ),
    "record_payment": (_PAY, {"payment.created"}),
    "record_refund": (f"select api.record_refund({_PAYMENT}, 5, 'r1')", {"refund.created"}),
    "write_off_invoice": (f"select api.write_off_invoice({_INVOICE}, 'gone')", {"payment.created"}),
}
_MESSAGE = "(select id from api.webhook_messages where organization_id = tenancy.current_org())"
STAFF |= {
    "replay_webhook": (f"select api.replay_webhook({_MESSAGE})", {"webhook_message.replayed"}),
    "replay_webhooks": ("select api.replay_webhooks('pending')", {"webhook_message.replayed"}),
    "link_stripe_customer": ("select api.link_stripe_customer('cus_told')", {"stripe_customer.created"}),
    "set_stripe_price": ("select api.set_stripe_price('pro', 'price_told')", {"stripe_price.created"}),
    "replay_stripe_event": ("select api.replay_stripe_event('evt_audited')", {"stripe_webhook_event.replayed"}),
    "replay_stripe_events": ("select api.replay_stripe_events()", {"stripe_webhook_event.replayed"}),
}
# Which is dead at once.
_UNREADABLE = json.dumps(
    {"id": "evt_audited", "type": "invoice.paid", "created": 1750000000, "data": {"object": {"total": "much"}}}
)
_GRANT = "select api.set_entitlement('pages', 'boolean')"
STAFF |= {
    "set_entitlement": (_GRANT, {"entitlement_override.created"}),
    "remove_entitlement": ("select api.remove_entitlement('pages')", {"entitlement_override.removed"}),
}
_START = "select api.start_subscription('pro', 0, true)"
_CHANGED = {"subscription_phase.created"}
STAFF |= {
    "start_subscription": (
        _START,
        _CHANGED | {"subscription.created", "organization.changed"},
    ),
    "change_subscription": ("select api.change_subscription('firm')", _CHANGED | {"organization.changed"}),
    "cancel_subscription": ("select api.cancel_subscription()", _CHANGED),
    "resume_subscription": ("select api.resume_subscription()", _CHANGED),
    "pause_subscription": ("select api.pause_subscription()", _CHANGED),
    "mark_past_due": ("select api.mark_past_due()", _CHANGED),
    "mark_paid": ("select api.mark_paid()", _CHANGED),
    "set_payment_method": ("select api.set_payment_method(false)", {"subscription.changed"}),
}
_ALERT = "(select id from api.usage_alerts where organization_id = tenancy.current_org() limit 1)"
STAFF |= {
    "create_usage_alert": ("select api.create_usage_alert('percent_of_limit', 90)", {"usage_alert.created"}),
    "delete_usage_alert": (f"select api.delete_usage_alert({_ALERT})", {"usage_alert.removed"}),
    "set_budget": ("select api.set_budget(100)", {"budget.created"}),
}
# What has to be there for them.
BEFORE = {
    **dict.fromkeys(
        ("change_subscription", "cancel_subscription", "pause_subscription", "mark_past_due", "set_payment_method"),
        (_START,),
    ),
    "resume_subscription": (_START, "select api.pause_subscription()"),
    "mark_paid": (_START, "select api.mark_past_due()"),
    "remove_entitlement": (_GRANT,),
    "replay_webhook": (_ISSUE,),
    "replay_webhooks": (_ISSUE,),
    "create_credit_note": (_ISSUE, _PAY),
    "record_payment": (_ISSUE,),
    "record_refund": (_ISSUE, _PAY),
    "write_off_invoice": (_ISSUE,),
}
# They change only what is not watched.
UNTOLD = {
    "remake_storage_snapshots",
    "reserve_quota",
    "release_quota",
}
VALUES = {
    "text": "'viewer'",
    "uuid": "gen_random_uuid()",
    "boolean": "true",
    "text[]": "'{data:read}'",
    "date": "'2020-01-01'",
    "numeric": "1",
    "jsonb": "'{}'",
}


def test_whatever_platform_admin_does_is_told(shared_database: Database, organization: Organization) -> None:
    with shared_database.connect("sidecar") as sidecar:
        billed = event("to-bill", moment(1, days=1))
        sent = ingest(sidecar, [billed, event("to-correct"), event("to-resolve", quantity=-1)], organization.id)
        assert (sent.accepted, len(sent.rejected)) == (2, 1)
        sidecar.execute("select stripe.receive_events(array[%s], null)", [_UNREADABLE])
    with shared_database.connect("authenticator") as staff:
        functions = staff.execute(
            """
            select p.proname, array(
              select format_type(t, null) from unnest(p.proargtypes[0:p.pronargs - p.pronargdefaults - 1]) as t
            )
            from pg_proc p
            where p.pronamespace = to_regnamespace('api') and p.provolatile = 'v'
              and has_function_privilege('platform_admin', p.oid, 'execute')
            """
        ).fetchall()
        assert {*STAFF} | UNTOLD <= {name for name, _ in functions}
        for name, types in functions:
            if name in UNTOLD:
                continue
            with request(
                staff, Caller("platform_admin", "staff|1", str(organization.id), claims={"email": "s@p.example"})
            ):
                call, actions = STAFF.get(
                    name, (f"select api.{name}({', '.join(VALUES[kind] for kind in types)})", set())
                )
                if not actions:
                    with pytest.raises(psycopg.Error, match="ROLE_REQUIRED: "):
                        run(staff, call)
                    continue
                staff.execute("select api.create_api_key('Made before', '{events:write}')")
                for statement in BEFORE.get(name, ()):
                    run(staff, statement, {"first_day": month(1)})
                staff.execute("set constraints all immediate")
                so_far = {chain: length(staff, chain) for chain in (PLATFORM, organization.id)}
                known = {
                    "first_day": month(1),
                    "key": value(staff, "select id from api.api_keys where name = 'Made before'"),
                    "event": value(staff, "select id from api.usage_events where tenant_id = %s", organization.id),
                    "rejected": value(
                        staff, "select id from api.rejected_events where organization_id = %s", organization.id
                    ),
                }
                staff.execute("set constraints all deferred")
                run(staff, call, known)
                staff.execute("set constraints all immediate")
                told = [entry for chain in so_far for entry in entries(staff, chain, so_far[chain])]
                assert {entry.action for entry in told} == actions
                assert {(e.actor_type, e.actor_id, e.email) for e in told} == {
                    ("platform_admin", "platform_admin", "s@p.example")
                }


def test_a_service_is_told_by_its_key(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    run(superuser, CHANGES["tenancy.api_keys"]["created"], {"org": organization.id})
    superuser.execute(
        "update tenancy.api_keys set scopes = '{data:read,data:write}' where organization_id = %s", [organization.id]
    )
    key = value(superuser, "select id from tenancy.api_keys where organization_id = %s", organization.id)
    with shared_database.connect("authenticator") as service:
        superuser.execute("select audit.watch('app.cases', 'case', '{id}', p_personal => '{*}')")
        try:
            with service.transaction():
                enter(service, Caller("member", claims={"goldleaves_key": str(key)}))
                service.execute("insert into app.cases (title) values ('Secret')")
        finally:
            superuser.execute("drop trigger watch on app.cases")
    told = entries(superuser, organization.id)[-1]
    assert (told.action, told.actor_type, told.actor_id) == ("case.created", "api_key", str(key))
    assert told.after is not None and told.after["title"] == "Secret"
    assert value(superuser, "select after from audit.log where id = %s", told.id) is None, "all of it is apart"


def test_settings_of_a_session_make_nobody_of_whoever_logged_in(
    superuser: Connection, organization: Organization
) -> None:
    """They are believed where only PostgREST sets them."""
    with superuser.transaction():
        enter(superuser, Caller("member", organization["owner"].subject))
        superuser.execute("update api.organizations set name = 'Mine' where id = %s", [organization.id])
    told = entries(superuser, organization.id)[-1]
    assert (told.actor_type, told.actor_id, told.email) == ("database", "postgres", None)


def test_a_column_that_is_misspelt_is_not_watched(superuser: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"app\.clients cannot be watched: it has no column mail"):
        superuser.execute("select audit.watch('app.clients', 'client', '{id}', p_personal => '{mail}')")


REFUSALS = """[
  {"code": "INVALID_TOKEN", "subject": "eve", "ip": "192.0.2.9", "detail": "expired", "count": 3,
   "first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:00:04Z"},
  {"code": "WORKSPACE_LIMIT", "organization_id": "%(org)s", "user_id": "%(user)s", "ip": "192.0.2.9", "count": 1,
   "first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:00:00Z"},
  {"code": "NOT_A_MEMBER", "organization_id": "%(org)s", "user_id": "%(user)s", "detail": "acme", "count": 1,
   "first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:00:00Z"},
  {"code": "42501", "key_id": "%(user)s", "count": 1,
   "first_at": "2026-01-01T00:00:00Z", "last_at": "2026-01-01T00:00:00Z"}
]"""


def test_refusals_are_told_and_nobody_writes_into_the_log_of_others(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    so_far = {chain: length(superuser, chain) for chain in (PLATFORM, organization.id)}
    user = str(organization["owner"].id)
    with shared_database.connect("sidecar") as sidecar:
        sidecar.execute("select audit.record_refusals(%s)", [REFUSALS % {"org": organization.id, "user": user}])

    (own,) = entries(superuser, organization.id, so_far[organization.id])
    assert (own.action, own.actor_type, own.actor_id, own.ip) == ("refused.workspace_limit", "user", user, "192.0.2.9")
    token, foreign, rights = entries(superuser, PLATFORM, so_far[PLATFORM])
    assert (token.action, token.actor_type, token.actor_id) == ("refused.invalid_token", "anonymous", None)
    assert token.after is not None and (token.after["count"], token.after["detail"]) == (3, "expired")
    assert (foreign.action, foreign.actor_id) == ("refused.not_a_member", user)
    assert (rights.action, rights.actor_type) == ("refused.42501", "api_key")
    apart = value(
        superuser, "select string_agg(concat(before, after), '') from audit.log where action like 'refused.%%'"
    )
    assert "acme" not in apart and "expired" not in apart, "what they tried is their text"


# Over HTTP


def by_staff(stack: RunningStack, organization: Organization) -> httpx.Client:
    return stack.client("staff|1", role="platform_admin", org=organization.slug, email="staff@provider.example")


def seen(client: httpx.Client, **filters: str) -> list[dict[str, object]]:
    answer = client.get("/api/v1/audit_log", params={"order": "position", **filters})
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, object]] = answer.json()
    return rows


@pytest.fixture(scope="module")
def acme(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database, "acme")


def test_who_when_from_where_and_what(stack: RunningStack, acme: Organization) -> None:
    viewer, began = str(acme["viewer"].id), datetime.now(UTC)
    with stack.client(acme["owner"].subject, email=acme["owner"].email) as owner:
        answer = owner.patch(
            "/api/v1/memberships",
            params={"user_id": f"eq.{viewer}"},
            json={"role": "billing"},
            headers={"X-Request-ID": "from-here", "X-Forwarded-For": "192.0.2.66", "User-Agent": "curl/8"},
        )
        assert answer.is_success, answer.text
        (told,) = seen(owner, request_id="eq.from-here")
    assert began <= datetime.fromisoformat(str(told["recorded_at"])) <= datetime.now(UTC)
    assert (
        told
        | {
            "actor_type": "user",
            "actor_id": str(acme["owner"].id),
            "email": acme["owner"].email,
            "ip": "127.0.0.1",  # and not what the client said
            "user_agent": "curl/8",
            "action": "membership.changed",
            "target_type": "membership",
            "target_id": viewer,
            "changed_columns": ["role"],
            "before": {"role": "viewer"},
            "after": {"role": "billing"},
        }
        == told
    )


def test_a_tenant_sees_that_staff_did_it_but_not_who(stack: RunningStack, acme: Organization) -> None:
    with by_staff(stack, acme) as staff:
        answer = staff.post("/api/v1/rpc/finalize_period", json={"period_start": month(1).isoformat()})
        assert answer.status_code == 200, answer.text
        mine = seen(staff, organization_id=f"eq.{acme.id}", action="eq.billing_period.changed")
    with stack.client(acme["admin"].subject) as admin:
        theirs = seen(admin, action="eq.billing_period.changed")
    assert [(row["actor_type"], row["email"], row["ip"]) for row in mine] == [
        ("platform_admin", "staff@provider.example", "127.0.0.1")
    ]
    assert [(row["actor_type"], row["email"], row["ip"]) for row in theirs] == [("platform_admin", None, None)]


def test_signing_in_tells_who_came(stack: RunningStack) -> None:
    with httpx.Client(base_url=stack.postgrest_url, trust_env=False) as direct:
        bearer = {"Authorization": f"Bearer {stack.token('newcomer', email='new@example.com')}"}
        user = direct.post("/rpc/sign_in", headers=bearer).json()
        rows = direct.get("/audit_log", params={"order": "position"}, headers=bearer).json()
    assert {(row["actor_type"], row["actor_id"], row["email"]) for row in rows} == {
        ("user", user["user_id"], "new@example.com")
    }
    assert {row["action"] for row in rows} == {"organization.created", "membership.created"}


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_nobody_writes_it_over_http(stack: RunningStack, acme: Organization, method: str) -> None:
    for client in (stack.client(acme["owner"].subject), by_staff(stack, acme)):
        with client:
            answer = client.request(method, "/api/v1/audit_log", json={"position": 99})
            assert answer.status_code in (403, 405), answer.text


def test_the_log_of_an_organization_outlives_it(stack: RunningStack, make_organization: MakeOrganization) -> None:
    gone = make_organization(stack.database, "short-lived")
    with stack.client(gone["owner"].subject) as owner:
        assert owner.delete("/api/v1/organizations", params={"id": f"eq.{gone.id}"}).is_success
    with stack.client("staff|1", role="platform_admin") as staff:
        told = seen(staff, organization_id=f"eq.{gone.id}", action="like.*.removed")
    assert [row["action"] for row in told] == ["organization.removed"] + ["membership.removed"] * len(gone.members)
    assert {row["actor_id"] for row in told} == {str(gone["owner"].id)}

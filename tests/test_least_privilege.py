"""Least privilege, read from the catalog: who may do what is listed here in full, and nothing else is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from tests.harness import Database
from tests.own_tables import own_tables
from tests.sql_requests import Connection, run

OUR_SCHEMAS = ("tenancy", "app", "metering", "billing", "stripe", "notifications", "audit", "ops", "api")
OUR_ROLES = {
    "goldleaves_migrator": "login createrole",
    "goldleaves_owner": "",
    "goldleaves_kernel": "",
    "authenticator": "login noinherit",
    "anon": "",
    "member": "",
    "service": "",
    "platform_admin": "",
    "sidecar": "login noinherit",
    "monitor": "login noinherit",
}
REQUEST_ROLES = ("anon", "member", "service", "platform_admin")

# SECURITY DEFINER functions that do DDL, and so belong to the owner of the tables.
DDL_FUNCTIONS = {"metering.ensure_partition"}

SCHEMA_USAGE: Mapping[str, set[str]] = {
    "anon": {"api", "tenancy"},
    "member": {"api", "tenancy", "app", "metering", "billing", "stripe", "notifications", "audit", "ops"},
    "service": {"api", "tenancy"},
    "platform_admin": {"api", "tenancy", "app", "metering", "billing", "stripe", "notifications", "audit"},
    "sidecar": {"tenancy", "metering", "billing", "stripe", "notifications", "audit", "ops"},
    "monitor": {"metering", "ops"},
    "authenticator": set(),
}

_CONTEXT = {
    "tenancy.current_org",
    "tenancy.current_org_for",
    "tenancy.current_user_id",
    "tenancy.current_role_in",
    "tenancy.my_organizations",
}
_PERSONAL = {
    f"{schema}.{name}"
    for schema in ("api", "tenancy")
    for name in ("sign_in", "create_organization", "convert_to_organization")
}
_PERSONAL |= {
    f"{schema}.{name}"
    for schema in ("api", "tenancy")
    for name in (
        "create_invitation",
        "resend_invitation",
        "revoke_invitation",
        "accept_invitation",
        "change_member_role",
        "remove_member",
        "leave_organization",
        "transfer_ownership",
    )
}
_CLOSING = {
    "api.finalize_period",
    "api.recalculate_period",
    "api.set_billing_schedule",
    "tenancy.require_platform_admin",
    "tenancy.require_staff",
}
_CORRECTING = {"metering.amend_event", "metering.void_event"}
_STAFF_CORRECTS = {
    f"api.{name}"
    for name in ("void_usage_event", "amend_usage_event", "replay_rejected_event", "dismiss_rejected_event")
}
_LEDGERS = {f"api.{name}" for name in ("create_credit_note", "record_payment", "record_refund", "write_off_invoice")}
_STORAGE = {"api.remake_storage_snapshots"}
_WEBHOOKS = {"api.replay_webhook", "api.replay_webhooks"}
_STRIPE_ACCOUNT = {"api.link_stripe_customer", "api.set_stripe_price"}
_STRIPE_EVENTS = {"api.replay_stripe_event", "api.replay_stripe_events"}
_METERS = {f"api.{name}" for name in ("create_meter", "change_meter", "delete_meter", "set_operation_weight")}
_CATALOG = {
    f"api.{name}"
    for name in (
        "create_plan",
        "change_plan",
        "set_plan_feature",
        "remove_plan_feature",
        "create_price",
        "set_plan",
    )
}
_OF_SUBSCRIPTIONS = (
    "start_subscription",
    "change_subscription",
    "cancel_subscription",
    "resume_subscription",
    "pause_subscription",
    "mark_past_due",
    "mark_paid",
    "set_payment_method",
)
_SUBSCRIPTIONS = {f"api.{name}" for name in _OF_SUBSCRIPTIONS}
_OWN_SUBSCRIPTION = {"billing.cancel_own_subscription", "billing.resume_own_subscription"}
_ENTITLEMENTS = {"api.set_entitlement", "api.remove_entitlement"}
_BACKEND = {"api.reserve_quota", "api.release_quota", "tenancy.require_backend"}
_FOR_BACKEND = {"tenancy.reserve_for_backend", "tenancy.release_for_backend"}
_FEATURES = {
    "api.has_feature",
    "billing.shown_entitlements",
    "tenancy.has_feature",
    "tenancy.require_feature",
    "tenancy.reserve_quota",
}
_SHOWN = {"billing.shown_plans", "billing.shown_currencies"}
_SUMMARY = {
    "api.usage_summary",
    "api.usage_report",
    "billing.usage_summary",
    "metering.usage_report",
    "billing.unit_amount_cents",
    "billing.cost_cents",
}
_DOCUMENTS = {f"{schema}.{name}" for schema in ("api", "billing") for name in ("preview_invoice", "invoice_document")}
_PROOF = {"api.verify_invoice", "billing.verdict_of_invoice"}
_PROFILE = {"api.set_billing_profile", "billing.set_billing_profile"}
_TERMS = {"api.set_billing_terms"}
_ALERTS = {
    f"{schema}.{name}"
    for schema in ("api", "billing")
    for name in ("create_usage_alert", "delete_usage_alert", "set_budget")
}
_READ_OF_VIEWS = {
    "billing.payer",
    "billing.subscription_of",
    "billing.agreed_ahead",
    "billing.find_period",
    "billing.period_bounds",
    "billing.period_end_after",
    "billing.period_start_before",
    "billing.anchor_date",
    "billing.anchor_instant",
    "billing.settlement",
    "audit.told_of",
    "metering.context_text",
    "metering.names_text",
}

_KEYS = {f"{schema}.{verb}_api_key" for schema in ("api", "tenancy") for verb in ("create", "rotate", "revoke")}

# Refusals are part of the contract: a role may call what answers it with a clear ROLE_REQUIRED.
FUNCTIONS: Mapping[str, set[str]] = {
    "anon": {"api.health", "tenancy.pre_request"} | _SHOWN,
    "member": {"api.health", "tenancy.pre_request", "ops.new_id"}
    | _CONTEXT
    | _PERSONAL
    | _CLOSING
    | _STAFF_CORRECTS
    | _LEDGERS
    | _METERS
    | _CATALOG
    | _SUBSCRIPTIONS
    | _SHOWN
    | _STORAGE
    | _WEBHOOKS
    | _STRIPE_EVENTS
    | _STRIPE_ACCOUNT
    | _SUMMARY
    | _DOCUMENTS
    | _PROOF
    | _PROFILE
    | _ALERTS
    | _TERMS
    | _READ_OF_VIEWS
    | _OWN_SUBSCRIPTION
    | _ENTITLEMENTS
    | _BACKEND
    | _FEATURES
    | _KEYS,
    "service": {"api.health", "tenancy.pre_request"}
    | _PERSONAL
    | _CLOSING
    | _STAFF_CORRECTS
    | _LEDGERS
    | _METERS
    | _CATALOG
    | _SUBSCRIPTIONS
    | _STORAGE
    | _WEBHOOKS
    | _STRIPE_EVENTS
    | _STRIPE_ACCOUNT
    | _TERMS
    | _ENTITLEMENTS
    | _BACKEND
    | _FOR_BACKEND
    | _KEYS,
    "platform_admin": {
        "api.health",
        "tenancy.pre_request",
        "tenancy.current_org",
        "billing.finalize_period",
        "billing.recalculate_period",
        "billing.set_billing_schedule",
        "tenancy.require_organization",
    }
    | _CORRECTING
    | _STAFF_CORRECTS
    | _LEDGERS
    | {name.replace("api.", "billing.") for name in _LEDGERS}
    | {"metering.replay_rejected_event", "metering.dismiss_rejected_event"}
    | _METERS
    | {name.replace("api.", "metering.") for name in _METERS}
    | _CATALOG
    | _SUBSCRIPTIONS
    | {name.replace("api.", "billing.") for name in _CATALOG | _SUBSCRIPTIONS}
    | _SHOWN
    | _STORAGE
    | {"metering.remake_storage_snapshots"}
    | _WEBHOOKS
    | {name.replace("api.", "notifications.") for name in _WEBHOOKS}
    | {"notifications.send_test_webhook"}
    | _STRIPE_EVENTS
    | _STRIPE_ACCOUNT
    | {"stripe.replay_event", "stripe.replay_dead_events"}
    | {"stripe.link", "stripe.set_price", "stripe.prices_of"}
    | _PERSONAL
    | _CLOSING
    | _SUMMARY
    | _DOCUMENTS
    | _PROOF
    | _PROFILE
    | _ALERTS
    | _TERMS
    | {"billing.set_billing_terms"}
    | _READ_OF_VIEWS
    | _ENTITLEMENTS
    | {name.replace("api.", "billing.") for name in _ENTITLEMENTS}
    | _BACKEND
    | _FOR_BACKEND
    | _FEATURES
    | _KEYS,
    "sidecar": {
        "audit.record_refusals",
        "billing.advance_subscriptions",
        "billing.close_period",
        "billing.due_periods",
        "billing.fire_alerts",
        "billing.gateway_limits",
        "billing.give_back_request",
        "billing.take_request",
        "tenancy.find_api_key",
        "tenancy.identify",
        "tenancy.note_key_use",
        "tenancy.organization_of_events",
        "metering.events_in",
        "metering.events_of_body",
        "metering.ingest_batch",
        "metering.ingest_events",
        "metering.jsonb_or_text",
        "metering.late_in",
        "metering.late_of_body",
        "metering.read_body",
        "metering.read_one_by_one",
        "metering.read_together",
        "metering.receive_events",
        "metering.can_record_now",
        "metering.receive_group",
        "metering.record_rejection",
        "metering.repeated_events",
        "metering.roll_up",
        "metering.split_events",
        "metering.take_storage_snapshots",
        "notifications.claim_webhooks",
        "notifications.mark_webhook_delivered",
        "notifications.mark_webhook_failed",
        "notifications.postpone_webhook",
        "notifications.webhook_backlog",
        "stripe.acknowledge_invoice_item",
        "stripe.apply_event",
        "stripe.begin_checkout",
        "stripe.checkouts_beside",
        "stripe.begin_portal",
        "stripe.build_reports",
        "stripe.claim_invoice_items",
        "stripe.claim_reconciliations",
        "stripe.claim_refetches",
        "stripe.claim_reports",
        "stripe.drift",
        "stripe.drop_refetch",
        "stripe.due_events",
        "stripe.event_backlog",
        "stripe.fail_event",
        "stripe.invoice_item_backlog",
        "stripe.mark_refetch_failed",
        "stripe.postpone_invoice_item",
        "stripe.postpone_refetch",
        "stripe.receive_events",
        "stripe.receive_fetched",
        "stripe.reconcile",
        "stripe.reconciliation_question",
        "stripe.record_checkout",
        "stripe.record_portal",
        "stripe.record_reports",
        "stripe.reject_invoice_item",
        "stripe.renew_invoice_item",
        "stripe.report_backlog",
        "stripe.require_ended",
        "stripe.retry_invoice_item",
        "stripe.tend_reports",
        "ops.maintain",
        "ops.health",
        "ops.describe_api",
        "ops.view_columns",
        "ops.allowed_values",
    }
    | _CORRECTING,
    "monitor": {"metering.repeated_events", "ops.unsettled_stripe_events"},
    "authenticator": set(),
}


# Privileges on tables and views: of the whole (select, delete), or of columns.
def _tenants_own(*columns: str) -> dict[str, set[str]]:
    """Members write also the columns that triggers keep as they are: clients send whole rows back."""
    written = {"organization_id", "id", *columns, "created_by", "created_at"}
    return {"select": {"*"}, "delete": {"*"}, "insert": written, "update": written}


_CLIENT = _tenants_own("name", "email")
_CASE = _tenants_own("client_id", "title", "status")
_DOCUMENT = _tenants_own("case_id", "title", "size_bytes", "status", "storage_key")
_MEMBERSHIP = {
    "select": {"*"},
    "delete": {"*"},
    "update": {"role"},
}
_INVITATION = {
    "select": {
        "organization_id",
        "id",
        "email",
        "role",
        "invited_by",
        "created_at",
        "sent_at",
        "expires_at",
        "accepted_at",
        "accepted_by",
        "revoked_at",
    }
}
_API_KEY = {
    "select": {
        "id",
        "kind",
        "organization_id",
        "name",
        "prefix",
        "scopes",
        "created_by",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "rotated_from",
    }
}
_WORKSPACE = _tenants_own("name")
_ORGANIZATION = {"select": {"*"}, "delete": {"*"}, "update": {"name"}}
_READ = {"select": {"*"}}
_AUDIT_PERSONAL = {"select": {"organization_id", "position", "part", "data"}}
_READ_BY_MEMBERS = {
    name: _READ
    for name in (
        "metering.usage_events",
        "metering.meters",
        "api.meters",
        "metering.operation_weights",
        "api.operation_weights",
        "api.plans",
        "api.currencies",
        "metering.storage_snapshots",
        "api.storage_snapshots",
        "billing.billing_periods",
        "billing.invoices",
        "billing.invoice_lines",
        "billing.payments",
        "billing.credit_notes",
        "billing.credit_note_lines",
        "billing.refunds",
        "billing.balance_entries",
        "billing.billing_profiles",
        "billing.billing_terms",
        "billing.usage_alerts",
        "billing.budgets",
        "notifications.notification_log",
        "billing.subscriptions",
        "billing.subscription_phases",
        "api.billing_subscriptions",
        "api.subscription_phases",
        "billing.entitlement_overrides",
        "api.entitlement_overrides",
        "api.entitlements",
        "stripe.report_marks",
        "stripe.customers",
        "stripe.subscriptions",
        "stripe.invoices",
        "audit.log",
        "api.audit_log",
        "api.stripe_customers",
        "api.stripe_invoices",
        "api.usage_events",
        "api.billing_events",
        "api.billing_periods",
        "api.invoices",
        "api.invoice_lines",
        "api.credit_notes",
        "api.credit_note_lines",
        "api.payments",
        "api.refunds",
        "api.balances",
        "api.billing_profiles",
        "api.billing_terms",
        "api.usage_alerts",
        "api.budgets",
        "api.notification_log",
    )
}
_STRIPE_FOR_STAFF = ("disputes", "invoice_items", "meter_event_reports", "reconciliations", "webhook_events")
TABLES: Mapping[str, Mapping[str, Mapping[str, set[str]]]] = {
    "anon": {"api.plans": _READ, "api.currencies": _READ},
    "member": {
        **_READ_BY_MEMBERS,
        **{f"{schema}.clients": _CLIENT for schema in ("app", "api")},
        **{f"{schema}.cases": _CASE for schema in ("app", "api")},
        **{f"{schema}.documents": _DOCUMENT for schema in ("app", "api")},
        **{f"{schema}.memberships": _MEMBERSHIP for schema in ("tenancy", "api")},
        "audit.personal": _AUDIT_PERSONAL,
        "tenancy.invitations": _INVITATION,
        "api.pending_invitations": _READ,
        **{f"{schema}.api_keys": _READ if schema == "api" else _API_KEY for schema in ("tenancy", "api")},
        **{f"{schema}.workspaces": _WORKSPACE for schema in ("tenancy", "api")},
        **{f"{schema}.organizations": _ORGANIZATION for schema in ("tenancy", "api")},
    },
    "service": {f"{schema}.meters": _READ for schema in ("metering", "api")},
    "platform_admin": {
        **_READ_BY_MEMBERS,
        **{f"{schema}.meter_versions": _READ for schema in ("metering", "api")},
        **{f"{schema}.prices": _READ for schema in ("billing", "api")},
        **{f"{schema}.rejected_events": _READ for schema in ("metering", "api")},
        **{f"{schema}.webhook_messages": _READ for schema in ("notifications", "api")},
        **{f"{schema}.{name}": _READ for schema in ("app", "api") for name in ("clients", "cases", "documents")},
        **{f"{schema}.{name}": _READ for schema in ("tenancy", "api") for name in ("organizations", "memberships")},
        **{f"stripe.{name}": _READ for name in _STRIPE_FOR_STAFF},
        **{f"api.stripe_{name}": _READ for name in _STRIPE_FOR_STAFF if name != "disputes"},
        "audit.personal": _AUDIT_PERSONAL,
        "tenancy.invitations": _INVITATION,
        "api.pending_invitations": _READ,
        **{f"{schema}.api_keys": _READ if schema == "api" else _API_KEY for schema in ("tenancy", "api")},
        **{f"{schema}.workspaces": _READ for schema in ("tenancy", "api")},
    },
    "sidecar": {},
    "monitor": {"ops.stripe_webhook_events": _READ},
    "authenticator": {},
}


def tables_of(role: str) -> Mapping[str, Mapping[str, set[str]]]:
    """Also your own tables, which members write and staff reads."""
    found = dict(TABLES[role])
    for table in own_tables():
        for name in (table.name, table.view):
            if role == "member":
                found[name] = _tenants_own(*table.columns)
            elif role == "platform_admin":
                found[name] = _READ
    return found


@pytest.fixture(scope="module")
def catalog(shared_database: Database) -> Iterator[Connection]:
    """A superuser's look at a migrated database that the stack has begun to use."""
    with shared_database.connect("sidecar") as sidecar:
        sidecar.execute("select ops.maintain()")
    with shared_database.connect() as superuser:
        yield superuser


def column(catalog: Connection, query: str, **parameters: object) -> list[Any]:
    return [value for (value,) in run(catalog, query, {"ours": list(OUR_SCHEMAS), **parameters}).fetchall()]


def test_every_schema_is_known(catalog: Connection) -> None:
    found = column(catalog, "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema$)'")
    assert set(found) == {*OUR_SCHEMAS, "public", "yoyo", *(table.schema for table in own_tables())}


def test_roles_have_no_attribute_but_the_listed(catalog: Connection) -> None:
    rows = catalog.execute(
        """
        select rolname, concat_ws(' ',
          case when rolsuper then 'superuser' end, case when rolbypassrls then 'bypassrls' end,
          case when rolcreatedb then 'createdb' end, case when rolreplication then 'replication' end,
          case when rolcanlogin then 'login' end, case when rolcreaterole then 'createrole' end,
          case when not rolinherit then 'noinherit' end)
        from pg_roles
        where rolname !~ '^pg_' and oid <> 10
        """
    ).fetchall()
    assert dict(rows) == OUR_ROLES


def test_only_the_migrator_and_authenticator_become_other_roles(catalog: Connection) -> None:
    """A definer function runs as the kernel; nobody who serves requests may become it, or the owner."""
    rows = catalog.execute(
        """
        select member.rolname, role.rolname
        from pg_roles member, pg_roles role
        where member.oid <> role.oid and member.oid <> 10 and member.rolname !~ '^pg_'
          and pg_has_role(member.oid, role.oid, 'member')
          and member.rolname <> 'goldleaves_migrator'
        """
    ).fetchall()
    assert set(rows) == {("authenticator", role) for role in REQUEST_ROLES}


def test_authenticator_has_no_right_of_its_own_through_them(catalog: Connection) -> None:
    assert (
        column(
            catalog,
            "select r from unnest(%(roles)s::text[]) r where pg_has_role('authenticator', r, 'usage')",
            roles=list(REQUEST_ROLES),
        )
        == []
    )


def test_public_has_nothing(catalog: Connection) -> None:
    grants = column(
        catalog,
        """
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace::regnamespace::text = any (%(ours)s)
          and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) where grantee = 0)
        union all
        select c.oid::regclass::text from pg_class c
        where c.relnamespace::regnamespace::text = any (%(ours)s)
          and exists (select from aclexplode(c.relacl) where grantee = 0)
        union all
        select n.nspname from pg_namespace n
        where n.nspname = any (%(ours)s || '{yoyo}'::text[])
          and exists (select from aclexplode(n.nspacl) where grantee = 0)
        union all
        select d.datname from pg_database d
        where d.datname = current_database()
          and exists (select from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) where grantee = 0)
        """,
    )
    assert grants == []


def test_new_functions_are_not_for_public_either(catalog: Connection) -> None:
    for role in ("goldleaves_migrator", "goldleaves_owner", "goldleaves_kernel"):
        with catalog.transaction(force_rollback=True):
            run(catalog, f"grant usage, create on schema api to {role}")
            run(catalog, f"set local role {role}")
            catalog.execute("create function api.scratch() returns integer language sql as 'select 1'")
            catalog.execute("reset role")
            assert column(catalog, "select has_function_privilege('anon', 'api.scratch()', 'execute')") == [False]


def test_definer_functions_pin_the_search_path_and_belong_to_the_kernel(catalog: Connection) -> None:
    rows = catalog.execute(
        """
        select p.oid::regproc::text, pg_get_userbyid(p.proowner), coalesce(p.proconfig, '{}')
        from pg_proc p
        where p.prosecdef and p.pronamespace::regnamespace::text !~ '^(pg_|information_schema$)'
        """
    ).fetchall()
    assert rows
    for name, owner, config in rows:
        assert owner == ("goldleaves_owner" if name in DDL_FUNCTIONS else "goldleaves_kernel"), name
        assert 'search_path=""' in config, name
    assert {name for name, owner, _ in rows if owner == "goldleaves_owner"} == DDL_FUNCTIONS


@pytest.mark.parametrize("role", SCHEMA_USAGE)
def test_schemas_that_a_role_enters(catalog: Connection, role: str) -> None:
    found = column(
        catalog, "select n from unnest(%(ours)s::text[]) n where has_schema_privilege(%(role)s, n, 'usage')", role=role
    )
    assert set(found) == SCHEMA_USAGE[role]
    create = column(
        catalog,
        "select nspname from pg_namespace where has_schema_privilege(%(role)s, oid, 'create')",
        role=role,
    )
    assert create == []


@pytest.mark.parametrize("role", FUNCTIONS)
def test_functions_that_a_role_executes(catalog: Connection, role: str) -> None:
    found = column(
        catalog,
        """
        select p.pronamespace::regnamespace || '.' || p.proname from pg_proc p
        where p.pronamespace::regnamespace::text = any (%(ours)s)
          and has_function_privilege(%(role)s, p.oid, 'execute')
        """,
        role=role,
    )
    assert set(found) == FUNCTIONS[role]


@pytest.mark.parametrize("role", TABLES)
def test_tables_that_a_role_reaches(catalog: Connection, role: str) -> None:
    """Grants as they are stored: of a whole table, or of its columns."""
    rows = catalog.execute(
        """
        select c.relnamespace::regnamespace || '.' || c.relname, lower(a.privilege_type), '*'
        from pg_class c, aclexplode(c.relacl) a
        where a.grantee = %(role)s::regrole
        union all
        select c.relnamespace::regnamespace || '.' || c.relname, lower(a.privilege_type), t.attname
        from pg_class c
        join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
        where a.grantee = %(role)s::regrole
        """,
        {"role": role},
    ).fetchall()
    found: dict[str, dict[str, set[str]]] = {}
    for table, privilege, what in rows:
        found.setdefault(table, {}).setdefault(privilege, set()).add(what)
    assert found == tables_of(role)


def test_nothing_can_be_granted_on(catalog: Connection) -> None:
    grantable = column(
        catalog,
        """
        select c.oid::regclass::text from pg_class c, aclexplode(c.relacl) a
        where c.relnamespace::regnamespace::text = any (%(ours)s) and a.is_grantable and a.grantee <> c.relowner
        union all
        select p.oid::regprocedure::text from pg_proc p, aclexplode(p.proacl) a
        where p.pronamespace::regnamespace::text = any (%(ours)s) and a.is_grantable and a.grantee <> p.proowner
        """,
    )
    assert grantable == []


def test_of_the_database_the_migrator_passes_on_the_right_to_connect_only(catalog: Connection) -> None:
    rights = catalog.execute(
        """
        select lower(a.privilege_type), a.is_grantable from pg_database d, aclexplode(d.datacl) a
        where d.datname = current_database() and a.grantee = 'goldleaves_migrator'::regrole
        """
    ).fetchall()
    assert dict(rights) == {"connect": True, "create": False}


def test_partitions_are_reached_through_their_parent_only(catalog: Connection) -> None:
    partitions = column(
        catalog, "select oid::regclass::text from pg_class where relispartition and relkind in ('r', 'p')"
    )
    assert partitions
    reached = column(
        catalog,
        """
        select c.oid::regclass::text from pg_class c, aclexplode(c.relacl) a
        where c.relispartition and c.relkind in ('r', 'p') and a.grantee <> c.relowner
        """,
    )
    assert reached == []


def test_api_is_views_with_the_rights_of_their_reader_and_functions_without_definer(catalog: Connection) -> None:
    wrong = column(
        catalog,
        """
        select oid::regclass::text from pg_class
        where relnamespace = 'api'::regnamespace
          and (relkind <> 'v' or not coalesce(reloptions, '{}') && '{security_invoker=true,security_invoker=on}')
        union all
        select oid::regprocedure::text from pg_proc where pronamespace = 'api'::regnamespace and prosecdef
        """,
    )
    assert wrong == []


def test_everything_in_api_is_documented(catalog: Connection) -> None:
    silent = column(
        catalog,
        """
        select oid::regclass::text from pg_class
        where relnamespace = 'api'::regnamespace and obj_description(oid, 'pg_class') is null
        union all
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'api'::regnamespace and obj_description(oid, 'pg_proc') is null
        union all
        select 'schema api' where obj_description('api'::regnamespace, 'pg_namespace') is null
        union all
        select attrelid::regclass || '.' || attname from pg_attribute
        where attrelid in (select oid from pg_class where relnamespace = 'api'::regnamespace and relkind = 'v')
          and attnum > 0 and not attisdropped and col_description(attrelid, attnum) is null
        """,
    )
    assert silent == []


def test_policies_hold_no_subquery_and_none_is_restrictive(catalog: Connection) -> None:
    """Citus rejects the first, and makes the second permissive on shards."""
    rows = catalog.execute(
        """
        select polrelid::regclass || ' ' || polname, polpermissive, concat(polqual::text, polwithcheck::text),
          polroles
        from pg_policy
        """
    ).fetchall()
    assert rows
    for name, permissive, expressions, roles in rows:
        assert permissive, name
        assert "SUBLINK" not in expressions and "SUBQUERY" not in expressions, name
        assert 0 not in roles, f"{name} is for PUBLIC"


def test_context_helpers_are_inlined(catalog: Connection) -> None:
    rows = catalog.execute(
        """
        select p.proname, l.lanname, p.provolatile, p.prosecdef, p.proisstrict, p.proconfig is null
        from pg_proc p
        join pg_language l on l.oid = p.prolang
        where p.pronamespace::regnamespace || '.' || p.proname = any (%s)
        """,
        [list(_CONTEXT)],
    ).fetchall()
    assert len(rows) == len(_CONTEXT)
    for name, *facts in rows:
        assert facts == ["sql", "s", False, False, True], name

    with catalog.transaction(force_rollback=True):
        catalog.execute("set local role member")
        for table in ("app.cases", "tenancy.memberships", "tenancy.organizations", "metering.usage_events"):
            plan = "\n".join(column(catalog, f"explain (verbose, costs off) select * from {table}"))
            assert "current_setting" in plan, plan
            assert not [helper for helper in _CONTEXT if helper + "(" in plan], plan


def test_keys_of_tenant_tables_start_with_the_organization_or_say_why_not(catalog: Connection) -> None:
    """Else uniqueness, or a reference, tells one tenant about another."""
    wrong = column(
        catalog,
        """
        with tenant_tables as (
          select c.oid, c.oid = 'tenancy.organizations'::regclass as is_root from pg_class c
          where c.relkind in ('r', 'p') and c.relnamespace::regnamespace::text = any (%(ours)s)
            and (c.oid = 'tenancy.organizations'::regclass or exists (
              select from pg_attribute where attrelid = c.oid and attname = 'organization_id' and not attisdropped))
        ),
        keys (name, reason) as (
          select i.indexrelid::regclass::text,
            coalesce(obj_description(k.oid, 'pg_constraint'), obj_description(i.indexrelid, 'pg_class'))
          from pg_index i join tenant_tables t on t.oid = i.indrelid
          left join pg_constraint k on k.conindid = i.indexrelid and k.contype in ('p', 'u')
          left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
          where i.indisunique and (t.is_root or a.attname is distinct from 'organization_id')
          union all
          select k.conname, obj_description(k.oid, 'pg_constraint')
          from pg_constraint k join tenant_tables t on t.oid = k.conrelid
          join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
          where k.contype = 'f' and a.attname <> 'organization_id'
        )
        select name from keys where reason !~ '^goldleaves lint (key|reference)_without_organization: .+' is not false
        """,
    )
    assert wrong == []


def test_every_foreign_key_says_what_happens_on_delete(catalog: Connection) -> None:
    silent = column(
        catalog,
        """
        select conrelid::regclass || ' ' || conname from pg_constraint
        where contype = 'f' and confdeltype = 'a' and connamespace::regnamespace::text = any (%(ours)s)
        """,
    )
    assert silent == []


def test_foreign_keys_are_indexed(catalog: Connection) -> None:
    """Deleting what is referenced would read the whole table."""
    bare = column(
        catalog,
        """
        select k.conrelid::regclass || ' ' || k.conname from pg_constraint k
        where k.contype = 'f' and k.connamespace::regnamespace::text = any (%(ours)s)
          and not exists (
            select from pg_index i
            where i.indrelid = k.conrelid and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey
          )
        """,
    )
    assert bare == []


def test_the_sidecar_reads_no_table(shared_database: Database, catalog: Connection) -> None:
    tables = column(
        catalog,
        "select c.oid::regclass::text from pg_class c where c.relnamespace::regnamespace::text = any (%(ours)s)"
        " and c.relkind in ('r', 'p', 'v')",
    )
    for login in ("sidecar", "monitor", "authenticator"):
        with shared_database.connect(login) as connection:
            for table in set(tables) - set(TABLES[login]):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    run(connection, f"select 1 from {table}")
            for role in ("goldleaves_owner", "goldleaves_kernel", "goldleaves_migrator"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    run(connection, f"set role {role}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("create temporary table scratch (a integer)")

"""`goldleaves policies lint`: what we ship is clean, and what is broken by hand is found, named and mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.policies.lint import Finding, examine, lint
from api.policies.lint.rules import catalogue
from tests.harness import Database
from tests.sql_requests import Connection, run

THIS = "this database"  # whatever it is called

# A rule, how to break it, and the object that it has to name.
BREAKS: tuple[tuple[str, str, str], ...] = (
    ("row_security_off", "alter table app.cases disable row level security", "app.cases"),
    ("row_security_off", "alter table tenancy.organizations disable row level security", "tenancy.organizations"),
    ("row_security_off", "alter table metering.usage_events disable row level security", "metering.usage_events"),
    (
        "row_security_off",
        "alter table metering.usage_events_2020_01 disable row level security",
        "metering.usage_events_2020_01",
    ),
    ("row_security_off", "create table app.chore (organization_id uuid)", "app.chore"),
    (
        "row_security_off",
        "create schema shop; create table shop.orders (organization_id uuid); grant select on shop.orders to member",
        "shop.orders",
    ),
    (
        "row_security_off",
        "alter table app.cases owner to postgres; alter table app.cases disable row level security",
        "app.cases",
    ),
    ("row_security_not_forced", "alter table app.cases no force row level security", "app.cases"),
    (
        "row_security_not_forced",
        "alter table metering.usage_events_2020_01 no force row level security",
        "metering.usage_events_2020_01",
    ),
    ("policies_without_row_security", "alter table tenancy.users disable row level security", "tenancy.users"),
    ("shared_table_without_row_security", "grant select on ops.releases to member", "ops.releases"),
    ("shared_table_written", "grant update (unit) on metering.meters to member", "metering.meters"),
    (
        "policy_shows_everything",
        "create policy colleagues on tenancy.users for select to member using (tenancy.current_role_in('owner'))",
        "colleagues on tenancy.users",
    ),
    ("shared_table_without_row_security", "grant select (id) on ops.releases to anon", "ops.releases"),
    (
        "table_without_policy",
        "create table app.chore (organization_id uuid); alter table app.chore enable row level security;"
        "grant select on app.chore to member",
        "app.chore",
    ),
    (
        "table_without_policy",
        "grant select on metering.usage_events_2020_01 to member",
        "metering.usage_events_2020_01",
    ),
    ("policy_without_tenant", "create policy open on app.cases to member using (true)", "open on app.cases"),
    (
        "policy_without_tenant",
        "create policy open on tenancy.organizations for select to member using (kind = 'organization')",
        "open on tenancy.organizations",
    ),
    (
        "policy_without_tenant",
        "create role auditor; create policy audit on app.cases for select to platform_admin, auditor using (true)",
        "audit on app.cases",
    ),
    (
        "policy_without_tenant",
        "create policy open on app.cases for insert to member with check (title <> '')",
        "open on app.cases",
    ),
    (
        "update_without_check",
        "drop policy cases_update on app.cases; create policy cases_update on app.cases for update"
        " to member using (organization_id = tenancy.current_org())",
        "cases_update on app.cases",
    ),
    (
        "update_without_check",
        "create policy everything on app.cases to goldleaves_kernel using (true)",
        "everything on app.cases",
    ),
    ("write_always_true", "create policy staff on app.cases to platform_admin using (1 = 1)", "staff on app.cases"),
    (
        "write_always_true",
        "create policy staff on app.cases for insert to platform_admin with check (true)",
        "staff on app.cases",
    ),
    (
        "policy_with_subquery",
        "create policy mine on app.cases for select to member using (organization_id = any ("
        "select organization_id from tenancy.memberships))",
        "mine on app.cases",
    ),
    (
        "policy_restrictive",
        "create policy closed on app.cases as restrictive to member using (status = 'open')",
        "closed on app.cases",
    ),
    (
        "policy_to_public",
        "create policy everybody on app.cases using (organization_id = tenancy.current_org())",
        "everybody on app.cases",
    ),
    ("helper_not_inlinable", "alter function tenancy.current_org() set search_path = ''", "tenancy.current_org()"),
    (
        "helper_not_inlinable",
        "alter function tenancy.current_role_in(text[]) security definer",
        "tenancy.current_role_in(text[])",
    ),
    ("helper_not_inlinable", "alter function tenancy.my_organizations() strict", "tenancy.my_organizations()"),
    (
        "helper_not_inlinable",
        "create function app.is_open(text) returns boolean volatile language sql as 'select $1 = ''open''';"
        "create policy opened on app.cases for select to member"
        " using (organization_id = tenancy.current_org() and app.is_open(status))",
        "app.is_open(text)",
    ),
    (
        "helper_replaced",
        "create or replace function tenancy.current_org() returns uuid language sql stable as"
        " $$ select (current_setting('request.headers')::json ->> 'organization')::uuid $$",
        "tenancy.current_org()",
    ),
    (
        "helper_replaced",
        "create or replace function tenancy.current_role_in(variadic p_roles text[]) returns boolean"
        " language plpgsql as 'begin return true; end'",
        "tenancy.current_role_in(text[])",
    ),
    (
        "helper_replaced",
        "create or replace function tenancy.current_org_for(variadic p_roles text[]) returns uuid language sql stable"
        " as 'select tenancy.current_org()'",
        "tenancy.current_org_for(text[])",
    ),
    (
        "helper_not_inlinable",
        "alter function tenancy.current_org_for(text[]) set search_path = ''",
        "tenancy.current_org_for(text[])",
    ),
    ("key_without_organization", "alter table app.cases add unique (title)", "cases_title_key on app.cases"),
    (
        "key_without_organization",
        "create unique index titles on app.cases (lower(title)) where status = 'open'",
        "app.titles",
    ),
    (
        "key_without_organization",
        "create table app.chore (id uuid primary key, organization_id uuid)",
        "chore_pkey on app.chore",
    ),
    ("key_without_organization", "create unique index names on tenancy.organizations (name)", "tenancy.names"),
    (
        "reference_without_organization",
        "alter table app.cases add unique (organization_id, title), add unique (title);"
        "alter table app.documents add foreign key (title) references app.cases (title) on delete cascade",
        "documents_title_fkey on app.documents",
    ),
    (
        "reference_without_organization",
        "alter table app.cases add owner uuid references tenancy.users (id)",
        "cases_owner_fkey on app.cases",
    ),
    (
        "reference_without_organization",
        "alter table app.cases add unique (title); create table app.tags (title text references app.cases (title))",
        "tags_title_fkey on app.tags",
    ),
    (
        "foreign_key_without_index",
        "drop index app.cases_of_client",
        "cases_organization_id_client_id_fkey on app.cases",
    ),
    ("view_without_security_invoker", "create view app.open_cases as select * from app.cases", "app.open_cases"),
    ("view_without_security_invoker", "alter view api.cases set (security_invoker = off)", "api.cases"),
    ("owned_by_superuser", "alter view api.cases owner to postgres", "api.cases"),
    ("owned_by_superuser", "alter function ops.maintain() owner to postgres", "ops.maintain()"),
    ("definer_without_search_path", "alter function ops.maintain() reset search_path", "ops.maintain()"),
    ("definer_without_search_path", "alter function ops.maintain() set search_path = public", "ops.maintain()"),
    ("definer_without_search_path", "alter function ops.maintain() set search_path = app", "ops.maintain()"),
    (
        "definer_without_search_path",
        "alter function ops.maintain() set search_path = public, pg_temp",
        "ops.maintain()",
    ),
    ("definer_to_public", "grant execute on function ops.maintain() to public", "ops.maintain()"),
    ("excess_privilege", "grant truncate on app.cases to member", "app.cases"),
    ("excess_privilege", "grant references (title), trigger on app.cases to platform_admin", "app.cases"),
    (
        "excess_privilege",
        "create role auditor; grant auditor to authenticator; grant truncate on app.cases to auditor",
        "app.cases",
    ),
    ("grant_option", "grant select, update (title) on app.cases to member with grant option", "app.cases"),
    ("grant_to_everybody", "grant select on app.cases to public", "app.cases"),
    ("grant_to_everybody", "grant select (title) on app.cases to anon", "app.cases"),
    ("create_in_schema", "grant create on schema api to member", "api"),
    ("create_in_schema", "grant create on schema public to public", "public"),
    ("role_above_row_security", "alter role member bypassrls", "member"),
    ("role_above_row_security", "alter role goldleaves_kernel superuser bypassrls", "goldleaves_kernel"),
    ("role_becomes_another", "grant pg_read_all_data to member", "member"),
    ("role_becomes_another", "grant platform_admin to member", "member"),
    ("role_becomes_another", "create role desk; grant desk to member; grant service to desk", "desk"),
    (
        "grant_without_row_security",
        "create materialized view app.totals as select * from app.cases; grant select on app.totals to member",
        "app.totals",
    ),
    ("role_becomes_another", "grant goldleaves_kernel to authenticator", "authenticator"),
    ("role_becomes_another", "create role root superuser; grant root to authenticator", "authenticator"),
    ("no_row_security_in_api", "create materialized view api.totals as select count(*) from app.cases", "api.totals"),
    (
        "no_row_security_in_api",
        "create foreign data wrapper elsewhere; create server far foreign data wrapper elsewhere;"
        "create foreign table api.far (id integer) server far",
        "api.far",
    ),
    ("table_in_api", "create table api.notes (note text)", "api.notes"),
    ("exposed_without_comment", "comment on view api.cases is null", "view api.cases"),
    ("exposed_without_comment", "comment on column api.cases.title is null", "column api.cases.title"),
    ("exposed_without_comment", "comment on function api.health() is null", "function api.health()"),
    ("another_owner", "alter table app.cases owner to goldleaves_kernel", "table app.cases"),
    ("another_owner", "alter schema billing owner to postgres", "schema billing"),
    (
        "another_owner",
        "alter table metering.usage_events_2020_01 owner to postgres",
        "table metering.usage_events_2020_01",
    ),
    (
        "default_privileges",
        "alter default privileges for role goldleaves_owner in schema app grant select on tables to member",
        "default privileges of goldleaves_owner in schema app",
    ),
    (
        "default_privileges",
        "alter default privileges for role goldleaves_kernel grant execute on functions to public",
        "default privileges of goldleaves_kernel",
    ),
    ("no_primary_key", "create table app.notes (note text)", "app.notes"),
    ("no_primary_key", "create table app.chore (organization_id uuid)", "app.chore"),
    ("duplicate_index", "create index again on app.cases (organization_id, client_id)", "app.again"),
    ("duplicate_index", "create index again on app.cases (organization_id, id)", "app.again"),
    (
        "several_permissive_policies",
        "create policy closed on app.cases for select to member"
        " using (organization_id = tenancy.current_org() and status = 'closed')",
        "app.cases",
    ),
    (
        "extension_in_public",
        "insert into pg_extension select 16000, 'contributed', 10, 'public'::regnamespace, true, '1', null, null;"
        "insert into pg_depend"
        " select 'pg_extension'::regclass, 16000, 0, 'pg_namespace'::regclass, 'public'::regnamespace, 0, 'n'",
        "contributed",
    ),
    (
        "function_without_search_path",
        "alter function tenancy.keep_stamps() reset search_path",
        "tenancy.keep_stamps()",
    ),
    (
        "invalid_index",
        "update pg_index set indisvalid = false where indexrelid = 'app.cases_of_client'::regclass",
        "app.cases_of_client",
    ),
    ("helper_replaced", "alter function tenancy.current_org_for(text[]) immutable", "tenancy.current_org_for(text[])"),
    (
        "key_without_organization",
        "alter table app.cases add constraint titles exclude using btree (title with =)",
        "titles on app.cases",
    ),
    ("another_owner", "alter function tenancy.current_org() owner to member", "routine tenancy.current_org()"),
    ("create_in_schema", "create schema theirs authorization member", "theirs"),
    (
        "create_in_schema",
        "do $$ begin execute format('grant create on database %I to member', current_database()); end $$",
        THIS,
    ),
    ("role_above_row_security", "alter role authenticator replication createrole", "authenticator"),
    ("role_becomes_another", "grant member to service", "service"),
    ("role_becomes_another", "grant pg_read_all_stats to member", "member"),
    ("role_becomes_another", "grant pg_signal_backend to monitor", "monitor"),
    ("role_logs_in", "alter role member login", "member"),
    ("role_logs_in", "alter role goldleaves_kernel login", "goldleaves_kernel"),
    (
        "role_logs_in",
        "create role analyst login; create role desk; grant member to desk; grant desk to analyst",
        "analyst",
    ),
    ("role_logs_in", "grant member to monitor", "monitor"),
    ("setting_of_role", "alter role authenticator set app.current_org_role = 'owner'", "authenticator"),
    ("setting_of_role", "alter role authenticator set pgrst.db_pre_request = ''", "authenticator"),
    (
        "setting_of_role",
        "do $$ begin execute format("
        "'alter database %I set pgrst.db_schemas = %L', current_database(), 'api,app'); end $$",
        THIS,
    ),
    (
        "setting_of_role",
        "do $$ begin execute format("
        "'alter role member in database %I set app.current_org_role = %L', current_database(), 'owner'); end $$",
        "member",
    ),
    (
        "leakproof_function",
        "create function public.tell(text) returns boolean leakproof language plpgsql as 'begin raise; end'",
        "public.tell(text)",
    ),
    (
        "rule_on_table",
        "create rule tell as on insert to app.cases do also notify cases",
        "tell on app.cases",
    ),
    (
        "function_sets_context",
        "create function api.switch(text) returns text language sql"
        " as $$ select set_config('app.current_org', $1, true) $$",
        "api.switch(text)",
    ),
    (
        "function_sets_context",
        "create function public.all_cases() returns setof app.cases language sql"
        " set app.current_org_role = 'owner' as 'select * from app.cases'",
        "public.all_cases()",
    ),
    (
        "function_sets_context",
        "create function api.switch() returns void language plpgsql"
        " as $$ begin set local app.current_org = 'x'; end $$",
        "api.switch()",
    ),
    (
        "function_sets_context",
        "create function api.become(text) returns void language plpgsql security definer"
        " as $$ begin perform tenancy.enter($1, 'member', null, null); end $$",
        "api.become(text)",
    ),
    (
        "key_without_organization",
        "create unique index names on metering.usage_events_2020_01 (event_name)",
        "metering.names",
    ),
    (
        "organization_by_another_name",
        "create table app.tasks (id uuid primary key, org uuid references tenancy.organizations (id));"
        "alter table app.tasks enable row level security; grant select on app.tasks to member;"
        "create policy tasks_read on app.tasks for select to member using (org is not null)",
        "app.tasks",
    ),
    ("role_logs_in", "create role analyst login; grant goldleaves_kernel to analyst", "analyst"),
    (
        "sequence_granted",
        "create sequence app.case_numbers; grant usage on sequence app.case_numbers to member",
        "app.case_numbers",
    ),
    (
        "definer_to_public",
        "create function public.invoices() returns setof billing.invoices security definer language sql"
        " as 'select * from billing.invoices'",
        "public.invoices()",
    ),
    (
        "owned_by_superuser",
        "create function public.invoices() returns setof billing.invoices security definer language sql"
        " as 'select * from billing.invoices'; alter function public.invoices() owner to platform_admin;"
        "grant usage on schema public to member",
        "public.invoices()",
    ),
    (
        "policy_shows_everything",
        "create policy colleagues on tenancy.users for select to member"
        " using (id = tenancy.current_user_id() or email like '%@example.com')",
        "colleagues on tenancy.users",
    ),
)

SAFE = (
    "organization_id = tenancy.current_org()",
    "tenancy.current_org() = organization_id",
    "organization_id = tenancy.current_org_for('owner', 'admin')",
    "organization_id = tenancy.current_org_for(title)",
    "organization_id = tenancy.current_org() and (status = 'open' or true)",
    "(organization_id = tenancy.current_org() and id is null) or (tenancy.current_org() = organization_id)",
    "false",
    "(status = 'open' and organization_id = tenancy.current_org() and true) or false",
)
UNSAFE = (
    "true",
    "organization_id = tenancy.current_org() or true",
    "organization_id = tenancy.current_org() or status = 'public'",
    "organization_id is not null",
    "organization_id is not distinct from tenancy.current_org()",
    "organization_id = nullif(current_setting('app.another', true), '')::uuid",
    "organization_id = current_setting('app.current_org')::uuid or title = 'organization_id = tenancy.current_org()'",
    "organization_id <> tenancy.current_org()",
    "organization_id <> tenancy.current_org_for('owner')",
    "tenancy.current_org_for('owner') is not null",
    "not (organization_id <> tenancy.current_org())",
    "coalesce(organization_id = tenancy.current_org(), true)",
    "(organization_id = tenancy.current_org()) is not false",
    "case when status = 'open' then true else organization_id = tenancy.current_org() end",
    "id = tenancy.current_org()",
    "organization_id = tenancy.current_user_id()",
    "tenancy.current_org() = tenancy.current_org()",
    "organization_id = organization_id",
    "organization_id = any (tenancy.my_organizations())",
    "organization_id = any (array[tenancy.current_org(), id])",
    "organization_id = coalesce(tenancy.current_org(), organization_id)",
    "(organization_id = tenancy.current_org() and status = 'open') or title = 'x'",
    "created_by = tenancy.current_user_id()",
    "tenancy.current_role_in('owner')",
    "organization_id operator(app.=) tenancy.current_org()",
)
_ANY_EQUALS = """
create function app.equal(uuid, uuid) returns boolean language sql immutable as 'select true';
create operator app.= (leftarg = uuid, rightarg = uuid, function = app.equal);
"""


@pytest.fixture(scope="module")
def live(shared_database: Database) -> Iterator[Connection]:
    """A superuser's connection to a database that has partitions."""
    with shared_database.connect() as connection:
        connection.execute("select metering.ensure_partition('2020-01-01')")
        yield connection


@pytest.fixture
def trial(live: Connection) -> Iterator[Connection]:
    """A transaction in which anything may be broken."""
    with live.transaction(force_rollback=True):
        live.execute("set local search_path = ''")
        yield live


def found(connection: Connection, rule: str) -> dict[str, Finding]:
    return {finding.object: finding for finding in lint(connection, [rule])}


def test_what_we_ship_is_clean(shared_database: Database, live: Connection) -> None:
    """Also for goldleaves_migrator, who is no superuser, and in a transaction that may not write."""
    with shared_database.connect("goldleaves_migrator", autocommit=False) as migrator:
        migrator.read_only = True
        migrator.execute("set local search_path = ''")
        report = examine(migrator)
    assert report.findings == []
    assert report.exemptions


def test_every_rule_is_broken_below() -> None:
    assert {rule.name for rule in catalogue()} == {rule for rule, _, _ in BREAKS}


@pytest.mark.parametrize(("rule", "broken_by", "name"), BREAKS)
def test_a_break_is_found_and_mended(trial: Connection, rule: str, broken_by: str, name: str) -> None:
    if name == THIS:
        name = f"database {trial.info.dbname}"
    before = found(trial, rule)
    assert name not in before
    run(trial, broken_by)
    finding = found(trial, rule)[name]
    assert name.split(" on ")[0].split(" ")[-1] in finding.what
    run(trial, finding.mend)
    assert found(trial, rule) == before


@pytest.mark.parametrize("expression", UNSAFE)
def test_a_policy_that_lets_other_tenants_in_is_found(trial: Connection, expression: str) -> None:
    run(trial, _ANY_EQUALS)
    run(trial, f"create policy suspect on app.cases for select to member using ({expression})")
    assert found(trial, "policy_without_tenant").keys() == {"suspect on app.cases"}


@pytest.mark.parametrize("expression", SAFE)
def test_a_policy_that_binds_rows_to_the_organization_is_not(trial: Connection, expression: str) -> None:
    run(
        trial,
        f"create policy fine on app.cases for update to member using ({expression}) with check ({expression})",
    )
    assert found(trial, "policy_without_tenant") == {}


@pytest.mark.parametrize("path", ["''", "pg_catalog", "app, pg_temp", "pg_catalog, tenancy, pg_temp"])
def test_a_definer_function_may_look_up_names_where_no_caller_writes(trial: Connection, path: str) -> None:
    run(trial, f"alter function ops.maintain() set search_path = {path}")
    assert found(trial, "definer_without_search_path") == {}


def test_an_organization_may_be_of_a_domain(trial: Connection) -> None:
    run(trial, "create domain app.organization as uuid; create table app.tasks (organization_id app.organization)")
    bound = "using (organization_id = tenancy.current_org())"
    run(trial, f"create policy tasks_read on app.tasks for select to member {bound}")
    assert found(trial, "policy_without_tenant") == {}


def test_people_may_see_themselves(trial: Connection) -> None:
    run(trial, "create policy me on tenancy.users for select to member using (id = tenancy.current_user_id())")
    run(trial, "grant select on tenancy.users to member")
    assert lint(trial) == []


def test_people_see_their_own_memberships_but_do_not_change_them_everywhere(trial: Connection) -> None:
    own = "user_id = tenancy.current_user_id()"
    run(trial, f"create policy own on tenancy.memberships for select to member using ({own})")
    run(trial, f"create policy change on tenancy.memberships for update to member using ({own}) with check ({own})")
    assert found(trial, "policy_without_tenant").keys() == {"change on tenancy.memberships"}


def test_a_reason_in_a_comment_exempts_from_that_rule_alone(trial: Connection) -> None:
    run(trial, "create policy everybody on app.cases for select using (true)")
    comment = "For the press.\ngoldleaves lint policy_without_tenant: cases of this kind are public"
    run(trial, f"comment on policy everybody on app.cases is '{comment}'")

    report = examine(trial, ["policy_without_tenant", "policy_to_public"])
    assert [finding.rule for finding in report.findings] == ["policy_to_public"]
    exempted = {(e.rule, e.object): e.reason for e in report.exemptions}
    assert exempted["policy_without_tenant", "everybody on app.cases"] == "cases of this kind are public"


def test_the_command_prints_json_and_fails_for_errors(
    shared_database: Database, live: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shared_database.migrator)
    monkeypatch.chdir(tmp_path)

    def command(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["policies", "lint", *options])
        return result.exit_code, result.stdout

    code, text = command()
    assert code == 0
    assert text.startswith("0 errors, 0 warnings")

    live.execute("create index again on app.cases (organization_id, client_id)")
    try:
        assert command("--json")[0] == 0
        assert command("--strict")[0] == 1
        live.execute("alter table app.cases disable row level security")
        code, text = command("--json", "--rule", "row_security_off", "--rule", "duplicate_index")
        assert code == 1
        findings = [(f["level"], f["rule"], f["object"], f["mend"]) for f in json.loads(text)["findings"]]
        assert findings == [
            ("error", "row_security_off", "app.cases", "alter table app.cases enable row level security;"),
            ("warning", "duplicate_index", "app.again", "drop index app.again;"),
        ]
        code, text = command()
        assert code == 1
        assert all(mend in text for *_, mend in findings)
    finally:
        live.execute("drop index app.again")
        live.execute("alter table app.cases enable row level security")

    code, text = command("--list")
    assert code == 0
    assert all(rule.name in text for rule in catalogue())
    code, text = command("--list", "--json", "--rule", "duplicate_index")
    assert (code, [(rule["name"], rule["level"]) for rule in json.loads(text)]) == (0, [("duplicate_index", "warning")])
    assert command("--rule", "nonsense")[0] == 1

"""Somebody changed the live database by hand: it is found, named where it is a hole, and never overwritten unseen."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.errors import LockNotAvailable

from api.migrations import rollback
from api.release import PolicyConflict, catalog
from tests.harness import Database
from tests.rollout import Checkout


@dataclass(frozen=True)
class ByHand:
    """A change, what verify says of it, and the rule of the lint that calls it a hole. None: it opens nothing."""

    unit: str
    statement: str
    said: str
    rule: str | None
    needs_superuser: str | None = None  # what nobody else can put right


_PAYER = """
create or replace function billing.payer(
  p_billing_user_id uuid, p_billing_start_at timestamptz, p_at timestamptz
) returns uuid language sql immutable parallel safe as $$ {body} $$
"""

WAYS = {
    "policy added": ByHand(
        "app.cases",
        "create policy extra on app.cases for select to service using (true)",
        "policy extra was added",
        "policy_without_tenant",
    ),
    "policy widened": ByHand(
        "app.clients",
        "alter policy clients_read on app.clients using (true)",
        "policy clients_read: using was organization_id = ",
        "policy_without_tenant",
    ),
    "policy dropped": ByHand(
        "app.documents",
        "drop policy documents_delete on app.documents",
        "policy documents_delete was dropped",
        None,
    ),
    "row security off": ByHand(
        "billing.invoices",
        "alter table billing.invoices disable row level security",
        "row security was on, is off",
        "row_security_off",
    ),
    "force off": ByHand(
        "billing.invoice_lines",
        "alter table billing.invoice_lines no force row level security",
        "forced row security was on, is off",
        "row_security_not_forced",
    ),
    "grant to a role": ByHand(
        "metering.rejected_events",
        "grant truncate on metering.rejected_events to service",
        "grant truncate to service was added",
        "excess_privilege",
    ),
    "grant to PUBLIC": ByHand(
        "tenancy.api_keys",
        "grant select on tenancy.api_keys to public",
        "grant select to public was added",
        "grant_to_everybody",
    ),
    "owner changed": ByHand(
        "tenancy.workspaces",
        "alter table tenancy.workspaces owner to postgres",
        "owner was goldleaves_owner, is postgres",
        "another_owner",
        needs_superuser="alter table tenancy.workspaces owner to goldleaves_owner",
    ),
    "partition without row security": ByHand(
        "metering.usage_events",
        """
        do $$ begin
          execute format(
            'alter table metering.usage_events_%s disable row level security',
            to_char(now() at time zone 'UTC', 'YYYY_MM')
          );
        end $$
        """,
        "is not as its table: row security is off",
        "row_security_off",
    ),
    "trigger of a partition off": ByHand(
        "metering.usage_events",
        """
        do $$ begin
          execute format(
            'alter table metering.usage_events_%s disable trigger user',
            to_char(now() at time zone 'UTC', 'YYYY_MM')
          );
        end $$
        """,
        "triggers off is guard_delete, ",
        None,
    ),
    "function replaced": ByHand(
        "function billing.payer(uuid,timestamp with time zone,timestamp with time zone)",
        _PAYER.format(body="select p_billing_user_id"),
        "its definition was changed",
        None,
    ),
    "function unpinned": ByHand(
        "function tenancy.pre_request()",
        "alter function tenancy.pre_request() reset search_path",
        "its definition was changed",
        "definer_without_search_path",
    ),
    "context helper replaced": ByHand(
        "function tenancy.current_org()",
        """
        create or replace function tenancy.current_org() returns uuid language sql stable parallel safe
        as $$ select current_setting('app.any_org')::uuid $$
        """,
        "its definition was changed",
        "helper_replaced",
    ),
    "view without security_invoker": ByHand(
        "view api.cases",
        "alter view api.cases reset (security_invoker)",
        "options was security_invoker=true, is nothing",
        "view_without_security_invoker",
    ),
}


@pytest.fixture
def checkout(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path, database, monkeypatch)


def test_changes_by_hand_are_found_named_and_never_overwritten_unseen(checkout: Checkout) -> None:
    """All of them at once."""
    released = checkout.state()
    for way in WAYS.values():
        before = checkout.state()
        checkout.execute(way.statement)
        assert checkout.state() != before, way.statement
    changed = checkout.state()
    units = {way.unit for way in WAYS.values()}

    verified = checkout.policies("verify")
    assert verified.exit_code == 1, verified.output
    told = [line.removeprefix("! ") for line in verified.stdout.splitlines() if line.startswith("! ")]
    assert len(told) == len(units), told
    for way in WAYS.values():
        assert any(line.startswith(f"{way.unit}: ") and way.said in line for line in told), (way, told)

    planned = checkout.policies("plan")
    assert planned.exit_code == 3, planned.output
    assert {(action["action"], action["unit"]) for action in checkout.actions()} == {
        ("conflict", unit) for unit in units
    }
    files = {action["unit"]: action["file"] for action in checkout.actions()}

    findings = json.loads(checkout.policies("lint", "--json").stdout)["findings"]
    holes = Counter(finding["rule"] for finding in findings)
    assert holes >= Counter(way.rule for way in WAYS.values() if way.rule is not None), findings

    # No release of policies touches what was changed.
    applied = checkout.policies("apply", "--apply")
    assert applied.exit_code == 3, applied.output
    assert checkout.state() == changed
    conflicts = {each["unit"]: each for each in json.loads((checkout.root / "conflicts.json").read_text())}
    assert conflicts.keys() == units
    for way in WAYS.values():
        conflict = conflicts[way.unit]
        assert way.said in "; ".join(conflict["says"])
        assert conflict["live"] in (checkout.root / conflict["new"]).read_text()

    # A deploy that would load their files anew does not either, whether somebody else owns one of them or not.
    for file in filter(None, set(files.values())):
        checkout.edit(file, ";\n", ";\n-- anew\n")
    for way in WAYS.values():
        if way.needs_superuser is None:
            continue
        with pytest.raises(PolicyConflict, match=re.escape(way.unit)):
            checkout.migrate()
        refused = checkout.policies("apply", "--apply", "--overwrite", way.unit)
        assert refused.exit_code == 1
        assert "give it back to goldleaves_owner as a superuser" in refused.stderr
        assert checkout.state() == changed
        checkout.execute(way.needs_superuser)
        units.remove(way.unit)
        changed = checkout.state()
    with pytest.raises(PolicyConflict, match="changed by hand") as stopped:
        checkout.migrate()
    named = {line.strip().split(": ")[0] for line in str(stopped.value).splitlines() if line.startswith("  ")}
    assert named == {unit for unit in units if files[unit] is not None}  # what a migration made, no load would do again
    assert checkout.state() == changed

    names = [word for unit in sorted(units) for word in ("--overwrite", unit)]
    resolved = checkout.policies("apply", "--apply", *names)
    assert resolved.exit_code == 0, resolved.output
    assert checkout.state() == released
    assert checkout.policies("verify").exit_code == 0
    assert checkout.policies("apply", "--apply").exit_code == 0
    assert not list(checkout.root.rglob("*.new")) and not (checkout.root / "conflicts.json").exists()


def test_what_is_live_can_be_accepted_and_put_back_by_loading_it_anew(checkout: Checkout) -> None:
    checkout.execute(
        "alter policy clients_read on app.clients using (organization_id = tenancy.current_org() and name <> 'a AND b')"
    )
    checkout.execute("grant update (email) on app.clients to service with grant option")
    checkout.execute(
        "create policy extra on app.clients as restrictive for all to public "
        "using (not (email is null)) with check (true)"
    )
    checkout.execute("comment on policy extra on app.clients is 'for the 100% of it''s \\ sake'")
    changed = checkout.state()
    header = (checkout.root / "policies/app.clients.sql").read_text().split("alter table")[0]

    assert checkout.policies("apply", "--accept-live", "app.clients").exit_code == 0
    assert checkout.policies("verify").exit_code == 1  # that was a dry run

    accepted = checkout.policies("apply", "--apply", "--accept-live", "app.clients")
    assert accepted.exit_code == 0, accepted.output
    text = (checkout.root / "policies/app.clients.sql").read_text()
    assert text.startswith(header)
    assert "using ((organization_id = tenancy.current_org()) and (name <> 'a AND b'::text))" in text
    assert checkout.state() == changed
    assert checkout.policies("verify").exit_code == 0

    for _ in range(2):
        with (checkout.root / "policies/app.clients.sql").open("a") as file:
            file.write("alter table app.clients force row level security;\n")
        assert checkout.migrate().loaded == ("policies/app.clients.sql",)
        assert checkout.state() == changed


def test_a_file_that_says_by_now_what_is_live_takes_over(checkout: Checkout) -> None:
    """At three in the morning in psql, in the morning in the file: a deploy goes through."""
    checkout.execute("drop policy clients_delete on app.clients")
    text = (checkout.root / "policies/app.clients.sql").read_text()
    statements = [part for part in text.split("\n\n") if "create policy clients_delete" not in part]
    (checkout.root / "policies/app.clients.sql").write_text("\n\n".join(statements))
    body = "select case when p_at < p_billing_start_at then p_billing_user_id end"
    checkout.execute(_PAYER.format(body=body))
    checkout.edit(
        "sql/billing/payer.sql",
        "select case when p_at < coalesce(p_billing_start_at, 'infinity') then p_billing_user_id end",
        body,
    )
    changed = checkout.state()
    assert checkout.policies("verify").exit_code == 1
    checkout.migrate()
    assert checkout.state() == changed
    assert checkout.policies("verify").exit_code == 0


def test_what_was_added_by_hand_is_kept_unless_it_is_named(checkout: Checkout) -> None:
    checkout.execute("create function app.stray() returns int language sql as 'select 1'")
    checkout.execute("create table app.left_over (id int)")
    checkout.execute("create view api.shortcut with (security_invoker) as select title from app.cases")
    assert checkout.policies("verify").stdout.count("was added") == 3

    (checkout.root / "sql/api/cases_again.sql").write_text("-- api is rebuilt as a whole\n")
    with pytest.raises(PolicyConflict, match=r"view api\.shortcut: the view was added"):
        checkout.migrate()
    (checkout.root / "sql/api/cases_again.sql").unlink()

    resolved = checkout.policies(
        "apply",
        "--apply",
        "--overwrite",
        "app.stray",
        "--overwrite",
        "api.shortcut",
        "--accept-live",
        "table app.left_over",
    )
    assert resolved.exit_code == 0, resolved.output
    assert checkout.policies("verify").exit_code == 0
    query = "select to_regproc('app.stray'), to_regclass('api.shortcut'), to_regclass('app.left_over')::text"
    assert checkout.query(query) == [(None, None, "app.left_over")]


def test_whatever_is_added_to_api_is_kept_unless_it_is_named(checkout: Checkout) -> None:
    added = {
        "matview": ("numbers", "create materialized view api.numbers as select 1 as n"),
        "sequence": ("counter", "create sequence api.counter"),
        "type": ("color", "create type api.color as enum ('green')"),
        "foreign_table": (
            "elsewhere",
            "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing; "
            "create foreign table api.elsewhere (id int) server nowhere",
        ),
        "aggregate": ("total(integer)", "create aggregate api.total(int) (sfunc = int4pl, stype = int)"),
    }
    for _, statement in added.values():
        checkout.execute(statement)
    units = {f"{kind} api.{name}" for kind, (name, _) in added.items()}
    verified = checkout.policies("verify", "--json")
    assert {each["unit"] for each in json.loads(verified.stdout)["differences"]} == units
    (checkout.root / "sql/api/more.sql").write_text("-- api is rebuilt as a whole\n")
    with pytest.raises(PolicyConflict, match=r"matview api\.numbers: the matview was added"):
        checkout.migrate()
    assert checkout.policies("apply", "--apply").exit_code == 3
    assert "create materialized view api.numbers as" in (checkout.root / "policies/api.numbers.sql.new").read_text()

    overwrite = [argument for unit in sorted(units) for argument in ("--overwrite", unit)]
    resolved = checkout.policies("apply", "--apply", *overwrite)
    assert resolved.exit_code == 0, resolved.output
    assert checkout.policies("verify").exit_code == 0
    assert "sql/api/more.sql" in checkout.migrate().loaded


def test_a_view_that_got_a_column_is_put_back_by_its_file(checkout: Checkout) -> None:
    released = checkout.state()
    query = "select obj_description('api.clients'::regclass)"
    comment = checkout.query(query)
    ((definition,),) = checkout.query("select rtrim(pg_get_viewdef('api.clients'::regclass), ';')")
    checkout.execute(
        f"create or replace view api.clients with (security_invoker) as select c.*, 1 as extra from ({definition}) as c"
    )
    resolved = checkout.policies("apply", "--apply", "--overwrite", "view api.clients")
    assert resolved.exit_code == 0, resolved.output
    assert checkout.state() == released and checkout.query(query) == comment


def test_a_table_that_was_dropped_by_hand_is_given_up_with_its_file(checkout: Checkout) -> None:
    (checkout.root / "migrations/9001_create_notes.sql").write_text(
        "set local role goldleaves_owner; create table app.notes (organization_id uuid not null); reset role;"
    )
    (checkout.root / "policies/app.notes.sql").write_text("alter table app.notes enable row level security;")
    checkout.migrate()
    checkout.execute("drop table app.notes")
    with pytest.raises(PolicyConflict, match=r"app\.notes: the table is gone"):
        checkout.migrate()
    assert checkout.policies("apply", "--apply").exit_code == 3

    (checkout.root / "policies/app.notes.sql").unlink()
    applied = checkout.policies("apply", "--apply")
    assert applied.exit_code == 0, applied.output
    assert checkout.policies("verify").exit_code == 0
    checkout.migrate()


def test_what_is_not_lost_by_a_rollback_is_not_taken_for_released_either(checkout: Checkout) -> None:
    checkout.execute("grant select on ops.releases to anon")
    checkout.execute("grant create on schema app to member")
    checkout.execute("alter function tenancy.current_org() volatile")
    before = checkout.policies("verify").stdout
    assert before.count("! ") == 3
    rollback(checkout.database.migrator, "0009", checkout.root)
    checkout.migrate()
    assert checkout.policies("verify").stdout == before


def test_a_new_file_does_not_overwrite_what_its_table_was_given_before(checkout: Checkout) -> None:
    checkout.execute("grant select on ops.releases to monitor")
    path = checkout.root / "policies/ops.releases.sql"
    path.write_text("-- Releases.\ngrant select on ops.releases to goldleaves_kernel;\n")
    changed = checkout.state()
    with pytest.raises(PolicyConflict, match=r"table ops\.releases: grant select to monitor was added"):
        checkout.migrate()
    planned = checkout.policies("plan")
    assert planned.exit_code == 3
    assert {(action["action"], action["file"]) for action in checkout.actions()} == {
        ("conflict", "policies/ops.releases.sql")
    }
    assert checkout.policies("apply", "--apply").exit_code == 3
    assert checkout.state() == changed
    assert "to monitor" in (checkout.root / "policies/ops.releases.sql.new").read_text()

    accepted = checkout.policies("apply", "--apply", "--accept-live", "ops.releases")
    assert accepted.exit_code == 0, accepted.output
    assert checkout.state() == changed
    assert path.read_text().startswith("-- Releases.\n") and "to monitor" in path.read_text()
    assert checkout.policies("verify").exit_code == 0

    # Or the file counts, or it says the same.
    checkout.execute("grant select on ops.released_objects to monitor")
    path = checkout.root / "policies/ops.released_objects.sql"
    path.write_text("grant select on ops.released_objects to goldleaves_kernel;\n")
    assert checkout.policies("apply", "--apply", "--overwrite", "ops.released_objects").exit_code == 0
    assert checkout.query("select has_table_privilege('monitor', 'ops.released_objects', 'select')") == [(False,)]
    assert checkout.policies("verify").exit_code == 0


def test_a_new_file_may_say_what_is_live_already(checkout: Checkout) -> None:
    checkout.execute("grant select on ops.releases to monitor")
    (grants,) = [checkout.state()["table ops.releases"]["grants"]]
    (checkout.root / "policies/ops.releases.sql").write_text(
        "".join(f"grant {line.replace(' to ', ' on ops.releases to ')};\n" for line in grants)
    )
    assert checkout.migrate().loaded == ("policies/ops.releases.sql",)
    assert checkout.policies("verify").exit_code == 0


def comes_in_between(checkout: Checkout, statement: str) -> bool:
    """Whether somebody gets it done. Before PostgreSQL 16 what was printed once stays locked: then it has to wait."""
    try:
        checkout.execute(f"set lock_timeout = '1s'; {statement}")
    except LockNotAvailable:
        return False
    return True


@contextmanager
def committed_while_locks_are_taken(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, table: str, statement: str
) -> Iterator[None]:
    """Somebody commits this after it was found that nothing was changed by hand, before the table is locked."""
    lock = catalog.lock
    came: list[bool] = []

    def late(conn: catalog.Connection, name: str, mode: str) -> None:
        if name == table and not came:
            came.append(comes_in_between(checkout, statement))
        lock(conn, name, mode)

    monkeypatch.setattr(catalog, "lock", late)
    yield
    assert came == [True]


@pytest.mark.parametrize("with_behaviour", [False, True])
def test_what_is_changed_while_a_release_waits_for_locks_is_found(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, with_behaviour: bool
) -> None:
    with (checkout.root / "policies/app.cases.sql").open("a") as file:
        file.write("grant select on app.cases to service;\n")
    if with_behaviour:
        (checkout.root / "sql/api/more.sql").write_text("-- api is rebuilt\n")
    with committed_while_locks_are_taken(checkout, monkeypatch, "app.cases", "grant delete on app.cases to service"):
        if with_behaviour:
            with pytest.raises(PolicyConflict, match="grant delete to service was added"):
                checkout.migrate()
        else:
            assert checkout.policies("apply", "--apply").exit_code == 3
    assert checkout.query("select has_table_privilege('service', 'app.cases', 'delete')") == [(True,)]


def test_a_view_that_somebody_has_just_changed_is_not_dropped(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout.root / "sql/api/more.sql").write_text("-- api is rebuilt\n")
    hold = catalog.hold_views
    came: list[bool] = []

    def late(conn: catalog.Connection, schema: str) -> None:
        if not came:
            came.append(comes_in_between(checkout, "alter view api.cases set (security_barrier)"))
        hold(conn, schema)

    monkeypatch.setattr(catalog, "hold_views", late)
    try:
        checkout.migrate()
    except PolicyConflict as conflict:
        assert "view api.cases: " in str(conflict)
        assert came == [True]
    else:
        assert came == [False]
    options = "select 'security_barrier=true' = any(reloptions) from pg_class where oid = 'api.cases'::regclass"
    assert checkout.query(options) == [(came[0],)]


def test_names_that_need_quotes_are_rolled_out_like_others(checkout: Checkout) -> None:
    (checkout.root / "migrations/9001_create_order_lines.sql").write_text(
        'set local role goldleaves_owner; create table app."Order Lines" (organization_id uuid, "a b" int); reset role;'
    )
    path = checkout.root / "policies/app.Order Lines.sql"
    path.write_text(
        'alter table app."Order Lines" enable row level security;\n'
        'alter table app."Order Lines" force row level security;\n'
        'create policy "it\'s ""odd"" -- one" on app."Order Lines" for select to member\n'
        "  using (organization_id = tenancy.current_org());\n"
        'grant select ("a b") on app."Order Lines" to member;\n'
    )
    checkout.migrate()
    checkout.edit("policies/app.Order Lines.sql", "for select to member", "for select to member, service")
    assert checkout.policies("apply", "--apply").exit_code == 0
    checkout.execute('grant update ("a b") on app."Order Lines" to service with grant option')
    checkout.execute('create table app."../../x/y" (id int)')
    assert checkout.policies("apply", "--apply").exit_code == 3
    assert {path.name for path in (checkout.root / "policies").glob("*.new")} == {
        "app.Order Lines.sql.new",
        "app..._.._x_y.sql.new",
    }
    checkout.execute('drop table app."../../x/y"')
    changed = checkout.state()
    accepted = checkout.policies("apply", "--apply", "--accept-live", "app.Order Lines")
    assert accepted.exit_code == 0, accepted.output
    assert checkout.state() == changed
    assert checkout.policies("verify").exit_code == 0

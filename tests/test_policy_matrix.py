"""`goldleaves policies matrix` proves that everybody may do what headers declare: of what we ship nothing differs, each
hole made by hand differs where it is, and the proof leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.command_line import console
from api.policies.declared import declared
from api.policies.matrix.cells import Cell, Context, Outcome
from api.policies.matrix.page import page
from api.policies.matrix.proof import Proof, prove_in
from api.policies.matrix.report import as_json, show
from api.policies.trial import trial
from api.release import MigrationError, Tree
from api.settings import PROJECT
from tests.harness import ROLES, Database
from tests.sql_requests import Connection, run

KEYS = ("usage:read", "data:read", "data:write")
PEOPLE = (*ROLES, "stranger")
FOREIGN = {Context.OTHER, Context.NONE, Context.FORGED}
EVERYWHERE = {Context.OWN, *FOREIGN}

# Locks that a reader or writer of rows would wait for.
STRONG_LOCKS = """
select c.relname, l.mode from pg_locks l join pg_class c on c.oid = l.relation
where l.pid = pg_backend_pid() and c.relnamespace::regnamespace::text !~ '^goldleaves_matrix'
  and l.mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
  and c.relnamespace <> 'pg_catalog'::regnamespace
"""
WHAT_IS_THERE = """
select (select count(*) from pg_class), (select count(*) from pg_namespace), (select count(*) from pg_proc),
  (select array_agg(rolname order by 1) from pg_roles),
  (select array_agg(row (roleid, member, admin_option)::text order by 1) from pg_auth_members),
  (select array_agg(concat_ws(' ', oid, relacl, relrowsecurity, relforcerowsecurity) order by oid) from pg_class),
  (select array_agg(id order by 1) from tenancy.organizations), (select array_agg(id order by 1) from tenancy.users)
"""


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.read(PROJECT)


@pytest.fixture(scope="module")
def shipped(shared_database: Database, tree: Tree) -> Proof:
    """What we ship, proved as goldleaves_migrator; looking at what it leaves behind and whom it makes wait."""
    with shared_database.connect() as superuser:
        before = superuser.execute(WHAT_IS_THERE).fetchone()
        with trial(shared_database.migrator) as conn:
            proof = prove_in(conn, tree)
            assert conn.execute(STRONG_LOCKS).fetchall() == []
        assert superuser.execute(WHAT_IS_THERE).fetchone() == before
    return proof


def differing(proof: Proof, table: str) -> dict[tuple[str, str], set[Context]]:
    """By verb and role, the contexts in which a table does not do what its header says."""
    found: dict[tuple[str, str], set[Context]] = {}
    for cell in proof.differing:
        if cell.table == table:
            found.setdefault((cell.verb, cell.role), set()).add(cell.context)
    return found


def cell(proof: Proof, table: str, verb: str, role: str, context: Context) -> Cell:
    wanted = (table, verb, role, context)
    return next(each for each in proof.cells if (each.table, each.verb, each.role, each.context) == wanted)


def test_everybody_may_do_what_is_declared_and_nothing_else(shipped: Proof) -> None:
    assert shipped.differing == []
    assert shipped.unproved == []
    assert shipped.problems == ()
    assert shipped.silent == (), "these policy files declare nothing"
    assert shipped.holds


def test_every_table_verb_role_and_context_is_tried(shipped: Proof, shared_database: Database) -> None:
    with shared_database.connect() as superuser:
        tables = superuser.execute(
            """
            select c.oid::regclass::text from pg_class c
            join pg_attribute a on a.attrelid = c.oid and a.attname = 'organization_id' and not a.attisdropped
            where c.relkind in ('r', 'p') and c.relnamespace <> 'pg_catalog'::regnamespace
            """
        ).fetchall()
    alike = {name for names in shipped.alike.values() for name in names}
    assert {*shipped.tables, *alike} == {name for (name,) in tables} | {"tenancy.organizations"}

    tried = {(each.table, each.verb, each.role, each.context) for each in shipped.cells}
    roles = {actor.name for actor in shipped.actors}
    others = {"anon", "service", "platform_admin", "sidecar", "monitor", "authenticator", "public"}
    assert roles >= {*PEOPLE, *KEYS, *others, "goldleaves_kernel", "goldleaves_owner"}  # and roles of one's own
    for table in shipped.tables:
        for role in roles:
            assert (table, "truncate", role, Context.OTHER) in tried
            for context in FOREIGN if role == "stranger" else EVERYWHERE:
                for verb in ("select", "insert", "update", "delete"):
                    assert (table, verb, role, context) in tried


def test_what_only_a_trigger_or_constraint_stops_counts_as_let_through(shipped: Proof) -> None:
    billed = cell(shipped, "tenancy.organizations", "delete", "owner", Context.OWN)
    assert (billed.outcome, billed.declared) == (Outcome.STOPPED, True)
    assert billed.message and billed.message.startswith("ORGANIZATION_BILLED: ")
    forged = cell(shipped, "app.cases", "select", "owner", Context.FORGED)
    assert (forged.outcome, forged.declared) == (Outcome.REFUSED, False)


# Holes, each in a table of its own. They are made in the transaction that is rolled back.

HOLES = """
alter policy cases_read on app.cases using (true);
alter policy cases_delete on app.cases using (true);
create function app.refuse() returns trigger language plpgsql as $$ begin raise 'not these'; end $$;
create trigger refuse before delete on app.cases for each row execute function app.refuse();

alter table app.clients disable row level security;
grant usage on schema app to public;
grant select on app.clients to public;

alter table app.documents no force row level security;

alter policy workspaces_update on tenancy.workspaces with check (true);

grant update (quantity) on metering.usage_events to goldleaves_kernel;
alter table metering.usage_events_{month} disable row level security;
grant select on metering.usage_events_{month} to member;

grant truncate on tenancy.memberships to member;

drop policy invoices_read on billing.invoices;
grant select (amount_cents) on billing.invoice_lines to anon;
create policy open on billing.invoice_lines for select to anon using (true);
grant usage on schema billing to anon;

alter table tenancy.memberships drop constraint memberships_role_check;
alter table tenancy.memberships add check (role in ('owner', 'admin', 'member', 'viewer', 'billing', 'inspector'));
"""


@pytest.fixture(scope="module")
def holed(shared_database: Database, tree: Tree) -> tuple[Proof, str]:
    with trial(shared_database.migrator) as conn:
        (month,) = conn.execute("select to_char(now() at time zone 'UTC', 'YYYY_MM')").fetchone() or ("",)
        run(conn, HOLES.format(month=month))
        return prove_in(conn, tree), f"metering.usage_events_{month}"


Find = Callable[[str], dict[tuple[str, str], set[Context]]]


@pytest.fixture(scope="module")
def found(holed: tuple[Proof, str]) -> Find:
    return lambda table: differing(holed[0], table)


def test_a_widened_policy(found: Find) -> None:
    reads = {role: contexts for (verb, role), contexts in found("app.cases").items() if verb == "select"}
    declared_to_read = {"owner", "admin", "member", "viewer", "data:read"}
    assert reads == {
        role: FOREIGN if role in {*declared_to_read, "stranger"} else EVERYWHERE
        for role in (*PEOPLE, "inspector", *KEYS)
    }


def test_a_trigger_does_not_hide_a_widened_policy(found: Find, holed: tuple[Proof, str]) -> None:
    deletes = {role: contexts for (verb, role), contexts in found("app.cases").items() if verb == "delete"}
    assert deletes["admin"] == FOREIGN
    assert deletes["viewer"] == EVERYWHERE
    stopped = cell(holed[0], "app.cases", "delete", "admin", Context.OTHER)
    assert (stopped.outcome, stopped.message) == (Outcome.STOPPED, "not these")


def test_row_security_that_is_off_and_a_grant_to_public(found: Find) -> None:
    differs = found("app.clients")
    assert differs["select", "viewer"] == differs["delete", "owner"] == FOREIGN
    assert differs["insert", "data:write"] == FOREIGN
    assert differs["update", "viewer"] == EVERYWHERE
    assert differs["move", "member"] == {Context.OWN}
    assert differs["select", "public"] == differs["select", "monitor"] == differs["select", "anon"] == EVERYWHERE
    assert ("delete", "public") not in differs


def test_row_security_that_is_not_forced(found: Find) -> None:
    differs = found("app.documents")
    assert {role for _, role in differs} == {"goldleaves_owner"}
    assert {verb for verb, _ in differs} == {"select", "insert", "update", "delete", "move"}


def test_an_update_without_check_gives_rows_away(found: Find) -> None:
    assert found("tenancy.workspaces") == {("move", "owner"): {Context.OWN}, ("move", "admin"): {Context.OWN}}


def test_a_grant_that_a_policy_was_waiting_for(found: Find) -> None:
    assert found("metering.usage_events") == {("update", "goldleaves_kernel"): EVERYWHERE}


def test_a_partition_without_row_security(found: Find, holed: tuple[Proof, str]) -> None:
    proof, partition = holed
    reads = {role: contexts for (verb, role), contexts in found(partition).items() if verb == "select"}
    everybody = {role: EVERYWHERE for role in (*ROLES, "inspector", *KEYS, "goldleaves_owner")}
    assert reads == {**everybody, "stranger": FOREIGN}
    assert {role for verb, role in found(partition) if verb != "select"} == {"goldleaves_owner"}
    assert partition not in {name for names in proof.alike.values() for name in names}


def test_truncate(found: Find) -> None:
    assert found("tenancy.memberships") == {
        ("truncate", role): {Context.OTHER} for role in (*PEOPLE, "inspector", *KEYS)
    }


def test_what_is_declared_and_refused(found: Find) -> None:
    assert found("billing.invoices") == {("select", role): {Context.OWN} for role in ("owner", "admin", "billing")}


def test_a_grant_on_one_column_that_is_not_the_organization(found: Find) -> None:
    assert found("billing.invoice_lines") == {("select", "anon"): EVERYWHERE}


def test_a_new_role_is_a_column(holed: tuple[Proof, str]) -> None:
    proof, _ = holed
    assert "inspector" in {actor.name for actor in proof.actors}
    assert cell(proof, "tenancy.organizations", "select", "inspector", Context.OWN).declared
    assert cell(proof, "audit.log", "select", "inspector", Context.OWN).outcome is Outcome.REFUSED


def test_whoever_inherits_from_a_role_is_tried_too(shared_database: Database, tree: Tree) -> None:
    """They connect themselves, and set what settings they like."""
    with trial(shared_database.migrator) as conn:
        run(conn, "create role matrix_heir; grant member to matrix_heir; create role billing; grant member to billing")
        proof = prove_in(conn, tree, ["audit.log"])
    heirs = ("matrix_heir", "billing (database)")  # there is a role of that name in organizations, too
    assert differing(proof, "audit.log") == {("select", heir): {Context.OWN} for heir in heirs}


# Tables of an adopter.

ADOPTED = """
create schema crm authorization goldleaves_owner;
grant usage on schema crm to member;
create type crm.mood as enum ('sad', 'happy');
create type crm.pair as (a integer, b text);
create domain crm.email as text check (value ~ '@');
create domain crm.percent as numeric(5, 2) check (value between 0 and 100);
create table crm.odd (
  organization_id uuid not null default tenancy.current_org() references tenancy.organizations (id) on delete cascade,
  n bigint generated always as identity,
  code varchar(4) not null,
  mail crm.email not null,
  share crm.percent not null,
  twice numeric generated always as (share * 2) stored,
  mood crm.mood not null,
  moods crm.mood[] not null,
  pair crm.pair not null,
  during tstzrange not null,
  starts date not null,
  ends date not null check (ends > starts),
  address inet not null,
  doc jsonb not null check (jsonb_typeof(doc) = 'array'),
  bits bit(3) not null,
  tags text[] not null check (cardinality(tags) > 0),
  level integer not null check (level in (10, 20)),
  flag boolean not null check (not flag),
  price money not null,
  place point not null,
  note text check (note <> ''),
  "Weird Name" text not null,
  primary key (organization_id, n),
  unique (organization_id, code)
);
create table crm.accounts (
  organization_id uuid not null,
  id uuid not null,
  iban text not null check (iban ~ '^DE[0-9]{20}$'),
  primary key (organization_id, id)
);
create table crm.kinds (code text primary key check (code ~ '^K-[a-z]{3}-[0-9]{3}$'));
create table crm.entries (
  organization_id uuid not null,
  id uuid not null,
  kind text not null references crm.kinds (code),
  primary key (organization_id, id)
);
create table crm.payments (
  organization_id uuid not null,
  account_id uuid not null,
  iban text not null check (iban ~ '^DE[0-9]{20}$'),
  foreign key (organization_id, account_id) references crm.accounts (organization_id, id)
);
"""
PROTECTED = """
alter table crm.{0} owner to goldleaves_owner;
alter table crm.{0} enable row level security;
alter table crm.{0} force row level security;
create policy open on crm.{0} to member
  using (organization_id = tenancy.current_org() and tenancy.current_role_in('owner'))
  with check (organization_id = tenancy.current_org() and tenancy.current_role_in('owner'));
grant select, insert, update, delete on crm.{0} to member;
"""
HEADER = "".join(f"-- may {verb}: owner\n" for verb in ("select", "insert", "update", "delete"))


@pytest.fixture(scope="module")
def adopted(shared_database: Database, tree: Tree) -> Proof:
    """As a superuser. Of accounts the header says what cannot be guessed; of payments it does not."""
    headers = {
        "policies/crm.odd.sql": HEADER.replace("update: owner", "update: owner, ownr"),
        "policies/crm.accounts.sql": HEADER + "-- a row: (iban) values ('DE' || repeat('0', 20))\n",
    }
    with trial(shared_database.superuser) as conn:
        run(conn, ADOPTED + "".join(PROTECTED.format(name) for name in ("odd", "accounts", "payments", "entries")))
        return prove_in(
            conn, Tree({**tree.files, **headers}), ["crm.odd", "crm.accounts", "crm.payments", "crm.entries"]
        )


def test_a_row_is_made_of_any_table(adopted: Proof) -> None:
    assert differing(adopted, "crm.odd") == differing(adopted, "crm.accounts") == {}
    for table in ("crm.odd", "crm.accounts"):
        assert cell(adopted, table, "update", "owner", Context.OWN).outcome is Outcome.DONE
        assert cell(adopted, table, "insert", "owner", Context.OWN).outcome is Outcome.DONE
        assert cell(adopted, table, "insert", "owner", Context.OTHER).outcome is Outcome.REFUSED


def test_where_no_row_can_be_made_nothing_is_proved(adopted: Proof) -> None:
    assert {each.table for each in adopted.unproved} == {"crm.payments", "crm.entries"}
    entry = cell(adopted, "crm.entries", "select", "viewer", Context.OTHER).message
    assert entry and "entries_kind_fkey" in entry
    reason = cell(adopted, "crm.payments", "select", "viewer", Context.OTHER).message
    assert (
        reason
        == 'no row could be made: new row for relation "payments" violates check constraint "payments_iban_check"'
    )
    assert cell(adopted, "crm.payments", "select", "monitor", Context.OTHER).outcome is Outcome.REFUSED, (
        "it has no grant"
    )


def test_headers_that_are_wrong_are_told(adopted: Proof) -> None:
    assert adopted.silent == ("crm.entries", "crm.payments")
    assert adopted.problems == (
        "policies/crm.odd.sql declares ownr, which is no role, no scope and no role of the database",
    )
    assert not adopted.holds


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("-- may truncate: owner", "policies/x.sql:1: truncate is not one of"),
        ("-- X.\n-- may select: owner\n-- may select: admin", "policies/x.sql:3: select is declared twice"),
        ("-- may select: the owner", "policies/x.sql:1: 'the owner' is no name"),
        ("-- a row: title = 'x'", "policies/x.sql:1: a row is written on one line: -- a row: (column, …) values"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(header: str, complaint: str) -> None:
    with pytest.raises(MigrationError) as refused:
        declared("policies/x.sql", f"{header}\nalter table x.y enable row level security;\n")
    assert str(refused.value).startswith(complaint)


# What is shown.


def test_a_page_escapes_what_comes_from_the_database(shipped: Proof) -> None:
    hostile = replace(shipped, server=replace(shipped.server, database="<script>alert(1)</script>"))
    shown = page(hostile)
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "As declared" in shown and "http" not in shown


def test_differences_are_seen_without_colour(holed: tuple[Proof, str], capsys: pytest.CaptureFixture[str]) -> None:
    proof, partition = holed
    show(console, proof, in_detail=False, only_differences=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines[: len(proof.tables)]) <= 120
    cases = next(line for line in lines if line.startswith("app.cases "))
    assert cases.split()[1:4] == ["S!iuD!", "S!iuD!", "S!iuD!"]
    assert any(line.startswith("tenancy.workspaces  move (own): not declared, done: owner, admin") for line in lines)
    assert "\x1b" not in "".join(lines)
    marked = page(proof)
    assert 'class="allowed differs">S!<' in marked and partition in marked


@contextmanager
def not_forced(superuser: Connection, table: str) -> Iterator[None]:
    run(superuser, f"alter table {table} no force row level security")
    try:
        yield
    finally:
        run(superuser, f"alter table {table} force row level security")


def test_command(shared_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shared_database.migrator)
    runner = CliRunner()
    file = tmp_path / "matrix.html"
    arguments = ["policies", "matrix", "--table", "audit.heads", "--json", "--html", str(file)]
    with shared_database.connect() as superuser, not_forced(superuser, "audit.heads"):
        result = runner.invoke(app, [*arguments, "--only-differences"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["tables"] == ["audit.heads"]
    assert {(each["role"], each["differs"]) for each in document["cells"]} == {("goldleaves_owner", True)}
    assert document["summary"]["differ"] == len(document["cells"])
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")

    unknown = runner.invoke(app, ["policies", "matrix", "--table", "app.caes"])
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("app.caes is not among the tenant tables: one of app.cases, ")


def test_json_has_every_cell(shipped: Proof) -> None:
    document = json.loads(json.dumps(as_json(shipped, only_differences=False)))
    assert document["holds"] is True
    assert len(document["cells"]) == document["summary"]["cells"] == len(shipped.cells)
    assert {"table", "verb", "role", "context", "outcome", "declared", "code", "message", "differs"} == set(
        document["cells"][0]
    )

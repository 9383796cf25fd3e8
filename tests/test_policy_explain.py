"""`goldleaves policies explain`: who may do what, in sentences, and how a table is read under row security."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.policies.explain.catalog import find_table, read_table
from api.policies.explain.plan import Plan, plan_of
from api.policies.explain.predicates import clauses
from api.policies.explain.sentences import Sentence, describe, say_who_may
from api.policies.trial import trial
from api.release.catalog import Connection
from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.sql_requests import run

Explain = Callable[..., Result]

NOTES = """
    create table app.memos (
      organization_id uuid not null, id uuid not null, user_id uuid, kind text not null,
      primary key (organization_id, id)
    );
    alter table app.memos enable row level security;
    alter table app.memos force row level security;
"""
ORG = "organization_id = tenancy.current_org()"


@contextmanager
def notes(database: Database, *statements: str) -> Iterator[Connection]:
    """A table app.memos with what the statements do to it, in a transaction of the migrator that is rolled back."""
    with trial(database.migrator) as conn:
        conn.execute("set local role goldleaves_owner")
        for statement in (NOTES, *statements):
            run(conn, statement)
        conn.execute("set local role none")
        yield conn


def told(conn: Connection, role: str = "member", table: str = "app.memos") -> list[str]:
    return [sentence.text for sentence in sentences(conn, role, table)]


def sentences(conn: Connection, role: str = "member", table: str = "app.memos") -> list[Sentence]:
    found = [said for said in say_who_may(read_table(conn, *find_table(conn, table))) if role in said.roles]
    return [sentence for said in found for sentence in said.sentences]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (f"for select to member using ({ORG})", "May select rows of the organization they act for."),
        (
            f"for select to member using ({ORG} and tenancy.current_role_in('viewer', 'owner', 'a:read', 'b:read'))",
            "Owners, viewers and API keys with a:read or b:read may select rows of the organization they act for.",
        ),
        (
            "for select to member using (organization_id = tenancy.current_org_for('owner', 'data:read'))",
            "Owners and API keys with data:read may select rows of the organization they act for.",
        ),
        (
            "for select to member using (tenancy.current_org_for('owner') = organization_id and kind = 'open')",
            "Owners may select rows of the organization they act for, where kind = 'open'.",
        ),
        (
            f"for select to member using (tenancy.current_role_in('auditor') and {ORG})",
            "People with role auditor may select rows of the organization they act for.",
        ),
        ("for select to member using (true)", "May select rows of all organizations."),
        ("for select to public using (true)", "May select rows of all organizations."),
        ("for select to member using (false)", "May select nothing: no row meets the policies."),
        ("for select to member using (user_id = tenancy.current_user_id())", "May select their own rows (user_id)."),
        (
            f"for select to member using ({ORG} and tenancy.current_user_id() <> user_id)",
            "May select rows of the organization they act for, but not their own (user_id).",
        ),
        (
            "for select to member using (organization_id = (select tenancy.current_org()))",
            "May select rows of the organization they act for.",
        ),
        (
            "for select to member using (organization_id = any (tenancy.my_organizations()))",
            "May select organizations that they belong to (organization_id).",
        ),
        (
            f"for select to member using ({ORG} and kind <> 'a AND b) OR' and not (kind = 'it''s' or kind = 'x'))",
            "May select rows of the organization they act for, where kind <> 'a AND b) OR', "
            "where NOT ((kind = 'it''s') OR (kind = 'x')).",
        ),
        (
            "for select to member using (kind = 'shared')",
            "May select rows of all organizations, where kind = 'shared'.",
        ),
        (
            "for select to member using (user_id = tenancy.current_org())",
            "May select rows of all organizations, where user_id = tenancy.current_org().",
        ),
        (
            "for select to member using (user_id = tenancy.current_org_for('owner'))",
            "May select rows of all organizations, where user_id = tenancy.current_org_for(VARIADIC ARRAY['owner']).",
        ),
        (
            "for select to member using (tenancy.current_role_in('owner'))",
            "Owners may select rows of all organizations.",
        ),
        (
            "for select to member using (tenancy.current_role_in('owner') and tenancy.current_role_in('viewer'))",
            "May select nothing: no row meets the policies.",
        ),
        (
            "for insert to member with check (true)",
            "May select by right, but no policy lets it: no row is there for it.",
        ),
        (
            "for select to platform_admin using (true)",
            "May select by right, but no policy lets it: no row is there for it.",
        ),
    ],
)
def test_a_policy_in_words(shared_database: Database, policy: str, expected: str) -> None:
    with notes(
        shared_database, "grant select on app.memos to member", f"create policy p on app.memos {policy}"
    ) as conn:
        assert expected in told(conn)
        assert "No right to insert, update or delete." in told(conn)


@pytest.mark.parametrize(
    ("using", "alarming"),
    [
        ("true", True),
        ("kind = 'shared'", True),
        ("user_id = tenancy.current_org()", True),
        (f"{ORG} and kind = 'shared'", False),
        ("user_id = tenancy.current_user_id()", False),
        ("organization_id = any (tenancy.my_organizations())", False),
    ],
)
def test_what_reaches_other_organizations_is_alarming(shared_database: Database, using: str, alarming: bool) -> None:
    policy = f"create policy p on app.memos for select to member using ({using})"
    with notes(shared_database, "grant select on app.memos to member", policy) as conn:
        assert sentences(conn)[0].alarming is alarming


def test_each_way_in_is_a_sentence(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant select on app.memos to member",
        f"""create policy p on app.memos for select to member using (
          {ORG} and (tenancy.current_role_in('owner') or (tenancy.current_role_in('admin') and kind = 'open'))
          or user_id = tenancy.current_user_id()
        )""",
        "create policy q on app.memos for select to member using (tenancy.current_role_in('data:read') and "
        + ORG
        + ")",
    ) as conn:
        assert told(conn)[:4] == [
            "Owners may select rows of the organization they act for.",
            "Admins may select rows of the organization they act for, where kind = 'open'.",
            "May select their own rows (user_id).",
            "API keys with data:read may select rows of the organization they act for.",
        ]
        assert [sentence.policies for sentence in sentences(conn)[:4]] == [("p",), ("p",), ("p",), ("q",)]


def test_a_restrictive_policy_limits_every_way_in(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant select on app.memos to member",
        "create policy wide on app.memos for select to member using (true)",
        f"create policy narrow on app.memos as restrictive to member using ({ORG})",
    ) as conn:
        assert sentences(conn)[0].text == "May select rows of the organization they act for."
        assert sentences(conn)[0].policies == ("wide", "narrow")


@pytest.mark.parametrize(
    ("check", "afterwards"),
    [
        ("", ""),
        (f"with check ({ORG})", ""),
        ("with check (true)", "; what they become is not checked"),
        (
            f"with check ({ORG} and kind = 'open')",
            "; they have to become rows of the organization they act for, where kind = 'open'",
        ),
        ("with check (false)", "; but nothing that they may become"),
    ],
)
def test_what_an_update_may_make_of_a_row(shared_database: Database, check: str, afterwards: str) -> None:
    policy = (
        f"create policy p on app.memos for update to member using ({ORG} and tenancy.current_role_in('owner')) {check}"
    )
    with notes(shared_database, "grant select, update (kind) on app.memos to member", policy) as conn:
        expected = f"Owners may update rows of the organization they act for, in column kind{afterwards}."
        assert expected in told(conn)


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        (
            "grant select (id, kind) on app.memos to member",
            "rows of the organization they act for, in columns id and kind.",
        ),
        (
            "grant select (organization_id, id, kind) on app.memos to member",
            "rows of the organization they act for, in every column but user_id.",
        ),
        (
            "grant select on app.memos to member with grant option",
            "rows of the organization they act for, and give that right to others.",
        ),
        ("grant select on app.memos to public", "rows of the organization they act for."),
    ],
)
def test_a_right_in_words(shared_database: Database, grant: str, expected: str) -> None:
    with notes(shared_database, grant, f"create policy p on app.memos for select to member using ({ORG})") as conn:
        assert f"May select {expected}" in told(conn)


def test_public_is_everybody(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant select on app.memos to public",
        "create policy p on app.memos for select to public using (true)",
    ) as conn:
        first = sentences(conn, "PUBLIC")[0]
    assert (first.text, first.alarming) == ("May select rows of all organizations.", True)


def test_what_does_not_count_is_said(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant update on app.memos to member",
        f"create policy reads on app.memos for select to member using ({ORG})",
        f"create policy changes on app.memos for update to member using ({ORG})",
        "create policy staff on app.memos to platform_admin using (true)",
        "create policy kernel on app.memos to goldleaves_kernel using (true)",
    ) as conn:
        of_kernel = "A policy that counts for goldleaves_migrator alone, by membership: no right to "
        assert told(conn, "goldleaves_kernel")[1] == of_kernel + "select, insert, update or delete."
        assert "Without a right to select, it cannot say which rows to update." in told(conn)
        assert [s.policies for s in sentences(conn) if s.text == "A policy that never counts: no right to select."] == [
            ("reads",)
        ]
        assert "A policy that never counts: no right to select, insert, update or delete." in told(
            conn, "platform_admin"
        )


@pytest.mark.parametrize(
    ("right", "text"),
    [
        ("truncate", "all rows of everybody"),
        ("references", "whether a key exists"),
        ("trigger", "run with the rights of"),
    ],
)
def test_rights_past_row_security_are_said(shared_database: Database, right: str, text: str) -> None:
    with notes(shared_database, f"grant {right} on app.memos to member") as conn:
        assert any(text in each for each in told(conn))


def test_the_owner_is_held_by_forced_row_security_alone(shared_database: Database) -> None:
    with notes(shared_database) as conn:
        for role in ("goldleaves_owner", "goldleaves_migrator"):
            assert (
                "May select, insert, update and delete by right, but no policy lets it: no row is there for it."
                in told(conn, role)
            )
        run(conn, "alter table app.memos no force row level security")
        for role in ("goldleaves_owner", "goldleaves_migrator"):
            found = [s for s in sentences(conn, role) if s.alarming]
            assert [s.text for s in found] == [
                "May select, insert, update and delete every row: row security is not forced."
            ]
        about = describe(read_table(conn, *find_table(conn, "app.memos")))
        assert about[1] == Sentence(
            "Row security is on, but NOT FORCED: it does not hold for the owner.", alarming=True
        )
        assert "by right" in " ".join(told(conn, "goldleaves_owner", "app.cases"))


def test_row_security_that_is_off_is_loud(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant select on app.memos to member",
        f"create policy p on app.memos for select to member using ({ORG})",
        "alter table app.memos disable row level security",
    ) as conn:
        assert sentences(conn)[0] == Sentence("May select every row: row security is off.", ("select",), (), True)
        about = [s.text for s in describe(read_table(conn, *find_table(conn, "app.memos"))) if s.alarming]
        assert about == [
            "Row security is OFF: whoever has a right has it on every row.",
            "Its policies do not count: p.",
        ]


def test_a_role_has_what_it_inherits(database: Database) -> None:
    """Rights of one, policies of another: neither of the two may read anything."""
    with database.connect(autocommit=False) as superuser:
        for statement in (
            "create role test_readers",
            "create role test_clerks",
            "create role test_ann in role test_readers, test_clerks",
            "create role test_ben noinherit in role test_readers",
            "create role test_dumper bypassrls in role pg_read_all_data",
            "grant select on app.cases to test_readers",
            f"create policy clerks on app.cases for select to test_clerks using ({ORG})",
        ):
            run(superuser, statement)
        superuser.execute("set local search_path = ''")
        ann = told(superuser, "test_ann", "app.cases")
        assert ann[0] == "Has the rights of test_clerks and test_readers, by membership."
        assert any("no right to execute tenancy.current_org()" in each for each in ann)
        superuser.execute("grant execute on function tenancy.current_org() to test_ann")
        assert "May select rows of the organization they act for." in told(superuser, "test_ann", "app.cases")
        assert "May not enter schema app: reaches the table through views and functions only." in ann
        assert told(superuser, "test_ben", "app.cases") == ["Can become test_readers (set role)."]
        assert "May select every row: BYPASSRLS." in told(superuser, "test_dumper", "app.cases")
        assert told(superuser, "postgres", "app.cases")[0].startswith("Superuser: sees and changes every row")
        superuser.rollback()


def test_a_condition_that_falls_into_too_many_ways_is_shown_as_it_is() -> None:
    either = " AND ".join(f"((a = {n}) OR (b = {n}))" for n in range(6))
    (only,) = clauses(f"({either})", "organization_id")
    assert only.rows("every row") == f"every row, where {either}"


# The plan


def planned(conn: Connection) -> Plan:
    table = read_table(conn, *find_table(conn, "app.memos"))
    return plan_of(conn, table, next(role for role in table.roles if role.name == "member"))


MEMBERS = ("grant select on app.memos to member", f"create policy p on app.memos for select to member using ({ORG})")


def test_the_index_that_serves_is_named(shared_database: Database) -> None:
    with notes(shared_database, *MEMBERS) as conn:
        plan = planned(conn)
        assert plan.verdict is not None
        assert plan.verdict.startswith("Index memos_pkey serves the tenant predicate on organization_id.")
        assert plan.findings == ()


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("", ""),
        ("create index memos_kind on app.memos (kind, organization_id)", ""),
        (
            "create index memos_open on app.memos (organization_id) where kind = 'open'",
            " Index memos_open begins with it, but holds only a part of the rows.",
        ),
    ],
)
def test_a_missing_index_is_found_and_its_statement_given(shared_database: Database, index: str, why: str) -> None:
    """Also where the table is small, and where an index on something else first would do for a condition."""
    with notes(
        shared_database,
        *MEMBERS,
        "alter table app.memos drop constraint memos_pkey, add primary key (id)",
        index or "select 1",
    ) as conn:
        (finding,) = planned(conn).findings
        assert finding.text == (
            "The tenant predicate on organization_id is no index condition in app.memos: "
            f"each request reads the rows of everybody.{why}"
        )
        assert finding.statements == ("create index concurrently on app.memos (organization_id, id);",)
        run(conn, finding.statements[0].replace("concurrently", ""))
        assert planned(conn).findings == ()


def test_a_partitioned_table_gets_its_index_partition_by_partition(shared_database: Database) -> None:
    with notes(
        shared_database,
        "drop table app.memos",
        "create table app.memos (organization_id uuid, kind text) partition by list (kind)",
        "create table app.memos_a partition of app.memos for values in ('a')",
        "create table app.memos_b partition of app.memos for values in ('b')",
        "alter table app.memos enable row level security",
        *MEMBERS,
    ) as conn:
        (finding,) = planned(conn).findings
        assert finding.statements[:2] == (
            "create index memos_by_organization on only app.memos (organization_id);",
            "create index concurrently memos_a_by_organization on app.memos_a (organization_id);",
        )
        for statement in finding.statements:
            run(conn, statement.replace("concurrently", ""))
        plan = planned(conn)
        assert plan.findings == ()
        assert str(plan.verdict).startswith("Indexes such as memos_a_by_organization, one a partition, serve")
        amiss = [sentence.text for sentence in describe(read_table(conn, *find_table(conn, "app.memos")))]
        assert "Partition app.memos_a has row security off." in amiss


def test_a_way_in_without_the_tenant_needs_an_index_too(shared_database: Database) -> None:
    with notes(
        shared_database,
        *MEMBERS,
        "create policy own on app.memos for select to member using (user_id = tenancy.current_user_id())",
    ) as conn:
        assert "a way in without it" in planned(conn).findings[0].text
        run(conn, "create index on app.memos (user_id)")
        assert planned(conn).findings == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("alter function tenancy.current_org() set search_path = ''", 'it has search_path=""'),
        ("alter function tenancy.current_org() security definer", "it is security definer"),
        (
            "create or replace function tenancy.current_org() returns uuid language plpgsql stable as "
            "$$ begin return nullif(current_setting('app.current_org', true), '')::uuid; end $$",
            "it is written in plpgsql",
        ),
    ],
)
def test_a_helper_that_is_not_inlined_is_found(shared_database: Database, change: str, why: str) -> None:
    with notes(shared_database, *MEMBERS) as conn:
        run(conn, change)
        texts = [finding.text for finding in planned(conn).findings]
    assert f"tenancy.current_org() is not inlined: {why}. It is called for each row; " in texts[0]


def test_a_select_that_has_no_tenant_predicate_is_not_judged(shared_database: Database) -> None:
    with notes(
        shared_database,
        "grant select on app.memos to member",
        "create policy p on app.memos for select to member using (true)",
    ) as conn:
        plan = planned(conn)
    assert str(plan.verdict).startswith("No policy compares a column with tenancy.current_org()")
    assert plan.findings == ()


# The command


@pytest.fixture
def explain(shared_database: Database, monkeypatch: pytest.MonkeyPatch) -> Explain:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shared_database.migrator)
    return lambda *arguments: CliRunner().invoke(app, ["policies", "explain", *arguments])


def test_the_command_tells_it_for_people(
    shared_database: Database, explain: Explain, make_organization: MakeOrganization
) -> None:
    without = explain("app.cases")
    make_organization(shared_database, "fjord")
    result = explain("app.cases")
    assert (without.exit_code, result.exit_code, result.stderr) == (0, 0, "")
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        "app.cases is a table of goldleaves_owner.",
        "Row security is on, and forced: it holds for the owner too.",
    ]
    member = lines.index("member")
    assert lines[member + 3] == "  Owners and admins may delete rows of the organization they act for.  (cases_delete)"
    assert "  refuse_new_id: before update, each row: tenancy.refuse_new_id()" in lines
    assert "  api.cases: with the rights of whoever reads it" in lines
    assert "A select by member for fjord" in lines
    assert "A select by member" in without.stdout.splitlines()
    assert re.search(r"Index cases_\w+ serves the tenant predicate", result.stdout)
    assert "\x1b" not in result.stdout


def test_what_is_alarming_has_a_sign_of_its_own(explain: Explain, shared_database: Database) -> None:
    change = "grant truncate on app.clients to public; alter view api.clients set (security_invoker = false)"
    undo = "revoke truncate on app.clients from public; alter view api.clients set (security_invoker = true)"
    with shared_database.connect() as superuser:
        run(superuser, change)
        lines = explain("app.clients").stdout.splitlines()
        run(superuser, undo)
    assert "  ! May truncate it: all rows of everybody, past row security." in lines
    assert lines[lines.index("PUBLIC (everybody)") + 1] == "  No right to select, insert, update or delete."
    assert "  ! api.clients: NOT security_invoker, it shows what goldleaves_owner may see" in lines


def test_json_is_of_the_role_that_was_asked_for(explain: Explain) -> None:
    found = json.loads(explain("app.cases", "--as-role", "platform_admin", "--json").stdout)
    assert [each["role"] for each in found["roles"]] == ["platform_admin"]
    assert found["roles"][0]["sentences"][0] == {
        "text": "May select rows of all organizations.",
        "verbs": ["select"],
        "policies": ["cases_staff"],
        "alarming": False,
    }
    assert found["plan"]["role"] == "platform_admin"


def test_nothing_is_alarming_as_it_is_released(shared_database: Database) -> None:
    with trial(shared_database.migrator) as conn:
        tables = conn.execute(
            "select oid::regclass::text from pg_class where relkind in ('r', 'p') and not relispartition "
            "and relnamespace in (select oid from pg_namespace where nspowner = 'goldleaves_owner'::regrole)"
        ).fetchall()
        found = [read_table(conn, *find_table(conn, name)) for (name,) in tables]
        for table in found:
            assert not [s for said in say_who_may(table) for s in said.sentences if s.alarming], table.name
            for role in table.roles:
                grants = {right.privilege for right in table.rights if right.grantee == role.name}
                if role.name in ("member", "platform_admin", "goldleaves_kernel") and "select" in grants:
                    assert not plan_of(conn, table, role).findings, (table.name, role.name)
    assert len(tables) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cases"], "there is no table cases. Perhaps app.cases?"),
        (["app.caes"], "there is no table app.caes. Perhaps app.cases"),
        (["api.cases"], "api.cases is a view, and policies are on tables: ask for what it shows, app.cases"),
        (["xyz"], "there is no table xyz: name it with its schema, as app.cases"),
        (["app.cases", "--as-role", "nobody"], "there is no role nobody"),
    ],
)
def test_a_mistake_is_one_line(explain: Explain, arguments: list[str], message: str) -> None:
    result = explain(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert (result.stderr.count("\n"), result.stdout) == (1, "")


def test_what_may_not_be_planned_is_still_explained(explain: Explain) -> None:
    result = explain("tenancy.users")
    assert result.exit_code == 0
    assert "  member may not read it: permission denied for table users" in result.stdout.splitlines()
    assert "  May select and insert every row.  (users_kernel)" in result.stdout.splitlines()

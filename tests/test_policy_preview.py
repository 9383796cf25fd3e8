"""`goldleaves policies preview`: the rows that each table shows to somebody, beside the rows that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import run

Preview = Callable[..., Result]

DASH = "\N{EN DASH}"


class World(NamedTuple):
    """Fjord has two cases and a key that reads; Glen has three cases."""

    database: Database
    fjord: Organization
    glen: Organization
    prefix: str


@pytest.fixture(scope="module")
def world(shared_database: Database, make_organization: MakeOrganization) -> World:
    fjord = make_organization(shared_database, "fjord")
    glen = make_organization(shared_database, "glen")
    with shared_database.connect(autocommit=False) as superuser:
        for organization, cases in ((fjord, 2), (glen, 3)):
            superuser.execute(
                "insert into app.cases (organization_id, id, title) "
                "select %s, gen_random_uuid(), 'x' from generate_series(1, %s)",
                [organization.id, cases],
            )
        _add_key(superuser, fjord.id, "0123456789ab")
        _add_key(superuser, fjord.id, "ba9876543210", revoked=True)
    return World(shared_database, fjord, glen, "0123456789ab")


def _add_key(superuser: Any, organization: UUID, prefix: str, *, revoked: bool = False) -> None:
    superuser.execute(
        "insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes, revoked_at) "
        "values ('organization', %s, 'Reports', %s, sha256('x'), '{data:read}', case when %s then now() end)",
        [organization, prefix, revoked],
    )


@pytest.fixture
def preview(world: World, monkeypatch: pytest.MonkeyPatch) -> Preview:
    """Run the command as goldleaves_migrator, who is no superuser, unless another URL is given."""

    def run_preview(*arguments: str, url: str = world.database.migrator) -> Result:
        monkeypatch.setenv("MIGRATION_DATABASE_URL", url)
        return CliRunner().invoke(app, ["policies", "preview", *arguments])

    return run_preview


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def relation(result: Result, name: str) -> dict[str, Any]:
    return next(each for each in document(result)["relations"] if each["name"] == name)


@contextmanager
def changed(database: Database, change: str, undo: str) -> Iterator[None]:
    """Somebody changed the database by hand."""
    with database.connect() as superuser:
        run(superuser, change)
        try:
            yield
        finally:
            run(superuser, undo)


@pytest.mark.parametrize(
    ("role", "cases", "log"),
    [("owner", 2, True), ("member", 2, False), ("viewer", 2, False), ("billing", 0, False)],
)
def test_people_see_what_their_role_lets_them(world: World, preview: Preview, role: str, cases: int, log: bool) -> None:
    result = preview("--as", world.fjord[role].subject, "--org", "fjord", "--json")
    assert document(result)["organization"] == "fjord"
    assert document(result)["organization_role"] == role
    assert relation(result, "app.cases") == {
        "name": "app.cases",
        "kind": "table",
        "shown": cases,
        "shown_of_others": 0,
        "of_organization": 2,
        "whole": 5,
        "why": {},
    }
    entries = relation(result, "audit.log")
    assert (entries["shown"] == entries["of_organization"] > 0) is log


@pytest.mark.parametrize("named", ["subject", "email", "id"])
def test_a_person_can_be_named_in_three_ways(world: World, preview: Preview, named: str) -> None:
    viewer = world.fjord["viewer"]
    assert (
        document(preview("--as", str(getattr(viewer, named)), "--json"))["as"] == f"{viewer.subject} ({viewer.email})"
    )


def test_what_may_not_be_read_is_told_from_what_is_empty(world: World, preview: Preview) -> None:
    result = preview("--as", world.fjord["viewer"].subject, "--org", str(world.fjord.id), "--json")
    assert relation(result, "tenancy.users")["shown"] is None
    assert relation(result, "tenancy.users")["why"] == {"shown": "no right"}
    assert relation(result, "tenancy.users")["whole"] == 10
    assert relation(result, "billing.invoices")["shown"] == 0


def test_every_table_with_rows_of_tenants_is_there(world: World, preview: Preview) -> None:
    found = {each["name"] for each in document(preview("--as", world.fjord["owner"].subject, "--json"))["relations"]}
    with world.database.connect() as superuser:
        tables = superuser.execute(
            "select attrelid::regclass::text from pg_attribute a join pg_class c on c.oid = attrelid "
            "where relkind in ('r', 'p') and not relispartition and (relrowsecurity and attname = 'xmin' "
            "or attname = 'organization_id' or attrelid = 'tenancy.organizations'::regclass)"
        ).fetchall()
    assert found == {name for (name,) in tables} >= {"tenancy.organizations", "tenancy.users", "app.cases"}


def test_an_api_key_sees_what_its_scopes_let_it(world: World, preview: Preview) -> None:
    result = preview("--key", f"gl_{world.prefix}_secret", "--json")
    assert document(result)["organization"] == "fjord"
    assert document(result)["organization_role"] == "data:read"
    assert "secret" not in result.output
    assert relation(result, "app.cases")["shown"] == 2
    assert relation(result, "metering.usage_events")["shown"] == 0


def test_staff_sees_all_organizations(preview: Preview) -> None:
    result = preview("--token-role", "platform_admin", "--json")
    assert document(result)["organization"] is None
    cases = relation(result, "app.cases")
    assert (cases["shown"], cases["of_organization"], cases["whole"]) == (5, None, 5)


def test_views_are_shown_as_requests_for_them_find_them(world: World, preview: Preview) -> None:
    """A person who belongs to two organizations lists both, whichever the request names."""
    subject = world.fjord["viewer"].subject
    with changed(
        world.database,
        f"insert into tenancy.memberships select '{world.glen.id}', '{world.fjord['viewer'].id}', 'viewer'",
        f"delete from tenancy.memberships where organization_id = '{world.glen.id}' "
        f"and user_id = '{world.fjord['viewer'].id}'",
    ):
        result = preview("--as", subject, "--org", "fjord", "--views", "--json")
        text = preview("--as", subject, "--org", "fjord", "--views").output
    assert relation(result, "tenancy.organizations")["shown"] == 1
    assert (relation(result, "api.organizations")["shown"], relation(result, "api.cases")["shown"]) == (2, 2)
    assert "api.organizations: a person's own in other organizations too" in text
    assert "rows of other organizations are shown" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--as", "glen|owner", "--org", "fjord"],
            "every request of glen|owner (owner@glen.example) is refused: "
            "NOT_A_MEMBER: you are not a member of organization fjord",
        ),
        (
            ["--key", "ba9876543210"],
            "every request of key ba9876543210 (Reports) is refused: "
            "INVALID_API_KEY: the API key is unknown, revoked or expired",
        ),
        (["--as", "glen|ower"], "there is no user with subject, id or e-mail 'glen|ower'. Perhaps glen|admin or"),
        (["--as", "glen|owner", "--org", "fjrd"], "there is no organization 'fjrd'. Perhaps fjord?"),
        (["--as", "glen|owner", "--org", "x' or true"], 'there is no organization "x\' or true"'),
        (["--key", "gl_000000000000_x"], "there is no API key with the prefix 000000000000"),
        (["--org", "fjord"], "Say whose eyes: "),
        (["--as", "a", "--key", "b"], "Say whose eyes: "),
    ],
)
def test_a_refusal_is_one_line(preview: Preview, arguments: list[str], message: str) -> None:
    result = preview(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_address_of_several_people_is_none(world: World, preview: Preview) -> None:
    with changed(
        world.database,
        "update tenancy.users set email = 'admin@glen.example' where subject = 'glen|owner'",
        "update tenancy.users set email = 'owner@glen.example' where subject = 'glen|owner'",
    ):
        result = preview("--as", "Admin@glen.example")
    assert result.exit_code == 1
    assert result.stderr.endswith("say which, by subject: glen|admin, glen|owner\n")


@pytest.mark.parametrize(
    ("change", "undo", "table"),
    [
        (
            "alter table app.cases disable row level security",
            "alter table app.cases enable row level security",
            "app.cases",
        ),
        (
            "create policy hole on app.cases for select to public using (true)",
            "drop policy hole on app.cases",
            "app.cases",
        ),
        (
            "create table app.leaked as select organization_id, title from app.cases; "
            "grant select on app.leaked to member",
            "drop table app.leaked",
            "app.leaked",
        ),
        (
            "create materialized view app.leaked as select organization_id, title from app.cases; "
            "grant select on app.leaked to member",
            "drop materialized view app.leaked",
            "app.leaked",
        ),
        (
            "create table app.notes (organization_id uuid, at int) partition by range (at);"
            "create table app.notes_1 partition of app.notes default;"
            "insert into app.notes select organization_id, 1 from app.cases; grant select on app.notes_1 to member",
            "drop table app.notes",
            "app.notes_1",
        ),
    ],
)
def test_rows_of_others_are_pointed_at(world: World, preview: Preview, change: str, undo: str, table: str) -> None:
    with changed(world.database, change, undo):
        lines = preview("--as", world.fjord["viewer"].subject, "--org", "fjord").stdout.splitlines()
    assert [table, "5", "3"] in [line.split()[:3] for line in lines]
    assert f"!  {table}: rows of other organizations are shown. Ask `goldleaves policies lint`." in lines


def test_a_whole_that_nobody_can_count_is_said_to_be_unknown(world: World, preview: Preview) -> None:
    arguments = ("--as", world.fjord["viewer"].subject, "--org", "fjord")
    with changed(
        world.database,
        "alter policy cases_staff on app.cases using (title <> 'secret')",
        "alter policy cases_staff on app.cases using (true)",
    ):
        migrator = relation(preview(*arguments, "--json"), "app.cases")
        superuser = relation(preview(*arguments, "--json", url=world.database.superuser), "app.cases")
        text = preview(*arguments).output
    why = "no role that goldleaves_migrator can act as may see all of its rows"
    assert (migrator["shown"], migrator["whole"], migrator["why"]["whole"]) == (2, None, why)
    assert (superuser["shown"], superuser["of_organization"], superuser["whole"]) == (2, 2, 5)
    assert f"?  app.cases: {why}" in text


def test_a_count_that_takes_too_long_is_given_up(world: World, preview: Preview) -> None:
    with changed(
        world.database,
        "create policy slow on app.cases for select to member using (pg_sleep(600) is null)",
        "drop policy slow on app.cases",
    ):
        found = relation(
            preview("--as", world.fjord["billing"].subject, "--org", "fjord", "--timeout", "0.2", "--json"), "app.cases"
        )
    assert (found["shown"], found["why"]["shown"], found["whole"]) == (None, "> 0.2 s", 5)


def test_a_table_that_somebody_locks_holds_nothing_up(world: World, preview: Preview) -> None:
    with world.database.connect(autocommit=False) as other:
        other.execute("lock table app.cases in access exclusive mode")
        result = preview("--as", world.fjord["viewer"].subject, "--org", "fjord", "--json")
    assert relation(result, "app.cases")["why"]["shown"] == "locked by somebody at this moment"
    assert relation(result, "app.clients")["shown"] == 0


def test_what_a_request_would_fail_with_is_said(world: World, preview: Preview) -> None:
    with changed(
        world.database,
        "revoke execute on function tenancy.current_org_for(text[]) from member",
        "grant execute on function tenancy.current_org_for(text[]) to member",
    ):
        result = preview("--as", world.fjord["viewer"].subject, "--org", "fjord", "--json")
    assert relation(result, "app.cases")["why"]["shown"] == "permission denied for function current_org_for"


def test_nothing_of_it_stays(world: World, preview: Preview) -> None:
    assert preview("--as", world.fjord["owner"].subject, "--org", "fjord").exit_code == 0
    with world.database.connect("goldleaves_migrator") as migrator, pytest.raises(psycopg.errors.InsufficientPrivilege):
        migrator.execute("set role member")


def test_the_table_for_people(world: World, preview: Preview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # too narrow, but nothing is left out
    lines = preview("--as", world.fjord["billing"].subject, "--org", "fjord").output.splitlines()
    assert lines[0] == (
        "fjord|billing (billing@fjord.example), billing of fjord: the rows that each table shows to role member. "
        "Counts are exact."
    )
    assert lines[2].split() == ["shown", "of", "others", "of", "fjord", "whole", "table"]
    assert ["app.cases", "0", "0", "2", "5"] in [line.split() for line in lines]
    assert ["tenancy.users", DASH, "10"] in [line.split() for line in lines]
    assert f"{DASH}  no right to read it" in lines

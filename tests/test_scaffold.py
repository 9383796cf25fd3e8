"""Scaffolding a table: what is asked for becomes a tenants' table as good as ours, or it is said what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.migrations import migrate
from api.policies.declared import declared
from api.release import MigrationError
from api.scaffold.columns import read_columns
from api.scaffold.files import apply_plan
from api.scaffold.scaffold import Scaffold, scaffold_table
from api.scaffold.table import Table
from api.settings import PROJECT, Settings
from tests.harness import Database
from tests.own_tables import own_migrations

# Names that nobody takes for tables of their own, so that this passes beside those.
NAME = "scaffolded_tasks"
TABLE = f"app.{NAME}"
COLUMNS = """
  title text not null check (length(title) between 1 and 200), due_on date,
  case_id uuid not null references app.cases on delete restrict,
  parent_id uuid references app.scaffolded_tasks,
  assignee uuid references tenancy.memberships (user_id),
  status text not null default 'it''s open' check (status in ('it''s open', 'done')),
  rate text not null check (rate in ('5%', 'a "\\" b')),
  price numeric(10, 2) not null check (price > 250), code char(3) not null unique check (code ~ '^[A-Z]+$'),
  done boolean default false not null
"""
FIRST = int(own_migrations()[-1].name[:4]) + 1 if own_migrations() else 9001
MIGRATION = f"migrations/{FIRST}_create_{NAME}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what scaffolding reads. Write nothing into it."""
    copied = tmp_path_factory.mktemp("project")
    for folder in ("migrations", "sql", "policies"):
        shutil.copytree(PROJECT / folder, copied / folder)
    return copied


def scaffold(columns: str, url: str | None, root: Path, name: str = NAME, schema: str = "app") -> Scaffold:
    return scaffold_table(Table(schema, name, read_columns(columns)), url, root)


def files_of(made: Scaffold) -> dict[str, str]:
    return {action.path: action.content for action in made.plan.actions}


def squeezed(text: str) -> str:
    return " ".join(text.split())


# What is asked for

WRONG: Mapping[str, str] = {
    "": "--columns: say at least one column between commas",
    "title text,": "--columns: say at least one column between commas",
    "title": "column title: say its type, as in title text",
    "title not null": "column title: say its type, as in title text",
    "Title text": "column Title: a name is made of a-z, 0-9 and _",
    '"title" text': 'column "title": a name is made of a-z, 0-9 and _',
    "größe int": "column größe: a name is made of a-z, 0-9 and _",
    "user text": "column user: the word has a meaning of its own",
    "limit int": "column limit: the word has a meaning of its own",
    f"{'x' * 57} int": f"column {'x' * 57}: the name is longer than 56 characters",
    "id uuid": "column id: every scaffolded table has it already",
    "organization_id uuid": "column organization_id: every scaffolded table has it already",
    "created_at date": "column created_at: every scaffolded table has it already",
    "a int, a text": "--columns names a twice",
    "a int; drop table app.cases": "--columns: ; does not belong there",
    "a int -- and so on": "--columns: -- does not belong there",
    "a text default $$x$$": "--columns: $ does not belong there",
    "a text default 'x": "--columns: a quote is not closed: 'x",
    "a text check (a <> ''": "--columns: a parenthesis is not closed",
    "a text) with (b = 1": "--columns: there is a ) too many",
    "a bigserial": "column a: numbers from a sequence tell every tenant how much the others write",
    "a int primary key": "column a: primary is not understood here",
    "a int generated always as (1) stored": "column a: generated is not understood here",
    "unique (a)": "--columns: unique comes behind the column it is about",
    "a int not": "column a: not wants null behind it",
    "a int default": "column a: default wants a value behind it",
    "a int check a > 1": "column a: check wants a condition in parentheses",
    "a uuid references cases": "column a: references wants a table with its schema, as in references app.cases",
    "a uuid references app.cases (organization_id, id)": "column a: references one column",
    "a uuid references app.cases on delete": "column a: on delete wants one of cascade, restrict",
    "a uuid references app.cases on update cascade": "column a: on is not understood here",
}


@pytest.mark.parametrize("columns", WRONG)
def test_what_cannot_be_understood_is_named(columns: str, root: Path) -> None:
    with pytest.raises(MigrationError) as refused:
        scaffold(columns, None, root)
    assert str(refused.value).startswith(WRONG[columns])


@pytest.mark.parametrize(
    ("schema", "name", "said"),
    [
        ("app", "My-Tasks", "table My-Tasks: a name"),
        ("app", "table", "table table: the word"),
        ("app", "x" * 57, "table xxx"),
        ("tenancy", "tasks", "schema tenancy is not for tables of your own"),
        ("api", "tasks", "schema api is not for tables of your own"),
        ("pg_catalog", "tasks", "schema pg_catalog is not"),
        ("a b", "tasks", "schema a b: a name"),
    ],
)
def test_names_that_cannot_be_are_refused(root: Path, schema: str, name: str, said: str) -> None:
    with pytest.raises(MigrationError) as refused:
        scaffold("title text", None, root, name, schema)
    assert str(refused.value).startswith(said)


def test_the_order_and_case_of_clauses_do_not_matter() -> None:
    [one] = read_columns(
        "a NUMERIC(10, 2) NOT  NULL DEFAULT 1 + 1 UNIQUE CHECK (a > 0) CHECK (a <> 5) references app.x"
    )
    [two] = read_columns("a NUMERIC(10, 2) check (a > 0) check (a <> 5) unique references app.x default 1 + 1 not null")
    assert one.definition == "a NUMERIC(10, 2) not null default 1 + 1 check (a > 0) check (a <> 5)"
    assert (one.unique, one.reference, two) == (True, two.reference, dataclasses.replace(one, checks=two.checks))
    plain = read_columns("at timestamp with time zone default null, tags text[] default '{a,b}'::text[]")
    assert [column.definition for column in plain] == [
        "at timestamp with time zone default null",
        "tags text[] default '{a,b}'::text[]",
    ]


# What the database says

REFUSED: Mapping[str, str] = {
    "a text, due_on dat": 'column due_on: type "dat" does not exist',
    "a text default 5 +, b date": "column a: syntax error at or near",
    "done boolean default 'maybe'": "column done: invalid input syntax for type boolean",
    "a text check (b <> '')": 'column a: column "b" does not exist',
    "case_id text references app.cases": f"{TABLE}: foreign key constraint",
    "a uuid references app.nothing": f'{TABLE}: relation "app.nothing" does not exist',
    "a uuid references tenancy.users": "references: only tables with organization_id",
}


@pytest.mark.parametrize("columns", REFUSED)
def test_what_postgres_refuses_is_told_by_the_column(columns: str, shared_database: Database, root: Path) -> None:
    with pytest.raises(MigrationError) as refused:
        scaffold(columns, shared_database.migrator, root)
    assert str(refused.value).startswith(REFUSED[columns])
    assert str(refused.value).endswith("Nothing was written")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("who", ["goldleaves_migrator", "postgres"])
def test_trying_leaves_nothing_behind(shared_database: Database, root: Path, who: str) -> None:
    objects = "select count(*), sum(hashtext(c::text)::bigint) from pg_class c where relkind in ('r', 'v', 'i')"
    with shared_database.connect() as superuser:
        before = superuser.execute(objects).fetchall()
        made = scaffold(COLUMNS, shared_database.url(who), root)
        assert superuser.execute(objects).fetchall() == before
    assert f"Tried on {shared_database.name} at {shared_database.host}:{shared_database.port}" in made.notes[-1]
    row = squeezed(files_of(made)[made.paths.test])
    assert "'Secret', %(id)s, %(id)s, (select owner_user_id" in row
    assert "'5%%', 251, 'ABC' )" in row


def test_a_table_that_is_there_is_not_scaffolded(shared_database: Database, root: Path) -> None:
    with pytest.raises(MigrationError, match=r"^app\.cases exists already\. To change it, write a migration; "):
        scaffold("title text", shared_database.migrator, root, "cases")
    with pytest.raises(MigrationError, match=r"^api\.invoices exists already, .*: take another name$"):
        scaffold("title text", shared_database.migrator, root, "invoices")


def test_what_is_pending_comes_first(shared_database: Database, root: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(root, tmp_path / "project")
    apply_plan(scaffold("title text", shared_database.migrator, mine).plan, mine, write=True)
    assert scaffold("title text", shared_database.migrator, mine).paths.migration == f"{MIGRATION}.sql"
    with pytest.raises(MigrationError, match=rf"^not applied yet: {FIRST}_create_{NAME}\. Run `goldleaves migrate`"):
        scaffold("title text", shared_database.migrator, mine, "others")


def test_what_becomes_slow_is_told(shared_database: Database, root: Path) -> None:
    notes = scaffold("title text, data jsonb", shared_database.migrator, root).notes
    assert notes[0] == "data is jsonb: under row security a filter on it uses no index. Text with a check does."
    impossible = scaffold("title text not null check (title ~ '^X{7}y$')", shared_database.migrator, root)
    assert "no value of title was found that its checks let pass" in impossible.notes[0]
    assert f"policies/app.{NAME}.sql: -- a row: (title) values (…)" in impossible.notes[0]


# What is written


def test_it_is_what_adopting_writes(shared_database: Database, root: Path) -> None:
    """Policies, grants and triggers: sql/adoption/ and the templates say the same."""
    made = scaffold("title text", None, root)
    files = files_of(made)
    written = {path: squeezed(text) for path, text in files.items()}
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(files[made.paths.migration].encode())
        for function, path in (
            ("policy_statements", made.paths.policies),
            ("grant_statements", made.paths.policies),
            ("trigger_statements", made.paths.triggers),
        ):
            rows = connection.execute(f"select statement from tenancy.{function}('{TABLE}')".encode()).fetchall()
            assert rows
            for (statement,) in rows:
                assert f"{squeezed(statement)};" in written[path]
    said = declared(made.paths.policies, files[made.paths.policies])
    ours = declared("policies/app.cases.sql", (PROJECT / "policies/app.cases.sql").read_text())
    assert said is not None and said == ours


def test_without_a_database_it_is_written_untried(root: Path) -> None:
    made = scaffold("title text", None, root)
    assert made.notes == ("Not tried: no database runs here. `goldleaves migrate` will tell what is wrong with it.",)
    nobody = scaffold("title text", "postgresql://nobody@127.0.0.1:1/x", root)
    assert nobody.notes[0].startswith("Not tried, no database answers: ")
    assert nobody.plan == made.plan


# The project as somebody has it, with a table more


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database) -> Iterator[Path]:
    """A copy of the project, whose tests use this run's Postgres, and `database` where they would make one."""
    for folder in ("migrations", "sql", "policies", "tests", "api"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    with (tmp_path / "tests/conftest.py").open("a") as conftest:
        conftest.write(SHARED_DATABASE)
    monkeypatch.setattr("api.scaffold.cli.PROJECT", tmp_path)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database.migrator)
    yield tmp_path


SHARED_DATABASE = """

@pytest.fixture(scope="module")
def shared_database() -> Database:
    import json
    found = json.loads(os.environ["DATABASE_OF_TEST"])
    return Database(**{**found, "secrets": Secrets(**found["secrets"])})
"""


def pytest_in(clone: Path, database: Database, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {
        "PYTHONPATH": str(clone),
        "DATABASE_OF_TEST": json.dumps(dataclasses.asdict(database)),
    }
    # Plugins that the tests it runs have no use for take longer to load than those tests to run.
    unused = ("cacheprovider", "schemathesis", "hypothesispytest", "xdist")
    without = [word for name in unused for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--strict-markers", *without, *arguments]
    done = subprocess.run(command, cwd=clone, env=environment, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


def run(*arguments: str, plan: Path) -> Result:
    return CliRunner().invoke(app, ["scaffold", "table", NAME, "--plan", str(plan), *arguments])


def test_a_scaffolded_table_passes_its_tests_and_those_of_all_tables_until_a_policy_is_opened(
    clone: Path, database: Database
) -> None:
    before = {path for path in clone.rglob("*") if path.is_file()}
    plan = clone / "plan.json"
    told = run("--columns", COLUMNS, "--dry-run", plan=plan)
    assert told.exit_code == 0, told.output
    assert {path for path in clone.rglob("*") if path.is_file()} == before | {plan}

    made = run("--columns", COLUMNS, plan=plan)
    assert made.exit_code == 0, made.output
    assert "parent_id: on delete set null (parent_id), since nothing else was said." in made.output
    written = {
        f"{MIGRATION}.sql",
        f"{MIGRATION}.rollback.sql",
        f"policies/{TABLE}.sql",
        f"sql/app/{NAME}.sql",
        f"sql/api/{NAME}.sql",
        f"tests/test_{NAME}_isolation.py",
    }
    after = {path for path in clone.rglob("*") if path.is_file()}
    assert {path.relative_to(clone).as_posix() for path in after - before} == written | {"plan.json"}
    assert {action["path"] for action in json.loads(plan.read_text())["actions"]} == written
    again = run("--columns", COLUMNS, plan=plan)
    assert (again.exit_code, again.output.count("unchanged ")) == (0, len(written))
    other = run("--columns", "title text", plan=plan)
    assert other.exit_code == 3
    for path in clone.rglob("*.new"):
        path.unlink()

    # Another one, in a schema of its own.
    deals = scaffold_table(Table("crm", "deals", read_columns("name text not null")), None, clone)
    apply_plan(deals.plan, clone, write=True)

    test = f"tests/test_{NAME}_isolation.py"
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        subprocess.run([sys.executable, "-m", *command, test, deals.paths.test], cwd=clone, check=True)
    assert migrate(database.migrator, Settings(), clone).applied == (
        f"{FIRST}_create_{NAME}",
        f"{FIRST + 1}_create_crm_deals",
    )
    code, output = pytest_in(
        clone, database, test, deals.paths.test, "tests/test_least_privilege.py",
        "tests/test_every_change_is_audited.py", "-k",
        "isolation or reaches or every_schema or documented or foreign_key or keys_of or has_a_reason",
    )  # fmt: skip
    assert code == 0, output

    with database.connect() as superuser:
        superuser.execute(f"alter policy {NAME}_read on {TABLE} using (true)")
    code, output = pytest_in(clone, database, test, "-k", "select")
    assert code == 1
    assert "test_nothing_of_another_organization[select]" in output

"""Adopting a table: what has rows becomes a tenants' table as good as ours and keeps every byte, or all that is in the
way is said and nothing is changed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from typer.testing import CliRunner

from api.adopt import Adoption, adopt, report
from api.cli import app
from api.migrations import MigrationError, MigrationReport, migrate, rollback
from api.numbering import next_number
from api.policies.matrix.proof import prove
from api.release import PolicyConflict
from api.settings import PROJECT, Settings
from tests.catalogs import catalog_of
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Cluster, Database, Organization, RunningStack
from tests.observe import eventually
from tests.sql_requests import Caller, Connection, refusal_or_count, request, run
from tests.test_isolation import CALLERS, World, leaks, tenant_relations
from tests.test_role_grid import GRID
from tests.test_role_grid import VERBS as GRID_VERBS

_number = count(1)

MIGRATION = f"{next_number(PROJECT):04}_adopt_old_comments_and_2_more"

# Three tables as somebody else would make them: numbers and UUIDs as keys, values unique over all rows, an index on an
# expression, generated columns, references to each other and to itself, one of them deferrable.
FAMILY = """
create table app.old_projects (
  id bigint generated always as identity primary key,
  code text not null unique,
  name text
);
create table app.old_tasks (
  id uuid primary key default gen_random_uuid(),
  project_id bigint not null references app.old_projects on delete cascade deferrable initially deferred,
  parent_id uuid references app.old_tasks on delete set null,
  title text not null,
  assignee text unique,
  done boolean not null default false,
  effort integer generated always as (length(title) * 2) stored,
  created_by text,
  created_at timestamptz not null default now(),
  changed_at timestamptz
);
create unique index old_tasks_open on app.old_tasks (lower(title) desc) include (assignee) where not done;
create table app.old_comments (
  number bigserial primary key,
  task_id uuid references app.old_tasks match full on update cascade on delete cascade,
  body text
);
create function app.touch() returns trigger language plpgsql as $$ begin new.changed_at := now(); return new; end $$;
create trigger touch before update on app.old_tasks for each row execute function app.touch();

insert into app.old_projects (code, name) values ('a', 'Ävä'), ('b', null);
insert into app.old_tasks (id, project_id, parent_id, title, assignee, created_by) values
  ('00000000-0000-4000-8000-000000000001', 1, null, E'One\\n', 'x', 'me'),
  ('00000000-0000-4000-8000-000000000002', 2, '00000000-0000-4000-8000-000000000001', 'Two', 'y', 'you');
insert into app.old_comments (task_id, body) values
  ('00000000-0000-4000-8000-000000000001', 'yes'), ('00000000-0000-4000-8000-000000000002', ''), (null, null);
set constraints all immediate;
"""
TABLES = ("app.old_projects", "app.old_tasks", "app.old_comments")
OWNED = "".join(f"alter table {table} owner to goldleaves_owner;" for table in TABLES)
# The rows, each with its place: a table that was written anew would have them elsewhere.
ROWS = " union all ".join(
    f"select '{table}', ctid::text, (to_jsonb(t) - 'organization_id')::text from {table} t" for table in TABLES
)


class Project:
    """The project's files, and a database that they have been brought to."""

    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.database = database
        for folder in ("migrations", "sql", "policies"):
            shutil.copytree(PROJECT / folder, root / folder)

    def adopt(self, *tables: str, organization: str | None = None, dry_run: bool = False) -> Adoption:
        settings = Settings()
        return adopt(self.database.migrator, settings, tables, organization, dry_run=dry_run, root=self.root)

    def migrate(self, database: Database | None = None) -> MigrationReport:
        return migrate((database or self.database).migrator, Settings(), self.root)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def files(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.sql")}

    def execute(self, text: str) -> None:
        with self.database.connect() as superuser:
            superuser.execute(text.encode())

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as superuser:
            return sorted(superuser.execute(text.encode()).fetchall())


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project(tmp_path, database)


@pytest.fixture
def acme(project: Project, make_organization: MakeOrganization) -> Organization:
    return make_organization(project.database, "acme")


@contextmanager
def copied(cluster: Cluster, database: Database) -> Iterator[Database]:
    made = cluster.copy(database, f"goldleaves_adopt_{next(_number)}")
    yield made
    cluster.drop(made)


# What adopting does


def test_a_family_is_adopted_and_keeps_every_byte(project: Project, acme: Organization, cluster: Cluster) -> None:
    project.execute(FAMILY + OWNED)
    rows, files = project.query(ROWS), project.files()
    project.migrate()
    before = catalog_of(project.database)

    with copied(cluster, project.database) as production:
        found = project.adopt(*TABLES, organization="acme")
        assert project.query(ROWS) == rows
        owners = " union all ".join(f"select distinct organization_id from {table}" for table in TABLES)
        assert project.query(owners) == [(acme.id,)] * 3
        assert project.files() - files == {
            f"migrations/{MIGRATION}.sql",
            f"migrations/{MIGRATION}.rollback.sql",
            *(f"policies/{table}.sql" for table in TABLES),
            *(f"sql/adopted/{table}.sql" for table in TABLES),
        }
        assert str(acme.id) not in (project.root / f"migrations/{MIGRATION}.sql").read_text()
        assert found.migrated and found.migrated.applied == (MIGRATION,)

        assert prove(project.database.migrator, project.root, only=TABLES).holds

        # There is nothing left to do, here or by another adoption.
        again = project.adopt(*TABLES)
        assert (again.steps, again.files) == ((), {})
        assert report(again) == [
            "app.old_comments, app.old_projects, app.old_tasks: tenants' tables already, nothing to do"
        ]
        nothing = MigrationReport((), (), (), MIGRATION)
        assert project.migrate() == again.migrated == nothing

        # The next environment gets the same by its own migrate, and where it goes back it is as it was.
        project.migrate(production)
        assert catalog_of(production).splitlines() == catalog_of(project.database).splitlines()
        with production.connect() as superuser:
            assert sorted(superuser.execute(ROWS.encode()).fetchall()) == rows
        stems = {path.name.partition(".")[0] for path in (project.root / "migrations").glob("[0-9]*.sql")}
        rollback(production.migrator, max(stems - {MIGRATION}), project.root)
        for path in found.files:
            (project.root / path).unlink()
        project.migrate(production)

        assert without_grants(catalog_of(production)) == without_grants(before)
        with production.connect() as superuser:
            assert sorted(superuser.execute(ROWS.encode()).fetchall()) == rows


def test_a_database_without_the_organization_has_no_rows_to_give_it(
    project: Project, acme: Organization, cluster: Cluster, template: Database
) -> None:
    """The migration goes through where nothing is lost, as in a new database, and nowhere else."""
    project.execute(FAMILY + OWNED)
    project.adopt(*TABLES, organization="acme")
    with copied(cluster, template) as other:
        with other.connect() as superuser:
            superuser.execute((FAMILY + OWNED).encode())
        with pytest.raises(MigrationError, match="there is no organization acme to give the rows to"):
            project.migrate(other)
        with other.connect() as superuser:
            superuser.execute("truncate app.old_projects, app.old_tasks, app.old_comments")
        project.migrate(other)
        default = "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'app.old_tasks'::regclass"
        with other.connect() as superuser:
            assert ("tenancy.current_org()",) in superuser.execute(default).fetchall()


def test_rows_find_their_organization_where_no_policies_are_loaded(project: Project, acme: Organization) -> None:
    """After a rollback to a migration of which no release is recorded, nobody may see organizations."""
    project.execute(FAMILY + OWNED)
    project.adopt(*TABLES, organization="acme")
    before = catalog_of(project.database)
    assert not rollback(project.database.migrator, "0005", project.root).behaviour

    project.migrate()
    assert project.query("select distinct organization_id from app.old_tasks") == [(acme.id,)]
    assert catalog_of(project.database).splitlines() == before.splitlines()


def without_grants(catalog: str) -> list[str]:
    return [line for line in catalog.splitlines() if line and not line.startswith(("GRANT ", "REVOKE ", "--"))]


@pytest.fixture
def adopted(
    shared_database: Database, make_organization: MakeOrganization
) -> Iterator[tuple[Connection, Organization]]:
    """The family as tenants' tables of an organization, for as long as a transaction."""
    organization = make_organization(shared_database)
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(connection, FAMILY)
        tables = f"{{{','.join(TABLES)}}}"
        connection.execute("select tenancy.adopt_tables(%s::regclass[], %s)", [tables, organization.id])
        yield connection, organization


def test_every_key_starts_with_the_organization_and_means_what_it_meant(
    adopted: tuple[Connection, Organization],
) -> None:
    definitions = adopted[0].execute(
        """
        select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) from pg_constraint
        where conrelid = any ('{app.old_projects,app.old_tasks,app.old_comments}'::regclass[])
          and contype in ('p', 'u', 'f')
        """
    )
    organization = "FOREIGN KEY (organization_id) REFERENCES tenancy.organizations(id) ON DELETE CASCADE"
    assert sorted(definitions) == [
        ("app.old_comments", "old_comments_organization_id_fkey", organization),
        ("app.old_comments", "old_comments_pkey", "PRIMARY KEY (organization_id, number)"),
        (
            "app.old_comments",
            "old_comments_task_id_fkey",
            "FOREIGN KEY (organization_id, task_id) REFERENCES app.old_tasks(organization_id, id)"
            " ON UPDATE CASCADE ON DELETE CASCADE",
        ),
        ("app.old_projects", "old_projects_code_key", "UNIQUE (organization_id, code)"),
        ("app.old_projects", "old_projects_organization_id_fkey", organization),
        ("app.old_projects", "old_projects_pkey", "PRIMARY KEY (organization_id, id)"),
        ("app.old_tasks", "old_tasks_assignee_key", "UNIQUE (organization_id, assignee)"),
        ("app.old_tasks", "old_tasks_organization_id_fkey", organization),
        (
            "app.old_tasks",
            "old_tasks_parent_id_fkey",
            "FOREIGN KEY (organization_id, parent_id) REFERENCES app.old_tasks(organization_id, id)"
            " ON DELETE SET NULL (parent_id)",
        ),
        ("app.old_tasks", "old_tasks_pkey", "PRIMARY KEY (organization_id, id)"),
        (
            "app.old_tasks",
            "old_tasks_project_id_fkey",
            "FOREIGN KEY (organization_id, project_id) REFERENCES app.old_projects(organization_id, id)"
            " ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
        ),
    ]
    indexes = (
        "select indexdef from pg_indexes where schemaname = 'app' and indexname ~ '^old_(tasks|comments)_.*(idx|open)$'"
    )
    assert sorted(adopted[0].execute(indexes)) == [
        ("CREATE INDEX old_comments_task_id_fk_idx ON app.old_comments USING btree (organization_id, task_id)",),
        ("CREATE INDEX old_tasks_parent_id_fk_idx ON app.old_tasks USING btree (organization_id, parent_id)",),
        ("CREATE INDEX old_tasks_project_id_fk_idx ON app.old_tasks USING btree (organization_id, project_id)",),
        (
            "CREATE UNIQUE INDEX old_tasks_open ON app.old_tasks USING btree (organization_id, lower(title) DESC)"
            " INCLUDE (assignee) WHERE (NOT done)",
        ),
    ]


def test_a_dry_run_says_the_same_and_changes_nothing(project: Project, acme: Organization) -> None:
    project.execute(FAMILY + OWNED)
    before, files = catalog_of(project.database), project.files()
    planned = project.adopt(*TABLES, organization="acme", dry_run=True)
    assert (catalog_of(project.database), project.files()) == (before, files)
    done = project.adopt(*TABLES, organization=str(acme.id))
    assert (planned.steps, planned.files) == (done.steps, done.files)
    assert any("tell every tenant how much the others write" in line for line in report(planned))
    assert any("kept unique over all tenants" in line for line in report(planned))


def test_in_psql_it_is_live_at_once_and_migrate_leaves_it_alone(project: Project, acme: Organization) -> None:
    project.execute(FAMILY)
    project.execute(
        f"select * from tenancy.adopt_tables('{{app.old_projects,app.old_tasks,app.old_comments}}', '{acme.id}')"
    )
    adopted = catalog_of(project.database)
    project.migrate()
    assert catalog_of(project.database) == adopted

    # Its files are made afterwards, and what they say is what is there.
    found = project.adopt(*TABLES)
    assert found.steps == ()
    assert set(found.files) == {f"{folder}/{table}.sql" for folder in ("policies", "sql/adopted") for table in TABLES}
    assert catalog_of(project.database) == adopted
    project.execute("drop policy old_tasks_read on app.old_tasks")
    with pytest.raises(PolicyConflict, match=r"app\.old_tasks: policy old_tasks_read was dropped"):
        project.migrate()


def test_what_was_begun_by_hand_is_completed(project: Project, acme: Organization) -> None:
    project.execute(
        f"""
        create table app.old_tasks (
          title text, created_at timestamptz not null default now(), id uuid default gen_random_uuid(),
          organization_id uuid default '{acme.id}',
          case_id uuid, primary key (id, organization_id), unique (organization_id, title),
          foreign key (organization_id, case_id) references app.cases on delete set null (case_id)
        );
        insert into app.old_tasks (title) values ('One');
        alter table app.old_tasks owner to goldleaves_owner, enable row level security, force row level security;
        create policy old_tasks_read on app.old_tasks for select to member
          using (organization_id = tenancy.current_org_for('owner', 'admin', 'member', 'viewer', 'data:read'));
        grant select on app.old_tasks to member;
        """
    )
    found = project.adopt("app.old_tasks")
    assert [step.statement for step in found.steps if step.belongs_in == "migrations/"] == [
        "lock table tenancy.organizations in share row exclusive mode",
        "lock table app.old_tasks in access exclusive mode",
        "alter table app.old_tasks no force row level security",
        "alter table app.old_tasks alter column organization_id set default tenancy.current_org()",
        "alter table app.old_tasks drop constraint old_tasks_pkey, "
        "add constraint old_tasks_pkey PRIMARY KEY (organization_id, id)",
        "alter table app.old_tasks add constraint old_tasks_organization_id_fkey foreign key (organization_id) "
        "references tenancy.organizations (id) on delete cascade",
        "create index old_tasks_case_id_fk_idx on app.old_tasks (organization_id, case_id)",
        "alter table app.old_tasks force row level security",
    ]
    assert len([step for step in found.steps if step.statement.startswith("create policy")]) == 4
    assert project.adopt("app.old_tasks").steps == ()


def test_children_may_come_first(project: Project, acme: Organization, make_organization: MakeOrganization) -> None:
    """The child's row security is forced by then, and hides its rows from whoever checks the new foreign key."""
    other = make_organization(project.database, "other")
    project.execute(FAMILY + OWNED)
    project.adopt("app.old_comments", organization="acme")
    assert references(project, "app.old_comments") == [Reference("app.old_tasks", ["task_id"])]

    project.execute(f"update app.old_comments set organization_id = '{other.id}' where number = 2")
    with pytest.raises(
        MigrationError, match=r"app\.old_comments has 1 row whose old_comments_task_id_fkey \(task_id\) refers to"
    ):
        project.adopt("app.old_tasks", organization="acme")
    project.execute(f"update app.old_comments set organization_id = '{acme.id}'")
    project.adopt("app.old_tasks", organization="acme")
    assert references(project, "app.old_comments") == [Reference("app.old_tasks", ["organization_id", "task_id"])]
    project.adopt("app.old_projects", organization="acme")
    assert {reference.columns[0] for table in TABLES for reference in references(project, table)} == {"organization_id"}
    assert project.adopt(*TABLES).steps == ()


@dataclass(frozen=True)
class Reference:
    to_table: str
    columns: list[str]


def references(project: Project, table: str) -> list[Reference]:
    """The table's foreign keys, but for the one to organizations."""
    rows = project.query(
        f"""
        select confrelid::regclass::text, tenancy.column_names(conrelid, conkey) from pg_constraint
        where conrelid = '{table}'::regclass and contype = 'f' and confrelid <> 'tenancy.organizations'::regclass
        """
    )
    return [Reference(*row) for row in rows]


def test_a_schema_of_their_own_is_opened_for_members(project: Project, acme: Organization) -> None:
    project.execute(
        """
        create role crm_owner nologin;
        grant crm_owner to goldleaves_migrator;
        create schema crm authorization crm_owner;
        create table crm.deals (id uuid primary key default gen_random_uuid(), name text);
        create table crm.old_notes (id uuid primary key, deal_id uuid references crm.deals on delete cascade);
        alter table crm.deals owner to crm_owner;
        alter table crm.old_notes owner to crm_owner;
        """
    )
    try:
        project.adopt("crm.deals", "crm.old_notes")
        with project.database.connect("authenticator") as connection:
            with request(connection, Caller("member", acme["member"].subject)):
                connection.execute("insert into crm.deals (name) values ('Ours')")
                assert connection.execute("select name from crm.deals").fetchall() == [("Ours",)]
            with request(connection, Caller("member", acme["billing"].subject)):
                refused = refusal_or_count(connection, "insert into crm.deals (name) values ('Ours')")
                assert isinstance(refused, psycopg.errors.InsufficientPrivilege)
        # Its triggers are of a file, like others: they go with it.
        (project.root / "sql/adopted/crm.old_notes.sql").unlink()
        assert set(project.migrate().dropped) == {
            "trigger refuse_new_id on crm.old_notes",
            "trigger watch on crm.old_notes",
            "trigger watch_truncate on crm.old_notes",
        }
    finally:
        project.execute("drop schema crm cascade; drop owned by crm_owner; drop role crm_owner")


def test_a_change_of_an_adopted_row_is_audited_and_its_values_stay_outside_the_chain(
    adopted: tuple[Connection, Organization],
) -> None:
    connection, organization = adopted
    connection.execute("update app.old_tasks set title = 'Secret' where title = 'Two'")
    connection.execute("set constraints all immediate")  # as the end of the transaction does
    entries = connection.execute(
        "select action, to_jsonb(l)::text from audit.log l"
        " where organization_id = %s and target_type = 'app_old_tasks'",
        [organization.id],
    ).fetchall()
    assert [action for action, _ in entries] == ["app_old_tasks.changed"]
    assert "Secret" not in entries[0][1]
    personal = connection.execute(
        "select string_agg(data::text, '') from audit.personal where organization_id = %s", [organization.id]
    ).fetchone()
    assert personal and "Secret" in personal[0]


# What is in the way

PLAIN = "create table app.old_tasks (id uuid primary key, title text);"

OBSTACLES: Mapping[str, tuple[str, str]] = {
    "a view": ("create view app.old_tasks as select 1 as id;", "is a view"),
    "a materialized view": ("create materialized view app.old_tasks as select 1 as id;", "is a materialized view"),
    "a partitioned table": ("create table app.old_tasks (id int) partition by list (id);", "is a partitioned table"),
    "a partition": (
        "create table app.all_old_tasks (id int primary key) partition by list (id);"
        "create table app.old_tasks partition of app.all_old_tasks default;",
        "is a partition,",
    ),
    "a typed table": (
        "create type app.task as (id int); create table app.old_tasks of app.task (primary key (id));",
        "typed",
    ),
    "no primary key": (
        "create table app.old_tasks (id uuid unique);",
        "has no primary key: alter table app.old_tasks add",
    ),
    "another owner": (f"{PLAIN} alter table app.old_tasks owner to postgres;", "belongs to postgres"),
    "a child": (f"{PLAIN} create table app.more () inherits (app.old_tasks);", "inherits"),
    "rows of nobody": (
        f"{PLAIN} insert into app.old_tasks select gen_random_uuid() from generate_series(1, 1204);",
        "has 1,204 rows and no organization_id: say whose they are",
    ),
    "text as organization_id": (
        "create table app.old_tasks (id uuid primary key, organization_id text);",
        "has organization_id, but as text and not as uuid",
    ),
    "a generated organization_id": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid generated always as (id) stored);",
        "has organization_id, but as a generated column",
    ),
    "rows without organization_id": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid);"
        "insert into app.old_tasks values (gen_random_uuid(), null);",
        "has 1 of 1 rows without organization_id: update app.old_tasks set organization_id",
    ),
    "rows of organizations that are not there": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid);"
        "insert into app.old_tasks values (gen_random_uuid(), '00000000-0000-4000-8000-00000000dead');",
        "has 1 of 1 rows of organizations that do not exist, such as 00000000-0000-4000-8000-00000000dead",
    ),
    "the same behind row security": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid);"
        "insert into app.old_tasks values (gen_random_uuid(), null);"
        "alter table app.old_tasks enable row level security, force row level security;",
        "has 1 of 1 rows without organization_id",
    ),
    "a policy of somebody else": (
        f"{PLAIN} create policy everybody on app.old_tasks using (true);",
        "has policy everybody, which is not one of ours: drop policy everybody on app.old_tasks",
    ),
    "a policy of our name that says something else": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid not null);"
        "create policy old_tasks_read on app.old_tasks for select to member using (true);",
        "has policy old_tasks_read, which is not one of ours",
    ),
    "a rule": (f"{PLAIN} create rule nothing as on delete to app.old_tasks do instead nothing;", "has rule nothing"),
    "a view with its owner's rights": (
        f"{PLAIN} create view public.report as select title from app.old_tasks;",
        "is read by view public.report with the rights of its owner",
    ),
    "a copy": (
        f"{PLAIN} create materialized view public.report as select title from app.old_tasks;",
        "is read by materialized view public.report, a copy",
    ),
    "a view that groups by the key": (
        f"{PLAIN} create view public.report with (security_invoker)"
        " as select id, title from app.old_tasks group by id;",
        "has a key that view public.report groups by",
    ),
    "a publication": (f"{PLAIN} create publication feed for table app.old_tasks;", "is in publication feed"),
    "replica identity": (
        f"{PLAIN} alter table app.old_tasks replica identity using index old_tasks_pkey;",
        "has an index for replica identity",
    ),
    "an exclusion constraint": (
        "create table app.old_tasks (id uuid primary key, at tstzrange, exclude using gist (at with &&));",
        "has exclusion constraint old_tasks_at_excl without organization_id",
    ),
    "a unique index that names organization_id later": (
        "create table app.old_tasks (id uuid primary key, organization_id uuid not null, title text);"
        "create unique index odd on app.old_tasks (lower(title), organization_id);",
        "has unique index odd, which cannot be made again",
    ),
    "a reference from a table that is not adopted": (
        f"{PLAIN} create table app.old_notes (id uuid primary key, task_id uuid references app.old_tasks);",
        "is named by foreign key old_notes_task_id_fkey of app.old_notes, which points here from a table without "
        "organization_id: adopt both in one call: select * from tenancy.adopt_tables('{app.old_notes,app.old_tasks}')",
    ),
    "a reference to a table that is half adopted": (
        "create table app.old_projects (id uuid primary key, organization_id uuid);"
        "create table app.old_tasks (id uuid primary key, project_id uuid references app.old_projects);",
        "which points at a table with organization_id, but no key (organization_id, id): "
        "adopt both in one call: select * from tenancy.adopt_tables('{app.old_projects,app.old_tasks}')",
    ),
    "a reference over several columns that is MATCH FULL": (
        "create table app.old_tasks (id uuid, part int, p_id uuid, p_part int, primary key (id, part),"
        " foreign key (p_id, p_part) references app.old_tasks match full);",
        "MATCH FULL over several columns",
    ),
    "a reference that sets null on update": (
        "create table app.old_tasks (id uuid primary key, parent_id uuid references app.old_tasks on update set null);",
        "sets columns on update",
    ),
    "a name with capitals": ('create table app."Tasks" (id uuid primary key);', "has a name that needs quotes"),
    "a long name": (f"create table app.{'t' * 57} (id uuid primary key);", "has a name of 57 bytes"),
    "a closed schema": (
        "create schema crm authorization postgres; grant usage on schema crm to goldleaves_migrator;"
        "create table crm.old_tasks (id uuid primary key);",
        "lies in schema crm of postgres, where goldleaves_owner may not create, or member not enter: "
        "as its owner: grant usage, create on schema crm to goldleaves_owner",
    ),
    "one of ours": ("", "is one of those that Goldleaves or Postgres itself has made"),
}
NAMES = {
    "a name with capitals": 'app."Tasks"',
    "a long name": f"app.{'t' * 57}",
    "a closed schema": "crm.old_tasks",
    "one of ours": "tenancy.users",
}


def blocked(connection: Connection, tables: str, organization: UUID | None = None) -> list[str]:
    """Everything that was named as being in the way."""
    with pytest.raises(psycopg.Error) as refused, connection.transaction():
        connection.execute("select * from tenancy.adopt_tables(%s::regclass[], %s)", [tables, organization])
    assert refused.value.sqlstate == "PT409", refused.value
    assert str(refused.value).startswith("ADOPTION_BLOCKED: ")
    return (refused.value.diag.message_detail or "").splitlines()


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_is_in_the_way_is_named_with_what_to_do(shared_database: Database, name: str) -> None:
    setup, said = OBSTACLES[name]
    table = NAMES.get(name, "app.old_tasks")
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(connection, setup or "select")
        if name not in ("another owner", "one of ours"):
            kind = {"a view": "view", "a materialized view": "materialized view"}.get(name, "table")
            run(connection, f"alter {kind} {table} owner to goldleaves_owner")
        connection.execute("set local role goldleaves_migrator")
        [reason] = [line for line in blocked(connection, f"{{{table}}}".replace('"', '\\"')) if said in line]
        assert ": " in reason.removeprefix(table)


def test_all_that_is_in_the_way_is_said_at_once(shared_database: Database) -> None:
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute(
            """
            create table app.old_tasks (id uuid primary key, at int4range, exclude using gist (at with &&));
            create table app.old_notes (id uuid primary key, task_id uuid references app.old_tasks);
            insert into app.old_tasks values (gen_random_uuid());
            create policy everybody on app.old_tasks using (true);
            """
        )
        assert len(blocked(connection, "{app.old_tasks}")) == 4
        assert connection.execute("select count(*) from app.old_tasks").fetchone() == (1,)


@pytest.mark.parametrize("hidden", [False, True])
def test_references_across_organizations_are_counted(
    shared_database: Database, make_organization: MakeOrganization, hidden: bool
) -> None:
    one, two = make_organization(shared_database), make_organization(shared_database)
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(
            connection,
            """
            create table app.old_projects (id int primary key, organization_id uuid not null);
            create table app.old_tasks (
              id int primary key, organization_id uuid not null, project_id int references app.old_projects
            );
            insert into app.old_projects values (1, %(one)s), (2, %(two)s);
            insert into app.old_tasks values (1, %(one)s, 1), (2, %(one)s, 2), (3, %(two)s, 1), (4, %(two)s, null);
            """.replace("%(one)s", f"'{one.id}'").replace("%(two)s", f"'{two.id}'"),
        )
        for table in ("old_projects", "old_tasks"):
            run(connection, f"alter table app.{table} owner to goldleaves_owner")
            if hidden:
                run(connection, f"alter table app.{table} enable row level security, force row level security")
        connection.execute("set local role goldleaves_migrator")
        assert blocked(connection, "{app.old_projects,app.old_tasks}") == [
            "app.old_tasks has 2 rows whose old_tasks_project_id_fkey (project_id) refers to a row of another "
            "organization in app.old_projects: give both rows to one organization, or set the reference to null"
        ]


def test_an_organization_that_is_not_there_gets_no_rows(project: Project, shared_database: Database) -> None:
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(connection, PLAIN)
        nobody = uuid4()
        assert blocked(connection, "{app.old_tasks}", nobody) == [
            f"there is no organization {nobody}: name one that exists"
        ]
    with pytest.raises(MigrationError, match=r"^there is no organization nobody: name one by its slug or id$"):
        project.adopt("app.old_tasks", organization="nobody")


def test_only_the_migrator_and_superusers_adopt(shared_database: Database) -> None:
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(connection, PLAIN)
        for role in ("member", "service", "platform_admin", "anon", "sidecar", "goldleaves_kernel"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                run(connection, f"set local role {role}")
                connection.execute("select tenancy.adopt_table('app.old_tasks'::regclass)")


def test_other_grants_go_and_are_named(shared_database: Database) -> None:
    with shared_database.connect() as connection, connection.transaction(force_rollback=True):
        run(
            connection,
            f"{PLAIN} grant select, truncate on app.old_tasks to public;grant update (title) on app.old_tasks to anon;",
        )
        notes = connection.execute(
            "select note from tenancy.adopt_table('app.old_tasks') where note ~ 'could'"
        ).fetchall()
        assert sorted(note.partition(".")[0] for (note,) in notes) == [
            "anon could update",
            "public could select, truncate",
        ]
        grantees = "select distinct grantee from tenancy.grants_on('app.old_tasks') order by 1"
        assert connection.execute(grantees).fetchall() == [("member",), ("platform_admin",)]


def test_a_command_that_is_blocked_says_why_in_a_line_each(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database.migrator)
    with database.connect() as superuser:
        superuser.execute(FAMILY.encode())
    result = CliRunner().invoke(app, ["adopt", "app.old_tasks", "tenancy.users", "--dry-run"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "ADOPTION_BLOCKED: 2 things are in the way",
        "  - app.old_tasks belongs to postgres, and goldleaves_migrator may not act as that role: as a superuser: "
        "alter table app.old_tasks owner to goldleaves_owner",
        "  - tenancy.users is one of those that Goldleaves or Postgres itself has made: name a table of your own",
        "Nothing was changed. Do what each line says, then adopt again.",
    ]
    result = CliRunner().invoke(app, ["adopt", "app.nothing", "--dry-run"])
    assert result.exit_code == 1
    assert result.stderr == 'relation "app.nothing" does not exist. Name tables with their schemas, as app.tasks.\n'

    with database.connect() as superuser:
        superuser.execute("create schema shop create table orders (id uuid primary key)")
    result = CliRunner().invoke(app, ["adopt", "shop.orders", "--dry-run"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "permission denied for schema shop. As its owner: grant usage on schema shop to goldleaves_migrator"
    ]


def test_an_adoption_that_fails_leaves_no_files(project: Project, acme: Organization) -> None:
    project.execute(FAMILY + OWNED)
    files = project.files()
    project.execute(
        """
        create function public.refuse() returns event_trigger language plpgsql as $$ begin raise 'not today'; end $$;
        create event trigger refuse on ddl_command_start when tag in ('ALTER TABLE') execute function public.refuse();
        """
    )
    with pytest.raises(MigrationError, match=rf"migrations/{MIGRATION}\.sql: not today"):
        project.adopt(*TABLES, organization="acme")
    assert project.files() == files
    project.execute("drop event trigger refuse")
    assert project.adopt(*TABLES, organization="acme").migrated


# Under traffic


def test_nobody_is_caught_in_a_deadlock(project: Project, acme: Organization) -> None:
    """Clients take the tables in the order that is not ours, and use what has foreign keys to them."""
    project.execute(FAMILY + OWNED)
    stop, failures, done = Event(), Counter[str](), Counter[int]()

    def work(client: int) -> None:
        with project.database.connect(autocommit=False) as connection:
            while not stop.is_set():
                try:
                    connection.execute("select set_config('app.current_org', %s, true)", [str(acme.id)])
                    connection.execute("select count(*) from app.old_tasks join app.old_comments on task_id = id")
                    connection.execute(
                        """
                        with p as (insert into app.old_projects (code) values (gen_random_uuid()) returning id)
                        insert into app.old_tasks (project_id, title) select id, gen_random_uuid() from p
                        """
                    )
                    connection.execute("update app.old_comments set body = 'x' where number = %s", [client])
                    connection.commit()
                    done[client] += 1
                    stop.wait(0.05)  # nobody works all the time, and adopting gives way to whoever does
                except psycopg.Error as error:
                    failures[str(error)] += 1
                    connection.rollback()

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(work, client) for client in range(4)]
        try:
            assert eventually(lambda: len(done) == 4, bool)
            project.adopt(*TABLES, organization="acme")
            before = Counter(done)
            assert eventually(lambda: all(done[client] > before[client] for client in range(4)), bool)
        finally:
            stop.set()
        for client in clients:
            client.result()
    assert failures == {}


# An adopted table among the others: the same invariants, by the same tests

VIEW = """
create view api.old_tasks with (security_invoker) as
select id, organization_id, project_id, parent_id, title, assignee, done, created_by, created_at from app.old_tasks;
comment on view api.old_tasks is 'Tasks of a project.';
grant select, delete on api.old_tasks to member;
grant insert (organization_id, id, project_id, parent_id, title, assignee, done, created_by, created_at),
  update (organization_id, id, project_id, parent_id, title, assignee, done, created_by, created_at)
  on api.old_tasks to member;
grant select on api.old_tasks to platform_admin;
"""


@pytest.fixture(scope="module")
def world(stack: RunningStack, make_organization: MakeOrganization, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two organizations with an adopted task each, of the same id, and a view of them."""
    attacker, victim = (make_organization(stack.database, slug) for slug in ("attacker", "victim"))
    project = Project(tmp_path_factory.mktemp("project"), stack.database)
    project.execute(FAMILY + OWNED)
    project.adopt(*TABLES, organization="victim")
    project.write("sql/api/old_tasks.sql", VIEW)
    project.migrate()
    with stack.database.connect() as superuser:
        superuser.execute("delete from app.old_tasks where title = 'Two'")
        row = superuser.execute(
            """
            insert into app.old_projects (organization_id, id, code, name) overriding system value
            select %(attacker)s, id, code, name from app.old_projects where organization_id = %(victim)s
            returning 1
            """,
            {"attacker": attacker.id, "victim": victim.id},
        ).fetchall()
        assert len(row) == 2
        superuser.execute(
            """
            insert into app.old_tasks (organization_id, id, project_id, title, assignee)
            select %(attacker)s, id, project_id, title, assignee from app.old_tasks where organization_id = %(victim)s
            """,
            {"attacker": attacker.id, "victim": victim.id},
        )
        relations = tuple(r for r in tenant_relations(superuser) if r.name in ("app.old_tasks", "api.old_tasks"))
        assert len(relations) == 2
        row_id = UUID("00000000-0000-4000-8000-000000000001")
        superuser.execute(
            """
            insert into tenancy.api_keys (id, kind, organization_id, name, prefix, key_sha256, scopes)
            values (%s, 'organization', %s, 'A key', 'aaaaaaaaaaaa', sha256('x'), '{data:read,data:write}')
            """,
            [row_id, attacker.id],
        )
    return World(stack.database, attacker, victim, row_id, row_id, relations)


@pytest.fixture
def connection(world: World) -> Iterator[Connection]:
    with world.database.connect("authenticator") as opened:
        yield opened


@pytest.mark.parametrize("verb", ["select", "insert", "update", "delete"])
def test_nothing_of_another_organization(world: World, connection: Connection, verb: str) -> None:
    found = {name: leaks(world, connection, caller(world), verb) for name, caller in CALLERS.items()}
    assert not any(found.values()), found


STATEMENTS: Mapping[str, str] = {
    "select": "select 1 from {}",
    "insert": "insert into {} (project_id, title) values (1, 'New')",
    "update": "update {} set title = 'Changed'",
    "delete": "delete from {}",
}


@pytest.mark.parametrize("role", ROLES)
def test_roles_may_do_what_they_may_with_the_tenants_own_tables(
    world: World, connection: Connection, role: str
) -> None:
    with request(connection, Caller("member", world.attacker[role].subject)):
        for letter, verbs in GRID_VERBS.items():
            for verb in verbs:
                for table in ("app.old_tasks", "api.old_tasks"):
                    outcome = refusal_or_count(connection, STATEMENTS[verb].format(table))
                    refused = outcome == 0 or isinstance(outcome, psycopg.errors.InsufficientPrivilege)
                    assert refused or isinstance(outcome, int), outcome
                    assert refused != (letter in GRID[role]["app"]), f"{role} {verb} {table}: {outcome}"


def test_postgrest_serves_it_like_a_table_of_ours(stack: RunningStack, world: World) -> None:
    with stack.client(world.attacker["owner"].subject) as client:
        ask: Callable[..., httpx.Response] = client.request
        answer = eventually(
            lambda: ask("GET", "/api/v1/old_tasks?select=title,assignee"), lambda found: found.status_code == 200
        )
        assert answer.json() == [{"title": "One\n", "assignee": "x"}]
        row = ask("GET", "/api/v1/old_tasks").json()[0]
        upsert = {"Prefer": "resolution=merge-duplicates,return=representation"}
        sent = {**row, "title": "Mine", "created_by": "somebody"}
        for path in ("/api/v1/old_tasks", "/api/v1/old_tasks?on_conflict=organization_id,id"):
            answer = ask("POST", path, json=sent, headers=upsert)
            assert answer.json() == [{**row, "title": "Mine"}], answer.text
        for other in (uuid4(), world.victim.id):
            answer = ask("POST", "/api/v1/old_tasks", json={**sent, "organization_id": str(other)})
            assert answer.status_code == 403, answer.text
        answer = ask("PATCH", f"/api/v1/old_tasks?id=eq.{row['id']}", json={"id": str(uuid4())})
        assert answer.json()["message"].startswith("ID_IS_FIXED: "), answer.text
    with world.database.connect() as superuser:
        kept = superuser.execute(
            "select title from app.old_tasks where organization_id = %s", [world.victim.id]
        ).fetchall()
    assert kept == [("One\n",)]


def test_the_catalog_of_an_adopted_table_is_that_of_ours(world: World) -> None:
    with world.database.connect() as superuser:
        wrong = superuser.execute(
            """
            select i.indexrelid::regclass::text from pg_index i
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
            where i.indrelid = any (%(tables)s::regclass[]) and i.indisunique and a.attname <> 'organization_id'
            union all
            select k.conname from pg_constraint k
            where k.contype = 'f' and k.conrelid = any (%(tables)s::regclass[]) and not exists (
              select from pg_index i
              where i.indrelid = k.conrelid and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
            union all
            select oid::regclass::text from pg_class
            where oid = any (%(tables)s::regclass[])
              and not (relrowsecurity and relforcerowsecurity and relowner = 'goldleaves_owner'::regrole)
            """,
            {"tables": list(TABLES)},
        ).fetchall()
    assert wrong == []

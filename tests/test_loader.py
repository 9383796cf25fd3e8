"""The loader: files become behaviour, what a DBA changed by hand is never overwritten, and nothing stays half done.

Each test has a small project of its own: the first migration of the real one, two tables, and a few files.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yoyo  # type: ignore[import-untyped]

from api.migrations import MigrationError, MigrationReport, migrate, rollback, status
from api.release import PolicyConflict, loader
from api.settings import PROJECT, Settings
from api.stack import bootstrap
from tests.harness import Cluster, Database

_number = count(1)

FIRST = next((PROJECT / "migrations").glob("0001_*[a-z].sql")).stem.removesuffix(".rollback")

TABLES = """
set local role goldleaves_owner;
create table app.notes (id int primary key, organization_id uuid, title text, body text);
create table app.tags (id int primary key, name text);
grant usage on schema app to service;
reset role;
"""

NOTES_POLICY = """
alter table app.notes enable row level security;
alter table app.notes force row level security;
create policy notes_read on app.notes for select to member using (organization_id = tenancy.current_org());
grant select on app.notes to member;
grant insert (id, title) on app.notes to member;
"""

TAGS_POLICY = """
alter table app.tags enable row level security;
create policy tags_read on app.tags for select to member using (true);
grant select on app.tags to member;
"""

COUNT_NOTES = """
create or replace function app.count_notes() returns bigint language sql stable set search_path = ''
as $$ select count(*) from app.notes $$;
"""

GUARD_NOTES = """
create or replace function app.guard_notes() returns trigger language plpgsql set search_path = ''
as $$ begin return new; end $$;
create or replace trigger guard_notes before insert on app.notes for each row execute function app.guard_notes();
"""

API = """
create view api.notes with (security_invoker = true) as select id, title, app.count_notes() as notes from app.notes;
grant usage on schema api to member;
grant select on api.notes to member;
"""


class Project:
    """A project on disk that can be edited between two runs, and the database it is migrated to."""

    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.database = database
        for suffix in (".sql", ".rollback.sql"):
            source = PROJECT / "migrations" / f"{FIRST}{suffix}"
            self.write(f"migrations/{source.name}", source.read_text())
        self.write("migrations/0002_create_notes.sql", TABLES)
        self.write(
            "migrations/0002_create_notes.rollback.sql",
            "drop table app.notes; drop table app.tags; revoke usage on schema app from service;",
        )
        shutil.copy(PROJECT / "migrations" / "post-apply.py", root / "migrations")
        # What migrate calls at its end.
        self.write(
            "sql/billing/seed.sql",
            function("billing.seed_prices(p numeric)", "void", "select")
            + function("billing.set_defaults(p int, q int, r text)", "void", "select")
            + function("stripe.set_plan_prices(p jsonb)", "void", "select"),
        )
        self.write("sql/metering/begin.sql", function("metering.begin_generation()", "int", "select null::int"))
        self.write("sql/ops/maintain.sql", function("ops.maintain()", "void", "select"))
        self.write("sql/app/count_notes.sql", COUNT_NOTES)
        self.write("sql/app/guard_notes.sql", GUARD_NOTES)
        self.write("sql/api/notes.sql", API)
        self.write("policies/app.notes.sql", NOTES_POLICY)
        self.write("policies/app.tags.sql", TAGS_POLICY)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def migrate(self) -> MigrationReport:
        return migrate(self.database.migrator, Settings(), self.root)

    def migrate_in_process(self) -> subprocess.Popen[bytes]:
        script = (
            "import sys; from pathlib import Path\n"
            "from api.migrations import migrate; from api.settings import Settings\n"
            "migrate(sys.argv[1], Settings(), Path(sys.argv[2]))"
        )
        return subprocess.Popen([sys.executable, "-c", script, self.database.migrator, str(self.root)], cwd=PROJECT)

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return connection.execute(text.encode()).fetchall()

    def execute(self, text: str) -> None:
        with self.database.connect() as connection:
            connection.execute(text.encode())

    def exists(self, function_name: str) -> bool:
        return bool(self.query(f"select from pg_proc where oid = to_regproc('{function_name}')"))


def function(signature: str, result: str, body: str) -> str:
    return f"create or replace function {signature} returns {result} language sql volatile as $$ {body} $$;\n"


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path: Path, empty_database: Database) -> Project:
    return Project(tmp_path, empty_database)


@pytest.fixture(scope="module")
def loaded_once(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The small project as its first migrate leaves it. Never connect to it: it is copied."""
    database = cluster.database("goldleaves_small")
    bootstrap.create_database(cluster.server_url, database.name)
    Project(tmp_path_factory.mktemp("small"), database).migrate()
    yield database
    cluster.drop(database)


@pytest.fixture
def loaded(cluster: Cluster, loaded_once: Database, tmp_path: Path) -> Iterator[Project]:
    """The small project, loaded."""
    database = cluster.copy(loaded_once, f"goldleaves_small_{next(_number)}")
    yield Project(tmp_path, database)
    cluster.drop(database)


# Files become behaviour


def test_a_first_load_runs_every_file_in_order(project: Project) -> None:
    report = project.migrate()
    assert report.applied == (FIRST, "0002_create_notes")
    assert report.loaded == (
        "sql/app/count_notes.sql",
        "sql/app/guard_notes.sql",
        "sql/billing/seed.sql",
        "sql/metering/begin.sql",
        "sql/ops/maintain.sql",
        "sql/api/notes.sql",
        "policies/app.notes.sql",
        "policies/app.tags.sql",
    )
    assert project.migrate() == MigrationReport((), (), (), "0002_create_notes")


def test_a_file_may_need_what_a_later_one_makes(project: Project) -> None:
    trigger = GUARD_NOTES[GUARD_NOTES.index("create or replace trigger") :]
    project.write("sql/app/attach_guards.sql", trigger)
    project.write("sql/app/guard_notes.sql", GUARD_NOTES.replace(trigger, ""))
    project.write("sql/api/first_notes.sql", "create view api.first_notes as select * from api.last_notes;")
    project.write("sql/api/last_notes.sql", "create view api.last_notes as select * from api.notes;")
    assert project.migrate().loaded == (
        "sql/app/count_notes.sql",
        "sql/app/guard_notes.sql",
        "sql/billing/seed.sql",
        "sql/metering/begin.sql",
        "sql/ops/maintain.sql",
        "sql/app/attach_guards.sql",
        "sql/api/notes.sql",
        "sql/api/last_notes.sql",
        "sql/api/first_notes.sql",
        "policies/app.notes.sql",
        "policies/app.tags.sql",
    )
    objects = project.query("select objects from ops.releases order by id desc limit 1")[0][0]
    assert objects["sql/app/attach_guards.sql"] == ["trigger guard_notes on app.notes"]


def test_files_that_need_what_none_makes_are_named(loaded: Project) -> None:
    loaded.write("sql/app/a.sql", GUARD_NOTES.replace("guard_notes", "guard_a").replace("app.notes", "app.nothing"))
    loaded.write("sql/app/b.sql", "alter function app.guard_a() owner to goldleaves_owner;")
    with pytest.raises(MigrationError) as error:
        loaded.migrate()
    assert set(str(error.value).splitlines()) == {
        'sql/app/a.sql: relation "app.nothing" does not exist',
        "sql/app/b.sql: function app.guard_a() does not exist",
    }
    assert not loaded.exists("app.guard_a")


def test_only_changed_files_run_and_api_is_rebuilt_as_a_whole(loaded: Project) -> None:
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES.replace("count(*)", "count(*) + 1"))
    assert loaded.migrate().loaded == ("sql/app/count_notes.sql", "sql/api/notes.sql")
    assert loaded.query("select app.count_notes()") == [(1,)]
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_a_changed_policy_file_leaves_every_other_table_alone(loaded: Project) -> None:
    watched = "select oid, xmin from pg_policy where polrelid = 'app.tags'::regclass"
    table = "select xmin from pg_class where oid = 'app.tags'::regclass"
    before = loaded.query(watched), loaded.query(table)
    loaded.write("policies/app.notes.sql", NOTES_POLICY.replace("notes_read", "notes_select").replace("title", "body"))
    assert loaded.migrate().loaded == ("policies/app.notes.sql",)
    assert (loaded.query(watched), loaded.query(table)) == before
    assert loaded.query("select polname from pg_policy where polrelid = 'app.notes'::regclass") == [("notes_select",)]
    columns = "select has_column_privilege('member', 'app.notes', c, 'insert') from unnest(array['title', 'body']) as c"
    assert loaded.query(columns) == [(False,), (True,)]


def test_a_deleted_file_drops_its_objects(loaded: Project) -> None:
    loaded.remove("sql/app/guard_notes.sql")
    report = loaded.migrate()
    assert report.dropped == ("function app.guard_notes()", "trigger guard_notes on app.notes")
    assert not loaded.exists("app.guard_notes")
    assert loaded.query("select from pg_trigger where tgname = 'guard_notes'") == []


def test_an_object_removed_from_its_file_is_dropped(loaded: Project) -> None:
    loaded.write(
        "sql/app/more.sql", function("app.one()", "int", "select 1") + function("app.two()", "int", "select 2")
    )
    loaded.migrate()
    loaded.write("sql/app/more.sql", function("app.two()", "int", "select 2"))
    assert loaded.migrate().dropped == ("function app.one()",)
    assert (loaded.exists("app.one"), loaded.exists("app.two")) == (False, True)


RETURNED = {
    "sql/app/a_totals.sql": function("app.weigh(p int)", "int", "select p * 2")
    + "create or replace view app.totals as select app.weigh(1) as total;\n",
    "sql/app/b_totals.sql": function("app.totals_of(p int)", "setof app.totals", "select * from app.totals")
    + "create or replace view app.all_totals as select * from app.totals_of(1);\n",
}


def test_functions_that_return_the_rows_of_a_view_go_with_it(loaded: Project) -> None:
    for path, text in RETURNED.items():
        loaded.write(path, text)
    loaded.migrate()
    assert loaded.query("select * from app.all_totals") == [(2,)]
    loaded.write("sql/app/a_totals.sql", RETURNED["sql/app/a_totals.sql"].replace("app.weigh(1)", "app.weigh(1)::text"))
    assert loaded.migrate().dropped == ()
    assert loaded.query("select * from app.all_totals") == [("2",)]
    for path in RETURNED:
        loaded.remove(path)
    made = ("function app.totals_of(integer)", "function app.weigh(integer)", "view app.all_totals", "view app.totals")
    assert loaded.migrate().dropped == made
    assert loaded.query("select from pg_class where relname in ('totals', 'all_totals')") == []


def test_an_object_that_moves_to_another_file_stays(loaded: Project) -> None:
    loaded.remove("sql/app/count_notes.sql")
    loaded.write("sql/app/a_new_home.sql", COUNT_NOTES)
    assert loaded.migrate().dropped == ()
    assert loaded.exists("app.count_notes")


@pytest.mark.parametrize("home", ["sql/app/a_new_home.sql", "sql/app/z_new_home.sql"])
@pytest.mark.parametrize("old_file_stays", [True, False])
def test_an_object_that_moves_and_changes_keeps_nothing_of_before(
    loaded: Project, home: str, old_file_stays: bool
) -> None:
    given = "grant execute on function app.moving(int) to"
    body = function("app.moving(p int)", "int", "select 1")
    loaded.write("sql/app/moving.sql", f"{body} {given} member;")
    loaded.migrate()
    loaded.write(home, f"{body.replace('(p int)', '(q int)')} {given} service;")
    if old_file_stays:
        loaded.write("sql/app/moving.sql", function("app.staying()", "int", "select 1"))
    else:
        loaded.remove("sql/app/moving.sql")
    assert loaded.migrate().dropped == ()
    look = "has_function_privilege('{}', 'app.moving(int)', 'execute')"
    assert loaded.query(f"select {look.format('member')}, {look.format('service')}") == [(False, True)]


def test_what_only_an_old_policy_was_built_on_goes_with_it(loaded: Project) -> None:
    loaded.write("sql/app/may.sql", function("app.may()", "bool", "select true"))
    loaded.write("policies/app.tags.sql", TAGS_POLICY.replace("using (true)", "using (app.may())"))
    loaded.migrate()
    loaded.remove("sql/app/may.sql")
    with pytest.raises(MigrationError, match=r"policy tags_read on table app\.tags depends on function app\.may\(\)"):
        loaded.migrate()
    loaded.write("policies/app.tags.sql", TAGS_POLICY)
    assert loaded.migrate().dropped == ("function app.may()",)
    assert not loaded.exists("app.may")


def test_an_object_that_others_are_built_on_is_not_dropped(loaded: Project) -> None:
    loaded.execute("create view public.report as select app.count_notes() as n")
    loaded.remove("sql/app/count_notes.sql")
    loaded.remove("sql/api/notes.sql")
    with pytest.raises(MigrationError, match=r"view public\.report depends on function app\.count_notes\(\)"):
        loaded.migrate()
    assert loaded.query("select * from public.report") == [(0,)]
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_a_deleted_policy_file_closes_its_table(loaded: Project) -> None:
    loaded.remove("policies/app.notes.sql")
    loaded.migrate()
    assert loaded.query("select polname from pg_policy where polrelid = 'app.notes'::regclass") == []
    assert loaded.query(
        """
        select c.relrowsecurity, array_agg(distinct entry.grantee::regrole::text)
        from pg_class c, aclexplode(c.relacl) as entry
        where c.oid = 'app.notes'::regclass
        group by 1
        """
    ) == [(True, ["goldleaves_owner"])]
    loaded.execute("grant select on app.notes to member")  # no longer under our care, so no conflict
    assert loaded.migrate().loaded == ()


def test_an_object_that_went_missing_is_made_again(loaded: Project) -> None:
    loaded.execute("drop function app.guard_notes() cascade")
    assert "sql/app/guard_notes.sql" in loaded.migrate().loaded
    assert loaded.exists("app.guard_notes")


def test_a_changed_result_type_is_carried_through_what_is_built_on_it(loaded: Project) -> None:
    loaded.write("sql/app/totals.sql", "create or replace view app.totals as select app.count_notes() as n;")
    loaded.migrate()
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES.replace("bigint", "text").replace("count(*)", "count(*)::text"))
    report = loaded.migrate()
    assert {"sql/app/count_notes.sql", "sql/app/totals.sql"} <= set(report.loaded)
    assert report.dropped == ()
    assert loaded.query("select n from app.totals") == [("0",)]


def test_a_changed_result_type_stops_at_what_is_not_ours(loaded: Project) -> None:
    loaded.execute("create view public.report as select app.count_notes() as n")
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES.replace("bigint", "text").replace("count(*)", "count(*)::text"))
    with pytest.raises(MigrationError, match=r"view public\.report depends on function app\.count_notes\(\)"):
        loaded.migrate()


def test_views_of_api_do_not_bind_to_a_signature_that_is_gone(loaded: Project) -> None:
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES.replace("count_notes()", "count_notes(p_from int default 0)"))
    assert loaded.migrate().dropped == ("function app.count_notes()",)
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_grants_and_owner_are_those_of_the_file_alone(loaded: Project) -> None:
    given = (
        "alter function app.count_notes() owner to goldleaves_kernel; grant execute on function app.count_notes() to"
    )
    loaded.write("sql/app/count_notes.sql", f"{COUNT_NOTES} {given} member, public;")
    loaded.migrate()
    look = """
        select pg_get_userbyid(proowner), has_function_privilege('member', oid, 'execute'),
          has_function_privilege('anon', oid, 'execute'), has_function_privilege('service', oid, 'execute')
        from pg_proc where oid = to_regproc('app.count_notes')
    """
    assert loaded.query(look) == [("goldleaves_kernel", True, True, True)]
    loaded.write("sql/app/count_notes.sql", f"{COUNT_NOTES} grant execute on function app.count_notes() to service;")
    loaded.migrate()
    assert loaded.query(look) == [("goldleaves_owner", False, False, True)]


def test_guards_of_partitions_survive_when_their_function_is_made_anew(loaded: Project) -> None:
    helper = function("app.helper()", "int", "select 1")
    guard = GUARD_NOTES.split("create or replace trigger")[0].replace("return new", "return null")
    loaded.write("sql/app/guard_notes.sql", helper + guard)
    loaded.migrate()
    loaded.execute(
        """
        set role goldleaves_owner;
        create table app.parts (id int) partition by range (id);
        create table app.part_1 partition of app.parts for values from (0) to (10);
        create trigger guard before truncate on app.part_1 for each statement execute function app.guard_notes();
        """
    )
    loaded.write("sql/app/guard_notes.sql", helper.replace("returns int", "returns bigint") + guard)
    loaded.migrate()
    assert loaded.query("select tgrelid::regclass::text from pg_trigger where tgname = 'guard'") == [("app.part_1",)]


def test_triggers_of_partitions_belong_to_no_file(loaded: Project) -> None:
    loaded.execute(
        """
        set role goldleaves_owner;
        create table app.parts (id int) partition by range (id);
        create table app.part_1 partition of app.parts for values from (0) to (10);
        """
    )
    attach = "create or replace trigger guard before truncate on app.part_1 execute function app.guard_notes();"
    loaded.write("sql/app/guard_notes.sql", GUARD_NOTES + attach)
    loaded.migrate()
    loaded.execute("drop table app.part_1")
    assert loaded.migrate().loaded == ()


# What a DBA did by hand


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("alter policy notes_read on app.notes using (true)", "policy notes_read: using was"),
        ("alter policy notes_read on app.notes to service", "policy notes_read: roles was member, is service"),
        ("drop policy notes_read on app.notes", "policy notes_read was dropped"),
        ("create policy extra on app.notes using (true)", "policy extra was added"),
        ("alter table app.notes no force row level security", "forced row security was on, is off"),
        ("alter table app.notes disable row level security", "row security was on, is off"),
        ("grant delete on app.notes to service", "grant delete to service was added"),
        ("grant update (body) on app.notes to member", r"grant update \(body\) to member was added"),
        ("revoke select on app.notes from member", "grant select to member was revoked"),
        ("alter table app.notes owner to goldleaves_kernel", "owner was goldleaves_owner, is goldleaves_kernel"),
        ("drop table app.notes cascade", "the table is gone"),
    ],
)
def test_a_change_by_hand_stops_the_load_and_is_not_overwritten(loaded: Project, change: str, said: str) -> None:
    state = """
        select (select array_agg((p.*)::text order by oid) from pg_policy p),
          (select array_agg((relname, relacl, relowner, relrowsecurity, relforcerowsecurity)::text order by oid)
           from pg_class where relname in ('notes', 'tags')),
          (select array_agg(attacl::text) from pg_attribute where attacl is not null)
    """
    loaded.execute(change)
    before = loaded.query(state)
    loaded.write("policies/app.notes.sql", NOTES_POLICY + "-- touched")
    loaded.write("policies/app.tags.sql", TAGS_POLICY + "grant insert on app.tags to member;")
    loaded.write("sql/app/new.sql", function("app.new()", "int", "select 1"))
    with pytest.raises(PolicyConflict, match=f"app.notes: .*{said}"):
        loaded.migrate()
    assert loaded.query(state) == before
    assert not loaded.exists("app.new")


def test_a_change_by_hand_stops_a_migration_and_a_rollback_too(loaded: Project) -> None:
    loaded.execute("grant delete on app.notes to service")
    loaded.write("migrations/0003_create_more.sql", "create table app.more (id int);")
    loaded.write("migrations/0003_create_more.rollback.sql", "drop table app.more;")
    for attempt in (loaded.migrate, lambda: rollback(loaded.database.migrator, None, loaded.root)):
        with pytest.raises(PolicyConflict, match=r"app\.notes: grant delete to service was added"):
            attempt()
    assert status(loaded.database.migrator, loaded.root).applied == (FIRST, "0002_create_notes")


def test_a_change_that_was_taken_back_is_no_conflict(loaded: Project) -> None:
    loaded.execute("grant delete on app.notes to service")
    loaded.execute("revoke delete on app.notes from service")
    assert loaded.migrate().loaded == ()


def test_what_a_migration_does_to_grants_is_no_conflict(loaded: Project) -> None:
    loaded.write("policies/app.notes.sql", NOTES_POLICY.replace("title", "body"))
    loaded.migrate()
    loaded.write("migrations/0003_drop_body.sql", "alter table app.notes drop column body;")
    loaded.write("sql/app/broken.sql", "nonsense;")
    with pytest.raises(MigrationError, match="nonsense"):
        loaded.migrate()  # applied, and the grant on the column is gone with it, but nothing was loaded
    assert status(loaded.database.migrator, loaded.root).pending == ()
    loaded.remove("sql/app/broken.sql")
    loaded.write("policies/app.notes.sql", NOTES_POLICY)
    assert loaded.migrate().loaded == ("policies/app.notes.sql",)


# The schema api


def test_what_is_built_on_api_is_listed_and_kept(loaded: Project) -> None:
    loaded.execute("create view public.first as select title from api.notes")
    loaded.execute("create function public.second() returns setof api.notes language sql as 'select * from api.notes'")
    loaded.write("sql/api/notes.sql", API + "comment on view api.notes is 'changed';")
    with pytest.raises(MigrationError) as error:
        loaded.migrate()
    assert "schema api cannot be rebuilt" in str(error.value)
    assert "view public.first depends on view api.notes" in str(error.value)
    assert "function public.second() depends on" in str(error.value)
    assert loaded.query("select count(*) from public.first") == [(0,)]
    loaded.execute("drop view public.first; drop function public.second()")
    assert loaded.migrate().loaded == ("sql/api/notes.sql",)


# Broken files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            COUNT_NOTES.replace("app.notes", "app.nothing"),
            r'sql/app/count_notes\.sql:3: function app\.count_notes\(\): relation "app\.nothing" does not exist',
        ),
        (
            COUNT_NOTES
            + "create or replace function app.f() returns int language plpgsql as $$ begin retrun 1; end $$;",
            r'sql/app/count_notes\.sql:4: .*syntax error at or near "retrun"',
        ),
        (COUNT_NOTES + "\n\nselect nonsense;", r'sql/app/count_notes\.sql:6: column "nonsense" does not exist'),
        (
            COUNT_NOTES + "Grant usage\n on schema app to anon;",
            r"sql/app/count_notes\.sql: a grant on a schema would outlive",
        ),
        (COUNT_NOTES + "/* now */ COMMIT ;", r"sql/app/count_notes\.sql: it says COMMIT, but a file must not"),
        (COUNT_NOTES + "END\n;", r"sql/app/count_notes\.sql: it says end, but a file must not"),
        (COUNT_NOTES + "prepare transaction 'x';", r"sql/app/count_notes\.sql: it says prepare transaction, but a"),
    ],
)
def test_a_broken_file_is_named_and_the_old_release_stays(loaded: Project, text: str, said: str) -> None:
    releases = loaded.query("select max(id) from ops.releases")
    loaded.write("policies/app.tags.sql", TAGS_POLICY + "grant insert on app.tags to member;")
    loaded.write("sql/app/count_notes.sql", text)
    with pytest.raises(MigrationError, match=said):
        loaded.migrate()
    assert loaded.query("select app.count_notes()") == [(0,)]
    assert loaded.query("select count(*) from api.notes") == [(0,)]
    assert loaded.query("select has_table_privilege('member', 'app.tags', 'insert')") == [(False,)]
    assert loaded.query("select max(id) from ops.releases") == releases
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES)
    assert "policies/app.tags.sql" in loaded.migrate().loaded


def test_words_that_only_look_like_transaction_commands_are_fine(loaded: Project) -> None:
    body = "create or replace procedure app.p() language plpgsql as $body$ begin commit; rollback; end $body$;"
    body += "create or replace function app.q() returns int begin atomic; select case when true then 1 end; end;\n"
    loaded.write("sql/app/words.sql", f"-- ;commit\n{body}\ncomment on procedure app.p() is 'it''s; commit; done';")
    assert "sql/app/words.sql" in loaded.migrate().loaded


def test_a_migration_that_commits_is_refused(loaded: Project) -> None:
    loaded.write("migrations/0003_create_more.sql", "create table app.more (id int); commit;")
    with pytest.raises(MigrationError, match=r"migrations/0003_create_more\.sql: it says commit"):
        loaded.migrate()
    assert loaded.query("select to_regclass('app.more')") == [(None,)]


def test_an_empty_directory_does_not_empty_the_database(loaded: Project) -> None:
    shutil.rmtree(loaded.root / "sql")
    shutil.rmtree(loaded.root / "policies")
    with pytest.raises(MigrationError, match="is this the project's directory"):
        loaded.migrate()
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_a_broken_migration_names_file_and_line_and_leaves_nothing(loaded: Project) -> None:
    loaded.write(
        "migrations/0003_create_more.sql", "create table app.more (id int);\n\ncreate table app.more (id nothing);"
    )
    with pytest.raises(MigrationError, match=r"migrations/0003_create_more\.sql:3: .*nothing"):
        loaded.migrate()
    assert loaded.query("select to_regclass('app.more')") == [(None,)]
    assert status(loaded.database.migrator, loaded.root).pending == ("0003_create_more",)


def test_a_policy_file_without_a_table_is_named(loaded: Project) -> None:
    loaded.write("policies/app.nothing.sql", "select 1;")
    with pytest.raises(MigrationError, match=r"policies/app\.nothing\.sql: there is no table app\.nothing"):
        loaded.migrate()


# Under traffic, side by side, and after a kill


def test_a_load_waits_out_traffic(loaded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOCK_TIMEOUT", "50ms")
    loaded.write("policies/app.notes.sql", NOTES_POLICY + "grant update on app.notes to member;")
    with loaded.database.connect(autocommit=False) as reader, ThreadPoolExecutor() as pool:
        reader.execute("select count(*) from app.notes")
        report = pool.submit(loaded.migrate)
        timeouts = 0
        while timeouts < 3:  # it came back at least twice
            timeouts += _waits_for_lock(loaded)
            assert not report.done()
            time.sleep(0.06)
        reader.rollback()
        assert report.result(30).loaded == ("policies/app.notes.sql",)


def test_a_second_migrate_waits_for_the_first(loaded: Project) -> None:
    _block(loaded)
    with loaded.database.connect() as gate, ThreadPoolExecutor() as pool:
        gate.execute("select pg_advisory_lock(1)")
        first = pool.submit(loaded.migrate)
        wait_until(lambda: _waits_for_lock(loaded))
        second = pool.submit(loaded.migrate)
        wait_until(lambda: _connected(loaded) == 3)  # the first has two connections, the second asks for the lock
        time.sleep(0.3)
        assert (first.done(), second.done()) == (False, False)
        gate.execute("select pg_advisory_unlock(1)")
        assert first.result(30).applied == ("0003_block",)
        assert second.result(30).applied == ()


def test_a_migrate_that_was_killed_in_a_migration_is_finished_by_the_next(loaded: Project) -> None:
    _block(loaded)
    with loaded.database.connect() as gate:
        gate.execute("select pg_advisory_lock(1)")
        killed = loaded.migrate_in_process()
        wait_until(lambda: _waits_for_lock(loaded))
        killed.kill()
        killed.wait()
        assert loaded.query("select count(*) from yoyo.yoyo_lock") == [(1,)]
    report = loaded.migrate()
    assert report.applied == ("0003_block",)
    assert loaded.query("select count(*) from app.blocked") == [(0,)]
    assert loaded.query("select count(*) from yoyo.yoyo_lock") == [(0,)]


def test_a_migrate_that_was_killed_while_loading_is_finished_by_the_next(project: Project) -> None:
    project.write("sql/app/zz_block.sql", "select pg_advisory_xact_lock(1);")
    with project.database.connect() as gate:
        gate.execute("select pg_advisory_lock(1)")
        killed = project.migrate_in_process()
        wait_until(lambda: _waits_for_lock(project))
        killed.kill()
        killed.wait()
        assert status(project.database.migrator, project.root).pending == ()
        assert not project.exists("app.count_notes")
        assert project.query("select count(*) from ops.releases") == [(0,)]
    report = project.migrate()
    assert (report.applied, len(report.loaded)) == ((), 9)
    assert project.query("select count(*) from api.notes") == [(0,)]


def _block(project: Project) -> None:
    project.write("migrations/0003_block.sql", "create table app.blocked (id int); select pg_advisory_xact_lock(1);")
    project.write("migrations/0003_block.rollback.sql", "drop table app.blocked;")


def _waits_for_lock(project: Project) -> bool:
    return bool(
        project.query(
            f"select from pg_stat_activity where datname = '{project.database.name}' and wait_event_type = 'Lock'"
        )
    )


def _connected(project: Project) -> int:
    migrators = "select from pg_stat_activity where usename = 'goldleaves_migrator' and datname ="
    return len(project.query(f"{migrators} '{project.database.name}'"))


# Migrations of other kinds


def test_a_migration_may_change_what_behaviour_is_built_on(loaded: Project) -> None:
    loaded.write("migrations/0003_widen_notes.sql", "alter table app.notes alter column title type varchar(80);")
    report = loaded.migrate()
    assert report.applied == ("0003_widen_notes",)
    assert set(report.loaded) == {
        path.relative_to(loaded.root).as_posix()
        for folder in ("sql", "policies")
        for path in (loaded.root / folder).rglob("*.sql")
    }
    assert loaded.query("select count(*) from api.notes") == [(0,)]
    assert loaded.query("select polname from pg_policy order by 1") == [("notes_read",), ("tags_read",)]
    assert loaded.migrate().loaded == ()


def test_migrations_outside_a_transaction_and_in_python(loaded: Project) -> None:
    loaded.write(
        "migrations/0003_index_notes.sql",
        "-- transactional: false\ncreate index concurrently if not exists notes_title on app.notes (title);",
    )
    loaded.write(
        "migrations/0004_fill_tags.py",
        "from yoyo import step\nstep(\"insert into app.tags values (1, 'one')\", 'delete from app.tags')\n",
    )
    assert loaded.migrate().applied == ("0003_index_notes", "0004_fill_tags")
    assert loaded.query("select indisvalid from pg_index where indexrelid = 'app.notes_title'::regclass") == [(True,)]
    assert loaded.query("select name from app.tags") == [("one",)]
    assert rollback(loaded.database.migrator, "0003", loaded.root).rolled_back == ("0004_fill_tags",)
    assert loaded.query("select name from app.tags") == []


def test_rollback_loads_the_release_it_goes_back_to(loaded: Project) -> None:
    loaded.write("migrations/0003_add_color.sql", "alter table app.notes add color text;")
    loaded.write("migrations/0003_add_color.rollback.sql", "alter table app.notes drop column color;")
    loaded.write("sql/api/notes.sql", API.replace("title", "title, color"))
    loaded.write("sql/app/count_notes.sql", COUNT_NOTES.replace("count(*)", "count(color)"))
    loaded.write("sql/app/later.sql", function("app.later()", "int", "select 1"))
    loaded.migrate()

    report = rollback(loaded.database.migrator, "0002", loaded.root)
    assert (report.rolled_back, report.head, report.behaviour) == (("0003_add_color",), "0002_create_notes", True)
    assert loaded.query("select id, title, notes from api.notes") == []
    assert loaded.query("select app.count_notes()") == [(0,)]
    assert not loaded.exists("app.later")
    assert loaded.query("select polname from pg_policy order by 1") == [("notes_read",), ("tags_read",)]

    assert loaded.migrate().applied == ("0003_add_color",)
    assert loaded.query("select color from api.notes") == []


def test_every_head_that_was_migrated_to_has_its_release(loaded: Project) -> None:
    for name in ("0003_create_more", "0004_create_most"):
        loaded.write(f"migrations/{name}.sql", f"create table app.t{name[:4]} (id int);")
        loaded.write(f"migrations/{name}.rollback.sql", f"drop table app.t{name[:4]};")
        assert loaded.migrate().loaded == ()
    report = rollback(loaded.database.migrator, "0003", loaded.root)
    assert (report.behaviour, len(report.loaded)) == (True, 8)
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_rollback_unloads_what_may_not_fit_any_more(loaded: Project) -> None:
    for name in ("0003_create_more", "0004_create_most"):
        loaded.write(f"migrations/{name}.sql", f"create table app.t{name[:4]} (id int);")
        loaded.write(f"migrations/{name}.rollback.sql", f"drop table app.t{name[:4]};")
    loaded.migrate()
    report = rollback(loaded.database.migrator, "0003", loaded.root)
    assert (report.behaviour, report.loaded) == (False, ())
    assert not loaded.exists("app.count_notes")
    assert loaded.query("select to_regnamespace('api')") == [(None,)]
    assert loaded.query("select from pg_policy") == []
    assert len(loaded.migrate().loaded) == 8


def test_a_rollback_that_is_refused_brings_all_back(loaded: Project) -> None:
    """What serves goes on, also where newer migrations had gone back before the one that refuses."""
    refusal = "do $$ begin raise exception 'there is something new' using hint = 'Restore a backup.'; end $$;"
    for name, back in (("0003_refuse", refusal), ("0004_create_more", "drop table app.t0004;")):
        loaded.write(f"migrations/{name}.sql", f"create table app.t{name[:4]} (id int);")
        loaded.write(f"migrations/{name}.rollback.sql", back)
    loaded.write("sql/app/told.sql", function("app.told()", "bigint", "select count(*) from app.t0004"))
    loaded.migrate()
    with pytest.raises(MigrationError, match="there is something new"):
        rollback(loaded.database.migrator, "0002", loaded.root)
    assert status(loaded.database.migrator, loaded.root).applied[-1] == "0004_create_more"
    assert loaded.query("select app.told()") == [(0,)]
    assert loaded.migrate().loaded == ()


def test_rollback_to_where_nothing_was_ever_loaded_says_so(loaded: Project) -> None:
    report = rollback(loaded.database.migrator, FIRST, loaded.root)
    assert (report.rolled_back, report.loaded, report.behaviour) == (("0002_create_notes",), (), False)
    assert "nothing was loaded" in str(report)
    assert not loaded.exists("ops.maintain")
    assert "sql/ops/maintain.sql" in loaded.migrate().loaded


def test_a_rollback_without_its_file_stops_before_anything_is_undone(loaded: Project) -> None:
    loaded.remove("migrations/0002_create_notes.rollback.sql")
    with pytest.raises(MigrationError, match=r"there is no 0002_create_notes\.rollback\.sql"):
        rollback(loaded.database.migrator, None, loaded.root)
    assert loaded.query("select count(*) from api.notes") == [(0,)]


def test_an_older_checkout_does_not_load_over_a_newer_database(loaded: Project) -> None:
    loaded.remove("migrations/0002_create_notes.sql")
    with pytest.raises(MigrationError, match="no file for 0002_create_notes"):
        loaded.migrate()
    assert status(loaded.database.migrator, loaded.root).unknown == ("0002_create_notes",)


def test_the_plain_yoyo_command_loads_through_its_hook(project: Project) -> None:
    with psycopg.connect(project.database.migrator, autocommit=True) as connection:
        connection.execute("create schema yoyo")
    url = project.database.migrator.replace("postgresql://", "postgresql+psycopg://") + "?schema=yoyo"
    with yoyo.get_backend(url) as backend, backend.lock():
        backend.apply_migrations(backend.to_apply(yoyo.read_migrations(str(project.root / "migrations"))))
    assert project.query("select count(*) from api.notes") == [(0,)]
    assert project.migrate() == MigrationReport((), (), (), "0002_create_notes")

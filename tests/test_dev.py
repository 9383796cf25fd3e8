"""`goldleaves dev` as a developer uses it: a copy of the project, the real command, and files that are saved in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from api.settings import PROJECT
from api.stack.endpoints import Endpoints
from api.stack.processes import Record, members
from api.stack.state import StateDir
from tests.conftest import state_dir
from tests.harness import free_port
from tests.test_stack import traces

PATIENCE_SECONDS = 60
COMMAND = (sys.executable, "-c", "from api.cli import app; app()")

GREETING = """
create function api.greeting() returns text language sql stable set search_path = '' as $$ select '{word}' $$;
comment on function api.greeting() is 'Greets.';
grant usage on schema api to anon;
grant execute on function api.greeting() to anon;
"""

ROUTE = """
from starlette.responses import Response

create_app_before = create_app


def create_app(*arguments: Any) -> Sidecar:
    app = create_app_before(*arguments)
    app.router.routes.append(Route("/word", lambda request: Response("{word}")))
    return app
"""


class Project:
    """A checkout of one's own, and the stack that belongs to it."""

    def __init__(self, root: Path, state: StateDir) -> None:
        self.root = root
        self.state = state
        for folder in ("api", "sql", "policies", "migrations"):
            shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "node_modules").symlink_to(PROJECT / "node_modules")
        settings = ("GATEWAY_PORT", "POSTGREST_PORT", "POSTGRES_PORT")
        self.environment = os.environ | {"STATE_DIR": str(state.root)} | {name: str(free_port()) for name in settings}

    def run(self, *arguments: str) -> None:
        done = subprocess.run((*COMMAND, *arguments), cwd=self.root, env=self.environment, capture_output=True)
        assert done.returncode == 0, done.stderr

    def write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def endpoints(self) -> Endpoints:
        return Endpoints(**json.loads(self.state.stack_file.read_text()))

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.endpoints().database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def get(self, path: str) -> str:
        return httpx.get(f"{self.endpoints().gateway_url}{path}", trust_env=False).text


class Dev:
    """The running command, and what it has said so far."""

    def __init__(self, project: Project) -> None:
        self._output = project.state.root / "dev.out"
        self._read = 0
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                (*COMMAND, "dev"), cwd=project.root, env=project.environment, stdout=output, stderr=output
            )
        self.says("Ctrl-C ends.")

    def says(self, text: str) -> str:
        """Wait for a line with that text. Returns what it said since it was last asked, up to there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            new = self._output.read_text()[self._read :]
            before, found, after = new.partition(text)
            if found and "\n" in after:
                said = before + found + after[: after.index("\n") + 1]
                self._read += len(said)
                return said
            assert time.monotonic() < deadline, f"it never said {text!r}, but: {new}"
            assert self.process.poll() is None, new
            time.sleep(0.02)

    def is_silent(self) -> bool:
        return self._output.read_text()[self._read :].strip() == ""

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_SECONDS) == 0


def becomes(project: Project, path: str, text: str) -> None:
    """PostgREST hears of a new schema by a notification."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while project.get(path) != text:
        assert time.monotonic() < deadline, project.get(path)
        time.sleep(0.02)


@contextmanager
def new_project() -> Iterator[Project]:
    with state_dir() as state:
        root = state.root / "project"
        root.mkdir()
        project = Project(root, state)
        try:
            yield project
        finally:
            project.run("down")


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with new_project() as project:
        yield project


@pytest.fixture(scope="module")
def running(project: Project) -> Iterator[Dev]:
    project.run("up")
    dev = Dev(project)
    try:
        yield dev
    finally:
        dev.process.kill()
        dev.process.wait()


@pytest.fixture
def dev(running: Dev) -> Dev:
    assert running.is_silent()
    return running


def test_saved_sql_is_live(project: Project, dev: Dev) -> None:
    for word in ("hello", "good day"):
        project.write("sql/api/greeting.sql", GREETING.format(word=word))
        said = dev.says("greeting")
        assert re.fullmatch(r"\d\d:\d\d:\d\d loaded sql/api/greeting.sql in \d+\.\d\d s\n", said)
        becomes(project, "/api/v1/rpc/greeting", f'"{word}"')
    (project.root / "sql/api/greeting.sql").unlink()
    dev.says("greeting")
    assert project.execute("select to_regproc('api.greeting')") == [(None,)]


def test_mistakes_in_sql_are_shown_with_their_line_and_change_nothing(project: Project, dev: Dev) -> None:
    good = project.read("sql/billing/rate_period.sql")
    number = good.count("\n") + 1
    project.write("sql/billing/rate_period.sql", good + "create functoin billing.oops();\n")
    before = project.execute("select max(id) from ops.releases")
    assert dev.says("│").splitlines()[1:] == [
        f'         sql/billing/rate_period.sql:{number}: syntax error at or near "functoin"',
        f"         {number:>5} │ create functoin billing.oops();",
    ]
    assert project.execute("select max(id) from ops.releases") == before
    project.write("sql/billing/rate_period.sql", good)
    assert "is what was loaded before" in dev.says("rate_period")


def test_saves_that_come_together_are_one_reload(project: Project, dev: Dev) -> None:
    names = ("billing/one", "metering/two", "tenancy/three", "billing/four")
    for name in names:
        function = name.replace("/", ".")
        project.write(f"sql/{name}.sql", f"create function {function}() returns int language sql as 'select 1';\n")
    said = dev.says(" s")
    assert said.count("\n") == 1
    assert "loaded sql/billing/four.sql, sql/billing/one.sql, sql/metering/two.sql and 1 more in" in said
    for name in names:
        (project.root / f"sql/{name}.sql").unlink()
    assert "dropped function billing.four()" in dev.says("dropped")


def test_drafts_of_editors_are_no_files(project: Project, dev: Dev) -> None:
    """One writes beside the file and renames, another leaves a lock, a third truncates before it writes."""
    path = project.root / "sql/billing/rate_period.sql"
    good = path.read_text()
    (path.parent / ".#rate_period.sql").symlink_to("nobody@nowhere")
    draft = path.with_name(".rate_period.sql.draft.sql")
    draft.write_text(good + "-- Saved by renaming.\n")
    draft.replace(path)
    assert "loaded sql/billing/rate_period.sql in" in dev.says("rate_period")

    path.write_text("")
    assert "it is empty, so nothing is loaded" in dev.says("empty")
    path.write_text(good)
    assert "loaded sql/billing/rate_period.sql in" in dev.says("rate_period")
    (path.parent / ".#rate_period.sql").unlink()


def test_policies_changed_by_hand_are_shown_and_not_overwritten(project: Project, dev: Dev) -> None:
    path = "policies/app.clients.sql"
    good = project.read(path)
    project.execute("grant truncate on app.clients to monitor")
    project.write(path, good + "grant references (id) on app.clients to monitor;\n")
    assert "changed by hand" in dev.says("app.clients: grant truncate to monitor was added")
    assert "goldleaves policies apply" in dev.says("resolve it")
    live = "select has_table_privilege('monitor', 'app.clients', 'truncate')"
    assert project.execute(live) == [(True,)]

    project.execute("revoke truncate on app.clients from monitor")
    project.write(path, good)
    assert "is what was loaded before" in dev.says(path)


def test_new_migrations_are_applied(project: Project, dev: Dev) -> None:
    last = max(path.stem for path in (project.root / "migrations").glob("[0-9]*.sql") if path.stem.count(".") == 0)
    project.write("migrations/9000_make_widgets.sql", "create tabel app.widgets (id int primary key);\n")
    assert "migrations/9000_make_widgets.sql:1: syntax error" in dev.says("│")

    project.write("migrations/9000_make_widgets.sql", "create table app.widgets (id int primary key);\n")
    assert "migrated: at 9000_make_widgets: applied 1 migration" in dev.says("migrated")
    assert project.execute("select count(*) from app.widgets") == [(0,)]

    project.write("migrations/9000_make_widgets.sql", "create table app.gadgets (id int primary key);\n")
    assert f"`goldleaves rollback --to {last.partition('_')[0]}` undoes it" in dev.says("applied already")

    project.write("migrations/9000_make_widgets.rollback.sql", "drop table app.widgets;\n")
    dev.says("nothing to do")
    project.run("rollback", "--to", last)
    (project.root / "migrations/9000_make_widgets.sql").unlink()
    (project.root / "migrations/9000_make_widgets.rollback.sql").unlink()
    dev.says("nothing to do")
    # A rollback loads what was recorded at its target: what was saved since comes back with the next save.
    project.run("migrate")


def test_saved_code_restarts_the_sidecar(project: Project, dev: Dev) -> None:
    good = project.read("api/app.py")
    for word in ("first", "second"):
        project.write("api/app.py", good + ROUTE.format(word=word))
        dev.says("restarted the sidecar for api/app.py in")
        assert project.get("/word") == word

    project.write("api/app.py", good + "def (\n")
    number = good.count("\n") + 1
    assert dev.says("│").splitlines()[1:] == [
        f"         api/app.py:{number}: SyntaxError: invalid syntax",
        f"         {number:>5} │ def (",
    ]
    assert project.get("/word") == "second", "the one that runs goes on"

    project.write("api/app.py", good + "raise SystemExit(3)\n")
    dev.says("failed api/app.py")
    assert project.get("/word") == "second"

    project.write("api/app.py", good)
    dev.says("restarted the sidecar for api/app.py in")
    assert project.get("/word") != "second"


def test_code_of_the_command_itself_restarts_nothing(project: Project, dev: Dev) -> None:
    before = [process.pid for process in members("sidecar", project.state)]
    project.write("api/cli.py", project.read("api/cli.py") + "# Saved.\n")
    dev.says("start it again to run that")
    assert [process.pid for process in members("sidecar", project.state)] == before


def test_a_stack_that_ran_before_runs_on(project: Project, running: Dev) -> None:
    """The last test of those that share the command: it ends it."""
    running.end()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(sidecars := members("sidecar", project.state)) > 1:  # the one in waiting has noticed that nobody needs it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    record = Record.read("sidecar", project.state)
    assert record
    assert [process.pid for process in sidecars] == [record.pid]
    assert json.loads(project.get("/health"))["status"] == "ok"


def test_a_stack_that_did_not_run_is_stopped() -> None:
    with new_project() as project:
        dev = Dev(project)
        dev.end()
        assert traces(project.state) == []

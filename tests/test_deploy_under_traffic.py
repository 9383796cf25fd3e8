"""A deploy fails nobody's request and is finished by the next one wherever it was killed.

Files of every kind change and a migration adds a column, while clients read and write through the gateway, PostgREST
and SQL, and usage comes in.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from api.migrations import MigrationError, MigrationReport, migrate
from api.settings import PROJECT, Settings
from tests.catalogs import catalog_of
from tests.conftest import MakeOrganization
from tests.harness import Cluster, Database, Organization, RunningStack
from tests.observe import eventually
from tests.sql_requests import Caller, enter
from tests.usage import event, ingest

DEPLOYS = 4
KILLS = {"server": 8, "client": 4}

_number = count(1)


class Checkout:
    """The project's files, which change from deploy to deploy."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.release = 0
        for folder in ("migrations", "sql", "policies"):
            shutil.copytree(PROJECT / folder, root / folder)
        self._migrations = len(list((root / "migrations").glob("*.rollback.sql")))

    def change_everything(self) -> None:
        """Each function, trigger and view, four policy files, a grant, and a column that a view of api shows."""
        self.release += 1
        column = f"note_{self.release}"
        name = f"{self._migrations + self.release:04}_add_{column}"
        self._write(f"migrations/{name}.sql", f"alter table app.cases add column {column} text default 'x';")
        self._write(f"migrations/{name}.rollback.sql", f"alter table app.cases drop column {column};")
        policies = ("app.cases", "app.documents", "metering.usage_events", "tenancy.memberships")
        for path in (*self.root.glob("sql/*/*.sql"), *(self.root / f"policies/{table}.sql" for table in policies)):
            path.write_text(f"{path.read_text()}\nselect 'release {self.release}';\n")
        cases = self.root / "policies/app.cases.sql"
        cases.write_text(f"{cases.read_text()}grant insert ({column}) on app.cases to member;\n")
        views = self.root / "sql/api/app.sql"
        before = views.read_text()
        views.write_text(before.replace("\nfrom app.cases", f",\n  {column}\nfrom app.cases"))
        assert views.read_text() != before

    def _write(self, path: str, text: str) -> None:
        (self.root / path).write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


Request = Callable[[], str | None]  # what went wrong


class Traffic:
    """Clients that each repeat a request until they are told to stop."""

    def __init__(self) -> None:
        self.stop = Event()
        self.failures: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def repeat(self, name: str, request: Request) -> None:
        while not self.stop.is_set():
            try:
                failure = request()
            except (httpx.HTTPError, psycopg.Error) as error:
                failure = repr(error)
            self.done[name] += 1
            if failure:
                self.failures[f"{name}: {failure}"] += 1

    def each_has_done(self, names: set[str], more: int) -> bool:
        """Wait until every client has got so many more answers, so that none was idle."""
        before = Counter(self.done)
        return eventually(lambda: min(self.done[name] - before[name] for name in names) >= more, bool, 60)


@contextmanager
def clients(stack: RunningStack, organization: Organization) -> Iterator[dict[str, Request]]:
    owner = organization["owner"].subject

    def http(base: str, method: str, path: str, *, token: str, make: Callable[[], Any] | None = None) -> Request:
        headers = {"Authorization": f"Bearer {token}", "X-Organization-ID": str(organization.id)}
        client = httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False)
        opened.append(client)

        def send() -> str | None:
            answer = client.request(method, path, json=make() if make else None)
            return None if answer.is_success else f"{answer.status_code} {answer.text}"

        return send

    def in_sql() -> str | None:
        with by_hand.transaction():
            enter(by_hand, Caller("member", owner, str(organization.id)))
            by_hand.execute("insert into api.documents (title) values ('A document')")
            by_hand.execute("select id, title from api.cases limit 3").fetchall()
        return None

    def batch() -> str | None:
        answer = ingest(backend, [event(str(uuid4())) for _ in range(20)], organization.id)
        return None if answer.accepted == 20 else str(answer)

    opened: list[httpx.Client] = []
    gateway, direct = f"{stack.gateway_url}/api/v1", stack.postgrest_url
    member, service = stack.token(owner), stack.token("backend", role="service")
    with stack.database.connect("authenticator") as by_hand, stack.database.connect("sidecar") as backend:
        yield {
            "read": http(gateway, "GET", "/cases?limit=5&select=*,clients(*)", token=member),
            "write": http(gateway, "POST", "/cases", token=member, make=lambda: {"title": "A case"}),
            "events": http(gateway, "GET", "/billing_events?limit=3", token=member),
            "direct write": http(direct, "POST", "/documents", token=member, make=lambda: {"title": "A document"}),
            "direct summary": http(direct, "GET", "/rpc/usage_summary", token=member),
            "usage": http(stack.gateway_url, "POST", "/v1/events", token=service, make=lambda: [event(str(uuid4()))]),
            "usage in sql": batch,
            "sql": in_sql,
        }
        for client in opened:
            client.close()


def test_no_request_fails_while_everything_changes(
    stack: RunningStack, make_organization: MakeOrganization, checkout: Checkout
) -> None:
    organization = make_organization(stack.database)
    with stack.database.connect() as superuser:
        # Who waits for a lock longer than this fails, and the test with it. What is promised is 2 s; other tests share
        # these processors, and a deploy that waits while it holds locks would wait without end.
        for role in ("authenticator", "sidecar"):
            superuser.execute(f"alter role {role} in database {stack.database.name} set lock_timeout = '6s'".encode())
            superuser.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and usename = %s",
                [stack.database.name, role],
            )
    traffic = Traffic()
    with clients(stack, organization) as requests, ThreadPoolExecutor(len(requests)) as pool:
        warm = eventually(lambda: [request() for request in requests.values()], lambda problems: not any(problems))
        assert not any(warm), warm
        running = [pool.submit(traffic.repeat, name, request) for name, request in requests.items()]
        try:
            for _ in range(DEPLOYS):
                assert traffic.each_has_done(set(requests), 3)
                checkout.change_everything()
                report = migrate(stack.database.migrator, Settings(), checkout.root)
                assert (len(report.applied), report.dropped) == (1, ())
            assert traffic.each_has_done(set(requests), 3)  # PostgREST has read the new schema meanwhile
        finally:
            traffic.stop.set()
        for client in running:
            client.result()
    assert traffic.failures == {}


def test_of_deploys_at_the_same_time_one_does_the_work(empty_database: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        reports = [pool.submit(migrate, empty_database.migrator, Settings()) for _ in range(3)]
    first, *others = sorted((report.result() for report in reports), key=lambda report: report.applied, reverse=True)
    assert (len(first.applied), first.generation) == (len(list(PROJECT.glob("migrations/*.rollback.sql"))), None)
    assert others == [MigrationReport((), (), (), first.head)] * 2


@contextmanager
def deployed(cluster: Cluster, template: Database) -> Iterator[Database]:
    database = cluster.copy(template, f"goldleaves_deploy_{next(_number)}")
    yield database
    cluster.drop(database)


def spread(most: int, points: int) -> list[int]:
    """Statements to die at, from the first to the last."""
    return [1 + (most - 1) * step // (points - 1) for step in range(points)]


def at_statement(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Do something before that statement is sent. Returns how many there have been."""
    seen, execute = 0, psycopg.Cursor.execute

    def counting(self: psycopg.Cursor[Any], *arguments: Any, **options: Any) -> psycopg.Cursor[Any]:
        nonlocal seen
        if self.connection.info.user == "goldleaves_migrator":
            seen += 1
            if seen == number:
                act()
        return execute(self, *arguments, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counting)
    return lambda: seen


KILLED_CLIENT = """
import os, signal, sys
from pathlib import Path
import pytest
from api.migrations import migrate
from api.settings import Settings
from tests.test_deploy_under_traffic import at_statement
at_statement(int(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
migrate(sys.argv[1], Settings(), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_deploy_killed_anywhere_is_finished_by_the_next(
    cluster: Cluster, template: Database, checkout: Checkout, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    checkout.change_everything()
    with deployed(cluster, template) as database, monkeypatch.context() as patch:
        statements = at_statement(0, lambda: None, patch)
        migrate(database.migrator, Settings(), checkout.root)
        most, expected = statements(), catalog_of(database)

    for number in spread(most, KILLS[side]):
        with deployed(cluster, template) as database:
            if side == "client":
                script = [sys.executable, "-c", KILLED_CLIENT, database.migrator, str(checkout.root), str(number)]
                assert subprocess.run(script, cwd=PROJECT).returncode == -signal.SIGKILL
            else:
                with monkeypatch.context() as patch, pytest.raises(MigrationError):
                    at_statement(number, lambda: cut_off(database), patch)
                    migrate(database.migrator, Settings(), checkout.root)
            migrate(database.migrator, Settings(), checkout.root)
            assert catalog_of(database) == expected, f"killed at statement {number} of {most}"
            with database.connect() as superuser:
                assert superuser.execute("select * from yoyo.yoyo_lock").fetchall() == []


def cut_off(database: Database) -> None:
    with database.connect() as superuser:
        superuser.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s and usename = %s",
            [database.name, "goldleaves_migrator"],
        )

"""A dump, restored as docs/restore.md says, gives the same totals and goes on where the old database ended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.migrations import migrate
from api.settings import PROJECT, Settings
from api.stack.endpoints import SUPERUSER, postgres_url
from api.stack.installations import binaries
from tests.conftest import MAJOR, MakeOrganization, embedded_postgres, state_dir
from tests.harness import Cluster, Database, Organization, RunningStack
from tests.meters import roll_up_all
from tests.observe import assert_problem, eventually, metered_ids, wait_until_shipped
from tests.sql_requests import Caller, enter, request
from tests.usage import Answer, event, finalize, ingest, moment, month, value
from tests.usage_reports import Remembered, build, link, posted, register, settle

GUIDE = (PROJECT / "docs/restore.md").read_text()
BATCH = [event(f"b-{number}", moment(0, minutes=1), quantity=number) for number in range(1, 8)]
LATE_BATCH = [event("late", moment(1, days=3))]


def follow_guide(step: str, directory: Path, **variables: str) -> str:
    """Run the commands of one step of docs/restore.md."""
    [commands] = re.findall(rf"^```sh {step}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    path = os.pathsep.join([str(binaries(MAJOR)), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=directory,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def server_url(database: Database) -> str:
    return postgres_url(SUPERUSER, database.secrets.postgres, database.host, database.port, "").rstrip("/")


@dataclass(frozen=True)
class Books:
    """A database with a finalized month, an open one, and usage of which Stripe has acknowledged a part."""

    database: Database
    organization: Organization

    def facts(self) -> dict[str, Any]:
        """What must be the same wherever the database is."""
        with self.database.connect("authenticator") as connection:
            asked = Caller("member", self.organization["owner"].subject, str(self.organization.id))
            with request(connection, asked):
                return {
                    name: connection.execute(query.encode(), parameters).fetchall()
                    for name, query, parameters in (
                        ("current", "select * from api.usage_summary(null)", []),
                        ("finalized", "select * from api.usage_summary(%s)", [month(1)]),
                        ("invoices", "select * from api.invoices", []),
                        ("lines", "select * from api.invoice_lines order by line_number", []),
                        ("proofs", "select api.verify_invoice(id::text) from api.invoices order by id", []),
                        ("periods", "select * from api.billing_periods order by period_start", []),
                        ("events", "select * from api.billing_events order by id", []),
                        ("documents", "select * from api.documents order by id", []),
                    )
                }

    def statuses(self) -> dict[str, int]:
        """By idempotency key: 1 is posted."""
        with self.database.connect("authenticator") as connection:
            enter_as = Caller("member", self.organization["owner"].subject, str(self.organization.id))
            with request(connection, enter_as):
                found = connection.execute(
                    """
                    select e.idempotency_key, b.status from api.billing_events b join metering.usage_events e using (id)
                    where e.source = 'api'
                    """
                ).fetchall()
        return dict(found)

    def send(self, *events: Any) -> Answer:
        with self.database.connect("sidecar") as connection:
            return ingest(connection, events, self.organization.id)

    def upload(self) -> None:
        with self.database.connect("authenticator", autocommit=False) as connection:
            enter(connection, Caller("member", self.organization["owner"].subject, str(self.organization.id)))
            connection.execute("insert into api.documents (title) values ('A document')")


@pytest.fixture
def books(database: Database, make_organization: MakeOrganization) -> Books:
    books = Books(database, make_organization(database))
    with database.connect() as superuser:
        # Ids of transactions far above those that a new cluster begins with.
        superuser.execute("do $$ begin for i in 1..20000 loop perform pg_current_xact_id(); commit; end loop; end $$")
        books.send(*(event(f"old-{number}", moment(1, days=number), quantity=0.5) for number in range(1, 5)))
        finalize(superuser, books.organization.id, month(1))
        books.send(*BATCH)
        acknowledge(superuser, books.organization)
        books.send(event("not acknowledged"))
        books.upload()
    assert books.send(*BATCH).duplicates == len(BATCH)
    return books


def acknowledge(superuser: psycopg.Connection[tuple[Any, ...]], organization: Organization) -> None:
    """As a report to Stripe will: everything recorded so far is posted."""
    superuser.execute(
        """
        insert into stripe.report_marks
        select %s, 'api.request', metering.recording_generation(), pg_snapshot_xmin(pg_current_snapshot())
        on conflict (organization_id, meter_code) do update
        set acknowledged_generation = excluded.acknowledged_generation, acknowledged_xid = excluded.acknowledged_xid
        """,
        [organization.id],
    )


@pytest.fixture
def new_server() -> Iterator[Cluster]:
    """A cluster that has only what initdb puts there."""
    with state_dir() as state:
        secrets = state.ensure_secrets()
        with embedded_postgres(state, secrets) as (host, port):
            yield Cluster(host, port, secrets)


def test_a_dump_in_a_new_cluster_goes_on_where_the_old_one_ended(
    books: Books, new_server: Cluster, tmp_path: Path
) -> None:
    name = books.database.name
    before, posted_before = books.facts(), books.statuses()
    assert {posted_before["b-1"], posted_before["not acknowledged"]} == {1, 0}
    follow_guide("dump", tmp_path, OLD=server_url(books.database), DATABASE=name)
    # roles.sql brings the passwords of the old cluster along; the superuser is the new one's own.
    secrets = replace(books.database.secrets, postgres=new_server.secrets.postgres)
    restored = replace(books, database=Database(name, new_server.host, new_server.port, secrets))
    follow_guide("restore", tmp_path, NEW=server_url(restored.database))

    assert restored.facts() == before
    for record in (restored.upload, lambda: restored.send(event("too early"))):
        with pytest.raises(psycopg.Error, match="DATABASE_RESTORED") as refused:
            record()
        assert refused.value.sqlstate == "PT503"
        assert "goldleaves migrate" in str(refused.value.diag.message_hint)

    told = follow_guide("migrate", tmp_path, MIGRATION_DATABASE_URL=restored.database.migrator)
    assert "came from another cluster, generation 2 begins" in told
    again = migrate(restored.database.migrator, Settings())
    assert (again.generation, again.loaded) == (None, ())
    assert restored.facts() == before

    with restored.database.connect() as superuser:
        mark = value(superuser, "select acknowledged_xid::text::numeric from stripe.report_marks")
        now = value(superuser, "select pg_current_xact_id()::text::numeric")
        assert now < mark, "else this proves nothing"
    assert restored.send(*BATCH).duplicates == len(BATCH)
    assert [refusal.code for refusal in restored.send(*LATE_BATCH).rejected] == ["BILLING_PERIOD_LOCKED"]
    assert restored.send(event("new")).accepted == 1
    restored.upload()
    assert restored.statuses() == posted_before | {"new": 0}
    with restored.database.connect() as superuser:
        acknowledge(superuser, restored.organization)
    assert set(restored.statuses().values()) == {1}
    assert restored.send(event("newer")).accepted == 1
    assert restored.statuses()["newer"] == 0


def test_usage_reported_to_stripe_goes_on_where_it_ended(
    database: Database, make_organization: MakeOrganization, new_server: Cluster, tmp_path: Path
) -> None:
    """Nothing is reported twice, and nothing not at all, though transaction ids begin anew."""
    organization = make_organization(database, roles=("owner",)).id
    stripe = Remembered()
    with database.connect() as superuser, database.connect("sidecar") as sidecar:
        superuser.execute("do $$ begin for i in 1..20000 loop perform pg_current_xact_id(); commit; end loop; end $$")
        register(superuser, "api.request")
        link(superuser, organization)
        ingest(sidecar, BATCH, organization)
        roll_up_all(sidecar)
        assert build(sidecar) == 1
        settle(superuser, sidecar, stripe)
        ingest(sidecar, [event("not reported", quantity=0.5)], organization)
    name = database.name
    follow_guide("dump", tmp_path, OLD=server_url(database), DATABASE=name)
    secrets = replace(database.secrets, postgres=new_server.secrets.postgres)
    restored = Database(name, new_server.host, new_server.port, secrets)
    follow_guide("restore", tmp_path, NEW=server_url(restored))
    follow_guide("migrate", tmp_path, MIGRATION_DATABASE_URL=restored.migrator)

    with restored.connect() as superuser, restored.connect("sidecar") as sidecar:
        ingest(sidecar, [event("new", quantity=2.5)], organization)
        roll_up_all(sidecar)
        build(sidecar)
        settle(superuser, sidecar, stripe)
        assert stripe.total(superuser, organization, "api.request") == sum(stripe.units.values()) == 28 + 3
        assert set(posted(superuser, organization)) == {1}
        assert build(sidecar) == 0


def test_a_dump_in_the_same_cluster_needs_no_generation(books: Books, cluster: Cluster, tmp_path: Path) -> None:
    before = books.facts()
    url = server_url(books.database)
    follow_guide("dump", tmp_path, OLD=url, DATABASE=books.database.name)
    with psycopg.connect(cluster.server_url, autocommit=True) as superuser:
        superuser.execute(f"alter database {books.database.name} rename to {books.database.name}_before".encode())
        try:
            command: list[str | Path] = [
                binaries(MAJOR) / "pg_restore",
                "--create",
                "--exit-on-error",
                "--dbname",
                f"{url}/postgres",
            ]
            subprocess.run([*command, tmp_path / "goldleaves.dump"], check=True)
            assert books.send(event("too early")).accepted == 1
            assert migrate(books.database.migrator, Settings()).generation is None
            statuses = books.statuses()
            assert (statuses["b-1"], statuses["not acknowledged"], statuses.pop("too early")) == (1, 0, 0)
            del before["current"], before["events"]
            assert {name: fact for name, fact in books.facts().items() if name in before} == before
        finally:
            superuser.execute(f"drop database {books.database.name}_before".encode())


def test_the_gateway_keeps_what_it_metered_until_the_generation_begins(
    stack: RunningStack, make_organization: MakeOrganization
) -> None:
    """The sidecar and PostgREST run on while their database turns out to be a restored one."""
    organization = make_organization(stack.database)
    with stack.client(organization["owner"].subject) as client, stack.database.connect() as superuser:
        superuser.execute("update metering.generations set system_identifier = 1")
        read = client.get("/api/v1/cases")
        assert read.status_code == 200
        written = client.post("/api/v1/documents", json={"title": "A document"})
        assert (written.status_code, written.json()["message"].split(":")[0]) == (503, "DATABASE_RESTORED")
        sent = client.post(
            "/v1/events", json=[event("e")], headers={"Authorization": f"Bearer {stack.token('b', role='service')}"}
        )
        assert_problem(sent, 503, "DATABASE_RESTORED")
        assert metered_ids(stack, organization.id) == []

        assert migrate(stack.database.migrator, Settings()).generation == 2
        last = client.get("/api/v1/cases").headers["X-Request-ID"]
        kept = {read.headers["X-Request-ID"], last}
        arrived = eventually(lambda: set(metered_ids(stack, organization.id)), lambda ids: kept <= ids)
        assert kept <= arrived
        wait_until_shipped(stack.state)
        assert client.post("/api/v1/documents", json={"title": "A document"}).status_code == 201

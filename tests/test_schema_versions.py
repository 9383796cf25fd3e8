"""Code that meets a database of another version says so, with the command that mends it, and meters nothing into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.migrations import MigrationError, migrate
from api.schema_version import known_migrations
from api.settings import PROJECT, Settings
from api.spool import records_left
from api.stack.services import sidecar_part
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Database, RunningStack, free_port
from tests.observe import assert_problem, database_away, eventually, gateway_events, wait_until_shipped
from tests.test_spool_shipping import record, spooled

NEWEST = max(known_migrations())
NUMBER = NEWEST.partition("_")[0]
FUTURE = "9999_from_the_future"
NEWER = (
    f"The database is newer than this code, which does not know {FUTURE}. Deploy the version that does, "
    f"or there run `goldleaves rollback --to {NUMBER}`.\n"
)
APPLY = "insert into yoyo._yoyo_migration (migration_hash, migration_id, applied_at_utc) values ('x', %s, now())"
OLDER = f"The database is older than this code: {NEWEST} pending. Run `goldleaves migrate`.\n"


@contextmanager
def renamed(database: Database, before: str, after: str) -> Iterator[None]:
    """As if another version had migrated the database."""
    rename = "update yoyo._yoyo_migration set migration_id = %s where migration_id = %s"
    with database.connect() as superuser:
        superuser.execute(rename, [after, before])
    yield
    with database.connect() as superuser:
        superuser.execute(rename, [before, after])


def start_a_sidecar(database: Database, directory: Path) -> subprocess.CompletedProcess[str]:
    settings = Settings(gateway_port=free_port(), postgrest_port=free_port(), state_dir=directory)
    part = sidecar_part(settings, database.sidecar, database.secrets.jwt, directory / "spool")
    return subprocess.run(
        part.command,
        env=os.environ | dict(part.environment),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_sidecar_refuses_an_older_database(database: Database, tmp_path: Path) -> None:
    with database.connect() as superuser:
        superuser.execute("delete from yoyo._yoyo_migration where migration_id = %s", [NEWEST])
    done = start_a_sidecar(database, tmp_path)
    assert (done.returncode, done.stderr) == (2, OLDER)


def test_a_sidecar_refuses_a_newer_database(database: Database, tmp_path: Path) -> None:
    with database.connect() as superuser:
        superuser.execute(APPLY, [FUTURE])
    done = start_a_sidecar(database, tmp_path)
    assert (done.returncode, done.stderr) == (2, NEWER)


def test_a_sidecar_refuses_a_database_that_nobody_has_migrated(
    template: Database, empty_database: Database, tmp_path: Path
) -> None:
    """The template is what made the sidecar's role."""
    with empty_database.connect() as superuser:
        superuser.execute(f"grant connect on database {empty_database.name} to sidecar".encode())
    done = start_a_sidecar(empty_database, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("The database is older than this code: ")
    assert done.stderr.endswith(f"{NEWEST} pending. Run `goldleaves migrate`.\n")


def test_migrate_refuses_a_newer_database_and_says_what_helps(database: Database) -> None:
    with renamed(database, NEWEST, FUTURE), pytest.raises(MigrationError) as refusal:
        migrate(database.migrator, Settings())
    assert str(refusal.value) == (
        f"the database is newer than this checkout, which has no file for {FUTURE}. Deploy the version that has, "
        f"or there run `goldleaves rollback --to {NUMBER}`"
    )


def test_an_upgrade_under_way_does_not_stop_the_sidecar_that_runs(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack() as stack:
        owner = make_organization(stack.database)["owner"]
        with stack.database.connect() as superuser, stack.client(owner.subject) as client:
            superuser.execute(APPLY, [FUTURE])
            health = client.get("/health")
            assert health.status_code == 200
            assert health.json()["migrations"]["unknown"] == [FUTURE]
            assert client.get("/api/v1/cases").status_code == 200


def test_a_sidecar_that_started_without_database_checks_before_it_uses_it(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    """It keeps what it holds, and goes on by itself once the schema is that of its code."""
    with open_stack() as stack:
        organization = make_organization(stack.database)
        stack.kill()
        spooled(stack, [record(organization, "held")])
        with stack.client(organization["owner"].subject) as client:
            with renamed(stack.database, NEWEST, FUTURE):
                with database_away(stack.database):
                    stack.launch()
                    assert eventually(lambda: health(stack), (503).__eq__, seconds=60) == 503
                said = eventually(
                    lambda: client.get("/api/v1/cases"), lambda answer: "DATABASE_UNAVAILABLE" not in answer.text
                )
                assert_problem(said, 503, "SCHEMA_MISMATCH")
                answer = eventually(
                    lambda: client.get("/health"), lambda answer: answer.json()["migrations"]["unknown"] == [FUTURE]
                )
                assert (answer.status_code, answer.json()["migrations"]["pending"]) == (503, [NEWEST])
                assert gateway_events(stack, organization.id) == []
                assert records_left(stack.state.spool) >= 1
                log = stack.state.log("sidecar")
                assert NUMBER in eventually(log.read_text, lambda text: NUMBER in text), "the command that mends it"
            wait_until_shipped(stack.state)
            assert [event["request_id"] for event in gateway_events(stack, organization.id)] == ["held"]
            assert client.get("/api/v1/cases").status_code == 200


def health(stack: RunningStack) -> int:
    try:
        return httpx.get(f"{stack.gateway_url}/health", trust_env=False).status_code
    except httpx.TransportError:
        return 0

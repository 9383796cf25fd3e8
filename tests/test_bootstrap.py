"""`goldleaves bootstrap` on a server of one's own, whose admin is no superuser, as on managed ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from api.stack.endpoints import postgres_url
from api.stack.state import StateDir
from tests.conftest import embedded_postgres, state_dir

ADMIN = "cloud_admin"
PASSWORDS = {name: f"{name} 'hushhush' @/%20" for name in ("MIGRATOR", "AUTHENTICATOR", "SIDECAR", "MONITOR")}


@dataclass(frozen=True)
class Server:
    """A new Postgres that logs every statement."""

    host: str
    port: int
    state: StateDir

    def run(self, *, drop: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "STATE_DIR": str(self.state.root),
            "ADMIN_DATABASE_URL": self.url(ADMIN, "postgres"),
            "ADMIN_PASSWORD": "admin",
            "MIGRATION_DATABASE_URL": self.url("goldleaves_migrator"),
            **{f"{name}_PASSWORD": password for name, password in PASSWORDS.items()},
            **variables,
        }
        environment.pop(drop, None)
        return subprocess.run(
            [Path(sys.executable).with_name("goldleaves"), "bootstrap"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def url(self, role: str, database: str = "goldleaves") -> str:
        return f"postgresql://{role}@{self.host}:{self.port}/{database}"

    def lets_in(self, role: str, password: str) -> bool:
        try:
            psycopg.connect(self.url(role), password=password).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with state_dir() as state:
        secrets = state.ensure_secrets()
        with embedded_postgres(state, secrets, log_statement="all") as (host, port):
            superuser_url = postgres_url("postgres", secrets.postgres, host, port, "postgres")
            with psycopg.connect(superuser_url, autocommit=True) as connection:
                connection.execute(f"create role {ADMIN} login createrole createdb password 'admin'")
            yield Server(host, port, state)


def test_two_at_once_prepare_the_server(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: server.run(), range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert sorted("nothing to do" in each.stdout for each in done) == [False, True]
    for name, password in PASSWORDS.items():
        role = "goldleaves_migrator" if name == "MIGRATOR" else name.lower()
        assert server.lets_in(role, password)
        assert not server.lets_in(role, "another")


def test_it_sets_changed_passwords_and_leaves_out_an_unwanted_role(server: Server) -> None:
    done = server.run(drop="MONITOR_PASSWORD", SIDECAR_PASSWORD="changed", MIGRATOR_PASSWORD="changed too")
    assert done.returncode == 0, done.stderr
    assert server.lets_in("sidecar", "changed")
    assert not server.lets_in("sidecar", PASSWORDS["SIDECAR"])
    assert server.lets_in("goldleaves_migrator", "changed too")
    assert server.lets_in("monitor", PASSWORDS["MONITOR"])


def test_no_password_reaches_the_log(server: Server) -> None:
    log = server.state.log("postgres").read_text()
    assert "alter role" in log
    assert not [word for word in ("hushhush", "changed too") if word in log]


@pytest.mark.parametrize(
    ("drop", "variables", "line"),
    [
        ("ADMIN_DATABASE_URL", {}, "ADMIN_DATABASE_URL is not set. See .env.example."),
        ("SIDECAR_PASSWORD", {}, "SIDECAR_PASSWORD is not set. See .env.example."),
        ("MIGRATOR_PASSWORD", {}, "MIGRATOR_PASSWORD is not set. See .env.example."),
        ("", {"ADMIN_PASSWORD": "wrong"}, 'password authentication failed for user "cloud_admin"'),
        ("", {"MIGRATION_DATABASE_URL": "postgresql://postgres@db/x"}, "its role has to be goldleaves_migrator"),
    ],
)
def test_a_mistake_is_one_line(server: Server, drop: str, variables: dict[str, str], line: str) -> None:
    done = server.run(drop=drop, **variables)
    assert done.returncode == 1
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

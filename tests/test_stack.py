"""The embedded stack as a person uses it: the real command, in a state directory and on ports of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import jwt
import psutil
import psycopg
import pytest

from api.demo.stage import money
from api.settings import PROJECT, Settings
from api.stack.endpoints import Endpoints
from api.stack.parts import PARTS
from api.stack.postgres import prepare_cluster
from api.stack.processes import Record
from api.stack.state import StateDir, write_private
from api.stack.supervisor import NAME as SUPERVISOR
from tests.conftest import state_dir
from tests.harness import free_port

PORT_SETTINGS = {"postgres": "POSTGRES_PORT", "postgrest": "POSTGREST_PORT", "sidecar": "GATEWAY_PORT"}


@dataclass(frozen=True)
class Command:
    """`goldleaves` with an environment."""

    state: StateDir
    variables: dict[str, str]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("goldleaves"), *arguments],
            env=os.environ | self.variables | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def succeed(self, *arguments: str, **variables: str) -> str:
        done = self.run(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self, **variables: str) -> Endpoints:
        self.succeed("up", **variables)
        return self.endpoints()

    def down(self) -> None:
        if self.pids():
            self.succeed("down")

    def endpoints(self) -> Endpoints:
        return Endpoints(**json.loads(self.state.stack_file.read_text()))

    def pids(self) -> dict[str, int]:
        records = {name: Record.read(name, self.state) for name in PARTS}
        return {name: record.pid for name, record in records.items() if record}

    def port(self, part: str) -> int:
        return int(self.variables[PORT_SETTINGS[part]])


@contextmanager
def new_command() -> Iterator[Command]:
    with state_dir() as state:
        command = Command(
            state,
            {"STATE_DIR": str(state.root)} | {setting: str(free_port()) for setting in PORT_SETTINGS.values()},
        )
        try:
            yield command
        finally:
            command.run("down")


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with new_command() as command:
        yield command


@pytest.fixture
def stopped(command: Command) -> Command:
    """The command, with its stack down."""
    command.down()
    return command


@pytest.fixture
def goldleaves(command: Command) -> Command:
    """The command, with its stack up."""
    if len(command.pids()) < len(PARTS) or not healthy(command.endpoints()):
        command.up()
    return command


def traces(state: StateDir) -> list[str]:
    """Every process of the machine that has to do with this state directory, found without the code under test."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), process.cwd(), *process.environ().values()])
        except psutil.Error:
            continue
        if str(state.root) in text and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid} {process.name()}")
    return found


def healthy(endpoints: Endpoints) -> bool:
    try:
        return httpx.get(f"{endpoints.gateway_url}/health", trust_env=False, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def becomes_healthy(endpoints: Endpoints) -> None:
    """PostgREST hears of a new schema by a notification, a moment after the migrate that sent it has ended. And what
    /health asks has two seconds to answer, which a machine with much else to do may take.
    """
    deadline = time.monotonic() + 60
    while not healthy(endpoints):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def execute(endpoints: Endpoints, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(endpoints.database_url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("part", PARTS)
def test_taken_port_is_one_line_and_leaves_nothing_behind(stopped: Command, part: str) -> None:
    setting, port = PORT_SETTINGS[part], stopped.port(part)
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as stranger:
        try:
            while not any(
                connection.laddr.port == port for connection in psutil.Process(stranger.pid).net_connections()
            ):
                assert stranger.poll() is None
                time.sleep(0.02)
            done = stopped.run("up")
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert done.returncode == 1
    assert done.stderr == f"{setting} {port} is taken; set {setting} to a free port.\n"
    assert traces(stopped.state) == []
    assert not stopped.state.stack_file.exists()


def test_stack_file_has_what_others_rely_on_and_is_private(goldleaves: Command) -> None:
    content = json.loads(goldleaves.state.stack_file.read_text())
    assert set(content) == {"gateway_url", "postgrest_url", "database_url", "jwt_secret"}
    assert content["gateway_url"] == f"http://127.0.0.1:{goldleaves.port('sidecar')}"
    assert content["postgrest_url"] == f"http://127.0.0.1:{goldleaves.port('postgrest')}"
    assert execute(Endpoints(**content), "select usesuper from pg_user where usename = current_user") == [(True,)]
    for path in (goldleaves.state.stack_file, goldleaves.state.secrets_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_gets_in_without_a_password(goldleaves: Command) -> None:
    for role in ("postgres", "goldleaves_migrator", "authenticator", "sidecar", "monitor"):
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host="127.0.0.1", port=goldleaves.port("postgres"), user=role, dbname="goldleaves")


def test_up_again_starts_nothing_twice_and_keeps_the_data(goldleaves: Command) -> None:
    execute(goldleaves.endpoints(), "create table public.kept as select 1 as one")
    before = goldleaves.pids()
    goldleaves.up()
    assert goldleaves.pids() == before

    goldleaves.succeed("down")
    endpoints = goldleaves.up()
    assert not set(goldleaves.pids().values()) & set(before.values())
    assert execute(endpoints, "select one from public.kept") == [(1,)]
    execute(endpoints, "drop table public.kept")


def test_two_ups_at_once_make_one_stack(stopped: Command) -> None:
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: stopped.run("up"), range(2)))
    assert [one.returncode for one in done] == [0, 0], [one.stderr for one in done]
    names = [line.split()[1] for line in traces(stopped.state)]
    assert names.count("postgrest") == 1


def test_down_leaves_no_process_and_keeps_only_what_is_needed(goldleaves: Command) -> None:
    assert len(traces(goldleaves.state)) >= len(PARTS)
    goldleaves.succeed("down")
    assert traces(goldleaves.state) == []
    assert not goldleaves.state.stack_file.exists()
    assert goldleaves.pids() == {}
    assert goldleaves.succeed("down") == "Nothing was running.\n"


@pytest.mark.parametrize("part", PARTS)
def test_up_heals_a_killed_part_and_leaves_the_others_alone(goldleaves: Command, part: str) -> None:
    before = goldleaves.pids()
    os.kill(before[part], signal.SIGKILL)
    endpoints = goldleaves.up()
    after = goldleaves.pids()
    assert {name for name in PARTS if after[name] != before[name]} == {part}
    becomes_healthy(endpoints)


def test_processes_are_found_again_when_their_records_are_lost(goldleaves: Command) -> None:
    for name in PARTS:
        goldleaves.state.record(name).unlink()
    goldleaves.succeed("down")
    assert traces(goldleaves.state) == []


def test_changed_setting_restarts_the_parts_that_read_it(goldleaves: Command) -> None:
    first = goldleaves.pids()
    moved = str(free_port())
    endpoints = goldleaves.up(GATEWAY_PORT=moved)
    second = goldleaves.pids()
    assert endpoints.gateway_url.endswith(moved)
    becomes_healthy(endpoints)
    assert {name for name in PARTS if second[name] != first[name]} == {"postgrest", "sidecar"}

    endpoints = goldleaves.up(GATEWAY_PORT=moved, SPOOL_DRAIN_SECONDS="5")
    third = goldleaves.pids()
    becomes_healthy(endpoints)
    assert {name for name in PARTS if third[name] != second[name]} == {"sidecar"}


def test_a_stranger_with_a_recorded_pid_is_not_killed(stopped: Command) -> None:
    stopped.up()
    record = Record.read("sidecar", stopped.state)
    assert record
    stopped.succeed("down")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            write_private(stopped.state.record("sidecar"), asdict(replace(record, pid=stranger.pid, create_time=1.0)))
            becomes_healthy(stopped.up())
            stopped.succeed("down")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_part_that_cannot_start_shows_its_log_and_stops_the_rest(stopped: Command) -> None:
    broken = stopped.state.root / "broken-postgrest"
    broken.write_text("#!/bin/sh\necho it is broken\nexit 1\n")
    broken.chmod(0o755)
    done = stopped.run("up", POSTGREST_BIN=str(broken))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "PostgREST stopped while starting.",
        "  it is broken",
        f"Log: {stopped.state.log('postgrest')}",
    ]
    assert traces(stopped.state) == []


def test_status_tells_what_runs(stopped: Command) -> None:
    down = stopped.run("status")
    assert down.returncode == 1
    assert len(re.findall(r"\bdown\b", down.stdout)) == len(PARTS)
    assert "supervisor: none" in down.stdout
    endpoints = stopped.up()
    running = stopped.succeed("status")
    assert len(re.findall(r"\brunning\b", running)) == len(PARTS)
    assert re.search(r"^supervisor: pid \d+", running, re.MULTILINE)
    assert endpoints.gateway_url in running


def test_migrate_and_rollback_act_on_the_running_stack(goldleaves: Command) -> None:
    names = [path.stem for path in sorted((PROJECT / "migrations").glob("[0-9]*.sql")) if path.stem.count(".") == 0]
    [target] = [name for name in names if name.startswith("0004_")]
    undone = names[names.index(target) + 1 :]
    many = f"{len(undone)} migration{'s' if len(undone) > 1 else ''}"
    assert goldleaves.succeed("migrate") == f"at {names[-1]}: nothing to do\n"
    assert goldleaves.succeed("rollback", "--to", "0004") == (
        f"at {target}: rolled back {many}; no release is recorded here, so nothing was loaded\n"
    )
    applied = "select array_agg(migration_id order by migration_id) from yoyo._yoyo_migration"
    assert execute(goldleaves.endpoints(), applied) == [(names[: -len(undone)],)]
    assert re.fullmatch(rf"at {names[-1]}: applied {many}, loaded \d+ files\n", goldleaves.succeed("migrate"))
    assert execute(goldleaves.endpoints(), applied) == [(names,)]
    becomes_healthy(goldleaves.endpoints())


def test_rollback_says_what_is_wrong_with_its_target(goldleaves: Command) -> None:
    unsaid = goldleaves.run("rollback")
    assert unsaid.returncode == 1
    assert unsaid.stderr.startswith("Say how far")
    unknown = goldleaves.run("rollback", "--to", "0000_no_such_migration")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("0000_no_such_migration is not an applied migration")


def test_token_has_the_claims_asked_for(goldleaves: Command) -> None:
    endpoints = goldleaves.endpoints()

    def claims(*arguments: str) -> dict[str, object]:
        printed = goldleaves.succeed("token", *arguments)
        assert printed.count("\n") == 1
        found: dict[str, object] = jwt.decode(printed.strip(), endpoints.jwt_secret, algorithms=["HS256"])
        found["lifetime"] = int(str(found.pop("exp"))) - int(str(found.pop("iat")))
        return found

    assert claims("--sub", "ann") == {"sub": "ann", "role": "member", "lifetime": 3600}
    assert claims(
        "--sub", "backend", "--role", "service", "--org", "acme", "--email", "b@example.com", "--minutes", "5"
    ) == {"sub": "backend", "role": "service", "org_id": "acme", "email": "b@example.com", "lifetime": 300}
    assert goldleaves.run("token", "--sub", "ann", "--role", "goldleaves_owner").returncode == 2


def test_token_is_accepted_by_the_gateway(goldleaves: Command) -> None:
    endpoints = goldleaves.endpoints()
    token = goldleaves.succeed("token", "--sub", "bea", "--email", "bea@example.com").strip()
    answer = httpx.get(
        f"{endpoints.gateway_url}/api/v1/organizations", headers={"Authorization": f"Bearer {token}"}, trust_env=False
    )
    assert answer.status_code == 200
    assert [row["kind"] for row in answer.json()] == ["personal"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GATEWAY_PORT": "http"}, "GATEWAY_PORT is malformed"),
        ({"JWT_SECRET": "short"}, "JWT_SECRET is malformed"),
        ({"POSTGREST_BIN": "/nowhere/postgrest"}, "POSTGREST_BIN /nowhere/postgrest does not exist."),
        ({"HOST": "192.0.2.1"}, "Cannot listen on HOST 192.0.2.1"),
        ({"STATE_DIR": "/dev/null"}, "/dev/null: "),
    ],
)
def test_mistakes_in_settings_are_one_line(stopped: Command, variables: dict[str, str], message: str) -> None:
    done = stopped.run("up", **variables)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(message)


def test_only_the_command_knows_the_migrator(stopped: Command, tmp_path: Path) -> None:
    """Neither its environment nor its file of settings hands that password, or anything like it, on to the parts."""
    settings = tmp_path / "settings"
    settings.write_text("MIGRATION_DATABASE_URL=postgresql://goldleaves_migrator:from-file@db/x\nJWT_ALGORITHM=HS384\n")
    stopped.up(
        GOLDLEAVES_ENV_FILE=str(settings),
        migration_database_url="postgresql://goldleaves_migrator:from-environment@db/x",
        Database_Url="postgresql://goldleaves_migrator:from-environment@db/x",
    )
    password = json.loads(stopped.state.secrets_file.read_text())["goldleaves_migrator"]
    supervisor = Record.read(SUPERVISOR, stopped.state)
    assert supervisor
    pids = {**stopped.pids(), SUPERVISOR: supervisor.pid}
    environments = {name: Path(f"/proc/{pid}/environ").read_bytes() for name, pid in pids.items()}
    assert set(environments) == {*PARTS, SUPERVISOR}
    for environment in environments.values():
        for secret in ("goldleaves_migrator", "from-file", "from-environment", password):
            assert secret.encode() not in environment

    variables = dict(line.split("=", 1) for line in environments["sidecar"].decode().strip("\0").split("\0"))
    show = "from api.settings import load_settings; print(load_settings().model_dump_json())"
    seen = subprocess.run([sys.executable, "-c", show], env=variables, cwd=PROJECT, capture_output=True, check=True)
    assert json.loads(seen.stdout)["migration_database_url"] is None
    assert json.loads(seen.stdout)["jwt_algorithm"] == "HS384", "what it is to know, it was told"


def test_settings_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("HOST=from-file\n")
    show = "from api.settings import load_settings; print(load_settings().host)"
    for variables, host in (
        ({"GOLDLEAVES_ENV_FILE": str(settings)}, "from-file"),
        ({"GOLDLEAVES_ENV_FILE": str(settings), "HOST": "from-environment"}, "from-environment"),
        ({"GOLDLEAVES_ENV_FILE": ""}, "127.0.0.1"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", show], env=os.environ | variables, cwd=PROJECT, capture_output=True, text=True
        )
        assert done.stdout == f"{host}\n", done.stderr


def test_directories_that_are_opened_for_postgres_are_named() -> None:
    """Only root has to: Postgres then runs as somebody else, who passes through."""
    with tempfile.TemporaryDirectory(prefix="goldleaves-closed-") as path:
        closed = Path(path)
        state = StateDir(closed / "project" / "state")
        state.create()
        for directory in (closed, closed / "project"):
            directory.chmod(0o700)
        said: list[str] = []
        prepare_cluster(Settings(), state, state.ensure_secrets(), said.append)
        mode = 0o701 if os.geteuid() == 0 else 0o700
        for directory in (closed, closed / "project"):
            assert stat.S_IMODE(directory.stat().st_mode) == mode
            assert [str(directory) in line for line in said] == [True] * (os.geteuid() == 0)
        prepare_cluster(Settings(), state, state.ensure_secrets(), said.append)
        assert len(said) == (os.geteuid() == 0), "nothing is opened, or told, twice"


def test_data_of_another_postgres_is_refused_and_what_runs_goes_on(goldleaves: Command) -> None:
    made_by = (goldleaves.state.data / "PG_VERSION").read_text().strip()
    other = {"16": "18"}.get(made_by, "16")
    before = {*goldleaves.pids().items(), (SUPERVISOR, Record.read(SUPERVISOR, goldleaves.state))}
    done = goldleaves.run("up", POSTGRES_VERSION=other)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"was made by PostgreSQL {made_by}, which {other} cannot open. Set POSTGRES_VERSION={made_by}" in done.stderr
    assert {*goldleaves.pids().items(), (SUPERVISOR, Record.read(SUPERVISOR, goldleaves.state))} == before
    assert healthy(goldleaves.endpoints())


def test_a_port_that_is_taken_when_it_changes_stops_nothing(goldleaves: Command) -> None:
    before = {*goldleaves.pids().items(), (SUPERVISOR, Record.read(SUPERVISOR, goldleaves.state))}
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        done = goldleaves.run("up", GATEWAY_PORT=str(port))
    assert (done.returncode, done.stderr) == (1, f"GATEWAY_PORT {port} is taken; set GATEWAY_PORT to a free port.\n")
    assert {*goldleaves.pids().items(), (SUPERVISOR, Record.read(SUPERVISOR, goldleaves.state))} == before
    assert healthy(goldleaves.endpoints())


def test_the_demo_plays_and_stops_what_it_started() -> None:
    with new_command() as fresh:
        told = fresh.succeed("demo", JWT_ALGORITHM="HS512", USAGE_RATE_CENTS="0.333")
        assert traces(fresh.state) == []
        assert str(fresh.state.stack_file) in told
        assert "0.333¢" in told
        assert "40 of 40" in told, "usage was reported to what stands in for Stripe"

        fresh.succeed("demo")
        assert traces(fresh.state) == []

        endpoints = fresh.up()
        founded = "select count(*) from tenancy.organizations where name = 'Aurora Legal'"
        assert execute(endpoints, founded) == [(2,)], "both were played on the same data"


def test_make_demo_is_that_command() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "demo"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ".venv/bin/goldleaves demo"


def test_a_demo_beside_a_running_stack_leaves_it_running(goldleaves: Command) -> None:
    goldleaves.up()
    before = goldleaves.pids()
    goldleaves.succeed("demo")
    assert goldleaves.pids() == before
    goldleaves.succeed("demo", LOG_LEVEL="WARNING")
    after = goldleaves.pids()
    assert {name for name in PARTS if after[name] != before[name]} == {"sidecar"}, "that one was told something else"
    becomes_healthy(goldleaves.endpoints())


def test_a_demo_that_fails_is_one_line_and_stops_what_it_started(stopped: Command) -> None:
    done = stopped.run("demo", MAX_INGEST_BYTES="1024")
    assert done.returncode == 1
    assert done.stderr.startswith("The demo stopped: POST /v1/events answered 413: ")
    assert done.stderr.count("\n") == 1
    assert traces(stopped.state) == []


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (25, "$0.25"),
        (123456, "$1,234.56"),
        (25.0, "$0.25"),
        (0.333, "0.333¢"),
        (-100, "-$1.00"),
        (1e-7, "0.0000001¢"),
        (None, ""),
    ],
)
def test_the_demo_shows_prices_as_they_are(cents: float | None, text: str) -> None:
    assert money(cents) == text

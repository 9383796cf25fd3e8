"""Fixtures: a real Postgres for the whole run, databases copied from a migrated template, and real stacks on top.

Postgres is a container where Docker answers, else the embedded one; the tests cannot tell. Everything listens on free
ports and keeps its state in temporary directories, so that tests pass beside a running stack.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG

from api.migrations import migrate
from api.settings import ENV_FILE, Settings
from api.stack import bootstrap
from api.stack.endpoints import SUPERUSER, StackError, http_url
from api.stack.installations import binaries, locale_arguments
from api.stack.postgres import postgres_part, prepare_cluster
from api.stack.processes import start, stop, wait_until_ready
from api.stack.services import postgrest_part, sidecar_part
from api.stack.state import Secrets, StateDir
from tests.harness import Cluster, Database, Organization, RunningStack, free_port, insert_organization
from tests.usage import Connection

HOST = "127.0.0.1"
MAX_CONNECTIONS = "200"
# A kill loses nothing that was written, and nobody cuts the power. Databases are made and dropped all the time here.
UNSYNCED = {"fsync": "off", "full_page_writes": "off"}
MAJOR = int(os.environ.get("PG", Settings.model_fields["postgres_version"].default))

ONLY_CONTAINERS = "ONLY_CONTAINERS"  # the environment's way to say: no embedded Postgres instead

_number = count(1)

# The environment and the .env of whoever runs the tests must not change what they prove, here and in child processes.
for variable in set(Settings.model_fields) - {"postgrest_bin"}:
    os.environ.pop(variable.upper(), None)
os.environ[ENV_FILE] = ""
os.environ["POSTGRES_VERSION"] = str(MAJOR)
Settings.model_config["env_file"] = None

# Clients give up after five seconds, in which a loaded machine may not have answered yet.
for phase in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, phase, 60.0)


def pytest_configure() -> None:
    """Stop what the fixtures started also when the run is terminated, as by a time limit."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))
    # A shell has what it runs in the background ignore Ctrl-C, and so would every command that the tests send one to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        binaries(MAJOR)  # the tests need its client tools also where the server is a container
    except StackError as error:
        pytest.exit(f"PG={MAJOR}: {error}", 2)
    if os.environ.get(ONLY_CONTAINERS) and not docker_answers():
        pytest.exit("No Docker engine answers. Start one, or name it by DOCKER_HOST.", 2)


@contextmanager
def state_dir() -> Iterator[StateDir]:
    """A state directory. Not pytest's own: those are closed to the user that Postgres runs as when we are root."""
    with tempfile.TemporaryDirectory(prefix="goldleaves-") as path:
        state = StateDir(Path(path))
        state.create()
        yield state


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The Postgres of this run, with the role that migrates and nothing else."""
    with state_dir() as state:
        secrets = state.ensure_secrets()
        serve = _container(secrets) if docker_answers() else embedded_postgres(state, secrets, **UNSYNCED)
        with serve as (host, port):
            made = Cluster(host, port, secrets)
            bootstrap.create_migrator(made.server_url, secrets.goldleaves_migrator)
            yield made


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> Database:
    """A database migrated once, as goldleaves_migrator. Never connect to it: it is copied."""
    database = cluster.database("goldleaves_template")
    bootstrap.create_database(cluster.server_url, database.name)
    migrate(database.migrator, Settings())
    bootstrap.set_passwords(cluster.server_url, cluster.secrets.of_services())
    return database


@pytest.fixture
def database(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A fresh migrated database."""
    with _copied(cluster, template) as made:
        yield made


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[Database]:
    """A fresh database in which nothing was migrated yet."""
    made = cluster.database(f"goldleaves_{next(_number)}")
    bootstrap.create_database(cluster.server_url, made.name)
    try:
        yield made
    finally:
        cluster.drop(made)


@pytest.fixture(scope="module")
def shared_database(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A fresh migrated database for all tests of a file: each takes an organization of its own."""
    with _copied(cluster, template) as made:
        yield made


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def sidecar(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect("sidecar") as connection:
        yield connection


@pytest.fixture(scope="module")
def api(shared_database: Database) -> Iterator[Connection]:
    """As PostgREST connects: `tests.meters` and `tests.sql_requests` ask schema api on it."""
    with shared_database.connect("authenticator") as connection:
        yield connection


OpenStack = Callable[..., AbstractContextManager[RunningStack]]


@pytest.fixture(scope="session")
def open_stack(cluster: Cluster, template: Database) -> OpenStack:
    """`with open_stack(spool_max_bytes=…) as stack:` starts one with settings of its own, on a fresh database."""

    @contextmanager
    def open_one(**settings: Any) -> Iterator[RunningStack]:
        with _copied(cluster, template) as database, state_dir() as state:
            yield from _serve(database, state, settings)

    return open_one


@pytest.fixture(scope="module")
def stack(open_stack: OpenStack) -> Iterator[RunningStack]:
    """Real PostgREST and a real sidecar on a fresh database, for the tests of one file."""
    with open_stack() as running:
        yield running


MakeOrganization = Callable[..., Organization]


@pytest.fixture(scope="session")
def make_organization() -> MakeOrganization:
    """`make_organization(database, timezone="Asia/Tokyo")`: one with a member in every role, written by plain SQL."""

    def make(database: Database, slug: str | None = None, **details: Any) -> Organization:
        return insert_organization(database, slug or f"org-{next(_number)}", **details)

    return make


def _serve(database: Database, state: StateDir, overrides: dict[str, Any]) -> Iterator[RunningStack]:
    secret = database.secrets.jwt
    settings = Settings(
        **{
            "state_dir": state.root,
            "gateway_port": free_port(),
            "postgrest_port": free_port(),
            "postgres_port": database.port,
            "spool_drain_seconds": 3,  # nobody waits longer where Postgres is away
            **overrides,
        }
    )
    parts = (
        postgrest_part(settings, database.authenticator, secret),
        sidecar_part(settings, database.sidecar, secret, state.spool),
    )
    running = RunningStack(
        gateway_url=http_url(HOST, settings.gateway_port),
        postgrest_url=http_url(HOST, settings.postgrest_port),
        database=database,
        jwt_secret=secret,
        state=state,
        parts={part.name: part for part in parts},
        audience=settings.jwt_audience,
    )
    try:
        for part in parts:
            running.start(part.name)
        yield running
    finally:
        for part in reversed(parts):
            stop(part.name, state)


@contextmanager
def _copied(cluster: Cluster, template: Database) -> Iterator[Database]:
    made = cluster.copy(template, f"goldleaves_{next(_number)}")
    try:
        yield made
    finally:
        cluster.drop(made)


@contextmanager
def embedded_postgres(state: StateDir, secrets: Secrets, **options: str) -> Iterator[tuple[str, int]]:
    settings = Settings(host=HOST, postgres_port=free_port(), state_dir=state.root)
    prepare_cluster(settings, state, secrets, print)
    part = postgres_part(settings, state, {"max_connections": MAX_CONNECTIONS, **options})
    try:
        wait_until_ready(part, start(part, state), state)
        yield HOST, settings.postgres_port
    finally:
        stop(part.name, state)


@contextmanager
def _container(secrets: Secrets) -> Iterator[tuple[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries are not ours to mend
        from testcontainers.postgres import PostgresContainer

        container = PostgresContainer(
            f"postgres:{MAJOR}", username=SUPERUSER, password=secrets.postgres, dbname="postgres", driver=None
        )
        container.with_env("POSTGRES_INITDB_ARGS", " ".join(locale_arguments(MAJOR)))
        options = {"max_connections": MAX_CONNECTIONS, "timezone": "UTC", **UNSYNCED}
        container.with_command("postgres " + " ".join(f"-c {name}={value}" for name, value in options.items()))
        container.start()
    try:
        yield container.get_container_host_ip(), int(container.get_exposed_port(5432))
    finally:
        container.stop()


def docker_answers() -> bool:
    import docker  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library forgets the socket that could not connect
        try:
            with closing(docker.from_env(timeout=3)) as client:
                return bool(client.ping())
        except docker.errors.DockerException:
            return False
        finally:
            gc.collect()

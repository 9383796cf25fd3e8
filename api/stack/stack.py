"""The stack as a whole: bring it up, take it down, say how it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations

from api.migrations import migrate
from api.settings import Settings
from api.stack import bootstrap
from api.stack.endpoints import Endpoints, StackError, http_url, postgres_url, url_host
from api.stack.postgres import check_superuser, postgres_part, prepare_cluster, superuser_url
from api.stack.processes import (
    Part,
    find,
    is_current,
    members,
    require_free_port,
    start,
    stop,
    wait_until_ready,
)
from api.stack.progress import Progress
from api.stack.services import postgrest_part, sidecar_part
from api.stack.state import Secrets, StateDir, write_private

# In the order in which they start. They stop in the opposite one.
PARTS = ("postgres", "postgrest", "sidecar")


@dataclass(frozen=True)
class PartStatus:
    name: str
    url: str
    pid: int | None


class Stack:
    """One embedded stack: that of `settings.state_dir`."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.state = StateDir(settings.state_dir)
        self._progress = progress or Progress()

    def up(self) -> tuple[Endpoints, tuple[str, ...]]:
        """Bring up what is not running, migrate, and write `stack.json`. Returns also the names of what did not run.

        Raises StackError when that is impossible; what this call had started is then stopped again.
        """
        self.state.create()
        with self.state.locked():
            secrets = self.state.ensure_secrets()
            parts = self._parts(secrets)
            ran = [name for name in PARTS if find(name, self.state)]
            self._clear_the_way(parts)
            started: list[str] = []
            try:
                for part in parts:
                    self._bring_up(part, secrets, started)
                    if part.name == "postgres":
                        self._prepare_database(secrets)
            except BaseException:
                for name in reversed(started):
                    stop(name, self.state)
                raise
            endpoints = self._endpoints(secrets)
            write_private(self.state.stack_file, asdict(endpoints))
            return endpoints, tuple(name for name in started if name not in ran)

    def down(self, parts: tuple[str, ...] = PARTS) -> tuple[str, ...]:
        """Stop the parts, all unless told otherwise, with every process they started. Returns those that ran."""
        if not self.state.exists():
            return ()
        with self.state.locked():
            stopped = []
            for name in reversed([name for name in PARTS if name in parts]):
                if members(name, self.state):
                    with self._progress.step(f"Stop {name}"):
                        stop(name, self.state)
                    stopped.append(name)
            if not any(members(name, self.state) for name in PARTS):
                self.state.stack_file.unlink(missing_ok=True)
            return tuple(stopped)

    @contextmanager
    def borrowed(self) -> Iterator[Endpoints]:
        """The running stack for a while. What did not run before is stopped at the end, whatever happens."""
        endpoints, started = self.up()
        try:
            yield endpoints
        finally:
            if started:
                self.down(started)

    def status(self) -> tuple[PartStatus, ...]:
        """Each part: where it is reached, and its pid when it runs."""
        settings = self.settings
        urls = {
            "postgres": f"postgresql://{url_host(settings.host)}:{settings.postgres_port}/{bootstrap.DATABASE}",
            "postgrest": http_url(settings.host, settings.postgrest_port),
            "sidecar": http_url(settings.host, settings.gateway_port),
        }
        running = {name: find(name, self.state) for name in PARTS}
        return tuple(
            PartStatus(name, urls[name], process.pid if process else None) for name, process in running.items()
        )

    def jwt_secret(self) -> str | None:
        """The key of the tokens this stack accepts: JWT_SECRET, else the generated one. None before the first start."""
        if self.settings.jwt_secret is not None:
            return self.settings.jwt_secret.get_secret_value()
        secrets = self.state.read_secrets()
        return secrets.jwt if secrets else None

    def part(self, name: str) -> Part:
        """A part as it would be started now. The stack has to have been up before: its secrets are needed."""
        secrets = self.state.read_secrets()
        if secrets is None:
            raise StackError("The stack was never up. Run `goldleaves up` first.")
        return next(part for part in self._parts(secrets) if part.name == name)

    def migration_url(self) -> str | None:
        """Where to migrate as `goldleaves_migrator`. None when Postgres is not running."""
        secrets = self.state.read_secrets()
        if secrets is None or find("postgres", self.state) is None:
            return None
        return self._database_url(bootstrap.MIGRATOR, secrets.goldleaves_migrator)

    def _parts(self, secrets: Secrets) -> tuple[Part, ...]:
        secret = self.jwt_secret() or secrets.jwt
        return (
            postgres_part(self.settings, self.state),
            postgrest_part(self.settings, self._database_url("authenticator", secrets.authenticator), secret),
            sidecar_part(
                self.settings, self._database_url("sidecar", secrets.sidecar), secret, self.state.spool.resolve()
            ),
        )

    def _clear_the_way(self, parts: tuple[Part, ...]) -> None:
        """Stop what is left of killed parts, and parts whose settings have changed. Then every port must be free.

        Before anything starts, so that a taken port leaves nothing half-started behind.
        """
        for one, other in combinations(parts, 2):
            if one.port == other.port:
                raise StackError(f"{one.port_setting} and {other.port_setting} are both {one.port}; they must differ.")
        missing = [part for part in parts if find(part.name, self.state) is None or not is_current(part, self.state)]
        for part in reversed(missing):
            stop(part.name, self.state)
        for part in missing:
            require_free_port(part)

    def _bring_up(self, part: Part, secrets: Secrets, started: list[str]) -> None:
        process = find(part.name, self.state)
        with self._progress.step(part.title) as step:
            if process is None:
                if part.name == "postgres" and prepare_cluster(self.settings, self.state, secrets, self._progress.note):
                    step.outcome = "created"
                started.append(part.name)
                process = start(part, self.state)
            else:
                step.outcome = "was running"
            wait_until_ready(part, process, self.state)

    def _prepare_database(self, secrets: Secrets) -> None:
        """Make the migrator and the database, migrate, and only then let anybody in."""
        with self._progress.step("Database") as step:
            check_superuser(self.settings, self.state, secrets)
            server_url = superuser_url(self.settings, secrets)
            bootstrap.create_migrator(server_url, secrets.goldleaves_migrator)
            bootstrap.create_database(server_url)
            report = migrate(self._database_url(bootstrap.MIGRATOR, secrets.goldleaves_migrator), self.settings)
            bootstrap.set_passwords(server_url, secrets.of_services())
            step.outcome = str(report)

    def _endpoints(self, secrets: Secrets) -> Endpoints:
        settings = self.settings
        return Endpoints(
            gateway_url=http_url(settings.host, settings.gateway_port),
            postgrest_url=http_url(settings.host, settings.postgrest_port),
            database_url=superuser_url(settings, secrets, bootstrap.DATABASE),
            jwt_secret=self.jwt_secret() or secrets.jwt,
        )

    def _database_url(self, role: str, password: str) -> str:
        settings = self.settings
        return postgres_url(role, password, settings.host, settings.postgres_port, bootstrap.DATABASE)

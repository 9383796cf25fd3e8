"""The stack as a whole: bring it up, take it down, say how it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations

from api.settings import Settings
from api.stack.endpoints import DATABASE, Endpoints, StackError, http_url, url_host
from api.stack.parts import PARTS, jwt_secret, stack_parts
from api.stack.postgres import prepare_cluster, require_own_data, superuser_url
from api.stack.processes import (
    Part,
    Record,
    find,
    is_current,
    listening_ports,
    members,
    reap,
    require_free_port,
    start,
    stop,
    wait_until_ready,
)
from api.stack.progress import Progress
from api.stack.state import Secrets, StateDir, write_private
from api.stack.supervision import History, Supervision
from api.stack.supervisor import NAME as SUPERVISOR
from api.stack.supervisor import supervisor_part

EVENTS_SECONDS = 0.2


@dataclass(frozen=True)
class PartStatus:
    name: str
    url: str
    pid: int | None
    history: History


class Stack:
    """One embedded stack: that of `settings.state_dir`."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self.settings = settings
        self.state = StateDir(settings.state_dir)
        self._progress = progress or Progress()

    def up(self) -> Endpoints:
        """Bring up what is not running, migrate, write `stack.json`, and leave a supervisor behind.

        Raises StackError when that is impossible; what this call had started is then stopped again.
        """
        endpoints, _ = self._up(supervised=True)
        return endpoints

    def down(self) -> tuple[str, ...]:
        """Stop everything, with every process it started. Returns the names of what ran."""
        return self._stop((*PARTS, SUPERVISOR))

    @contextmanager
    def borrowed(self) -> Iterator[Endpoints]:
        """The running stack for a while. What did not run before is stopped at the end, whatever happens; but a stack
        that has a supervisor is somebody's who wants all of it to run.
        """
        endpoints, started = self._up(supervised=False)
        try:
            yield endpoints
        finally:
            if started and find(SUPERVISOR, self.state) is None:
                self._stop(started)

    def status(self) -> tuple[PartStatus, ...]:
        """Each part: where it is reached, its pid when it runs, and what the supervisor had to do with it."""
        settings = self.settings
        urls = {
            "postgres": f"postgresql://{url_host(settings.host)}:{settings.postgres_port}/{DATABASE}",
            "postgrest": http_url(settings.host, settings.postgrest_port),
            "sidecar": http_url(settings.host, settings.gateway_port),
        }
        running = {name: find(name, self.state) for name in PARTS}
        supervision = Supervision.read(self.state)
        histories = supervision.parts if supervision else {}
        return tuple(
            PartStatus(name, urls[name], process.pid if process else None, histories.get(name, History()))
            for name, process in running.items()
        )

    def supervisor(self) -> int | None:
        """The pid of the supervisor. None when there is none: nothing would be started again."""
        process = find(SUPERVISOR, self.state)
        return process.pid if process else None

    def supervisor_died(self) -> bool:
        """Whether there was a supervisor that `down` has not stopped, and there is none now."""
        return self.supervisor() is None and Record.read(SUPERVISOR, self.state) is not None

    def supervise(self) -> None:
        """Start the supervisor, unless it runs."""
        with self.state.locked():
            self._supervise()

    def events(self) -> Iterator[str]:
        """What the supervisor says from here on, a line each. Ends when somebody stops the stack."""
        with self.state.log(SUPERVISOR).open() as log:
            log.seek(0, os.SEEK_END)
            while self.state.stack_file.exists():
                if line := log.readline():
                    yield line.rstrip("\n")
                    continue
                if self.supervisor_died():
                    yield "The supervisor died:"
                    self.supervise()
                reap()  # what this process started and the supervisor has buried
                time.sleep(EVENTS_SECONDS)

    def part(self, name: str) -> Part:
        """A part as it would be started now. The stack has to have been up before: its secrets are needed."""
        secrets = self.state.read_secrets()
        if secrets is None:
            raise StackError("The stack was never up. Run `goldleaves up` first.")
        return next(part for part in stack_parts(self.settings, self.state, secrets) if part.name == name)

    def _up(self, *, supervised: bool) -> tuple[Endpoints, tuple[str, ...]]:
        """Returns also the names of the parts that did not run. A supervisor that is there stays in any case."""
        self.state.create()
        with self.state.locked():
            secrets = self.state.ensure_secrets()
            parts = stack_parts(self.settings, self.state, secrets)
            had_supervisor = find(SUPERVISOR, self.state) is not None
            ran = [name for name in PARTS if find(name, self.state)]
            self._clear_the_way(parts)
            started: list[str] = []
            try:
                for part in parts:
                    self._bring_up(part, secrets, started)
                    if part.name == "postgres":
                        self._prepare_database(secrets)
                if supervised or had_supervisor:
                    self._supervise()
            except BaseException:
                if not had_supervisor:
                    stop(SUPERVISOR, self.state)
                for name in reversed(started):
                    stop(name, self.state)
                raise
            endpoints = self._endpoints(secrets)
            write_private(self.state.stack_file, asdict(endpoints))
            return endpoints, tuple(name for name in started if name not in ran)

    def _stop(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """In the opposite order, so that nobody starts again what is stopped. Returns the names of what ran."""
        if not self.state.exists():
            return ()
        with self.state.locked():
            stopped = []
            for name in reversed([name for name in (*PARTS, SUPERVISOR) if name in names]):
                if members(name, self.state):
                    with self._progress.step(f"Stop {name}") as step:
                        stop(name, self.state)
                        if name == "sidecar" and (left := self._records_left()):
                            step.outcome = f"{left} usage records stay in the spool for the next start"
                    stopped.append(name)
                self.state.record(name).unlink(missing_ok=True)
            if not any(members(name, self.state) for name in PARTS):
                self.state.stack_file.unlink(missing_ok=True)
            return tuple(stopped)

    def _records_left(self) -> int:
        from api.spool import records_left  # part of the sidecar, which a command rarely needs

        return records_left(self.settings.spool_dir or self.state.spool)

    def _clear_the_way(self, parts: tuple[Part, ...]) -> None:
        """Stop what is left of killed parts, and parts whose settings have changed. Then every port must be free.

        Before anything starts, so that a taken port leaves nothing half-started behind. And what can be told in advance
        to fail is told before anything is stopped: what runs goes on.
        """
        require_own_data(self.settings, self.state)
        for one, other in combinations(parts, 2):
            if one.port == other.port:
                raise StackError(f"{one.port_setting} and {other.port_setting} are both {one.port}; they must differ.")
        missing = [part for part in parts if find(part.name, self.state) is None or not is_current(part, self.state)]
        ours = {port for part in missing for port in listening_ports(part.name, self.state)}
        for part in missing:
            if part.port not in ours:
                require_free_port(part)
        if not is_current(supervisor_part(self.settings, self.state), self.state):
            stop(SUPERVISOR, self.state)
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

    def _supervise(self) -> None:
        """Start the supervisor, unless it runs."""
        part = supervisor_part(self.settings, self.state)
        process = find(SUPERVISOR, self.state)
        with self._progress.step(part.title) as step:
            if process is None:
                if Record.read(SUPERVISOR, self.state) is not None:
                    step.outcome = "had died"
                process = start(part, self.state)
            else:
                step.outcome = "was running"
            wait_until_ready(part, process, self.state)

    def _prepare_database(self, secrets: Secrets) -> None:
        from api.stack.database import prepare_database  # all that migrates: only `up` has to wait for it

        with self._progress.step("Database") as step:
            step.outcome = str(prepare_database(self.settings, self.state, secrets))

    def _endpoints(self, secrets: Secrets) -> Endpoints:
        settings = self.settings
        return Endpoints(
            gateway_url=http_url(settings.host, settings.gateway_port),
            postgrest_url=http_url(settings.host, settings.postgrest_port),
            database_url=superuser_url(settings, secrets, DATABASE),
            jwt_secret=jwt_secret(settings, secrets),
        )

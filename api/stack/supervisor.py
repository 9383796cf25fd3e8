"""The supervisor: a small process that `goldleaves up` leaves behind. It starts again what has died.

It looks for processes that are gone, and for nothing else: one that is there but unwell is for /health to report, and
killing a database that is slow makes it slower. It acts only while it holds the stack's lock, so it keeps out of the
way of every command that is at work on the stack. `down` stops it first.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event
from typing import Final

import psutil

from api.settings import OPERATOR_ONLY, PROJECT, Settings
from api.stack.endpoints import StackError
from api.stack.parts import stack_parts
from api.stack.postgres import prepare_cluster
from api.stack.processes import Part, exit_reason, find, log_end, start, stop
from api.stack.services import as_environment
from api.stack.state import Secrets, StateDir
from api.stack.supervision import History, Supervision

NAME: Final = "supervisor"
LOOK_SECONDS: Final = 0.25
FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 30.0
HEALTHY_AFTER_SECONDS: Final = 60.0  # then what happened before is forgotten, and the next backoff is the first again
WAIT_FOR_POSTGRES_SECONDS: Final = 15.0  # the others connect at once to one that is there, and late to one that is not


def supervisor_part(settings: Settings, state: StateDir) -> Part:
    """The supervisor, which is told every setting of the stack, and reads its secrets from the state directory."""
    known = settings.model_copy(
        update={**dict.fromkeys(OPERATOR_ONLY), "database_url": None, "state_dir": state.root.resolve()}
    )
    return Part(
        name=NAME,
        title="Supervisor",
        command=(sys.executable, "-m", "api.stack"),
        is_ready=lambda: _is_watching(state),
        environment=as_environment(known),
        directory=PROJECT,
        stop_within=15,  # it may be clearing up after a part
    )


@dataclass
class Watched:
    """One part, as seen over time. Moments are those of a monotonic clock."""

    part: Part
    process: psutil.Process | None = None
    running_since: float = 0.0
    dead_since: float | None = None
    is_ready: bool = False
    is_late: bool = False
    failures: int = 0  # in a row
    again_at: float = 0.0
    history: History = field(default_factory=History)


class Supervisor:
    """Watches parts until told to end. `say` gets each event as one text, mostly one line."""

    def __init__(self, settings: Settings, state: StateDir, secrets: Secrets, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._state = state
        self._secrets = secrets
        self._say = say
        self._watched: Mapping[str, Watched] = {
            part.name: Watched(part) for part in stack_parts(settings, state, secrets)
        }

    def run(self, end: Event) -> None:
        self._publish()
        while not end.is_set() and self._state.exists():
            for watched in self._watched.values():
                if end.is_set():
                    return
                try:
                    self._look(watched)
                except (OSError, psutil.Error) as error:  # a full disk, say: whoever watches is to outlive it
                    self._say(f"{watched.part.title} cannot be looked after: {error}")
            end.wait(LOOK_SECONDS)

    def _look(self, watched: Watched) -> None:
        now = time.monotonic()
        process = find(watched.part.name, self._state)
        if process is not None:
            self._see_running(watched, process, now)
            return
        with self._state.locked_unless_busy() as locked:
            # Looked for once more: what was missing may be what a command has just replaced.
            if not locked or find(watched.part.name, self._state) is not None:
                return
            if watched.dead_since is None:
                self._see_dead(watched, now, _how_it_ended(watched))
            if now >= watched.again_at and not self._waits_for_postgres(watched, now):
                self._start_again(watched)

    def _see_running(self, watched: Watched, process: psutil.Process, now: float) -> None:
        if watched.process is None or watched.process.pid != process.pid:
            watched.process, watched.running_since = process, now
            watched.is_ready = watched.is_late = False
        watched.dead_since = None
        if not watched.is_ready:
            self._see_whether_ready(watched, now)
        elif watched.failures and now - watched.running_since > HEALTHY_AFTER_SECONDS:
            watched.failures = 0

    def _see_whether_ready(self, watched: Watched, now: float) -> None:
        part = watched.part
        if part.is_ready():
            watched.is_ready = True
            if watched.failures:
                self._say(f"{part.title} is back")
        elif watched.failures and not watched.is_late and now - watched.running_since > part.ready_within:
            watched.is_late = True
            self._say(f"{part.title} runs, but is not ready after {part.ready_within:.0f} s: see `goldleaves status`")

    def _see_dead(self, watched: Watched, now: float, reason: str) -> None:
        part = watched.part
        died_while_starting = watched.process is not None and not watched.is_ready
        backoff = min(FIRST_BACKOFF_SECONDS * 2**watched.failures, LONGEST_BACKOFF_SECONDS)
        watched.dead_since, watched.again_at = now, now + backoff
        watched.failures += 1
        watched.is_ready = False
        watched.history = History(watched.history.restarts, reason, datetime.now(UTC).isoformat(timespec="seconds"))
        self._publish()
        text = f"{part.title} {reason}; starting it again in {backoff:g} s"
        self._say(f"{text}\n{log_end(part.name, self._state)}" if died_while_starting else text)

    def _waits_for_postgres(self, watched: Watched, now: float) -> bool:
        if watched.part.name == "postgres" or self._watched["postgres"].is_ready or watched.dead_since is None:
            return False
        return now - watched.dead_since < WAIT_FOR_POSTGRES_SECONDS

    def _start_again(self, watched: Watched) -> None:
        part = watched.part
        try:
            stop(part.name, self._state)  # what its end has left behind
            if part.name == "postgres":
                prepare_cluster(self._settings, self._state, self._secrets, self._say)
            watched.process = start(part, self._state)
        except (StackError, OSError) as error:
            watched.process = None
            self._see_dead(watched, time.monotonic(), f"cannot be started: {error}")
            return
        watched.dead_since, watched.running_since = None, time.monotonic()
        watched.is_ready = watched.is_late = False
        watched.history = replace(watched.history, restarts=watched.history.restarts + 1)
        self._publish()

    def _publish(self) -> None:
        Supervision(os.getpid(), {name: watched.history for name, watched in self._watched.items()}).write(self._state)


def _how_it_ended(watched: Watched) -> str:
    return "was not running" if watched.process is None else exit_reason(watched.process)


def _is_watching(state: StateDir) -> bool:
    supervision, process = Supervision.read(state), find(NAME, state)
    return supervision is not None and process is not None and supervision.pid == process.pid

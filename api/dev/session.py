"""The loop of `goldleaves dev`: wait for a save, do what it asks for, say in one line what was done."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from threading import Event
from types import FrameType
from typing import Any, Final

from rich.console import Console
from watchfiles import watch

from api.dev.database import RunningDatabase
from api.dev.sidecar import CodeError, Sidecar
from api.dev.sources import FOLDERS, Sources
from api.release import MigrationError
from api.settings import PROJECT
from api.stack.endpoints import StackError
from api.stack.stack import Stack

QUIET_MS: Final = 50  # saves that follow each other closer than this are one
LONGEST_BURST_MS: Final = 1000
LOOK_ANYHOW_MS: Final = 1000  # a save in the moment before watching begins is told to nobody
MOST_NAMED: Final = 3

# Code of this command itself, which has it in memory.
OF_THE_COMMAND: Final = ("api/cli.py", "api/demo/", "api/dev/", "api/migrations.py", "api/release/", "api/stack/")

_PLACE: Final = re.compile(r"(?P<path>[\w./-]+\.(?:sql|py)):(?P<line>\d+): ")


def develop(console: Console, stack: Stack, root: Path = PROJECT) -> None:
    """Run the stack, and bring to it what is saved, until SIGINT or SIGTERM. Leaves the stack as it was found."""
    before = Sources.read(root)
    with stack.borrowed() as endpoints, closing(Sidecar(stack)) as sidecar, _told_to_end() as end:
        console.print(f"\nGateway  {endpoints.gateway_url}/api/v1/", highlight=False)
        console.print(f"Watching {', '.join(f'{folder}/' for folder in FOLDERS)}. Ctrl-C ends.", highlight=False)
        session = Session(console, RunningDatabase(stack, root), sidecar, before)
        session.look(Sources.read(root))  # what was saved while the stack started
        folders = [root / folder for folder in FOLDERS]
        for _ in watch(
            *folders,
            step=QUIET_MS,
            debounce=LONGEST_BURST_MS,
            stop_event=end,
            rust_timeout=LOOK_ANYHOW_MS,
            yield_on_timeout=True,
        ):
            session.look(Sources.read(root))
            if end.is_set():
                break


class Session:
    """What was seen last, and what to do about what is different now."""

    def __init__(self, console: Console, database: RunningDatabase, sidecar: Sidecar, seen: Sources) -> None:
        self._console = console
        self._database = database
        self._sidecar = sidecar
        self._seen = seen

    def look(self, now: Sources) -> None:
        """React to what has changed since the last look. Whatever fails is said, and nothing is raised."""
        before, self._seen = self._seen, now
        changed = now.changed_since(before)
        for folders, action in (
            (("migrations/",), self._migrate),
            (("sql/", "policies/"), self._load),
            (("api/",), self._restart),
        ):
            if of_these := [path for path in changed if path.startswith(folders)]:
                self._attempt(of_these, action)

    def _load(self, changed: list[str]) -> str:
        self._refuse_empty(path for path in self._seen.files if path.startswith(("sql/", "policies/")))
        report = self._database.load()
        loaded = [path for path in changed if path in report.loaded]
        done = [f"loaded {_named(loaded)}"] if loaded else []
        done += [f"dropped {_named(report.dropped)}"] if report.dropped else []
        return "; ".join(done) or f"{_named(changed)} is what was loaded before: nothing to do"

    def _migrate(self, changed: list[str]) -> str:
        status = self._database.status()
        self._refuse_empty(f"migrations/{name}.sql" for name in status.pending)
        if status.pending or status.unknown:
            return f"migrated: {self._database.migrate()}"
        applied = [path for path in changed if PurePosixPath(path).stem in status.applied]
        if not applied:
            return f"{_named(changed)}: nothing to do"
        before = max((name for name in status.applied if name < PurePosixPath(applied[0]).stem), default=None)
        undo = f"--to {before.partition('_')[0]}" if before else "--all"
        return f"{applied[0]} is applied already; `goldleaves rollback {undo}` undoes it, and the next save applies it"

    def _restart(self, changed: list[str]) -> str:
        if all(path.startswith(OF_THE_COMMAND) for path in changed):
            return f"{_named(changed)}: code of this command; start it again to run that"
        self._sidecar.restart()
        return f"restarted the sidecar for {_named(changed)}"

    def _refuse_empty(self, paths: Iterable[str]) -> None:
        """A file just created, or in the middle of a save: loading it would drop what it made a moment ago."""
        for path in paths:
            if self._seen.is_empty(path):
                raise MigrationError(f"{path}: it is empty, so nothing is loaded until it has content or is removed")

    def _attempt(self, changed: list[str], action: Callable[[list[str]], str]) -> None:
        started = time.monotonic()
        try:
            done = action(changed)
        except (MigrationError, StackError, CodeError, OSError, UnicodeError) as error:
            self._say(f"failed {_named(changed)}", "red")
            for problem in str(error).splitlines():
                self._show(problem)
        else:
            self._say(f"{done} in {time.monotonic() - started:.2f} s")

    def _show(self, problem: str) -> None:
        """What went wrong, and the line of the file that it speaks of."""
        self._print(f"         {problem}", "red")
        if found := _PLACE.match(problem):
            number = int(found["line"])
            line = self._seen.line(found["path"], number)
            if line is not None:
                self._print(f"         {number:>5} │ {line}")

    def _say(self, text: str, style: str = "") -> None:
        self._print(f"{datetime.now():%H:%M:%S} {text}", style)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _named(paths: Sequence[str]) -> str:
    more = len(paths) - MOST_NAMED
    return ", ".join(paths[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _told_to_end() -> Iterator[Event]:
    """Set by the first SIGINT or SIGTERM: what is under way is finished. A second one interrupts that too."""
    end = Event()

    def note(number: int, _frame: FrameType | None) -> None:
        end.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

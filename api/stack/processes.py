"""Start, find and stop the stack's processes. They outlive the command that started them; no stranger is ever killed.

A process is ours when its record names its pid *and* its start time (pids are reused), or when it carries our mark: a
variable in its environment. Postgres overwrites its environment; there the mark is the data directory it works in.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from api.settings import Settings
from api.stack.endpoints import StackError, url_host
from api.stack.state import StateDir, write_private

MARK = "GOLDLEAVES_PART"
POLL_SECONDS = 0.03
LONGEST_STOP_SECONDS = 30.0  # of a part whose record is lost
LOG_LINES_SHOWN = 15

# Start times are computed from the wall clock, which may be adjusted while a process lives.
START_TIME_TOLERANCE = 5.0

# What a part is asked to do; the first of them as long as its record says, the next for so many seconds. Then it is
# killed. SIGINT is Postgres' "fast" shutdown.
STOP_SIGNALS: Mapping[str, Sequence[signal.Signals]] = {"postgres": (signal.SIGINT, signal.SIGQUIT)}
ORDERLY = (signal.SIGTERM,)
LAST_SECONDS = 5.0

LAST_THREAD_SECONDS = 2.0  # between the end of a process's first thread and that of its last


@dataclass(frozen=True)
class Part:
    """One process of the stack, and how to tell that it serves."""

    name: str
    title: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    port_setting: str = ""
    host: str = ""
    port: int = 0  # 0: it listens nowhere
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    directory: Path = Path("/")
    user: str | None = None
    ready_within: float = 60.0
    stop_within: float = 5.0  # how long it may take to end in an orderly way

    @property
    def fingerprint(self) -> str:
        """Changes with the part's configuration, so that `up` restarts what was started with another one."""
        what = json.dumps([self.command, sorted(self.environment.items())])
        return hashlib.sha256(what.encode()).hexdigest()


def start(part: Part, state: StateDir) -> psutil.Process:
    """Start the part in a session of its own, its output appended to its log, and write its record."""
    spawned = spawn(part, state, part.command)
    remember(part, spawned.process, state, spawned.log_offset)
    return spawned.process


@dataclass(frozen=True)
class Spawned:
    """A process that carries the part's mark. It is the part once its record is written."""

    process: psutil.Process
    log_offset: int


def spawn(part: Part, state: StateDir, command: Sequence[str], stdin: int = subprocess.DEVNULL) -> Spawned:
    """Run a command as the part would run: its environment, directory, user and log."""
    log = state.log(part.name)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with log.open("ab") as output:
        log_offset = output.tell()
        child = subprocess.Popen(  # noqa: S603 - the command is built by this package
            command,
            cwd=part.directory,
            env=_inherited() | dict(part.environment) | {MARK: _mark(state, part.name)},
            stdin=stdin,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=part.user,
            group=part.user,
            extra_groups=None if part.user is None else [],
        )
    child.returncode = 0  # disown it: it is to outlive us, and psutil waits for it from here on
    return Spawned(psutil.Process(child.pid), log_offset)


@dataclass(frozen=True)
class Record:
    """What `run/<part>.json` holds. `log_offset` is where the output of this start begins in the log."""

    pid: int
    create_time: float
    fingerprint: str
    log_offset: int
    stop_within: float = LONGEST_STOP_SECONDS

    @classmethod
    def read(cls, name: str, state: StateDir) -> Record | None:
        try:
            return cls(**json.loads(state.record(name).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def remember(part: Part, process: psutil.Process, state: StateDir, log_offset: int = 0) -> None:
    path = state.record(part.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    record = Record(process.pid, process.create_time(), part.fingerprint, log_offset, part.stop_within)
    write_private(path, asdict(record))


def find(name: str, state: StateDir) -> psutil.Process | None:
    """The part's running main process."""
    record = Record.read(name, state)
    process = _alive(record.pid) if record else None
    if record and process and abs(process.create_time() - record.create_time) < START_TIME_TOLERANCE:
        return process
    return _find_postmaster(state) if name == "postgres" else None


def is_current(part: Part, state: StateDir) -> bool:
    """Whether the running part was started with the configuration it would be given now."""
    record = Record.read(part.name, state)
    return record is not None and record.fingerprint == part.fingerprint


def wait_until_ready(part: Part, process: psutil.Process, state: StateDir) -> None:
    """Poll until the part serves. Raises StackError with the end of its log when it died or does not get there."""
    deadline = time.monotonic() + part.ready_within
    while True:
        if not is_running(process):
            raise StackError(f"{part.title} stopped while starting.\n{log_end(part.name, state)}")
        if part.is_ready():
            return
        if time.monotonic() > deadline:
            raise StackError(
                f"{part.title} was not ready within {part.ready_within:.0f} s.\n{log_end(part.name, state)}"
            )
        time.sleep(POLL_SECONDS)


def stop(name: str, state: StateDir) -> None:
    """Stop the part with everything it started, and return once all of it has ended."""
    everyone = members(name, state)  # now, since a process that is ending no longer shows whose it is
    main = find(name, state)
    if main is not None:
        stop_main(name, main, state)
    # Whoever is left lost its parent to a kill, or hangs. Postgres' backends take SIGTERM as a polite request too.
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [process for process in members(name, state) if is_running(process)]
        for process in left:
            _signal(process, number)
        await_end(left)
    await_end(everyone)
    state.record(name).unlink(missing_ok=True)


def stop_main(name: str, process: psutil.Process, state: StateDir) -> None:
    """Ask the part's main process to end, and wait for it. What is left of the part then is for `stop`."""
    record = Record.read(name, state)
    seconds = record.stop_within if record else LONGEST_STOP_SECONDS
    for number in STOP_SIGNALS.get(name, ORDERLY):
        _signal(process, number)
        if _wait(process, seconds):
            break
        seconds = LAST_SECONDS


def reap() -> None:
    """Take note of children that have ended, so that they leave the process table."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def exit_reason(process: psutil.Process) -> str:
    """How a process ended, in words. Only its parent is told more than that it did."""
    try:
        # The parent is told once its last thread is gone, a moment after the first.
        is_ours = process.is_running() and process.ppid() == os.getpid()
        code = process.wait(timeout=LAST_THREAD_SECONDS if is_ours else 0)
    except psutil.Error:
        code = None
    if code is None:
        return "ended"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def members(name: str, state: StateDir) -> list[psutil.Process]:
    """Every live process of the part, also those whose parent was killed."""
    ours = _runs_in(state.data) if name == "postgres" else _carries(_mark(state, name))
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and ours(process)]


def is_running(process: psutil.Process) -> bool:
    """Whether it runs. A zombie does not: it only waits for a parent to take note. As long as other threads of it still
    end, though, its files are open and locked.
    """
    try:
        return process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False


def listening_ports(name: str, state: StateDir) -> set[int]:
    """Where the part's processes listen now."""
    ports = set()
    for process in members(name, state):
        with suppress(psutil.Error):
            ports |= {at.laddr.port for at in process.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    return ports


def require_free_port(part: Part) -> None:
    """Raise StackError naming the setting unless the part can listen on its port."""
    host = url_host(part.host).strip("[]") if part.host == "*" else part.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, part.port))
        except OSError as error:
            if error.errno in (98, 48):  # EADDRINUSE on Linux and macOS
                problem = f"{part.port_setting} {part.port} is taken; set {part.port_setting} to a free port."
            else:
                problem = f"Cannot listen on HOST {host}, {part.port_setting} {part.port}: {error.strerror}."
            raise StackError(problem) from None


def answer_of(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Status and body of a GET; None when nobody answers. Goes round any proxy that the environment names."""
    connection = http.client.HTTPConnection(url_host(host).strip("[]"), port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def answers_ok(host: str, port: int, path: str) -> bool:
    answer = answer_of(host, port, path)
    return answer is not None and answer[0] == 200


def _inherited() -> dict[str, str]:
    """Our environment without what is meant for us: settings, of which some are secrets that no part may hold; and
    without libpq's variables, which would redirect what the parts connect to.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower() not in Settings.model_fields and not name.startswith("PG")
    }


def _mark(state: StateDir, name: str) -> str:
    return f"{state.root.resolve()}:{name}"


def _carries(mark: str) -> Callable[[psutil.Process], bool]:
    def check(process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == mark
        except (psutil.Error, OSError):
            return False

    return check


def _runs_in(data: Path) -> Callable[[psutil.Process], bool]:
    directory = str(data.resolve())

    def check(process: psutil.Process) -> bool:
        try:
            return process.name().startswith("postgres") and process.cwd() == directory
        except (psutil.Error, OSError):
            return False

    return check


def _find_postmaster(state: StateDir) -> psutil.Process | None:
    try:
        pid = int((state.data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    process = _alive(pid)
    return process if process and _runs_in(state.data)(process) else None


def _alive(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if is_running(process) else None


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def await_end(ending: Sequence[psutil.Process]) -> None:
    """Wait for processes that were told to end, 5 s at most."""
    deadline = time.monotonic() + LAST_SECONDS
    for process in ending:
        _wait(process, deadline - time.monotonic())


def _wait(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    with suppress(psutil.Error, OSError):
        process.wait(timeout=0)  # a child of ours leaves the process table only once it was waited for
    return True


def log_end(name: str, state: StateDir) -> str:
    """The last lines that this start of the part has logged, indented, and where the log is."""
    path = state.log(name)
    record = Record.read(name, state)
    try:
        output = path.read_bytes()[record.log_offset if record else 0 :]
    except OSError:
        output = b""
    lines = output.decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    return "\n".join([*(f"  {line}" for line in lines), f"Log: {path}"])

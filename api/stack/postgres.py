"""The embedded Postgres, run by us because it must listen on TCP.

Postgres refuses to run as root. Then it runs as the user `pgserver`, who needs a way to the data and to the binaries.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from api.settings import Settings
from api.stack.endpoints import SUPERUSER, StackError, postgres_url
from api.stack.installations import binaries, locale_arguments
from api.stack.processes import Part, members
from api.stack.state import Secrets, StateDir

SYSTEM_USER = "pgserver"


def postgres_part(settings: Settings, state: StateDir, options: dict[str, str] | None = None) -> Part:
    """The server process. `options` are further server settings, such as `max_connections`."""
    configuration = {
        "listen_addresses": settings.host,
        "port": str(settings.postgres_port),
        "unix_socket_directories": "",  # the path of a socket is limited to 107 characters; a project's path is not
        "timezone": "UTC",
        "log_timezone": "UTC",
        **(options or {}),
    }
    return Part(
        name="postgres",
        title=f"PostgreSQL {settings.postgres_version}",
        port_setting="POSTGRES_PORT",
        host=settings.host,
        port=settings.postgres_port,
        command=(
            str(binaries(settings.postgres_version) / "postgres"),
            "-D",
            str(state.data.resolve()),
            *(argument for name, value in configuration.items() for argument in ("-c", f"{name}={value}")),
        ),
        is_ready=lambda: _says_ready(state.data),
        environment={"LC_ALL": "C", "LANG": "C"},
        user=_system_user(),
        ready_within=120,  # after a crash it first replays its log
        stop_within=30,
    )


def require_own_data(settings: Settings, state: StateDir) -> None:
    """Raise StackError when there is a data directory that this version of Postgres cannot open."""
    if not state.data.exists():
        return
    major, version_file = settings.postgres_version, state.data / "PG_VERSION"
    if not version_file.exists():
        raise StackError(f"{state.data} is no data directory of PostgreSQL. Move it away, or set STATE_DIR.")
    if (version := version_file.read_text().strip()) != str(major):
        raise StackError(
            f"{state.data} was made by PostgreSQL {version}, which {major} cannot open. "
            f"Set POSTGRES_VERSION={version}, or take the data along with pg_dump (docs/restore.md)."
        )


def prepare_cluster(settings: Settings, state: StateDir, secrets: Secrets, tell: Callable[[str], None]) -> bool:
    """Make the data directory unless it is there, whole or not at all. Returns whether it was made.

    `tell` gets a line about what was changed elsewhere on the machine for it.
    """
    major = settings.postgres_version
    user = _system_user()
    if user is not None and (opened := _open_the_way(state, binaries(major))):
        tell(f"Opened for the user {user} to pass through: {', '.join(str(path) for path in opened)}")
    require_own_data(settings, state)
    if state.data.exists():
        _forget_stale_lock(state)
        return False

    draft = state.data.with_name("postgres.new")
    password_file = state.root / "password.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    password_file.touch(mode=0o600)
    password_file.write_text(secrets.postgres)
    try:
        if user is not None:
            for path in (draft, password_file):
                shutil.chown(path, user, user)
        _run_initdb(major, draft, password_file, user)
        draft.rename(state.data)
    finally:
        password_file.unlink(missing_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
    return True


def superuser_url(settings: Settings, secrets: Secrets, database: str = "postgres") -> str:
    return postgres_url(SUPERUSER, secrets.postgres, settings.host, settings.postgres_port, database)


def _run_initdb(major: int, target: Path, password_file: Path, user: str | None) -> None:
    arguments = (
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        *locale_arguments(major),
        "--no-instructions",
    )
    done = subprocess.run(  # noqa: S603 - the command is built here
        (str(binaries(major) / "initdb"), *arguments, "-D", str(target)),
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    if done.returncode != 0:
        raise StackError(f"initdb failed.\n{(done.stderr or done.stdout).strip()}")


def _says_ready(data: Path) -> bool:
    """What the postmaster itself writes once it accepts connections; a connection attempt would fill its log."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _forget_stale_lock(state: StateDir) -> None:
    """Remove the lock of a postmaster that is gone: after a restart of the machine its pid may be somebody else's."""
    if not members("postgres", state):
        (state.data / "postmaster.pid").unlink(missing_ok=True)


def _system_user() -> str | None:
    """Who Postgres runs as: None is whoever we are."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _run_as_root("useradd", "--system", "--no-create-home", "--user-group", SYSTEM_USER)
    return SYSTEM_USER


def _run_as_root(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed commands
    except FileNotFoundError:
        raise StackError(
            f"Postgres cannot run as root, and `{command[0]}` is missing. Run as an ordinary user."
        ) from None
    except subprocess.CalledProcessError as error:
        raise StackError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None


def _open_the_way(state: StateDir, programs: Path) -> list[Path]:
    """Let the system user reach, but not list, what it needs below directories of root that are closed to others.

    Returns the directories that are not ours and were opened.
    """
    state.root.chmod(state.root.stat().st_mode | stat.S_IXOTH)
    opened = []
    for start in (state.root.resolve(), programs.resolve()):
        for directory in start.parents:
            mode = directory.stat().st_mode
            if not mode & stat.S_IXOTH:
                directory.chmod(mode | stat.S_IXOTH)
                opened.append(directory)
    installation = programs.parent
    # A package that was installed under a strict umask is closed to others altogether.
    if not (programs / "postgres").stat().st_mode & stat.S_IXOTH:
        for path in (installation, *installation.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
        opened.append(installation)
    return opened

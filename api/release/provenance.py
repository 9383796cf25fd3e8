"""Who releases, and from which revision of the files: written into the rows of the releases by their defaults."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path

from api.release.catalog import Connection


def sign(conn: Connection, root: Path, *, operator: str | None = None, restores: int | None = None) -> None:
    """For all that this session releases. `restores`: the release whose policies it goes back to."""
    for name, value in (
        ("git_revision", git_revision(root)),
        ("operator", operator or _user()),
        ("restores", restores),
    ):
        text = "" if value is None else str(value)
        conn.execute("select set_config('goldleaves.' || %s, %s, false)", [name, text])


def git_revision(root: Path) -> str | None:
    """The commit of the checkout, with `-dirty` when files differ from it. None where there is no git or checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or None if found.returncode == 0 else None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        return None

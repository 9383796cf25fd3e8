"""Who releases, and from which revision of the files: written into the rows of the releases by their defaults."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path
from typing import Final

from api.release.catalog import Connection
from api.release.files import is_draft

FOLDERS: Final = ("migrations", "sql", "policies")
_DIRTY: Final = "-dirty"


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
    """The commit of the checkout, with `-dirty` when files differ from it, or a released one is not in it. None where
    there is no git or checkout.
    """
    found = _git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if not found:
        return None
    return found if found.endswith(_DIRTY) or not _unknown_files(root) else found + _DIRTY


def _unknown_files(root: Path) -> list[str]:
    """What would be released and no commit knows, also where git is told to ignore it."""
    listed = _git(root, "ls-files", "-z", "--others", "--", *(f"{folder}/*.sql" for folder in FOLDERS)) or ""
    return [name for name in listed.split("\0") if name and not is_draft(name)]


def _git(root: Path, *arguments: str) -> str | None:
    """What git says. None: it is not there, or refuses."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        return None

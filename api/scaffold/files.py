"""Apply a plan for files: create what is absent and overwrite nothing, whoever else is writing there.

A file appears whole or not at all: it is written beside its place under another name, and linked into it, which fails
where something is there already. A kill leaves at most that other name, which begins with a dot and is read by nobody.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path

from api.release import MigrationError
from api.scaffold.plan import CreateFile, FilesPlan


class State(StrEnum):
    """What becomes of a file, or became of it."""

    CREATE = "create"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Outcome:
    """`beside` is where the content of a conflict is, or would be, written: the file itself stays as it is."""

    path: str
    state: State
    beside: str | None = None


@dataclass(frozen=True)
class Report:
    outcomes: tuple[Outcome, ...]
    applied: bool

    def of(self, state: State) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state is state]

    @property
    def has_conflicts(self) -> bool:
        return bool(self.of(State.CONFLICT))


def apply_plan(plan: FilesPlan, root: Path, *, write: bool) -> Report:
    """Say what becomes of each file, and with `write` do it. Raises MigrationError before anything is written when a
    path leads out of the project, or through a file.
    """
    for action in plan.actions:
        _require_inside(root, action.path)
    outcomes = tuple(_create(root, action) if write else _look(root, action) for action in plan.actions)
    return Report(outcomes, write)


def _require_inside(root: Path, path: str) -> None:
    """Also through symbolic links: what lies behind the folder has to be in the folder."""
    folder = root.resolve() / path.partition("/")[0]
    if not (root / path).resolve().is_relative_to(folder):
        raise MigrationError(f"{path}: a symbolic link leads out of {folder}, nothing was written")
    for above in (root / path).parents:
        if above != root and above.is_relative_to(root) and above.exists() and not above.is_dir():
            raise MigrationError(f"{path}: {above.relative_to(root)} is a file and no folder, nothing was written")


def _look(root: Path, action: CreateFile) -> Outcome:
    path = root / action.path
    if _holds(path, action.content):
        return Outcome(action.path, State.UNCHANGED)
    if not os.path.lexists(path):
        return Outcome(action.path, State.CREATE)
    free = next(name for name in _beside(action.path) if _holds(root / name, action.content) or _is_free(root / name))
    return Outcome(action.path, State.CONFLICT, free)


def _create(root: Path, action: CreateFile) -> Outcome:
    path = root / action.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if _appears(path, action.content):
        return Outcome(action.path, State.CREATE)
    if _holds(path, action.content):
        return Outcome(action.path, State.UNCHANGED)
    written = next(
        name
        for name in _beside(action.path)
        if _appears(root / name, action.content) or _holds(root / name, action.content)
    )
    return Outcome(action.path, State.CONFLICT, written)


def _beside(path: str) -> Iterator[str]:
    """`<path>.new`, or with a number when somebody has not looked at an earlier one yet. No loader reads such names."""
    yield f"{path}.new"
    for number in count(2):
        yield f"{path}.new.{number}"


def _is_free(path: Path) -> bool:
    return not os.path.lexists(path)


def _holds(path: Path, content: str) -> bool:
    return path.is_file() and path.read_bytes() == content.encode()


def _appears(path: Path, content: str) -> bool:
    """Whether it was us who made the file. A link never replaces anything."""
    if not _is_free(path):
        return False
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("xb") as file:
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    except FileExistsError:
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    return True

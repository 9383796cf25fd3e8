"""What can go wrong while migrating, said in one line that names the file, the line and what the server answered."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg


class MigrationError(Exception):
    """A migration, a file of sql/ or policies/, or the state of the database stops it. Nothing half done is left."""


class PolicyConflict(MigrationError):
    """Somebody changed row security or grants by hand since the last release. Nothing was overwritten.

    `conflicts` are those that stood in the way: unit, file and sentences.
    """

    def __init__(self, message: str, conflicts: Iterable[tuple[str, str | None, list[str]]] = ()) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)


class ReleaseTableMissing(MigrationError):
    """The migrations so far make no `ops.releases`, so nothing can be loaded at this point."""


def _line_of(error: psycopg.Error, text: str) -> int | None:
    """The line of the file that the server points at, where it points at one."""
    if error.diag.statement_position:
        return text.count("\n", 0, int(error.diag.statement_position) - 1) + 1
    inner, position = error.diag.internal_query, error.diag.internal_position
    if inner and position and (start := text.find(inner)) >= 0:
        return text.count("\n", 0, start + int(position) - 1) + 1
    return None


def explain(error: psycopg.Error, path: str, text: str, subject: str = "") -> str:
    """`path:line: [subject: ]message (detail; hint)` on one line."""
    line = _line_of(error, text)
    message = error.diag.message_primary or str(error) or type(error).__name__
    context = (error.diag.context or "").split("\n")[0] if line is None else None
    notes = "; ".join(note for note in (error.diag.message_detail, error.diag.message_hint, context) if note)
    where = f"{path}:{line}" if line else path
    return " ".join(f"{where}: {subject + ': ' if subject else ''}{message}{f' ({notes})' if notes else ''}".split())

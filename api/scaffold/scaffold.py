"""Scaffolding a table: what was asked for becomes a plan, tried on the database where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from api.scaffold import samples
from api.scaffold.attempt import Unreachable, try_files
from api.scaffold.plan import FilesPlan, plan_of
from api.scaffold.table import Paths, Table, on_delete, paths_of, sql_files, test_file


@dataclass(frozen=True)
class Scaffold:
    """The plan, and what to know about it, a line each."""

    plan: FilesPlan
    paths: Paths
    notes: tuple[str, ...]


def scaffold_table(table: Table, url: str | None, root: Path) -> Scaffold:
    """Writes nothing. Raises MigrationError when the database at `url` refuses it; without one nobody is asked."""
    paths = paths_of(table, root)
    files = sql_files(table, paths)
    row, notes = samples.first_guess(table), list(_choices(table))
    if url is None:
        notes.append("Not tried: no database runs here. `goldleaves migrate` will tell what is wrong with it.")
    else:
        try:
            attempt = try_files(url, table, paths, files, root)
            row = dict(attempt.row)
            notes += [*attempt.notes, f"Tried on {attempt.where}, and taken back."]
        except Unreachable as error:
            notes.append(f"Not tried, no database answers: {error}")
    files[paths.test] = test_file(table, row)
    return Scaffold(plan_of(files), paths, tuple(notes))


def _choices(table: Table) -> list[str]:
    return [
        f"{column.name}: on delete {on_delete(column, column.reference)}, since nothing else was said."
        for column in table.columns
        if column.reference and not column.reference.on_delete
    ]

"""Try the files of a table on the database there is, in a transaction that is rolled back: Postgres knows its types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psycopg

from api.migrations import status
from api.policies.trial import trial
from api.release import MigrationError
from api.release.catalog import Connection
from api.release.errors import explain
from api.release.loader import is_busy, retry_when_busy
from api.scaffold import samples
from api.scaffold.table import Paths, Table

_WITHOUT_VIEW = "drop view api.{};\n"  # a rollback of a migration begins when behaviour is unloaded
_NOT_OF_TENANTS = 'column "organization_id" referenced in foreign key constraint does not exist'
_TYPES = """
select a.attname, t.typtype = 'e' or t.typname = 'jsonb' or t.typname = 'json', format_type(a.atttypid, null)
from pg_attribute a
join pg_type t on t.oid = a.atttypid
where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped
order by a.attnum
"""


@dataclass(frozen=True)
class Attempt:
    """`where` it was tried, a row that its checks let pass, and what to know about it."""

    where: str
    row: Mapping[str, str]
    notes: tuple[str, ...]


class Unreachable(Exception):
    """No database answers there, for the reason that is the message."""


def try_files(url: str, table: Table, paths: Paths, files: Mapping[str, str], root: Path) -> Attempt:
    """Raises MigrationError that names the column, Unreachable when nobody answers. Nothing of it stays."""
    try:
        pending = set(status(url, root).pending)
    except MigrationError as error:
        if isinstance(error.__cause__, psycopg.OperationalError):
            raise Unreachable(str(error)) from error
        raise
    if before := sorted(pending - {PurePosixPath(paths.migration).stem}):
        listed = before[0] if len(before) == 1 else f"{before[0]} and {len(before) - 1} more"
        raise MigrationError(f"not applied yet: {listed}. Run `goldleaves migrate` first")
    return retry_when_busy(lambda: _try_once(url, table, paths, files))


def _try_once(url: str, table: Table, paths: Paths, files: Mapping[str, str]) -> Attempt:
    with trial(url) as conn:
        _require_absent(conn, table)
        for path, text in files.items():
            if path != paths.rollback:
                _run(conn, table, path, text)
        row, unknown = samples.tried(conn, table)
        notes = [
            f"{name} is {kind}: under row security a filter on it uses no index. Text with a check does."
            for name, slow, kind in conn.execute(_TYPES, [table.qualified])
            if slow
        ]
        notes += [
            f"{paths.test}: no value of {name} was found that its checks let pass. Put one into TABLE.row, and for the "
            f"matrix into the header of {paths.policies}: -- a row: ({name}) values (…)"
            for name in unknown
        ]
        _run(conn, table, paths.rollback, _WITHOUT_VIEW.format(table.name) + files[paths.rollback])
        return Attempt(f"{conn.info.dbname} at {conn.info.host}:{conn.info.port}", row, tuple(notes))


def _require_absent(conn: Connection, table: Table) -> None:
    if _exists(conn, table.qualified):
        raise MigrationError(
            f"{table.qualified} exists already. To change it, write a migration; a table that tenants cannot use yet "
            f"is adopted: goldleaves adopt {table.qualified}"
        )
    if _exists(conn, f"api.{table.name}"):
        raise MigrationError(f"api.{table.name} exists already, and shows something else: take another name")


def _exists(conn: Connection, name: str) -> bool:
    found = conn.execute("select to_regclass(%s) is not null", [name]).fetchone()
    return bool(found and found[0])


def _run(conn: Connection, table: Table, path: str, text: str) -> None:
    try:
        conn.execute(text.encode())
        conn.execute("reset role")
    except psycopg.Error as error:
        if is_busy(error):
            raise
        raise MigrationError(_explained(error, table, path, text)) from error


def _explained(error: psycopg.Error, table: Table, path: str, text: str) -> str:
    """By the column where the server points at one, since the file is not there to be looked at."""
    if error.diag.statement_position:
        at = int(error.diag.statement_position) - 1
        line = text[text.rfind("\n", 0, at) + 1 :].split("\n")[0].split()
        if line and (column := line[0]) in {column.name for column in table.columns}:
            notes = "; ".join(filter(None, (error.diag.message_detail, error.diag.message_hint)))
            return f"column {column}: {error.diag.message_primary}{f' ({notes})' if notes else ''}. Nothing was written"
    if error.diag.message_primary == _NOT_OF_TENANTS:
        return (
            "references: only tables with organization_id, whose rows belong to tenants, can be referred to here. "
            "Write a foreign key to others into the migration by hand. Nothing was written"
        )
    return f"{explain(error, table.qualified if path.startswith('migrations/') else path, text)}. Nothing was written"

"""Users, organizations and memberships: all of them, or none when a row is bad."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from api.importing.errors import ImportFailed
from api.importing.files import Columns, CsvFile, Row
from api.importing.report import MOST_SHOWN, Report

BATCH: Final = 1000
NOTHING_WRITTEN: Final = "No user, organization or membership was written."
# Classes of SQLSTATE: what triggers and constraints say of rows that the functions found nothing wrong with.
REFUSALS: Final = ("22", "23", "PT4")

Connection = psycopg.Connection[tuple[Any, ...]]


class Kind(NamedTuple):
    name: str
    columns: Columns
    query: LiteralString


# In the order in which they need each other.
USERS: Final = Kind("users", Columns(("subject", "email")), "select * from tenancy.import_users(%s)")
ORGANIZATIONS: Final = Kind(
    "organizations",
    Columns(("name", "slug", "owner"), ("id", "kind", "billing_timezone", "billing_anchor_day", "currency")),
    "select * from tenancy.import_organizations(%s)",
)
MEMBERSHIPS: Final = Kind(
    "memberships", Columns(("organization", "subject", "role")), "select * from tenancy.import_memberships(%s)"
)


def import_people(connection: Connection, files: Iterable[tuple[Kind, Path]], report: Report) -> None:
    """Within the caller's transaction. Raises ImportFailed, with every bad row of the first file that has some."""
    for kind, path in files:
        bad: list[str] = []
        with CsvFile(path, kind.columns).open() as (_, rows):
            for batch in _batches(rows):
                bad += [f"{path}, line {row.line}: {row.problem}." for row in batch if row.problem is not None]
                readable = [{"line": row.line, **row.cells} for row in batch if row.problem is None]
                for line, outcome, column, problem in _judge(connection, kind, path, readable):
                    place = f"{path}, line {line}, column {column}: {problem}."
                    if outcome == "bad":
                        bad.append(place)
                    else:
                        report.count(kind.name, outcome)
                    if outcome == "conflict":
                        report.conflicts.append(place)
        if bad:
            more = [f"… and {len(bad) - MOST_SHOWN:,} more."] if len(bad) > MOST_SHOWN else []
            raise ImportFailed("\n".join([*bad[:MOST_SHOWN], *more, NOTHING_WRITTEN]))
    row = connection.execute("select tenancy.ensure_default_organizations()").fetchone()
    report.count("organizations", "created for users without one", row[0] if row is not None else 0)


def _judge(connection: Connection, kind: Kind, path: Path, rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(kind.query, [json.dumps(rows)]).fetchall()
    except psycopg.Error as error:
        if error.sqlstate is None or not error.sqlstate.startswith(REFUSALS):
            raise
        reason = error.diag.message_primary or str(error)
        place = f"{path}, in lines {rows[0]['line']} to {rows[-1]['line']}"
        raise ImportFailed(f"{place}: {reason}.\n{NOTHING_WRITTEN}") from None


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch

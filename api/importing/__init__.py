"""`goldleaves import`: people, organizations and usage from somewhere else, out of CSV files.

`files` reads them, `people` writes users, organizations and memberships in one transaction, `usage` sends historic
usage in batches, `report` is what came of it. The rules are SQL: sql/tenancy/import.sql, metering.ingest_events().
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psycopg

from api.importing.errors import ImportFailed
from api.importing.people import MEMBERSHIPS, ORGANIZATIONS, USERS, import_people
from api.importing.report import Report
from api.importing.usage import UsageImport

__all__ = ["ImportFailed", "ImportFiles", "Report", "import_files"]


@dataclass(frozen=True, slots=True)
class ImportFiles:
    users: Path | None = None
    organizations: Path | None = None
    memberships: Path | None = None
    usage: Path | None = None


def import_files(url: str, files: ImportFiles, *, dry_run: bool) -> Report:
    """Import as goldleaves_migrator. Raises ImportFailed. A dry run does everything, and takes it back."""
    report = Report(dry_run)
    with psycopg.connect(url, autocommit=True, application_name="goldleaves-import") as connection:
        if dry_run:
            with connection.transaction(force_rollback=True):
                _import(connection, files, report)
        else:
            _import(connection, files, report)
    return report


def _import(connection: psycopg.Connection, files: ImportFiles, report: Report) -> None:
    given = ((USERS, files.users), (ORGANIZATIONS, files.organizations), (MEMBERSHIPS, files.memberships))
    people = [(kind, path) for kind, path in given if path is not None]
    if people:
        with connection.transaction():
            import_people(connection, people, report)
    if files.usage is not None:
        UsageImport(connection, files.usage, report).run()

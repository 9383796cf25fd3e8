"""Historic usage, into periods that are open. A batch a transaction: an import that was cut short is run again, since
the ids of its events make each of them count once.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import scalar_row

from api.importing.errors import ImportFailed
from api.importing.files import Columns, CsvFile, Row
from api.importing.people import Connection
from api.importing.report import Report

SOURCE: Final = "import"
BATCH: Final = 1000
TEXTS: Final = ("unit", "resource_id", "user_id")
REQUIRED: Final = ("id", "organization", "event", "quantity", "time")
WHY: Final = ("rejected_line", "rejected_code", "rejected_reason")  # written behind the columns of a rejected row
COLUMNS: Final = Columns(REQUIRED, TEXTS, others=True)

_NUMBER: Final = re.compile(r"([+-]?)0*(\d+)(\.\d+)?([eE][+-]?\d{1,2})?")
_POSITION: Final = re.compile(r"event \d+: ")


class UsageImport:
    def __init__(self, connection: Connection, path: Path, report: Report) -> None:
        self._connection = connection
        self._path = path
        self._report = report
        self._organizations: dict[str, str] = {}

    def run(self) -> None:
        """Raises ImportFailed, and says what was recorded before, when the file or the database breaks off."""
        try:
            self._send_all()
        except (ImportFailed, psycopg.Error) as error:
            if self._report.dry_run or not self._report.counts.get("usage"):
                raise
            reason = str(error)
            if isinstance(error, psycopg.Error):
                reason = error.diag.message_primary or reason
            so_far = next(line for line in self._report.lines() if line.startswith("usage: "))
            text = f"{reason}\nBefore that, {so_far}. Import the file again: what was accepted counts once."
            raise ImportFailed(text) from None

    def _send_all(self) -> None:
        with CsvFile(self._path, COLUMNS).open() as (header, rows), Rejects(self._path, header) as rejects:
            for batch in _batches(rows):
                self._send(batch, rejects)
        if rejects.number:
            self._report.rejected_to = rejects.path

    def _send(self, batch: list[Row], rejects: Rejects) -> None:
        self._look_up({row.cells["organization"] for row in batch if row.cells.get("organization") is not None})
        events: dict[str, tuple[Row, str]] = {}
        for row in batch:
            if (reason := self._unreadable(row)) is not None:
                self._reject(rejects, row, *reason)
                continue
            events[str(row.cells["id"])] = row, self._event(row.cells)
        if not events:
            return
        text = f"[{','.join(event for _, event in events.values())}]"
        with self._connection.transaction(force_rollback=self._report.dry_run):
            outcome = self._ingest(text)
        self._report.count("usage", "accepted", outcome["accepted"])
        self._report.count("usage", "known already", outcome["duplicates"])
        for refused in (*outcome["rejected"], *outcome["conflicts"]):
            row = events[refused["id"]][0]
            self._reject(rejects, row, refused["code"], _POSITION.sub("", refused["message"], count=1))

    def _ingest(self, events: str) -> dict[str, Any]:
        with self._connection.cursor(row_factory=scalar_row) as cursor:
            query = "select metering.ingest_events(%s, p_source => %s, p_late => 'reject')"
            return dict(cursor.execute(query, [events, SOURCE]).fetchone() or {})

    def _look_up(self, names: set[str | None]) -> None:
        unknown = [name for name in names if name not in self._organizations]
        query = "select name, organization_id::text from tenancy.import_organization_ids(%s)"
        self._organizations.update(self._connection.execute(query, [unknown]).fetchall())

    def _unreadable(self, row: Row) -> tuple[str, str] | None:
        """Code and reason of what is not even sent."""
        if row.problem is not None:
            return "INVALID_EVENT", row.problem
        if row.cells["id"] is None:
            return "INVALID_EVENT", "id is empty"
        if row.cells["time"] is None:
            return "INVALID_EVENT", "time is empty: when was it used?"
        if row.cells["organization"] not in self._organizations:
            return "ORGANIZATION_NOT_FOUND", "organization is none that is here; write its slug or id"
        return None

    def _event(self, cells: Mapping[str, str | None]) -> str:
        dimensions = {
            name: cell
            for name, cell in cells.items()
            if name not in REQUIRED and name not in TEXTS and name not in WHY and cell is not None
        }
        event = {
            "id": cells["id"],
            "event": cells["event"],
            "time": cells["time"],
            "organization_id": self._organizations[str(cells["organization"])],
            "dimensions": dimensions,
            **{name: cells[name] for name in TEXTS if cells.get(name) is not None},
        }
        # The number is written as it came: as a float it would be another one.
        return f'{json.dumps(event)[:-1]}, "quantity": {_number(cells["quantity"])}}}'

    def _reject(self, rejects: Rejects, row: Row, code: str, reason: str) -> None:
        self._report.count("usage", "rejected")
        rejects.add(row, code, reason)


class Rejects(AbstractContextManager["Rejects"]):
    """FILE.rejected.csv: the rows as they came, with the reason behind. Made when there is one."""

    def __init__(self, source: Path, header: Sequence[str]) -> None:
        self.path = source.with_name(f"{source.name.removesuffix('.csv')}.rejected.csv")
        self.number = 0
        self._header = [name for name in header if name not in WHY]
        self._open = ExitStack()
        self._write: Callable[[Iterable[object]], object]

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, row: Row, code: str, reason: str) -> None:
        if not self.number:
            file = self._open.enter_context(self.path.open("w", encoding="utf-8", newline=""))
            self._write = csv.writer(file).writerow
            self._write([*self._header, *WHY])
        self.number += 1
        self._write([*(row.cells.get(name) or "" for name in self._header), row.line, code, reason])


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Batches in which an id comes once, so that what is answered for an id is about one row."""
    batch: list[Row] = []
    ids: set[str | None] = set()
    for row in rows:
        if len(batch) == BATCH or row.cells.get("id") in ids:
            yield batch
            batch, ids = [], set()
        batch.append(row)
        ids.add(row.cells.get("id"))
    if batch:
        yield batch


def _number(cell: str | None) -> str:
    """As JSON writes numbers. What is none stays the text it is, and is rejected with the reason."""
    match = _NUMBER.fullmatch(cell or "")
    if match is None:
        return json.dumps(cell)
    sign, whole, fraction, exponent = match.groups()
    return f"{'-' if sign == '-' else ''}{whole}{fraction or ''}{exponent or ''}"

"""The export itself: one snapshot, an organization after the other, each row passed on as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from api.exporting.dataset import DATASETS, Bounds, Request, resolve
from api.exporting.errors import ExportFailed
from api.exporting.formats import FORMATS
from api.exporting.output import destination
from api.exporting.staff import enter, staff_snapshot
from api.release.catalog import Connection


def export(
    url: str, name: str, organization: str | None, request: Request, format_name: str, output: Path | None
) -> int:
    """Write a dataset to `output`, or to standard output. Returns how many rows there were.

    `url` is the migrator's or a superuser's. `organization` is an id or a slug; None: all of them. Raises ExportFailed,
    OSError.
    """
    DATASETS[name].check(name, request)
    form = FORMATS[format_name]
    with staff_snapshot(url) as connection:
        lines = _Lines(connection, name, request, format_name)
        organizations = _organizations(connection, organization)
        with destination(output) as file:
            for piece in form.framed(lines.of(organizations, of_many=organization is None)):
                file.write(piece)
    return lines.rows


class _Lines:
    """The lines of an export. `rows` are those that came so far."""

    def __init__(self, connection: Connection, name: str, request: Request, format_name: str) -> None:
        self._connection = connection
        self._name = name
        self._dataset = DATASETS[name]
        self._request = request
        self._format = FORMATS[format_name]
        self.rows = 0

    def of(self, organizations: list[UUID], *, of_many: bool) -> Iterator[bytes]:
        header_is_due = True
        for organization in organizations:
            bounds = resolve(self._connection, organization, self._request)
            if bounds is None:
                if of_many:
                    continue
                raise ExportFailed(
                    f"No billing period begins on {self._request.period}. "
                    "api.billing_periods has the days on which they do, as start_date."
                )
            yield from self._of_one(organization, bounds, of_many=of_many, header=header_is_due)
            header_is_due = False
        if header_is_due:
            raise ExportFailed(f"Nobody has a billing period that begins on {self._request.period}.")

    def _of_one(self, organization: UUID, bounds: Bounds, *, of_many: bool, header: bool) -> Iterator[bytes]:
        enter(self._connection, str(organization))
        query = self._dataset.statement(organization, self._request, bounds, of_many=of_many)
        counted = not (header and self._format.with_header)  # the header is a line, and no row
        with self._connection.cursor() as cursor, cursor.copy(self._format.statement(query, header=header)) as copy:
            for line in copy:
                self.rows += counted
                counted = True
                yield bytes(line)


def _organizations(connection: Connection, named: str | None) -> list[UUID]:
    """In the order of their ids. Raises when there is no such organization."""
    if named is None:
        enter(connection, None)
        return [row[0] for row in connection.execute("select id from api.organizations order by id")]
    enter(connection, named)
    row = connection.execute("select current_setting('app.current_org')::uuid").fetchone()
    return [row[0]] if row else []

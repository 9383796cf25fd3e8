"""What can be exported: views and functions of schema api, with the columns that clients see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, Literal, LiteralString
from uuid import UUID

from psycopg import sql

from api.exporting.errors import ExportFailed
from api.release.catalog import Connection

Granularity = Literal["hour", "day", "week", "month"]


@dataclass(frozen=True)
class Request:
    """What of an organization: a range of time, half-open, or the billing period that begins on a day; or everything.

    A day begins in the timezone of the organization.
    """

    begin: date | datetime | None = None
    end: date | datetime | None = None
    period: date | None = None
    granularity: Granularity | None = None


@dataclass(frozen=True)
class Bounds:
    begin: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class Dataset:
    """`query` is of one organization; `{within}` is where the condition on `time` goes. `whose` is the column that
    tells the rows of many organizations apart, where they do not have one themselves.
    """

    query: LiteralString
    time: LiteralString | None = None
    is_report: bool = False
    whose: str | None = None

    def check(self, name: str, request: Request) -> None:
        """Raises ExportFailed when the request does not make sense for this."""
        if request.period is not None and (request.begin is not None or request.end is not None):
            raise ExportFailed("Give --period, or --from and --to, not both.")
        if request.granularity is not None and not self.is_report:
            raise ExportFailed(f"--granularity is for usage_report, {name} has none.")
        if self.time is None and not self.is_report and (request.begin is not None or request.end is not None):
            raise ExportFailed(f"{name} is of one billing period: give --period, or export usage_report.")
        if self.is_report and request.period is None and (request.begin is None or request.end is None):
            raise ExportFailed(f"{name} needs --from and --to, or --period.")
        if _is_backwards(request.begin, request.end):
            raise ExportFailed(f"--to {request.end} is not after --from {request.begin}.")

    def statement(self, organization: UUID, request: Request, bounds: Bounds, *, of_many: bool) -> sql.Composed:
        values: Mapping[str, sql.Composable] = {
            "organization": sql.Literal(organization),
            "period": sql.Literal(request.period),
            "begin": sql.Literal(bounds.begin and bounds.begin.isoformat()),
            "end": sql.Literal(bounds.end and bounds.end.isoformat()),
            "granularity": sql.Literal(request.granularity or "day"),
            "within": self._within(bounds),
            "whose": sql.SQL("{}::uuid as {}, ").format(sql.Literal(organization), sql.Identifier(self.whose))
            if of_many and self.whose is not None
            else sql.SQL(""),
        }
        return sql.SQL(self.query).format(**values)

    def _within(self, bounds: Bounds) -> sql.Composable:
        conditions: list[sql.Composable] = [sql.SQL("true")]
        if self.time is not None:
            if bounds.begin is not None:
                conditions.append(sql.SQL(self.time) + sql.SQL(" >= ") + sql.Literal(bounds.begin))
            if bounds.end is not None:
                conditions.append(sql.SQL(self.time) + sql.SQL(" < ") + sql.Literal(bounds.end))
        return sql.SQL(" and ").join(conditions)


DATASETS: Final = {
    "usage_events": Dataset(
        "select * from api.usage_events where tenant_id = {organization} and {within} order by ts, id", time="ts"
    ),
    "usage_summary": Dataset(
        "select {whose}s.* from api.usage_summary(period_start => {period}::date) as s order by s.meter",
        whose="organization_id",
    ),
    "usage_report": Dataset(
        'select {whose}r.* from api.usage_report("from" => {begin}, "to" => {end}, granularity => {granularity}) as r',
        is_report=True,
        whose="organization_id",
    ),
    "invoices": Dataset(
        "select * from api.invoices where organization_id = {organization} and {within} "
        "order by period_start, number, id",
        time="period_start",
    ),
    "invoice_lines": Dataset(
        "select l.* from api.invoices i join api.invoice_lines l on (l.organization_id, l.invoice_id) = "
        "(i.organization_id, i.id) where i.organization_id = {organization} and {within} "
        "order by i.period_start, i.number, i.id, l.line_number",
        time="i.period_start",
    ),
}


def resolve(connection: Connection, organization: UUID, request: Request) -> Bounds | None:
    """The moments that the request means for an organization. None when it has no such billing period."""
    if request.period is not None:
        row = connection.execute(
            "select period_start, period_end from api.billing_periods where organization_id = %s and start_date = %s",
            [organization, request.period],
        ).fetchone()
        return Bounds(*row) if row is not None else None
    return Bounds(*(_moment(connection, organization, when) for when in (request.begin, request.end)))


def _moment(connection: Connection, organization: UUID, when: date | datetime | None) -> datetime | None:
    if when is None or isinstance(when, datetime):
        return when
    row = connection.execute(
        "select %s::date::timestamp at time zone billing_timezone from api.organizations where id = %s",
        [when, organization],
    ).fetchone()
    moment: datetime | None = row[0] if row else None
    return moment


def _is_backwards(begin: date | datetime | None, end: date | datetime | None) -> bool:
    """A day and a moment are not compared: where the day begins depends on the organization."""
    if isinstance(begin, datetime) and isinstance(end, datetime):
        return end <= begin
    if begin is None or end is None or isinstance(begin, datetime) or isinstance(end, datetime):
        return False
    return end <= begin

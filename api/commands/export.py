"""`goldleaves export`."""

from __future__ import annotations

import os
import re
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from api.command_line import explain_errors, migration_url, say
from api.exporting.dataset import Granularity, Request
from api.exporting.errors import ExportFailed
from api.exporting.export import export
from api.settings import load_settings

Name = Literal["usage_events", "usage_summary", "usage_report", "invoices", "invoice_lines"]
FormatName = Literal["csv", "json", "ndjson"]

commands = typer.Typer()


@commands.command(name="export")
@explain_errors
def export_rows(
    what: Annotated[Name, typer.Argument(help="The view or function of schema api: its columns are what comes out.")],
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Whose, by slug or id.")] = None,
    all_organizations: Annotated[
        bool, typer.Option("--all-organizations", help="Everybody's, one after the other.")
    ] = False,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="From this day (2026-01-31) or moment (RFC 3339) on.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Up to, and without, this one.")] = None,
    period: Annotated[
        str | None, typer.Option(metavar="DAY", help="The billing period that begins on this day.")
    ] = None,
    granularity: Annotated[Granularity | None, typer.Option(help="Of usage_report; day by default.")] = None,
    format_name: Annotated[FormatName, typer.Option("--format", help="ndjson: a JSON object a line.")] = "csv",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of standard output. It is there when it is complete.")
    ] = None,
) -> None:
    """Write usage or invoices as CSV or JSON, as many rows as there are: they are streamed, in one snapshot.

    Days begin in the timezone of the organization, times come out in UTC. Acts as platform_admin on
    MIGRATION_DATABASE_URL, else on the running stack.

    Example:  goldleaves export usage_events --organization acme --period 2026-01-01 --output january.csv
    """
    if (organization is None) is not all_organizations:
        raise ExportFailed("Whose? Name one with --organization SLUG, or give --all-organizations.")
    request = Request(
        begin=_time("--from", begin), end=_time("--to", end), period=_day("--period", period), granularity=granularity
    )
    try:
        rows = export(migration_url(load_settings()), what, organization, request, format_name, output)
    except BrokenPipeError:  # whoever reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    if output is not None:
        say(f"Wrote {rows} row{'' if rows == 1 else 's'} to {output}")


def _day(option: str, text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise ExportFailed(f"{option} {text}: expected a day, such as 2026-01-31.") from None


def _time(option: str, text: str | None) -> date | datetime | None:
    if text is None or re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        return _day(option, text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ExportFailed(
            f"{option} {text}: expected a day (2026-01-31) or a moment with its offset (2026-01-31T09:30:00Z)."
        )
    return moment

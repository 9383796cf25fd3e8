"""`goldleaves export`: the rows and columns that clients read, as CSV or JSON, of one organization or of all."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization, RunningStack
from tests.sql_requests import run
from tests.usage import event, finalize, ingest, moment, month

Export = Callable[..., Result]

HOSTILE = ('plain, with "quotes"', "line\nbreak\r\nand\ttab", "back\\slash", "", "=1+1", "ü€𝄞 \u2028", "{a,b}", "'\x7f")
HEADER = "id,request_id,tenant_id"


@pytest.fixture(scope="module")
def run_export(stack: RunningStack) -> Export:
    """`run_export("usage_events", "--organization", "acme")`: the command on the database of the stack."""

    def export(*arguments: object) -> Result:
        return CliRunner().invoke(
            app, ["export", *map(str, arguments)], env={"MIGRATION_DATABASE_URL": stack.database.migrator}
        )

    return export


@pytest.fixture(scope="module")
def hostile(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    """An organization with a finalized month, and events whose texts are hard to write down."""
    organization = make_organization(stack.database)
    events = [
        event(
            f"{months_ago}-{n}", moment(months_ago, hours=n), user_id=text, request_id=text, dimensions={"note": text}
        )
        for months_ago in (0, 1)
        for n, text in enumerate(HOSTILE)
    ]
    with stack.database.connect() as connection:
        ingest(connection, [*events, event("unmetered", moment(1), name="else", quantity=0.5)], organization.id)
        finalize(connection, organization.id, month(1))
    return organization


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def ask(stack: RunningStack, organization: Organization, path: str, accept: str) -> httpx.Response:
    """PostgREST itself, since a request through the gateway is one more usage event."""
    headers = {
        "Authorization": f"Bearer {stack.token('staff', role='platform_admin')}",
        "X-Organization-ID": str(organization.id),
        "Accept": accept,
    }
    answer = httpx.get(f"{stack.postgrest_url}{path}", headers=headers, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer


OVER_HTTP = {
    "usage_events": "/usage_events?tenant_id=eq.{id}&order=ts,id",
    "usage_summary": "/rpc/usage_summary?order=meter",
    "invoices": "/invoices?organization_id=eq.{id}&order=period_start,number",
    "invoice_lines": "/invoice_lines?organization_id=eq.{id}&order=line_number",
}


def test_a_report_is_over_the_days_that_are_asked_for(
    stack: RunningStack, run_export: Export, hostile: Organization
) -> None:
    days = {"from": month(1).isoformat(), "to": month().isoformat(), "granularity": "month"}
    path = f"/rpc/usage_report?from={days['from']}&to={days['to']}&granularity=month"
    over_http = json.loads(ask(stack, hostile, path, "application/json").text, parse_float=str)
    assert {row["meter"] for row in over_http} == {"api.request", "else"}
    options = [part for name, value in days.items() for part in (f"--{name}", value)]
    for by in (options, ["--period", days["from"], "--granularity", "month"]):
        exported = run_export("usage_report", "--organization", hostile.id, "--format", "json", *by)
        assert exported.exit_code == 0, exported.output
        assert json.loads(exported.stdout, parse_float=str) == over_http


@pytest.mark.parametrize("name", OVER_HTTP)
def test_the_same_comes_over_postgrest(
    stack: RunningStack, run_export: Export, hostile: Organization, name: str
) -> None:
    path = OVER_HTTP[name].format(id=hostile.id)
    exported = {
        form: run_export(name, "--organization", hostile.id, "--format", form) for form in ("csv", "json", "ndjson")
    }
    assert {result.exit_code for result in exported.values()} == {0}, exported

    over_http = json.loads(ask(stack, hostile, path, "application/json").text, parse_float=str)
    assert over_http
    assert json.loads(exported["json"].stdout, parse_float=str) == over_http
    assert [json.loads(line, parse_float=str) for line in exported["ndjson"].stdout_bytes.splitlines()] == over_http

    # PostgREST writes a backslash twice in CSV, since it prints rows as Postgres prints composites.
    as_csv = ask(stack, hostile, path, "text/csv").text.replace("\\\\", "\\")
    assert rows_of(exported["csv"].stdout_bytes.decode()) == rows_of(as_csv)


def test_texts_come_back_as_they_were_sent(run_export: Export, hostile: Organization) -> None:
    rows = rows_of(run_export("usage_events", "--organization", hostile.id).stdout_bytes.decode())
    assert [row["user_id"] for row in rows if row["event_name"] == "api.request"] == [*HOSTILE, *HOSTILE]
    assert [json.loads(row["metadata"])["note"] for row in rows if row["event_name"] == "api.request"] == [
        *HOSTILE,
        *HOSTILE,
    ]


def test_days_begin_in_the_timezone_of_the_organization(
    stack: RunningStack, run_export: Export, make_organization: MakeOrganization
) -> None:
    tokyo = make_organization(stack.database, timezone="Asia/Tokyo")
    midnight = datetime(month().year, month().month, 1, tzinfo=UTC) - timedelta(hours=9)
    second = timedelta(seconds=1)
    with stack.database.connect() as connection:
        sent = [
            event("before", midnight - second),
            event("first", midnight),
            event("last", midnight + timedelta(days=1) - second),
        ]
        ingest(connection, [*sent, event("after", midnight + timedelta(days=1))], tokyo.id)

    def times(*options: object) -> list[datetime]:
        result = run_export("usage_events", "--organization", tokyo.id, *options)
        assert result.exit_code == 0, result.output
        return [datetime.fromisoformat(row["ts"]) for row in rows_of(result.stdout)]

    first, last = midnight, midnight + timedelta(days=1) - second
    assert times("--from", month(), "--to", month() + timedelta(days=1)) == [first, last]
    assert times("--from", first.isoformat(), "--to", last.isoformat()) == [first]
    assert times("--period", month()) == [first, last, midnight + timedelta(days=1)]
    assert len(times()) == 4


def test_everybody_is_exported_one_after_the_other(
    stack: RunningStack, run_export: Export, make_organization: MakeOrganization
) -> None:
    both = sorted(make_organization(stack.database).id for _ in range(2))
    with stack.database.connect() as connection:
        for organization in both:
            ingest(connection, [event("one"), event("two")], organization)

    events = run_export("usage_events", "--all-organizations", "--period", month())
    assert events.stdout.count(HEADER) == 1
    owners = [row["tenant_id"] for row in rows_of(events.stdout)]
    assert owners == sorted(owners)
    assert [owners.count(str(organization)) for organization in both] == [2, 2]

    summaries = json.loads(run_export("usage_summary", "--all-organizations", "--format", "json").stdout)
    assert [
        [row["quantity"] for row in summaries if row["organization_id"] == str(organization)] for organization in both
    ] == [[2], [2]]


def test_a_file_is_there_when_it_is_complete(run_export: Export, hostile: Organization, tmp_path: Path) -> None:
    path = tmp_path / "usage.csv"
    path.write_text("the one before")
    failed = run_export("usage_events", "--organization", hostile.id, "--period", "2001-02-03", "--output", path)
    assert (failed.exit_code, failed.stderr.count("\n")) == (1, 1)
    assert "No billing period begins on 2001-02-03" in failed.stderr
    assert path.read_text() == "the one before"

    done = run_export("invoices", "--organization", hostile.slug, "--output", path)
    assert done.stdout == f"Wrote 1 row to {path}\n"
    assert len(rows_of(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("usage_events", "--organization", "nobody"), r"ORGANIZATION_NOT_FOUND: .*nobody"),
        (("usage_events",), r"^Whose\? "),
        (("usage_events", "--organization", "acme", "--all-organizations"), r"^Whose\? "),
        (("usage_events", "--all-organizations", "--from", "yesterday"), r"--from yesterday: expected a day"),
        (("usage_events", "--all-organizations", "--from", "2026-01-31T09:30:00"), r"with its offset"),
        (("usage_events", "--all-organizations", "--from", "2026-01-31", "--to", "2026-01-31"), r"--to .* not after"),
        (("usage_events", "--all-organizations", "--period", "2026-01-31", "--to", "2026-01-31"), r"not both"),
        (("usage_events", "--all-organizations", "--period", "2001-01-01"), r"Nobody has a billing period"),
        (("usage_summary", "--all-organizations", "--from", "2026-01-31"), r"one billing period"),
        (("usage_report", "--all-organizations", "--from", "2026-01-31"), r"needs --from and --to"),
        (("invoices", "--all-organizations", "--granularity", "day"), r"--granularity is for usage_report"),
        (("invoices", "--all-organizations", "--output", "/nowhere/invoices.csv"), r"^/nowhere/invoices.csv: "),
    ],
)
def test_a_mistake_is_one_line(run_export: Export, arguments: tuple[str, ...], said: str) -> None:
    result = run_export(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert re.search(said, result.stderr), result.stderr


def test_nobody_keeps_the_right_to_act_as_staff(stack: RunningStack, run_export: Export) -> None:
    def grants() -> list[tuple[Any, ...]]:
        with stack.database.connect() as connection:
            query = "select member, admin_option from pg_auth_members where roleid = %s::regrole order by 1, 2"
            return run(connection, query, ["platform_admin"]).fetchall()

    before = grants()
    assert run_export("invoices", "--all-organizations").exit_code == 0
    assert grants() == before


PEAK = """
import re, sys
from pathlib import Path
from api.exporting.dataset import Request
from api.exporting.export import export
rows = export(sys.argv[1], "usage_events", sys.argv[2], Request(), sys.argv[3], Path("/dev/null"))
print(rows, int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def rows_and_peak(database: Database, organization: Organization, form: str) -> tuple[int, int]:
    """How many rows came, and how many MiB the process had at most."""
    command = (sys.executable, "-c", PEAK, database.migrator, str(organization.id), form)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows, peak = done.stdout.split()
    return int(rows), int(peak)


def test_memory_does_not_grow_with_the_rows(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """40 MB: held, they would double what the process has."""
    few, many = make_organization(stack.database), make_organization(stack.database)
    with stack.database.connect() as connection:
        for organization, number in ((few, 10), (many, 5_000)):
            run(
                connection,
                """
                insert into metering.usage_events
                  (organization_id, occurred_at, source, event_name, quantity, dimensions, recorded_generation)
                select %s, %s, 'api', 'else', 1, jsonb_build_object('note', repeat('x', 8000)), 1
                from generate_series(1, %s)
                """,
                [organization.id, moment(), number],
            )
    rows, peak_of_few = rows_and_peak(stack.database, few, "csv")
    assert rows == 10
    for form in ("csv", "json"):
        rows, peak_of_many = rows_and_peak(stack.database, many, form)
        assert rows == 5_000
        assert peak_of_many - peak_of_few < 16

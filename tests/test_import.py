"""`goldleaves import`: people of a file come all or none, twice is once, what is there stays. Past usage counts once,
in open periods alone; what cannot be counted is given back with the reason.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from tests.harness import Database
from tests.sql_requests import run
from tests.usage import finalize, moment, month

USERS = "subject,email\nann,ann@example.com\nbob,bob@example.com\ncy,\n"
ORGANIZATIONS = (
    "name,slug,owner,kind,billing_timezone,billing_anchor_day,currency\n"
    "Acme & Co.,acme,ann,,Europe/Vienna,15,eur\n"
    '"Bob, alone",bobs,bob,personal,,,\n'
)
MEMBERSHIPS = "organization,subject,role\nacme,bob,admin\nbobs,ann,viewer\n"

Import = Callable[..., Result]


@pytest.fixture
def run_import(database: Database, tmp_path: Path) -> Import:
    """`run_import(users="subject,email…")`: the command, with files of that content."""

    def import_(*options: str, **files: str | bytes) -> Result:
        arguments = ["import", *options]
        for name, content in files.items():
            path = tmp_path / f"{name}.csv"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            arguments += [f"--{name}", str(path)]
        return CliRunner().invoke(app, arguments, env={"MIGRATION_DATABASE_URL": database.migrator})

    return import_


def all_of(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return run(connection, query).fetchall()


def people(database: Database) -> list[tuple[Any, ...]]:
    return all_of(
        database,
        """
        select u.subject, u.email, o.slug, m.role, o.id = u.default_organization_id
        from tenancy.users u
        left join tenancy.memberships m on m.user_id = u.id
        left join tenancy.organizations o on o.id = m.organization_id
        order by 1, 3
        """,
    )


def everything(database: Database) -> list[tuple[Any, ...]]:
    tables = ("tenancy.users", "tenancy.organizations", "tenancy.memberships", "metering.usage_events")
    return [
        row for table in tables for row in all_of(database, f"select '{table}', to_jsonb(t) from {table} t order by 2")
    ]


def test_people_come_with_their_organizations(database: Database, run_import: Import) -> None:
    result = run_import(memberships=MEMBERSHIPS, organizations=ORGANIZATIONS, users=USERS)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "users: 3 created",
        "organizations: 2 created, 1 created for users without one",
        "memberships: 2 created",
    ]
    assert people(database) == [
        ("ann", "ann@example.com", "acme", "owner", True),
        ("ann", "ann@example.com", "bobs", "viewer", False),
        ("bob", "bob@example.com", "acme", "admin", False),
        ("bob", "bob@example.com", "bobs", "owner", True),
        ("cy", None, "personal", "owner", True),
    ]
    query = """
      select slug, name, kind, billing_timezone, billing_anchor_day, currency, billing_user_id = owner_user_id
      from tenancy.organizations order by slug
    """
    assert all_of(database, query)[:2] == [
        ("acme", "Acme & Co.", "organization", "Europe/Vienna", 15, "eur", None),
        ("bobs", "Bob, alone", "personal", "UTC", 1, "usd", True),
    ]


def test_a_second_time_changes_nothing(database: Database, run_import: Import) -> None:
    files = {"users": USERS, "organizations": ORGANIZATIONS, "memberships": MEMBERSHIPS}
    run_import(**files)
    before = everything(database)
    result = run_import(**files)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "users: 3 unchanged",
        "organizations: 2 unchanged",
        "memberships: 2 unchanged",
    ]
    assert everything(database) == before


def test_what_is_there_stays_and_is_told(database: Database, run_import: Import, tmp_path: Path) -> None:
    run_import(users=USERS, organizations=ORGANIZATIONS, memberships=MEMBERSHIPS)
    before = everything(database)
    result = run_import(
        users="subject,email\nann,ANN@example.com\nbob,bob@elsewhere.example\ncy,cy@example.com\n",
        organizations="slug,name,owner\nacme,Acme & Co.,bob\nbobs,Bob & Co.,bob\n",
        memberships="organization,subject,role\nacme,bob,viewer\nacme,ann,admin\n",
    )
    assert result.exit_code == 3
    assert [line.removeprefix(f"{tmp_path}/") for line in result.output.splitlines()] == [
        "users: 2 conflict, 1 unchanged",
        "organizations: 2 conflict",
        "memberships: 2 conflict",
        "users.csv, line 3, column email: the user has bob@example.com.",
        "users.csv, line 4, column email: the user has none.",
        f"organizations.csv, line 2, column owner: the organization has {user_id(database, 'ann')}.",
        "organizations.csv, line 3, column name: the organization has Bob, alone.",
        "memberships.csv, line 2, column role: the member is admin.",
        "memberships.csv, line 3, column role: the member is owner.",
    ]
    assert everything(database) == before


def user_id(database: Database, subject: str) -> Any:
    ((found,),) = all_of(database, f"select id from tenancy.users where subject = '{subject}'")
    return found


@pytest.mark.parametrize(
    ("files", "lines"),
    [
        (
            {"users": f"subject,email\nann,ann@example.com\n,x@example.com\n{'x' * 256},\nbob,bob at example\n"},
            [
                "users.csv, line 3, column subject: needs 1 to 255 characters.",
                "users.csv, line 4, column subject: needs 1 to 255 characters.",
                "users.csv, line 5, column email: is no e-mail address.",
            ],
        ),
        (
            {
                "users": "subject,email\nann,\n",
                "organizations": (
                    "id,name,slug,owner,kind,billing_timezone,billing_anchor_day,currency\n"
                    "x,A,a,ann,,,,\n,,b,ann,,,,\n,C,C!,ann,,,,\n,D,d,nobody,,,,\n,E,e,ann,firm,,,\n,F,f,ann,,Mars/Base,,\n"
                    ",G,g,ann,,,32,\n,H,h,ann,,,,euro\n"
                ),
            },
            [
                "organizations.csv, line 2, column id: needs a UUID.",
                "organizations.csv, line 3, column name: name needs 1 to 200 characters.",
                "organizations.csv, line 4, column slug: slug needs 1 to 63 lowercase letters, digits and inner "
                "hyphens, and may not look like a UUID.",
                "organizations.csv, line 5, column owner: is no user; add them to the file of users.",
                "organizations.csv, line 6, column kind: needs personal or organization.",
                "organizations.csv, line 7, column billing_timezone: is no timezone; write an IANA name, such as "
                "America/Los_Angeles.",
                "organizations.csv, line 8, column billing_anchor_day: needs a day from 1 to 31.",
                "organizations.csv, line 9, column currency: is no currency; write an ISO 4217 code in lower case, "
                "such as usd.",
            ],
        ),
        (
            {
                "users": USERS,
                "organizations": ORGANIZATIONS,
                "memberships": (
                    "organization,subject,role\nacme,cy,member\nnowhere,ann,admin\nacme,dee,admin\nacme,bob,boss\n"
                    'bobs,ann,owner\n"acme",bob\n'
                ),
            },
            [
                "memberships.csv, line 7: the row has 2 cells and the header 3.",
                "memberships.csv, line 3, column organization: is no organization; write its slug or id.",
                "memberships.csv, line 4, column subject: is no user; add them to the file of users.",
                "memberships.csv, line 5, column role: needs one of owner, admin, member, viewer, billing.",
                "memberships.csv, line 6, column role: of a personal organization owner is only the person whose it "
                "is.",
            ],
        ),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    database: Database, run_import: Import, tmp_path: Path, files: dict[str, str], lines: list[str]
) -> None:
    before = everything(database)
    result = run_import(**files)
    assert result.exit_code == 1
    said = [line.removeprefix(f"{tmp_path}/") for line in result.stderr.splitlines()]
    assert said == [*lines, "No user, organization or membership was written."]
    assert everything(database) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1: there is no column subject; expected the columns subject, email."),
        (b"subject\nann\n", "line 1: there is no column email; expected the columns subject, email."),
        (b"subject,email,phone\n", "line 1: there is a column phone; expected the columns subject, email."),
        (b"subject,email,email\n", "line 1: the column email is there twice or has no name."),
        (b"subject;email\n", "line 1: there is no column subject; expected the columns subject, email."),
        (b"subject,email\nann,\xff\n", "near line 1: it is not UTF-8."),
        (b'subject,email\nann,"x"y\n', "line 2: it is no CSV: ',' expected after '\"'."),
        (b'subject,email\nann,"x\n', "line 2: it is no CSV: unexpected end of data."),
    ],
)
def test_a_file_that_is_none_is_named(
    database: Database, run_import: Import, tmp_path: Path, content: bytes, reason: str
) -> None:
    result = run_import(users=content)
    assert result.exit_code == 1
    assert result.stderr.rstrip() == f"{tmp_path}/users.csv, {reason}"
    assert people(database) == []


def test_files_as_spreadsheets_write_them(database: Database, run_import: Import) -> None:
    """A byte order mark, CRLF, quotes, blanks around cells, an empty line, a cell of two lines."""
    content = '\ufeffemail , subject\r\n ann@example.com , ann \r\n\r\n"bob@example.com","bob\r\nbuilder"\r\n,cy\r\n'
    assert run_import(users=content).exit_code == 0
    assert [row[:2] for row in people(database)] == [
        ("ann", "ann@example.com"),
        ("bob\r\nbuilder", "bob@example.com"),
        ("cy", None),
    ]


def test_a_slug_of_strangers_lets_nobody_in(database: Database, run_import: Import) -> None:
    """ann's organization is not the one that the file means, only because both are called acme."""
    run_import(users=USERS, organizations=ORGANIZATIONS)
    before = everything(database)
    result = run_import(
        users="subject,email\neve,\n", organizations="name,slug,owner\nAcme,acme,eve\n", memberships=MEMBERSHIPS
    )
    assert result.exit_code == 1
    assert "line 2, column slug: belongs to another organization (acme, " in result.stderr
    assert everything(database) == before


def test_ids_of_organizations_can_be_kept(database: Database, run_import: Import) -> None:
    number = "0f000000-0000-4000-8000-00000000000{}".format
    header = "id,name,slug,owner\n"
    users = "subject,email\nann,\nbob,\n"
    assert run_import(users=users, organizations=f"{header}{number(1)},A,a,ann\n{number(2)},B,b,ann\n").exit_code == 0
    memberships = f"organization,subject,role\n{number(2).upper()},bob,viewer\n"
    assert run_import(memberships=memberships).exit_code == 0
    assert all_of(
        database,
        f"select m.role from tenancy.memberships m join tenancy.users u on u.id = m.user_id"
        f" where u.subject = 'bob' and m.organization_id = '{number(2)}'",
    ) == [("viewer",)]
    for row, column in ((f"{number(1)},A,b,ann", "id"), (f"{number(3)},A,a,ann", "slug")):
        result = run_import(organizations=f"{header}{row}\n")
        assert result.exit_code == 1
        assert f"line 2, column {column}: belongs to another organization" in result.stderr


def test_a_dry_run_says_the_same_and_writes_nothing(database: Database, run_import: Import) -> None:
    usage = f"{HEADER}1,acme,api.request,2,{at(1)}\n2,acme,api.request,x,{at(1)}\n"
    files = {"users": USERS, "organizations": ORGANIZATIONS, "memberships": MEMBERSHIPS, "usage": usage}
    before = everything(database)
    tried = run_import("--dry-run", **files)
    assert everything(database) == before
    done = run_import(**files)
    assert tried.exit_code == done.exit_code == 3
    assert tried.output.splitlines() == [*done.output.splitlines(), "This was a dry run: the database is as it was."]
    assert everything(database) != before


HEADER = "id,organization,event,quantity,time\n"


def at(days_ago: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="seconds")


def rejected(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "usage.rejected.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def acme(database: Database, run_import: Import) -> str:
    assert run_import(users="subject,email\nann,\n", organizations="name,slug,owner\nAcme,acme,ann\n").exit_code == 0
    ((found,),) = all_of(database, "select id::text from tenancy.organizations where slug = 'acme'")
    return str(found)


def test_past_usage_counts_once(database: Database, run_import: Import, acme: str, tmp_path: Path) -> None:
    """More than a batch, with an id twice and numbers that a float would spoil."""
    lines = [f"{number},acme,api.request,0.1,{at(40)},request,r-{number},eu,,ann" for number in range(1500)]
    lines += [lines[0], f"exact,{acme},api.request,+00123456789012345678.000000000000000001,{at(3 * 365)},,,,x,"]
    usage = "id,organization,event,quantity,time,unit,resource_id,region,team,user_id\n" + "\n".join(lines)
    for outcome in ("usage: 1,501 accepted, 1 known already", "usage: 1,502 known already"):
        result = run_import(usage=usage)
        assert (result.exit_code, result.output.splitlines()) == (0, [outcome])
        ((count, total),) = all_of(database, "select count(*), sum(quantity)::text from metering.usage_events")
        assert (count, total) == (1501, "123456789012345828.000000000000000001")
    query = """
      select source, unit, resource_id, user_id, dimensions
      from metering.usage_events
      where idempotency_key in ('7', 'exact')
      order by idempotency_key
    """
    assert all_of(database, query) == [
        ("import", "request", "r-7", "ann", {"region": "eu"}),
        ("import", None, None, None, {"team": "x"}),
    ]
    assert not (tmp_path / "usage.rejected.csv").exists()


def test_what_cannot_be_counted_is_given_back(
    database: Database, run_import: Import, acme: str, tmp_path: Path
) -> None:
    then = moment(3, days=3).isoformat()
    assert run_import(usage=f"{HEADER}early,acme,api.request,1,{then}\n").exit_code == 0
    with database.connect() as connection:
        finalize(connection, UUID(acme), month(3))
    rows = {
        f"good,acme,api.request,1,{at(1)},": None,
        f"late,acme,api.request,1,{then},": ("BILLING_PERIOD_LOCKED", "the period of"),
        f"nowhere,nope,api.request,1,{at(1)},": ("ORGANIZATION_NOT_FOUND", "organization is none"),
        f",acme,api.request,1,{at(1)},": ("INVALID_EVENT", "id is empty"),
        "untimed,acme,api.request,1,,": ("INVALID_EVENT", "time is empty"),
        "local,acme,api.request,1,2026-01-01 10:00:00,": ("INVALID_EVENT", "time needs RFC 3339"),
        f"minus,acme,api.request,-1,{at(1)},": ("INVALID_EVENT", "quantity is negative"),
        f'many,acme,api.request,"1,000",{at(1)},': ("INVALID_EVENT", "quantity needs a number"),
        f"empty,acme,api.request,,{at(1)},": ("INVALID_EVENT", "quantity needs a number"),
        f"huge,acme,api.request,1e99,{at(1)},": ("INVALID_EVENT", "quantity needs to be below"),
        f"old,acme,api.request,1,{at(6 * 365)},": ("INVALID_EVENT", "time is more than five years ago"),
        f"good,acme,api.request,2,{at(1)},": ("IDEMPOTENCY_CONFLICT", "this id was used before"),
        f"short,acme,api.request,{at(1)}": ("INVALID_EVENT", "the row has 4 cells"),
        f"nul,acme,api.request,1,{at(1)},a\0b": ("INVALID_EVENT", "the row has a NUL"),
    }
    usage = HEADER.replace("\n", ",team\n") + "\n".join(rows) + "\n"
    result = run_import(usage=usage)
    assert result.exit_code == 3, result.output
    assert result.output.splitlines() == [
        "usage: 1 accepted, 13 rejected",
        f"What was rejected, and why: {tmp_path}/usage.rejected.csv",
    ]
    expected = [(str(line), *why) for line, why in enumerate(rows.values(), start=2) if why is not None]
    found = sorted(rejected(tmp_path), key=lambda row: int(row["rejected_line"]))
    assert [(row["rejected_line"], row["rejected_code"]) for row in found] == [each[:2] for each in expected]
    for row, (_, _, reason) in zip(found, expected, strict=True):
        assert row["rejected_reason"].startswith(reason), row

    # Mended in place, the file of rejected rows can be imported itself.
    mended = (tmp_path / "usage.rejected.csv").read_text().replace("2026-01-01 10:00:00", at(2))
    assert run_import(usage=mended).output.splitlines()[0] == "usage: 1 accepted, 12 rejected"
    ((dimensions,),) = all_of(database, "select dimensions from metering.usage_events where idempotency_key = 'local'")
    assert dimensions == {}


def test_a_file_that_breaks_off_says_what_came_of_it(database: Database, run_import: Import, acme: str) -> None:
    """Batches before that are recorded. Mended and imported again, each event counts once."""
    good = "\n".join(f"{number},acme,api.request,1,{at(2)}" for number in range(1500))
    broken = run_import(usage=f'{HEADER}{good}\nlast,acme,"{"x" * 200_000}\n')
    assert broken.exit_code == 1
    reason, so_far = broken.stderr.splitlines()
    assert "it is no CSV" in reason
    assert so_far == "Before that, usage: 1,000 accepted. Import the file again: what was accepted counts once."
    mended = run_import(usage=f"{HEADER}{good}\n")
    assert (mended.exit_code, mended.output.splitlines()) == (0, ["usage: 500 accepted, 1,000 known already"])


def test_an_import_says_what_it_wants(run_import: Import, tmp_path: Path) -> None:
    result = run_import()
    assert (result.exit_code, result.stderr.rstrip()) == (
        1,
        "Name a file: --users, --organizations, --memberships or --usage.",
    )
    result = CliRunner().invoke(app, ["import", "--users", str(tmp_path / "nothing.csv")])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr

"""Supabase's splinter, run as its users run it, finds nothing that we did not decide so, with the reason below."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from api.settings import PROJECT
from tests.harness import Database
from tests.sql_requests import Connection, run

# What it takes for a sign of Supabase's platform; its rules about exposed schemas run only where there are these.
PLATFORM_ROLES = ("authenticated", "service_role")

# Rule, why what it finds is right here, and the objects for which that holds.
DECIDED = {
    "functionSearchPathMutable": (
        "these are inlined into the statement that calls them, which a pinned search_path would stop",
        """
        select p.oid::regproc::text from pg_proc p
        where p.prolang = (select oid from pg_language where lanname = 'sql') and not p.prosecdef and not p.proisstrict
          and (p.provolatile <> 'v' or not p.proretset)
        """,
    ),
    "rlsEnabledNoPolicy": (
        "nobody is granted a partition: they are reached through the table that they are part of",
        """
        select c.oid::regclass::text from pg_class c
        where c.relispartition and not exists (select from aclexplode(c.relacl) a where a.grantee <> c.relowner)
        """,
    ),
}
# A database without traffic uses none of its indexes.
STATISTICS = {"unusedIndex"}


@pytest.fixture(scope="module")
def live(shared_database: Database) -> Iterator[Connection]:
    """A database that has partitions and looks to splinter like one of Supabase's."""
    with shared_database.connect() as connection:
        connection.execute("select metering.ensure_partition('2020-01-01')")
        setting = sql.SQL("alter database {} set pgrst.db_schemas = 'api'")
        connection.execute(setting.format(sql.Identifier(shared_database.name)))
        for role in PLATFORM_ROLES:
            run(connection, f"create role {role}")
        connection.execute("grant member to authenticated")
        try:
            yield connection
        finally:
            for role in PLATFORM_ROLES:
                run(connection, f"drop role {role}")


def splinter(database: Database) -> set[tuple[str, str]]:
    """(rule, object) of what it finds."""
    binary = PROJECT / "node_modules" / ".bin" / "postgres-language-server"
    command: list[str | Path] = [
        binary,
        "dblint",
        "--connection-string",
        database.superuser,
        "--reporter",
        "json",
        "--max-diagnostics",
        "none",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    diagnostics = json.loads(done.stdout)["diagnostics"]
    return {(each["category"].split("/")[-1], re.findall(r"`([^`\\]+)", each["message"])[0]) for each in diagnostics}


def test_splinter_finds_nothing_that_is_not_decided(shared_database: Database, live: Connection) -> None:
    decided = {(rule, name) for rule, (_, objects) in DECIDED.items() for (name,) in run(live, objects).fetchall()}
    found = {(rule, name) for rule, name in splinter(shared_database) if rule not in STATISTICS}
    assert ("functionSearchPathMutable", "tenancy.current_org") in found
    assert found - decided == set()


def test_splinter_would_find_holes(shared_database: Database, live: Connection) -> None:
    """Also by the rules that it keeps for databases of Supabase."""
    live.execute("alter view api.cases reset (security_invoker)")
    live.execute("create policy open on app.cases for delete to authenticated using (true)")
    try:
        found = splinter(shared_database)
    finally:
        live.execute("alter view api.cases set (security_invoker = true)")
        live.execute("drop policy open on app.cases")
    assert {("securityDefinerView", "api.cases"), ("rlsPolicyAlwaysTrue", "app.cases")} <= found

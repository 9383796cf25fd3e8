"""Under row security a scan finds once who asks, and then goes through the rows as it would without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.people import person
from tests.sql_requests import Connection, enter, run

READ_BY_MEMBERS = """
  select distinct polrelid::regclass::text from pg_policy where 'member'::regrole = any (polroles) and polcmd = 'r'
"""


@pytest.fixture(scope="module")
def firm(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def superuser(shared_database: Database) -> Iterator[Connection]:
    """In a transaction that is rolled back, and uses indexes of tables that are as good as empty, too. Of organizations
    there are many: of a few, which Postgres has counted, it reads a whole index.
    """
    with shared_database.connect(autocommit=False) as connection:
        run(connection, "set local session_replication_role = replica")
        run(
            connection,
            """
            insert into tenancy.organizations (name, slug, owner_user_id)
            select 'Many', 'many-' || n, gen_random_uuid() from generate_series(1, 1000) n
            """,
        )
        run(connection, "analyze tenancy.organizations")
        run(connection, "set local session_replication_role = origin")
        run(connection, "set local enable_seqscan = off")
        yield connection
        connection.rollback()


def filters(plan: dict[str, Any]) -> Iterator[str]:
    if "Filter" in plan:
        yield plan["Filter"]
    for below in plan.get("Plans", ()):
        yield from filters(below)


def reads_a_setting_for_each_row(connection: Connection, table: str) -> bool:
    ((plan,),) = run(connection, f"explain (format json) select count(*) from {table}").fetchall()
    return any("current_setting" in each for each in filters(plan[0]["Plan"]))


def test_no_policy_of_ours_does(superuser: Connection, firm: Organization) -> None:
    tables = [table for (table,) in run(superuser, READ_BY_MEMBERS).fetchall()]
    assert "app.cases" in tables
    enter(superuser, person(firm["owner"]))
    dear = [table for table in tables if reads_a_setting_for_each_row(superuser, table)]
    # That one has some dozens of rows, nearly all of them everybody's, and may be read either way.
    assert set(dear) <= {"metering.operation_weights"}


def test_one_that_asks_for_the_role_apart_does(superuser: Connection, firm: Organization) -> None:
    run(
        superuser,
        """
        alter policy cases_read on app.cases
        using (organization_id = tenancy.current_org() and tenancy.current_role_in('owner', 'admin'))
        """,
    )
    enter(superuser, person(firm["owner"]))
    assert reads_a_setting_for_each_row(superuser, "app.cases")

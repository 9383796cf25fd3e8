"""metering.meter_table(): what happens to rows of any table is usage, exactly once, by the options it is given."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.rollout import Checkout
from tests.sql_requests import run
from tests.usage import Connection, value

TASKS = """
create table app.tasks (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id bigint not null,
  title text,
  status text not null default 'open',
  points numeric,
  size_bytes bigint,
  "At % Work" text,
  place jsonb,
  done_by uuid,
  history json,
  primary key (organization_id, id)
);
create table app.parts (organization_id uuid not null, id bigint not null) partition by list (id);
create view app.open_tasks as select * from app.tasks;
create table app.loose (organization_id uuid not null, id bigint not null, note text);
create table app.texts (organization_id text not null, id bigint primary key);
"""
Event = tuple[str, Decimal, str | None]


@pytest.fixture(scope="module")
def organizations(shared_database: Database, make_organization: MakeOrganization) -> tuple[Organization, Organization]:
    """One that pays for itself and a personal one, made before tables that refer to them lock them."""
    return (
        make_organization(shared_database, roles=("owner",)),
        make_organization(shared_database, roles=("owner",), kind="personal"),
    )


@pytest.fixture
def organization(organizations: tuple[Organization, Organization]) -> UUID:
    return organizations[0].id


@pytest.fixture
def other(organizations: tuple[Organization, Organization]) -> UUID:
    return organizations[1].id


@pytest.fixture
def connection(shared_database: Database, organization: UUID) -> Iterator[Connection]:
    """With tables of an adopter's, all of which is taken back."""
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        made.execute("set local role goldleaves_owner")
        run(made, TASKS)
        made.execute("reset role")
        yield made


def meter(connection: Connection, options: str = "", table: str = "app.tasks") -> None:
    """As who loads files: no superuser."""
    connection.execute("set local role goldleaves_migrator")
    run(connection, f"select metering.meter_table('{table}', resource => 'task'{options and ', '}{options})")
    connection.execute("reset role")


def events(connection: Connection, organization: UUID) -> list[Event]:
    """Name, quantity and resource, sorted, of what was recorded since it was asked for last."""
    found = connection.execute(
        """
        select event_name, quantity, resource_id from metering.usage_events
        where organization_id = %s and source = 'trigger' and event_type = 'usage'
          and occurred_at > coalesce(nullif(current_setting('tests.seen', true), ''), '-infinity')::timestamptz
        order by 1, 2, 3
        """,
        [organization],
    ).fetchall()
    connection.execute("select set_config('tests.seen', clock_timestamp()::text, true)")
    return [(name, quantity, resource) for name, quantity, resource in found]


def one(name: str, resource: str = "1", quantity: int = 1) -> Event:
    return name, Decimal(quantity), resource


def test_rows_that_come_change_and_go_are_usage(connection: Connection, organization: UUID) -> None:
    meter(connection)
    connection.execute("insert into app.tasks (organization_id, id) values (%s, 1), (%s, 2)", [organization] * 2)
    assert events(connection, organization) == [one("task_create", "1"), one("task_create", "2")]
    connection.execute("update app.tasks set title = 'b' where organization_id = %s and id = 2", [organization])
    assert events(connection, organization) == [one("task_update", "2")]
    connection.execute("delete from app.tasks where organization_id = %s", [organization])
    assert events(connection, organization) == [one("task_delete", "1"), one("task_delete", "2")]
    assert value(
        connection,
        """
            select array_agg(distinct array[unit, weighted_units::text, source, event_type, billing_entity_id::text])
            from metering.usage_events where organization_id = %s
            """,
        organization,
    ) == [["task", "1", "trigger", "usage", str(organization)]]


def test_an_update_that_changes_nothing_is_none(connection: Connection, organization: UUID) -> None:
    """Clients send whole rows back. A column without an equality, as json, is compared as well."""
    meter(connection)
    connection.execute(
        "insert into app.tasks (organization_id, id, history) values (%s, 1, '{}'), (%s, 2, null)", [organization] * 2
    )
    events(connection, organization)
    connection.execute(
        "update app.tasks set title = title, history = history where organization_id = %s", [organization]
    )
    assert events(connection, organization) == []
    connection.execute("update app.tasks set history = '[]' where organization_id = %s and id = 1", [organization])
    assert events(connection, organization) == [one("task_update")]


def test_other_names_and_none(connection: Connection, organization: UUID) -> None:
    meter(connection, "created => '{resource}.made', updated => null, deleted => 'gone'")
    connection.execute("insert into app.tasks (organization_id, id) values (%s, 1)", [organization])
    connection.execute("update app.tasks set title = 'b' where organization_id = %s", [organization])
    connection.execute("delete from app.tasks where organization_id = %s", [organization])
    assert events(connection, organization) == [one("gone"), one("task.made")]


def test_a_column_that_becomes_a_value(connection: Connection, organization: UUID) -> None:
    meter(
        connection,
        """created => null, updated => null, deleted => null,
        becomes => '{"status": {"done": "task_complete", "it''s": "odd"}, "done_by": {}}'""",
    )
    connection.execute(
        "insert into app.tasks (organization_id, id, status) values (%s, 1, 'done'), (%s, 2, 'open')",
        [organization] * 2,
    )
    assert events(connection, organization) == [one("task_complete", "1")]
    connection.execute("update app.tasks set status = 'done', title = 'b' where organization_id = %s", [organization])
    assert events(connection, organization) == [one("task_complete", "2")]
    connection.execute("update app.tasks set status = 'it''s' where organization_id = %s and id = 1", [organization])
    assert events(connection, organization) == [one("odd", "1")]
    connection.execute("delete from app.tasks where organization_id = %s", [organization])
    assert events(connection, organization) == []


def test_a_quantity_column(connection: Connection, organization: UUID) -> None:
    """Nothing there is nothing to record; what no event may say is kept, and the writer's statement goes through."""
    meter(connection, "quantity_column => 'points', deleted => null")
    connection.execute(
        """
        insert into app.tasks (organization_id, id, points)
        select %s, row_number() over (), p from unnest(array[2.5, null, 0, 'NaN', -1, 'Infinity', 1e18]::numeric[]) p
        """,
        [organization],
    )
    assert events(connection, organization) == [one("task_create", "3", 0), ("task_create", Decimal("2.5"), "1")]
    refused = connection.execute(
        """
        select event ->> 'resource_id', event ->> 'quantity', code, event ->> 'event' from metering.rejected_events
        where organization_id = %s and source = 'trigger' order by 1
        """,
        [organization],
    ).fetchall()
    assert refused == [
        (resource, quantity, "INVALID_EVENT", "task_create")
        for resource, quantity in (("4", "NaN"), ("5", "-1"), ("6", "Infinity"), ("7", "1000000000000000000"))
    ]
    connection.execute("update app.tasks set points = 7 where organization_id = %s and id = 1", [organization])
    assert events(connection, organization) == [one("task_update", "1", 7)]


def test_bytes_that_come_go_and_change(connection: Connection, organization: UUID) -> None:
    meter(connection, "created => null, updated => null, deleted => null, storage_column => 'size_bytes'")
    connection.execute(
        "insert into app.tasks (organization_id, id, size_bytes) values (%s, 1, 100), (%s, 2, 0), (%s, 3, null)",
        [organization] * 3,
    )
    assert events(connection, organization) == [one("storage.bytes", "1", 100)]
    connection.execute(
        "update app.tasks set size_bytes = case id when 1 then 40 when 2 then 5 end where organization_id = %s",
        [organization],
    )
    assert events(connection, organization) == [one("storage.bytes", "1", -60), one("storage.bytes", "2", 5)]
    connection.execute("update app.tasks set title = 'b' where organization_id = %s", [organization])
    assert events(connection, organization) == []
    connection.execute("delete from app.tasks where organization_id = %s", [organization])
    assert events(connection, organization) == [one("storage.bytes", "1", -40), one("storage.bytes", "2", -5)]
    told = connection.execute(
        "select distinct unit, dimensions ->> 'resource' from metering.usage_events where organization_id = %s",
        [organization],
    ).fetchall()
    assert told == [("byte", "task")]


def test_a_row_that_moves_goes_there_and_comes_here(connection: Connection, organization: UUID, other: UUID) -> None:
    """So does one that gets another id: to usage it is another one."""
    meter(connection, """storage_column => 'size_bytes', becomes => '{"status": {"done": "task_complete"}}'""")
    connection.execute(
        "insert into app.tasks (organization_id, id, size_bytes, status) values (%s, 1, 100, 'done')", [organization]
    )
    events(connection, organization)
    connection.execute("update app.tasks set organization_id = %s, size_bytes = 30 where id = 1", [other])
    assert [*events(connection, organization)] == [one("storage.bytes", "1", -100), one("task_delete")]
    connection.execute("select set_config('tests.seen', '', true)")
    assert events(connection, other) == [one("storage.bytes", "1", 30), one("task_complete"), one("task_create")]
    connection.execute("update app.tasks set id = 2 where organization_id = %s", [other])
    assert {name for name, _, _ in events(connection, other)} == {
        "storage.bytes", "task_complete", "task_create", "task_delete",
    }  # fmt: skip


def test_who_did_it_and_where(connection: Connection, organization: UUID) -> None:
    meter(connection, """user_column => 'done_by', workspace_column => 'At % Work', context_column => 'place'""")
    person = "01a1fe89-1b8d-7ccf-8f24-af13647f584b"
    connection.execute(
        """
        insert into app.tasks (organization_id, id, done_by, "At %% Work", place) values
          (%(org)s, 1, %(person)s, 'Legal', '{"type": "project", "project": "Apollo"}'), (%(org)s, 2, null, null, '[1]')
        """,
        {"org": organization, "person": person},
    )
    recorded = connection.execute(
        """
        select user_id, workspace_id, context from metering.usage_events where organization_id = %s order by resource_id
        """,
        [organization],
    ).fetchall()
    assert recorded == [(person, "Legal", {"type": "project", "project": "Apollo"}), (None, None, None)]


def test_weights_and_payers_of_each_organization(
    connection: Connection, organizations: tuple[Organization, Organization]
) -> None:
    """One statement or one for each makes no difference."""
    light, heavy = (each.id for each in organizations)
    connection.execute(
        """
        insert into metering.operation_weights (organization_id, operation, effective_from, weight)
        values (%s, 'task_create', '2020-01-01', 7)
        """,
        [heavy],
    )
    meter(connection, "quantity_column => 'points'")
    insert = "insert into app.tasks (organization_id, id, points) select o, %s, 3 from unnest(%s::uuid[]) o"
    connection.execute(insert, [1, [light, heavy]])
    connection.execute(insert, [2, [light]])
    connection.execute(insert, [3, [heavy]])
    recorded = connection.execute(
        """
        select organization_id, weighted_units, billing_entity_id from metering.usage_events
        where organization_id = any(%s) and event_name = 'task_create' order by resource_id, weighted_units
        """,
        [[light, heavy]],
    ).fetchall()
    of_light, of_heavy = (light, Decimal(3), light), (heavy, Decimal(21), organizations[1]["owner"].id)
    assert recorded == [of_light, of_heavy, of_light, of_heavy]


def test_many_rows_after_one(connection: Connection, organization: UUID) -> None:
    """Plans are kept from the first statement on, and each event has an id of its own."""
    meter(connection)
    connection.execute("insert into app.tasks (organization_id, id) values (%s, 0)", [organization])
    connection.execute("update app.tasks set title = 'a' where organization_id = %s", [organization])
    connection.execute(
        "insert into app.tasks (organization_id, id) select %s, n from generate_series(1, 5000) n", [organization]
    )
    connection.execute("update app.tasks set title = 'b' where organization_id = %s", [organization])
    counted = connection.execute(
        """
        select count(*), count(distinct id), count(distinct (event_name, resource_id))
        from metering.usage_events where organization_id = %s
        """,
        [organization],
    ).fetchone()
    assert counted == (10_003, 10_003, 10_002)


def test_an_organization_that_goes_takes_its_rows_with_it(connection: Connection, other: UUID) -> None:
    connection.execute("insert into app.tasks (organization_id, id) values (%s, 1)", [other])
    meter(connection)
    connection.execute("delete from tenancy.organizations where id = %s", [other])
    assert events(connection, other) == []


def test_metering_again_replaces_what_was_said(connection: Connection, organization: UUID) -> None:
    meter(connection, "storage_column => 'size_bytes'")
    meter(connection, "updated => null, deleted => null")
    connection.execute("insert into app.tasks (organization_id, id, size_bytes) values (%s, 1, 5)", [organization])
    connection.execute("update app.tasks set title = 'b' where organization_id = %s", [organization])
    connection.execute("delete from app.tasks where organization_id = %s", [organization])
    assert events(connection, organization) == [one("task_create")]
    run(connection, "truncate app.tasks")
    run(connection, "select metering.unmeter_table('app.tasks')")
    connection.execute("insert into app.tasks (organization_id, id) values (%s, 1)", [organization])
    assert events(connection, organization) == []
    left = "select count(*) from pg_trigger where tgrelid = 'app.tasks'::regclass and not tgisinternal"
    assert value(connection, left) == 0
    assert value(connection, "select to_regproc('metering.meter_app_tasks') is null")


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ("app.open_tasks", "", "it is a view"),
        ("app.parts", "", "it is a partitioned table"),
        ("metering.usage_events", "", "partitioned"),
        ("billing.invoices", "", "schema billing is not of tenants' tables"),
        ("app.tasks", "resource => 'a task'", "resource needs a name"),
        ("app.tasks", "resource => null", "resource needs a name"),
        ("app.tasks", "created => 'not/this'", "'not/this' is no name of an event"),
        ("app.tasks", 'becomes => \'{"status": "done"}\'', "becomes needs an object"),
        ("app.tasks", 'becomes => \'{"status": {"done": 1}}\'', "becomes needs an object"),
        ("app.tasks", 'becomes => \'{"state": {"done": "x"}}\'', "it has no column state (becomes)"),
        ("app.tasks", "created => null, updated => null, deleted => null", "there is nothing to record"),
        ("app.tasks", "storage_column => 'bytes'", "it has no column bytes (storage_column)"),
        ("app.tasks", "storage_column => 'points'", "column points is numeric, and bytes are an integer"),
        ("app.tasks", "quantity_column => 'title'", "column title is text, and a quantity is an integer or numeric"),
        ("app.tasks", "context_column => 'history'", "column history is json, and a context is jsonb"),
        ("app.tasks", "id_column => 'title'", "title does not name one row"),
        ("app.loose", "", "id does not name one row: it needs a unique key over (organization_id, id), not null"),
        ("app.texts", "", "column organization_id has to be uuid not null"),
        ("app.texts", "organization_column => 'tenant_id'", "it has no column tenant_id (organization_column)"),
    ],
)
def test_what_cannot_be_metered_is_told(connection: Connection, table: str, options: str, said: str) -> None:
    asked = options if options.startswith("resource") else f"resource => 'task'{options and ', '}{options}"
    with pytest.raises(psycopg.Error) as refused:
        run(connection, f"select metering.meter_table('{table}', {asked})")
    assert refused.value.sqlstate == "22023"
    message = refused.value.diag.message_primary or ""
    assert message.startswith(f"{table} cannot be metered like this: ")
    assert said in message
    assert refused.value.diag.message_hint


def test_two_tables_do_not_store_as_one_resource(connection: Connection) -> None:
    with pytest.raises(psycopg.Error, match="another table stores bytes as document"):
        run(
            connection,
            "select metering.meter_table('app.tasks', resource => 'document', storage_column => 'size_bytes')",
        )


def test_what_is_not_metered_cannot_be_unmetered(connection: Connection) -> None:
    with pytest.raises(psycopg.Error, match="it is not metered"):
        run(connection, "select metering.unmeter_table('app.tasks')")


def test_nobody_who_serves_requests_meters_tables(connection: Connection) -> None:
    for role in ("member", "platform_admin", "service", "sidecar"):
        may: Any = value(
            connection,
            "select bool_or(has_function_privilege(%s, oid, 'execute')) from pg_proc where proname ~ '^(un)?meter_'",
            role,
        )
        assert may is False, role


FILE = "do $$ begin perform metering.meter_table('app.cases', resource => 'case', updated => null); end $$;"


def test_a_file_meters_a_table_for_as_long_as_it_says_so(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, make_organization: MakeOrganization
) -> None:
    """Also by what a later release makes of the functions; and nothing of it looks changed by hand."""
    checkout = Checkout(tmp_path / "project", database, monkeypatch)
    path = checkout.root / "sql/app/metered.sql"
    path.parent.mkdir()
    organization = make_organization(database, roles=("owner",)).id
    insert = f"insert into app.cases (organization_id, title) values ('{organization}', 'a')"
    counted = "select count(*) from metering.usage_events where event_name = 'case_create'"

    path.write_text(FILE)
    checkout.migrate()
    checkout.execute(insert)
    assert checkout.query(counted) == [(1,)]

    checkout.edit("sql/metering/meter_events.sql", "Made by metering.meter_table().", "Made anew.")
    checkout.migrate()
    functions = """
      select proname, pg_get_userbyid(proowner) from pg_proc
      where prosrc like '%Made anew.%' and proname ~ '^meter_app_' order by 1
    """
    kernel = "goldleaves_kernel"
    assert checkout.query(functions) == [("meter_app_cases", kernel), ("meter_app_documents", kernel)]
    checkout.execute(insert)
    assert checkout.query(counted) == [(2,)]
    assert checkout.policies("verify").exit_code == 0

    path.unlink()
    checkout.migrate()
    checkout.execute(insert)
    assert checkout.query(counted) == [(2,)]
    assert checkout.query("select to_regproc('metering.meter_app_cases') is null") == [(True,)]
    assert checkout.policies("verify").exit_code == 0

"""The migrations of this project: well named, reversible, and run by a role that is no superuser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from psycopg.rows import dict_row

from api.migrations import MigrationError, migrate, rollback, status
from api.numbering import FIRST_NUMBER
from api.settings import PROJECT, Settings
from api.stack import bootstrap
from tests.catalogs import catalog_of
from tests.conftest import MakeOrganization
from tests.harness import Cluster, Database
from tests.usage import event, ingest

MIGRATIONS = sorted(path for path in (PROJECT / "migrations").glob("*.sql") if not path.name.endswith(".rollback.sql"))
POLICIES = sorted((PROJECT / "policies").glob("*.sql"))
IDS = [path.stem for path in MIGRATIONS]
OUR_SCHEMAS = "select oid from pg_namespace where nspname !~ '^(pg_|information_schema$|public$|yoyo$)'"

# What `migrate` calls at its end.
LEAST_BEHAVIOUR = {
    "sql/billing/seed.sql": """
        create function billing.seed_prices(p numeric) returns void language sql as 'select';
        create function billing.set_defaults(p int, q int, r text) returns void language sql as 'select';
        create function stripe.set_plan_prices(p jsonb) returns void language sql as 'select';
    """,
    "sql/metering/begin.sql": "create function metering.begin_generation() returns int language sql as 'select 0';",
    "sql/ops/maintain.sql": "create function ops.maintain() returns void language sql as 'select';",
}
# And things that no later release has.
OLD_BEHAVIOUR = {
    **LEAST_BEHAVIOUR,
    "sql/ops/old.sql": """
        create function ops.old() returns int language sql as 'select 1';
        alter function ops.old() owner to goldleaves_kernel;
        grant execute on function ops.old() to sidecar;
        create view ops.old_view as select ops.old() as old;
        grant select on ops.old_view to monitor;
    """,
    "sql/api/old.sql": """
        create view api.old as select 1 as old;
        create function api.old_function() returns int language sql as 'select 1';
        grant usage on schema api to anon;
        grant select on api.old to anon;
        grant execute on function api.old_function() to anon;
    """,
    "policies/ops.releases.sql": """
        create policy old on ops.releases using (true);
        grant select on ops.releases to sidecar;
    """,
}


@pytest.fixture(scope="module")
def catalog_from_empty(cluster: Cluster) -> Iterator[str]:
    """What all migrations at once make of an empty database."""
    database = cluster.database("goldleaves_from_empty")
    bootstrap.create_database(cluster.server_url, database.name)
    migrate(database.migrator, Settings())
    yield catalog_of(database)
    cluster.drop(database)


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All migrations, with hardly any behaviour on top: what one does to tables shows without loading everything."""
    switches = re.compile(r"^alter table .*row level security;$", re.MULTILINE)
    policies = {f"policies/{path.name}": "\n".join(switches.findall(path.read_text())) for path in POLICIES}
    return checkout(tmp_path_factory.mktemp("least") / "checkout", {**LEAST_BEHAVIOUR, **policies})


@pytest.fixture(scope="module")
def least_catalog_from_empty(cluster: Cluster, least: Path) -> Iterator[str]:
    database = cluster.database("goldleaves_least_from_empty")
    bootstrap.create_database(cluster.server_url, database.name)
    migrate(database.migrator, Settings(), least)
    yield catalog_of(database)
    cluster.drop(database)


def checkout(root: Path, behaviour: Mapping[str, str], last: str = IDS[-1]) -> Path:
    """The migrations up to one, and other files than ours."""
    (root / "migrations").mkdir(parents=True)
    for path in (PROJECT / "migrations").glob("[0-9]*.sql"):
        if path.name[:4] <= last[:4]:
            shutil.copy(path, root / "migrations")
    for name, text in behaviour.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def schemas_of(database: Database) -> list[str]:
    with database.connect() as connection:
        return [
            name
            for (name,) in connection.execute("select nspname from pg_namespace where nspname !~ '^pg_' order by 1")
        ]


@pytest.mark.parametrize("path", MIGRATIONS, ids=IDS)
def test_migration_is_well_named_and_has_a_rollback(path: Path) -> None:
    assert re.fullmatch(r"\d{4}_[a-z]+(_[a-z0-9]+)+\.sql", path.name)
    assert path.with_suffix(".rollback.sql").exists()


def test_numbers_have_no_gap_and_no_double() -> None:
    """Yours have numbers of their own."""
    numbers = [int(name[:4]) for name in IDS]
    ours, yours = ([number for number in numbers if (number >= FIRST_NUMBER) == own] for own in (False, True))
    assert ours == list(range(1, len(ours) + 1))
    assert yours == list(range(FIRST_NUMBER, FIRST_NUMBER + len(yours)))


def test_every_rollback_has_a_migration() -> None:
    rollbacks = {path.name.removesuffix(".rollback.sql") for path in (PROJECT / "migrations").glob("*.rollback.sql")}
    assert rollbacks == set(IDS)


def test_up_down_to_zero_and_up_again_end_in_the_same_catalog(
    catalog_from_empty: str, empty_database: Database
) -> None:
    before = schemas_of(empty_database)
    assert migrate(empty_database.migrator, Settings()).applied == tuple(IDS)

    assert rollback(empty_database.migrator, None).rolled_back == tuple(reversed(IDS))
    assert schemas_of(empty_database) == sorted([*before, "yoyo"])
    assert status(empty_database.migrator).applied == ()

    assert migrate(empty_database.migrator, Settings()).applied == tuple(IDS)
    assert catalog_of(empty_database) == catalog_from_empty


def test_each_migration_goes_down_and_up_again(
    least_catalog_from_empty: str, least: Path, empty_database: Database
) -> None:
    migrate(empty_database.migrator, Settings(), least)
    for name in reversed(IDS[:-1]):
        assert rollback(empty_database.migrator, name, least).head == name
        assert status(empty_database.migrator).applied[-1] == name
        migrate(empty_database.migrator, Settings(), least)
        assert catalog_of(empty_database) == least_catalog_from_empty, f"down to {name} and up again"


def test_what_is_loaded_goes_with_the_last_migration_and_comes_again(database: Database) -> None:
    first = catalog_of(database)
    assert rollback(database.migrator, IDS[-2]).head == IDS[-2]
    migrate(database.migrator, Settings())
    assert catalog_of(database) == first


@pytest.mark.parametrize("earlier", IDS[:-1])
def test_from_each_earlier_migration_the_rest_ends_in_the_same_catalog(
    least_catalog_from_empty: str, least: Path, empty_database: Database, tmp_path: Path, earlier: str
) -> None:
    """As when these had been a release of their own, whose sql/ and policies/ spoke of nothing later."""
    old = checkout(tmp_path / "old", OLD_BEHAVIOUR, earlier)
    assert migrate(empty_database.migrator, Settings(), old).head == earlier
    report = migrate(empty_database.migrator, Settings(), least)
    assert report.applied == tuple(name for name in IDS if name > earlier)
    assert set(report.dropped) == {"function ops.old()", "view ops.old_view"}
    assert catalog_of(empty_database) == least_catalog_from_empty


@pytest.mark.parametrize("earlier", [IDS[0], IDS[-2]])
def test_from_an_earlier_release_all_that_is_loaded_ends_in_the_same_catalog(
    catalog_from_empty: str, empty_database: Database, tmp_path: Path, earlier: str
) -> None:
    migrate(empty_database.migrator, Settings(), checkout(tmp_path / "old", OLD_BEHAVIOUR, earlier))
    migrate(empty_database.migrator, Settings())
    assert catalog_of(empty_database) == catalog_from_empty


def test_rows_of_tables_that_stay_survive_going_down_and_up_again(
    database: Database, make_organization: MakeOrganization, least: Path
) -> None:
    organization = make_organization(database)
    kept = {
        "tenancy": (
            "select * from tenancy.organizations where owner_user_id is not null",
            "select * from tenancy.users order by id",
        ),
        "app": ("select * from app.clients order by id", "select * from app.cases"),
        "metering": (
            "select * from metering.usage_events order by id",
            "select * from metering.event_keys",
            "select * from metering.generations",
        ),
    }
    with database.connect() as superuser:
        superuser.execute("insert into app.clients (organization_id, name) values (%s, 'A client')", [organization.id])
        superuser.execute("insert into app.cases (organization_id, title) values (%s, 'A case')", [organization.id])
    with database.connect("sidecar") as sidecar:
        assert ingest(sidecar, [event("kept")], organization.id).accepted == 1

    for earlier, schemas, files in (
        ("0004", kept, PROJECT),
        ("0003", ("tenancy", "app"), least),
        ("0002", ("tenancy",), PROJECT),
    ):
        queries = [query for schema in schemas for query in kept[schema]]
        before = [read(database, query) for query in queries]
        assert all(before)
        rollback(database.migrator, earlier)
        left = [read(database, query) for query in queries]
        assert left == [without_newer_columns(*rows) for rows in zip(before, left, strict=True)]
        migrate(database.migrator, Settings(), files)
        after = [read(database, query) for query in queries]
        assert left == [without_newer_columns(*rows) for rows in zip(after, left, strict=True)]
        if files == PROJECT:
            with database.connect("sidecar") as sidecar:
                assert ingest(sidecar, [event("new")], organization.id).accepted == 1


Rows = list[dict[str, Any]]


def without_newer_columns(rows: Rows, left: Rows) -> Rows:
    """What goes with the migration that brought it is lost."""
    return [{name: row[name] for name in left[0]} for row in rows]


def read(database: Database, query: str) -> Rows:
    with database.connect() as superuser:
        return superuser.cursor(row_factory=dict_row).execute(query.encode()).fetchall()


def test_migrate_with_nothing_to_do_changes_nothing(database: Database) -> None:
    first = catalog_of(database)
    count = "select (select count(*) from ops.releases), (select count(*) from ops.policy_releases)"
    with database.connect() as connection:
        releases = connection.execute(count).fetchall()
        report = migrate(database.migrator, Settings())
        assert (report.applied, report.loaded, report.dropped, report.head) == ((), (), (), IDS[-1])
        assert connection.execute(count).fetchall() == releases
    assert catalog_of(database) == first


def test_everything_belongs_to_the_owner_and_functions_also_to_the_kernel(database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            f"""
            select 'schema ' || nspname, pg_get_userbyid(nspowner) from pg_namespace where oid in ({OUR_SCHEMAS})
            union all
            select oid::regclass::text, pg_get_userbyid(relowner) from pg_class where relnamespace in ({OUR_SCHEMAS})
            union all
            select oid::regtype::text, pg_get_userbyid(typowner) from pg_type where typnamespace in ({OUR_SCHEMAS})
            """
        ).fetchall()
        owners = connection.execute(
            f"select distinct pg_get_userbyid(proowner) from pg_proc where pronamespace in ({OUR_SCHEMAS})"
        ).fetchall()
    assert len(rows) > 100
    assert [row for row in rows if row[1] != "goldleaves_owner"] == []
    assert set(owners) == {("goldleaves_owner",), ("goldleaves_kernel",)}


def test_kernel_may_create_nothing_once_the_release_is_loaded(database: Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            f"""
            select nspname from pg_namespace
            where oid in ({OUR_SCHEMAS}) and has_schema_privilege('goldleaves_kernel', oid, 'create')
            """
        ).fetchall()
    assert rows == []


def test_a_superuser_is_refused(empty_database: Database) -> None:
    with pytest.raises(MigrationError, match="superuser"):
        migrate(empty_database.superuser, Settings())
    assert "yoyo" not in schemas_of(empty_database)


def test_an_unreachable_database_is_one_line(empty_database: Database) -> None:
    with pytest.raises(MigrationError) as error:
        migrate(empty_database.migrator.replace(f":{empty_database.port}/", ":1/"), Settings())
    assert "\n" not in str(error.value)


def test_status_before_and_after(empty_database: Database, least: Path) -> None:
    assert (status(empty_database.migrator).applied, status(empty_database.migrator).pending) == ((), tuple(IDS))
    migrate(empty_database.migrator, Settings(), least)
    assert (status(empty_database.migrator).applied, status(empty_database.migrator).pending) == (tuple(IDS), ())


def test_rollback_refuses_what_is_not_applied(database: Database) -> None:
    with pytest.raises(MigrationError, match="9999 is not an applied migration"):
        rollback(database.migrator, "9999")
    assert rollback(database.migrator, IDS[-1][:4]).rolled_back == ()

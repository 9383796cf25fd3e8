"""The migrations of this project: well named, reversible, and run by a role that is no superuser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from api.migrations import MigrationError, migrate, rollback, status
from api.settings import PROJECT, Settings
from api.stack.installations import binaries
from tests.conftest import MAJOR
from tests.harness import Database

MIGRATIONS = sorted(path for path in (PROJECT / "migrations").glob("*.sql") if not path.name.endswith(".rollback.sql"))
IDS = [path.stem for path in MIGRATIONS]
OUR_SCHEMAS = "select oid from pg_namespace where nspname !~ '^(pg_|information_schema$|public$|yoyo$)'"


def catalog_of(database: Database) -> str:
    """Everything but the rows: tables, constraints, indexes, functions, policies, owners, grants."""
    dump = subprocess.run(
        [binaries(MAJOR) / "pg_dump", "--schema-only", database.superuser], check=True, capture_output=True, text=True
    ).stdout
    # pg_dump guards its output with a random key.
    return re.sub(r"^\\(un)?restrict .*$", "", dump, flags=re.MULTILINE)


def schemas_of(database: Database) -> list[str]:
    with database.connect() as connection:
        return [
            name
            for (name,) in connection.execute("select nspname from pg_namespace where nspname !~ '^pg_' order by 1")
        ]


@pytest.mark.parametrize("path", MIGRATIONS, ids=IDS)
def test_migration_is_well_named_and_has_a_rollback(path: Path) -> None:
    assert re.fullmatch(r"\d{4}_[a-z]+(_[a-z]+)+\.sql", path.name)
    assert path.with_suffix(".rollback.sql").exists()


def test_numbers_have_no_gap_and_no_double() -> None:
    assert [int(name[:4]) for name in IDS] == list(range(1, len(IDS) + 1))


def test_every_rollback_has_a_migration() -> None:
    rollbacks = {path.name.removesuffix(".rollback.sql") for path in (PROJECT / "migrations").glob("*.rollback.sql")}
    assert rollbacks == set(IDS)


def test_up_down_to_zero_and_up_again_end_in_the_same_catalog(empty_database: Database) -> None:
    before = schemas_of(empty_database)
    assert migrate(empty_database.migrator, Settings()).applied == tuple(IDS)
    first = catalog_of(empty_database)

    assert rollback(empty_database.migrator, None).rolled_back == tuple(reversed(IDS))
    assert schemas_of(empty_database) == sorted([*before, "yoyo"])
    assert status(empty_database.migrator).applied == ()

    assert migrate(empty_database.migrator, Settings()).applied == tuple(IDS)
    assert catalog_of(empty_database) == first


def test_each_migration_goes_down_and_up_again(database: Database) -> None:
    first = catalog_of(database)
    for name in reversed(IDS[:-1]):
        assert rollback(database.migrator, name).head == name
        assert status(database.migrator).applied[-1] == name
        migrate(database.migrator, Settings())
        assert catalog_of(database) == first, f"down to {name} and up again"


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


def test_status_before_and_after(empty_database: Database) -> None:
    assert (status(empty_database.migrator).applied, status(empty_database.migrator).pending) == ((), tuple(IDS))
    migrate(empty_database.migrator, Settings())
    assert (status(empty_database.migrator).applied, status(empty_database.migrator).pending) == (tuple(IDS), ())


def test_rollback_refuses_what_is_not_applied(database: Database) -> None:
    with pytest.raises(MigrationError, match="9999 is not an applied migration"):
        rollback(database.migrator, "9999")
    assert rollback(database.migrator, IDS[-1][:4]).rolled_back == ()

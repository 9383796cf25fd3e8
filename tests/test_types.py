"""`goldleaves types`: TypeScript types that the official client takes, in which mistakes do not compile.

tests/types/scenario.ts says what has to compile and, marked `@ts-expect-error`, what must not.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from api.contract import read_catalog
from api.contract.catalog import Catalog, Column
from api.contract.typescript import database_types
from api.settings import PROJECT
from tests.harness import Database

SCENARIO = PROJECT / "tests" / "types" / "scenario.ts"
OPTIONS = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "target": "es2022",
    "lib": ["es2022", "dom"],
    "module": "nodenext",
    "moduleResolution": "nodenext",
}


@pytest.fixture(scope="module")
def catalog(shared_database: Database) -> Catalog:
    return read_catalog(shared_database.migrator)


def compile_scenario(folder: Path, types: str) -> str:
    """What the compiler finds wrong; empty when nothing is."""
    (folder / "node_modules").symlink_to(PROJECT / "node_modules")
    (folder / "database.ts").write_text(types)
    (folder / "scenario.ts").write_text(SCENARIO.read_text())
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["scenario.ts"]}))
    compiler = PROJECT / "node_modules" / ".bin" / "tsc"
    run = subprocess.run([compiler, "-p", folder], capture_output=True, text=True, timeout=120)
    return run.stdout + run.stderr


def test_scenario_compiles_and_its_mistakes_do_not(catalog: Catalog, tmp_path: Path) -> None:
    assert compile_scenario(tmp_path, database_types(catalog)) == ""


@pytest.mark.parametrize(
    ("types", "wrong"),
    [
        pytest.param("client_id: string | null", "client_id: string", id="a column that is never null"),
        pytest.param('status: "open" | "closed"', "status: string", id="a status that is any text"),
        pytest.param('columns: ["organization_id", "client_id"]', "columns: [string]", id="a key of one column"),
        pytest.param("title: string", "title?: string", id="a title that is not needed"),
    ],
)
def test_scenario_tells_wrong_types(catalog: Catalog, tmp_path: Path, types: str, wrong: str) -> None:
    right = database_types(catalog)
    assert types in right
    assert "error TS" in compile_scenario(tmp_path, right.replace(types, wrong))


def column(catalog: Catalog, view: str, name: str) -> Column:
    [found] = [column for each in catalog.views if each.name == view for column in each.columns if column.name == name]
    return found


def test_nulls_are_those_of_the_tables_behind_the_views(catalog: Catalog) -> None:
    assert not column(catalog, "cases", "title").may_be_null
    assert column(catalog, "cases", "client_id").may_be_null


def test_computed_columns_may_be_null_unless_their_comment_denies_it(catalog: Catalog) -> None:
    cost = column(catalog, "usage_events", "cost_cents")
    action = column(catalog, "usage_events", "action")
    assert (cost.nullable, cost.may_be_null) == (None, True)
    assert (action.nullable, action.may_be_null) == (None, False)


def test_outer_joins_and_subqueries_make_no_promises(database: Database) -> None:
    """A column of a table that may be absent, and one that a subquery has under the same name at the same place."""
    with database.connect() as superuser:
        superuser.execute(
            """
            create view api.rows as
              select c.id, l.name as client from app.cases c left join app.clients l on l.id = c.client_id;
            create view api.latest as
              select (select c.title from app.cases c limit 1) as title, c.id from app.cases c;
            """
        )
    catalog = read_catalog(database.migrator)
    assert column(catalog, "rows", "client").may_be_null
    assert column(catalog, "latest", "title").may_be_null
    assert not column(catalog, "latest", "id").may_be_null


def test_comments_are_in_the_types(catalog: Catalog) -> None:
    lines = {line.strip() for line in database_types(catalog).splitlines()}
    said = [c.comment for view in catalog.views for c in (view, *view.columns)]
    said += [c.comment for function in catalog.functions for c in function.columns]
    assert None not in said
    for text in filter(None, said):
        several = text.split("\n")
        expected = {f"* {line}".rstrip() for line in several} if len(several) > 1 else {f"/** {text} */"}
        assert expected <= lines, text


def test_comment_cannot_end_itself(catalog: Catalog) -> None:
    view = catalog.views[0].model_copy(update={"comment": "All of it */ export const x = 1"})
    assert "*/ export" not in database_types(catalog.model_copy(update={"views": (view,)}))

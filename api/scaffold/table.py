"""The files of a tenants' table: what docs/dba.md explains, filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from api.numbering import FIRST_NUMBER, next_number
from api.release import MigrationError
from api.scaffold.columns import Column, Reference, check_name

HOME = "app"
_CLOSED = (
    "tenancy",
    "metering",
    "billing",
    "stripe",
    "notifications",
    "audit",
    "ops",
    "api",
    "yoyo",
    "information_schema",
)
_TEMPLATES = resources("api.scaffold") / "templates"


@dataclass(frozen=True)
class Table:
    """What was asked for. Raises MigrationError for names that cannot be."""

    schema: str
    name: str
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        check_name("schema", self.schema)
        check_name("table", self.name)
        if self.schema in _CLOSED or self.schema.startswith("pg_"):
            raise MigrationError(f"schema {self.schema} is not for tables of your own: take app, or a schema of yours")

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Paths:
    """Where the files of a table lie in the project."""

    migration: str
    rollback: str
    policies: str
    triggers: str
    view: str
    test: str


def paths_of(table: Table, root: Path) -> Paths:
    """A migration that is there keeps its number, so that scaffolding again finds what it made."""
    title = f"create_{table.name}" if table.schema == HOME else f"create_{table.schema}_{table.name}"
    written = sorted(path.stem for path in (root / "migrations").glob(f"[0-9]*_{title}.sql"))
    own = [stem for stem in written if int(stem.partition("_")[0]) >= FIRST_NUMBER]
    stem = own[0] if own else f"{next_number(root):04}_{title}"
    test = title.removeprefix("create_")
    return Paths(
        migration=f"migrations/{stem}.sql",
        rollback=f"migrations/{stem}.rollback.sql",
        policies=f"policies/{table.qualified}.sql",
        triggers=f"sql/{table.schema}/{table.name}.sql",
        view=f"sql/api/{table.name}.sql",
        test=f"tests/test_{test}_isolation.py",
    )


def sql_files(table: Table, paths: Paths) -> dict[str, str]:
    """What a migrate reads, in the order in which it can be run."""
    written = ", ".join(["organization_id", "id", *_names(table), "created_by", "created_at"])
    fill = {
        "table": table.qualified,
        "name": table.name,
        "Title": _words(table.name),
        "target": f"{table.schema}_{table.name}",
        "written": written,
        "shown": ", ".join(_names(table)),
        "schema": _schema(table.schema),
        "columns": "\n".join(f"  {column.definition}," for column in table.columns),
        "keys": ",\n".join(f"  {key}" for key in _keys(table)),
        "indexes": _indexes(table),
        "defaults": _defaults(table),
        "comments": "\n".join(
            f"comment on column api.{table.name}.{column.name} is '{_comment(column).replace(chr(39), chr(39) * 2)}';"
            for column in table.columns
        ),
    }
    return {
        paths.migration: _filled("migration.sql", fill),
        paths.rollback: _filled("rollback.sql", fill),
        paths.triggers: _filled("triggers.sql", fill),
        paths.view: _filled("view.sql", fill),
        paths.policies: _filled("policies.sql", fill),
    }


def test_file(table: Table, row: Mapping[str, str]) -> str:
    """The isolation test. `row` is, by column, the SQL of a value that its checks let pass."""
    return _filled(
        "isolation_test.py.txt",
        {
            "table": table.qualified,
            "names": _tuple(_names(table)),
            "row_columns": _wrapped(["organization_id", "id", *row]),
            "row_values": _wrapped(["%(org)s", "%(id)s", *map(_in_python, row.values())]),
        },
    )


def _tuple(names: Sequence[str]) -> str:
    """As ruff formats it."""
    if len(names) == 1:
        return f'("{names[0]}",)'
    return "\n".join(["(", *(f'        "{name}",' for name in names), "    )"])


def _in_python(value: str) -> str:
    """As part of a string in triple quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _wrapped(parts: Sequence[str]) -> str:
    """With commas, and a new line before what would not fit."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > 90:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{part},"
    return "\n          ".join(lines).removesuffix(",")


def on_delete(column: Column, reference: Reference) -> str:
    """As asked for, else what suits the column: a row that cannot be without the other one goes with it."""
    action = reference.on_delete or ("cascade" if column.not_null else "set null")
    return f"set null ({column.name})" if action == "set null" else action


def _filled(template: str, values: Mapping[str, str]) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _words(name: str) -> str:
    return name.replace("_", " ").strip().capitalize()


def _schema(schema: str) -> str:
    if schema == HOME:
        return ""
    return (
        f"create schema if not exists {schema} authorization goldleaves_owner;\n"
        f"grant usage on schema {schema} to member, platform_admin;\n"
    )


def _keys(table: Table) -> list[str]:
    keys = ["primary key (organization_id, id)"]
    keys += [f"unique (organization_id, {column.name})" for column in table.columns if column.unique]
    keys += [
        f"foreign key (organization_id, {column.name}) references {reference.table} (organization_id, {reference.key})"
        f" on delete {on_delete(column, reference)}"
        for column in table.columns
        if (reference := column.reference)
    ]
    return keys


def _indexes(table: Table) -> str:
    """Deleting what is referenced would read the whole table. What is unique has an index already."""
    lines = [
        f"create index {table.name}_of_{column.name.removesuffix('_id')} on {table.qualified}"
        f" (organization_id, {column.name});"
        for column in table.columns
        if column.reference and not column.unique
    ]
    return "\n" + "".join(f"{line}\n" for line in lines) if lines else ""


def _defaults(table: Table) -> str:
    defaults = {"organization_id": "tenancy.current_org()", "id": "ops.new_id()"}
    defaults |= {column.name: column.default for column in table.columns if column.default}
    return ",\n".join(f"  alter column {name} set default {value}" for name, value in defaults.items())


def _comment(column: Column) -> str:
    what = _words(column.name)
    if reference := column.reference:
        what = f"{_words(column.name.removesuffix('_id'))}: {reference.key} in {reference.table.split('.')[1]}"
    if column.default and column.default.lower() != "null":
        return f"{what}; {column.default} unless sent."
    return f"{what}." if column.not_null else f"{what}; null when there is none."

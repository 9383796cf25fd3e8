"""What the matrix asks the Postgres catalog: tenant tables, how to make a row of them, roles and their privileges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from psycopg import sql
from psycopg.rows import class_row

from api.release.catalog import Connection

_LITERAL = re.compile(r"'((?:[^']|'')*)'::")
_NUMBER = re.compile(r"(?<![\w.'])\d+(?![\w.'])")
_BOUND = re.compile(r"FOR VALUES (?:FROM|IN) \('?([^')]+)'?[,)]")


@dataclass(frozen=True)
class Column:
    """`type_name` is that of the base of a domain, or of an array's elements; `category` and `kind` are pg_type's."""

    name: str
    type_name: str
    category: str
    kind: str
    is_array: bool
    length: int | None
    not_null: bool
    has_default: bool
    is_written: bool
    labels: tuple[str, ...]
    parts: int


@dataclass(frozen=True)
class Check:
    name: str
    columns: tuple[str, ...]
    definition: str

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The texts and numbers that it mentions: of `check (status in ('open', 'closed'))`, those allowed."""
        texts = [text.replace("''", "'") for text in _LITERAL.findall(self.definition)]
        return tuple(dict.fromkeys(texts + _NUMBER.findall(_LITERAL.sub("", self.definition))))

    @property
    def is_list(self) -> bool:
        return len(self.columns) == 1 and ("= ANY (ARRAY[" in self.definition or "ANY ('{" in self.definition)


@dataclass(frozen=True)
class ForeignKey:
    columns: tuple[str, ...]
    table: str
    referenced: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with rows of tenants; `key` is the column that says whose. `root`: of a partition, the whole table."""

    name: str
    key: str
    root: str | None
    columns: Mapping[str, Column]
    checks: tuple[Check, ...]
    unique: Mapping[str, tuple[str, ...]]
    foreign_keys: tuple[ForeignKey, ...]

    @property
    def identifier(self) -> sql.SQL:
        """The catalog has quoted it where that is needed."""
        return sql.SQL(self.name)


@dataclass(frozen=True)
class Partition:
    """`pinned`: values that make a row of the root table one of this partition. `profile` is equal for those that
    policies, grants and switches treat alike.
    """

    name: str
    root: str
    pinned: Mapping[str, str]
    profile: str


@dataclass(frozen=True)
class Privileges:
    """Columns of a table that a role may select, insert and update; and whether it may truncate it, or owns it."""

    select: frozenset[str] = frozenset()
    insert: frozenset[str] = frozenset()
    update: frozenset[str] = frozenset()
    truncate: bool = False
    owns: bool = False


@dataclass(frozen=True)
class Server:
    """Where a proof was made, and what was released there last."""

    database: str
    host: str
    version: str
    connected_as: str
    release: int | None
    released_at: str | None
    fingerprint: str | None
    git_revision: str | None


def server(conn: Connection) -> Server:
    with conn.cursor(row_factory=class_row(Server)) as cursor:
        (found,) = cursor.execute(_query("server"))
    return found


def tenant_tables(conn: Connection, names: Iterable[str]) -> dict[str, Table]:
    """Tables and partitions with organization_id, in our schemas or owned by goldleaves_owner, and those named."""
    rows = conn.execute(_query("tables"), {"named": list(names), "only": False}).fetchall()
    return {row[0]: _table(*row) for row in rows}


def other_table(conn: Connection, name: str) -> Table | None:
    """Any table, as one that has rows of no tenant: key is empty."""
    row = conn.execute(_query("tables"), {"named": [name], "only": True}).fetchone()
    return None if row is None else _table(*row)


def partitions(conn: Connection, roots: Iterable[str]) -> dict[str, Partition]:
    """Of these tables, every partition on any level."""
    rows = conn.execute(_query("partitions"), {"roots": list(roots)}).fetchall()
    levels = {name: (parent, root, columns, bound, profile) for name, parent, root, columns, bound, profile in rows}
    found = {}
    for name, (_, root, _, _, profile) in levels.items():
        pinned: dict[str, str] = {}
        level = name
        while level in levels:
            level, _, columns, bound, _ = levels[level]
            if len(columns) == 1 and (match := _BOUND.search(bound)):
                pinned.setdefault(columns[0], match[1])
        found[name] = Partition(name, root, pinned, profile)
    return found


def values_of_check(conn: Connection, table: str, column: str) -> list[str]:
    """What the checks on a column, or its enum type, mention."""
    found = tenant_tables(conn, [table])[table]
    checks = [check for check in found.checks if column in check.columns]
    return list(dict.fromkeys([*found.columns[column].labels, *(text for check in checks for text in check.literals)]))


def database_roles(conn: Connection, tables: Iterable[str], named: Iterable[str]) -> tuple[set[str], set[str]]:
    """Roles that hold a grant on a table or are named by a policy, or in `named`; and which of them are superusers."""
    rows = conn.execute(_query("roles"), {"tables": list(tables), "named": list(named)}).fetchall()
    return {name for name, _ in rows}, {name for name, is_superuser in rows if is_superuser}


def privileges(conn: Connection, tables: Iterable[str], roles: Iterable[str]) -> dict[tuple[str, str], Privileges]:
    """By role and table."""
    rows = conn.execute(_query("privileges"), {"tables": list(tables), "roles": list(roles)}).fetchall()
    return {
        (role, table): Privileges(frozenset(may_select), frozenset(may_insert), frozenset(may_update), truncate, owns)
        for role, table, may_select, may_insert, may_update, truncate, owns in rows
    }


def _table(name: str, key: str, root: str | None, columns: Any, checks: Any, unique: Any, foreign_keys: Any) -> Table:
    return Table(
        name,
        key,
        root,
        {column["name"]: Column(**{**column, "labels": tuple(column["labels"])}) for column in columns},
        tuple(Check(check["name"], tuple(check["columns"]), check["definition"]) for check in checks),
        {index: tuple(names) for index, names in unique.items()},
        tuple(ForeignKey(tuple(k["columns"]), k["table"], tuple(k["referenced"])) for k in foreign_keys),
    )


def _query(name: str) -> bytes:
    return files("api.policies.matrix").joinpath(f"{name}.sql").read_bytes()

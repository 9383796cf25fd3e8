"""A row for the isolation test: of each column that needs one, a value that its type and its checks let pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import psycopg

from api.release.catalog import Connection
from api.scaffold.columns import Column
from api.scaffold.table import Table

_ROW_ID: Final = "%(id)s"
_BY_TYPE: Final[tuple[tuple[str, str], ...]] = (
    (r".*(\[\]|\barray)$", "'{}'"),
    (r"(text|varchar|character|char|citext|name|bpchar)\b", "'Secret'"),
    (r"(int|smallint|bigint|integer|int2|int4|int8|numeric|decimal|real|double|float|money|oid)", "1"),
    (r"bool", "true"),
    (r"uuid", _ROW_ID),
    (r"(date|timestamp)", "'2030-01-01'"),
    (r"time", "'12:00'"),
    (r"interval", "'1 day'"),
    (r"jsonb?\b", "'{}'"),
    (r"(inet|cidr)", "'192.0.2.1'"),
)
# What else people check for: lengths, cases, addresses, ranges.
_ANY: Final = (
    "'Secret'", "'secret'", "'SECRET'", "'a'", "'A'", "'abc'", "'ABC'", "'a@example.com'", "'https://example.com'",
    "'1'", "'100'", "'0.5'", "'{}'", "'[]'", "'true'", "'2030-01-01'", "'[1,2)'", "'(1,2)'",
)  # fmt: skip
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
# Whoever owns the organization is one of its members. An id of ours cannot be had by a row of another table.
_OWNER: Final = "(select owner_user_id from tenancy.organizations where id = %(org)s)"


def first_guess(table: Table) -> dict[str, str]:
    """By column, the SQL of a value. Nobody was asked whether it is let pass."""
    return {column.name: _as_parameter(next(_candidates(column))) for column in _needed(table)}


def tried(conn: Connection, table: Table) -> tuple[dict[str, str], list[str]]:
    """By column, a value that Postgres lets pass, and the columns of which none was found. Needs the table."""
    row: dict[str, str] = {}
    unknown: list[str] = []
    labels = _labels(conn, table)
    twin = _twin(conn, table)
    for column in _needed(table):
        candidates = list(_candidates(column))
        found = candidates[0] if column.reference else None
        for value in (*candidates, *labels.get(column.name, ())):
            found = found or (value if _passes(conn, twin, column, value) else None)
        row[column.name] = _as_parameter(found or candidates[0])
        unknown += [] if found else [column.name]
    return row, unknown


def _needed(table: Table) -> list[Column]:
    """What has to be said, what the row refers to, and a first text so that there is something to be kept secret."""
    text = next((column for column in table.columns if column.type.lower().startswith("text")), None)
    return [
        column
        for column in table.columns
        if column.reference or column is text or (column.not_null and column.default is None)
    ]


def _candidates(column: Column) -> Iterator[str]:
    if column.reference:
        yield _OWNER if column.reference.key.endswith("user_id") else _ROW_ID
        return
    yield next((value for pattern, value in _BY_TYPE if re.match(pattern, column.type.lower())), _ANY[0])
    for literal in _LITERAL.findall(" ".join(column.checks)):
        yield literal
        if literal[0] != "'":
            yield str(float(literal) + 1).removesuffix(".0")
            yield str(float(literal) - 1).removesuffix(".0")
    yield from _ANY


def _as_parameter(value: str) -> str:
    """Beside parameters a percent sign is written twice."""
    return value if value in (_ROW_ID, _OWNER) else value.replace("%", "%%")


def _twin(conn: Connection, table: Table) -> str:
    """A table with the same types and checks and nothing else, so that each column can be tried alone."""
    twin = f"{table.schema}.scaffold_twin"
    conn.execute(f"create table {twin} (like {table.qualified} including constraints)".encode())
    names = ("organization_id", "id", "created_at", *(column.name for column in table.columns if column.not_null))
    conn.execute(f"alter table {twin} {', '.join(f'alter {name} drop not null' for name in names)}".encode())
    return twin


def _passes(conn: Connection, twin: str, column: Column, value: str) -> bool:
    value = "gen_random_uuid()" if value == _ROW_ID else value
    try:
        with conn.transaction():
            conn.execute(f"insert into {twin} ({column.name}) values ({value})".encode())  # noqa: S608
    except psycopg.Error:
        return False
    return True


def _labels(conn: Connection, table: Table) -> Mapping[str, list[str]]:
    """The values of enums, quoted. Needs the table."""
    rows = conn.execute(
        """
        select a.attname, array_agg(quote_literal(e.enumlabel) order by e.enumsortorder)
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid
        join pg_enum e on e.enumtypid in (t.oid, t.typbasetype)
        where a.attrelid = %s::regclass
        group by 1
        """,
        [table.qualified],
    )
    return dict(rows.fetchall())

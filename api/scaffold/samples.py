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
_ANY: Final = ("'Secret'", "1", "'{}'", "'2030-01-01'", "true", "'(1,2)'", "'a'")
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b")
# Whoever owns the organization is one of its members. An id of ours cannot be had by a row of another table.
_OWNER: Final = "(select owner_user_id from tenancy.organizations where id = %(org)s)"


def first_guess(table: Table) -> dict[str, str]:
    """By column, the SQL of a value. Nobody was asked whether it is let pass."""
    return {column.name: next(_candidates(column)) for column in _needed(table)}


def tried(conn: Connection, table: Table) -> tuple[dict[str, str], list[str]]:
    """By column, a value that Postgres lets pass, and the columns of which none was found."""
    row: dict[str, str] = {}
    unknown: list[str] = []
    labels = _labels(conn, table)
    for column in _needed(table):
        candidates = [*_candidates(column), *(() if column.reference else labels.get(column.name, ()))]
        found = next((value for value in candidates if column.reference or _passes(conn, column, value)), None)
        row[column.name] = found or candidates[0]
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


def _passes(conn: Connection, column: Column, value: str) -> bool:
    """Evaluated beside the table: nothing is inserted, so that no trigger fires."""
    value = "gen_random_uuid()" if value == _ROW_ID else value
    condition = " and ".join(f"{check} is not false" for check in column.checks) or "true"
    query = f"select {condition} from (select ({value})::{column.type} as {column.name}) as tried"  # noqa: S608
    try:
        with conn.transaction():
            row = conn.execute(query.encode()).fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


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

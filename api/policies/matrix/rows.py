"""A row of any table for an organization: values from types, defaults, foreign keys and what the header says, and
others in their stead when a constraint refuses them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import psycopg
from psycopg import sql

from api.policies.declared import Declared, RowValues
from api.policies.matrix import catalog
from api.policies.matrix.candidates import candidates, is_random, is_time
from api.policies.matrix.catalog import ForeignKey, Table
from api.release.catalog import Connection
from api.release.errors import MigrationError

Values: TypeAlias = dict[str, str | None]  # of columns, as text

_TRIES = 80


class NoRow(Exception):
    """No row could be made, and why."""


@dataclass(frozen=True)
class Made:
    """The row of an organization in a table, or why there is none. `another`: values for one more."""

    values: Values
    another: Values
    problem: str | None = None


@dataclass
class RowMaker:
    """Makes rows as whoever is connected, in the context that is set."""

    conn: Connection
    tables: Mapping[str, Table]
    declarations: Mapping[str, Declared | None]
    made: dict[tuple[str, str], Made] = field(default_factory=dict)
    others: dict[str, Values | None] = field(default_factory=dict)

    def make(self, table: Table, organization: str, pinned: Mapping[str, str] | None = None) -> Made:
        """The organization's row: one that is there already, else a new one with the `pinned` values."""
        said = self._said(table)
        fixed: Values = {**(pinned or {}), **said, table.key: organization}
        try:
            there = None if pinned else self._there(table, organization)
            if there is None:
                values = self._insert(table, self._first_guess(table, fixed, organization), fixed)
                there = (None if pinned else self._there(table, organization)) or values
            made = Made({**there, **said}, self._another({**there, **said}, table))
        except NoRow as problem:
            guess = self._first_guess(table, fixed, organization)
            made = Made(guess, guess, str(problem))
        if pinned is None:
            self.made[table.name, organization] = made
        return made

    # What is there

    def _there(self, table: Table, organization: str) -> Values | None:
        where = sql.SQL("{} = {}").format(sql.Identifier(table.key), sql.Literal(organization))
        try:
            with self.conn.transaction():
                row = self.conn.execute(selection(table, where)).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return None
        return None if row is None else _by_name(table, row)

    def _said(self, table: Table) -> Values:
        declaration = self.declarations.get(table.root or table.name)
        row = declaration.row if declaration else None
        return {} if row is None else _evaluated(self.conn, table, row)

    # A new one

    def _insert(self, table: Table, values: Values, fixed: Values) -> Values:
        """Insert them, or what the constraints make of them."""
        odometers: dict[str, Iterator[Values]] = {}
        for _ in range(_TRIES):
            try:
                with self.conn.transaction():
                    self.conn.execute(insertion(table, values))
                return values
            except psycopg.Error as error:
                self._amend(table, values, fixed, error, odometers)
        raise NoRow(f"{_TRIES} guesses at its values were refused")

    def _first_guess(self, table: Table, fixed: Values, organization: str) -> Values:
        values: Values = {}
        for key in table.foreign_keys:
            if any(table.columns[name].not_null and not table.columns[name].has_default for name in key.columns):
                values |= self._referenced(key, table, organization, fixed)
        unique = {name for names in table.unique.values() for name in names}
        times = [name for name, column in table.columns.items() if is_time(column)]
        for name, column in table.columns.items():
            needed = column.not_null and not column.has_default
            if name in values or name in fixed or not column.is_written or not (needed or name in unique):
                continue
            if needed or (column.type_name == "uuid" and column.has_default):
                nth_time = times.index(name) if name in times else 0
                values[name] = candidates(column, table.checks, nth_time)[0]
        return values | fixed

    def _referenced(self, key: ForeignKey, table: Table, organization: str, fixed: Values) -> Values:
        """The values of a row that the foreign key may refer to."""
        made = self.made.get((key.table, organization))
        row = made.values if made and made.problem is None else None
        if row is None and key.table not in self.tables:
            row = self._any_row(key.table)
        pairs = zip(key.columns, key.referenced, strict=True)
        found = {column: row.get(name) for column, name in pairs if column not in fixed} if row else {}
        return {column: value for column, value in found.items() if value is not None}

    def _any_row(self, name: str) -> Values | None:
        """A row of a table that is no tenant's."""
        if name not in self.others:
            self.others[name] = self._found_or_made(catalog.other_table(self.conn, name))
        return self.others[name]

    def _found_or_made(self, table: Table | None) -> Values | None:
        if table is None:
            return None
        try:
            with self.conn.transaction():
                found = self.conn.execute(selection(table, sql.SQL("true"))).fetchone()
            return _by_name(table, found) if found else self._insert(table, self._first_guess(table, {}, ""), {})
        except (NoRow, psycopg.errors.InsufficientPrivilege):
            return None  # the foreign key then says what is missing

    # Other values

    def _amend(
        self, table: Table, values: Values, fixed: Values, error: psycopg.Error, odometers: dict[str, Iterator[Values]]
    ) -> None:
        """Choose other values for the columns of the constraint that was violated. Raises NoRow when there are none."""
        name = error.diag.constraint_name or error.diag.column_name or ""
        if name not in odometers:
            columns = self._columns_to_blame(table, error)
            free = [column for column in columns if column not in fixed and table.columns[column].is_written]
            if not free:
                raise NoRow(_why(error)) from error
            odometers[name] = _combinations(table, free, values)
        chosen = next(odometers[name], None)
        if chosen is None:
            raise NoRow(_why(error)) from error
        for column, value in chosen.items():
            if value is None:
                values.pop(column, None)
            else:
                values[column] = value

    @staticmethod
    def _columns_to_blame(table: Table, error: psycopg.Error) -> tuple[str, ...]:
        if isinstance(error, psycopg.errors.CheckViolation):
            blamed = [check for check in table.checks if check.name == error.diag.constraint_name]
            return tuple(dict.fromkeys(name for check in blamed for name in check.columns))
        if isinstance(error, psycopg.errors.UniqueViolation):
            names = {index.rpartition(".")[2].strip('"'): columns for index, columns in table.unique.items()}
            return names.get(error.diag.constraint_name or "", ())
        if isinstance(error, psycopg.errors.NotNullViolation) and error.diag.column_name in table.columns:
            return (str(error.diag.column_name),)
        return ()

    def _another(self, values: Values, table: Table) -> Values:
        """Values for one more row: what is random in it, and referred to by nothing, is another one."""
        linked = {name for key in table.foreign_keys for name in key.columns} | {table.key}
        unique = {name for names in table.unique.values() for name in names}
        fresh = dict(values)
        for name in unique - linked:
            column = table.columns[name]
            listed = [check for check in table.checks if name in check.columns and check.is_list]
            if values.get(name) is not None and is_random(column) and not listed and not column.labels:
                fresh[name] = candidates(column, ())[0]
        return fresh


def insertion(table: Table, values: Mapping[str, str | None], columns: frozenset[str] | None = None) -> sql.Composed:
    """Insert these values, or of them only those of some columns."""
    names = [name for name in values if columns is None or name in columns]
    return sql.SQL("insert into {} ({}) values ({})").format(
        table.identifier,
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join(sql.Literal(values[name]) for name in names),
    )


def selection(table: Table, where: sql.Composable) -> sql.Composed:
    """One row, as texts."""
    texts = (sql.SQL("{}::text").format(sql.Identifier(name)) for name in _written(table))
    return sql.SQL("select {} from {} where {} limit 1").format(sql.SQL(", ").join(texts), table.identifier, where)


def _written(table: Table) -> list[str]:
    return [column.name for column in table.columns.values() if column.is_written]


def _by_name(table: Table, row: Sequence[str | None]) -> Values:
    return dict(zip(_written(table), row, strict=True))


def in_order_of_references(tables: Mapping[str, Table]) -> list[Table]:
    """Those that are referred to come before those that refer to them."""
    ordered: dict[str, Table] = {}

    def visit(table: Table, above: frozenset[str]) -> None:
        for key in table.foreign_keys:
            if key.table in tables and key.table not in above:
                visit(tables[key.table], above | {key.table})
        ordered.setdefault(table.name, table)

    for table in tables.values():
        visit(table, frozenset({table.name}))
    return list(ordered.values())


def _combinations(table: Table, columns: list[str], values: Values) -> Iterator[Values]:
    """Every way to fill the columns; those that nothing needs also stay empty."""
    times = [name for name, column in table.columns.items() if is_time(column)]
    choices: list[list[str | None]] = []
    for name in columns:
        column = table.columns[name]
        nth_time = times.index(name) if name in times else 0
        found: list[str | None] = list(candidates(column, table.checks, nth_time))
        if (current := values.get(name)) is not None and not is_random(column):
            found = [current, *(value for value in found if value != current)]
        choices.append(found if name in values or (column.not_null and not column.has_default) else [None, *found])
    return (dict(zip(columns, chosen, strict=True)) for chosen in itertools.product(*choices))


def _evaluated(conn: Connection, table: Table, row: RowValues) -> Values:
    """The values that a header says, as the server understands them."""
    if unknown := [name for name in row.columns if name not in table.columns]:
        raise MigrationError(f"policies/{table.name}.sql: a row names column {unknown[0]}, which {table.name} has not")
    query = sql.SQL("select {} from (values ({})) as said ({})").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in row.columns),
        sql.SQL(row.expressions),
        sql.SQL(", ").join(map(sql.Identifier, row.columns)),
    )
    try:
        with conn.transaction():
            (found,) = conn.execute(query).fetchall()
    except psycopg.Error as error:
        raise MigrationError(f"policies/{table.name}.sql: a row: {_why(error)}") from error
    return dict(zip(row.columns, found, strict=True))


def _why(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())

"""`python -m bench.triggers`: changing rows of a metered table against changing the same rows of one that is not.

A table as a tenant's own, with a key, an index, checks and a foreign key to its organization, and its copy. Each
statement is committed by itself. Seconds are compared, so a ratio says how many times as long it takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import psycopg

from bench.figures import Figure, at_most, print_figures
from bench.rounds import Comparison, compare
from bench.stack import bench_stack, machine

ROUNDS: Final = 9
ROWS: Final = 10_000
SINGLE: Final = 200
BUDGET: Final = 2.5
METERED: Final = "app.metered_files"
PLAIN: Final = "app.plain_files"

Connection = psycopg.Connection[tuple[Any, ...]]

_TABLE: Final = """
create table {table} (
  organization_id uuid not null references tenancy.organizations (id) on delete cascade,
  id uuid not null default ops.new_id(),
  folder_id uuid,
  title text not null check (length(btrim(title)) between 1 and 200),
  bytes bigint not null default 0 check (bytes >= 0),
  created_at timestamptz not null default now(),
  primary key (organization_id, id)
);
create index on {table} (organization_id, folder_id);
"""
_METER: Final = f"select metering.meter_table('{METERED}', resource => 'file')"
_METER_STORAGE: Final = f"select metering.meter_table('{METERED}', resource => 'file', storage_column => 'bytes')"


class Load:
    """Statements on one of the two tables, each timed in a transaction of its own."""

    def __init__(self, connection: Connection, organization: UUID, table: str) -> None:
        self._connection = connection
        self._organization = organization
        self._table = table
        self._number = 0

    def insert(self) -> float:
        self._empty()
        return self._insert()

    def insert_single(self) -> float:
        self._empty()
        statement = f"insert into {self._table} (organization_id, title, bytes) values (%s, 'a', 1)"  # noqa: S608
        return sum(self._time(statement, self._organization) for _ in range(SINGLE)) / SINGLE

    def update(self) -> float:
        self._empty()
        self._insert()
        self._number += 1
        return self._time(f"update {self._table} set title = %s, bytes = bytes + 1", str(self._number))  # noqa: S608

    def delete(self) -> float:
        self._empty()
        self._insert()
        return self._time(f"delete from {self._table}")  # noqa: S608

    def _insert(self) -> float:
        return self._time(
            f"insert into {self._table} (organization_id, title, bytes) "  # noqa: S608
            f"select %s, 'a', 100 from generate_series(1, {ROWS})",
            self._organization,
        )

    def _empty(self) -> None:
        """Rows and what is left of those before, which the next statement would have to step over."""
        self._connection.execute(f"delete from {self._table}".encode())  # noqa: S608
        self._connection.execute(f"vacuum {self._table}".encode())

    def _time(self, statement: str, *parameters: object) -> float:
        started = perf_counter()
        self._connection.execute(statement.encode(), parameters)
        return perf_counter() - started


def measure() -> Sequence[Figure]:
    with bench_stack() as stack, psycopg.connect(stack.database_url, autocommit=True) as connection:
        organization = stack.organization("metered")
        for table in (METERED, PLAIN):
            connection.execute(_TABLE.format(table=table).encode())
        metered, plain = (Load(connection, organization, table) for table in (METERED, PLAIN))
        connection.execute(_METER.encode())
        figures = [
            _figure(f"insert of {ROWS:,} rows", metered.insert, plain.insert, budget=BUDGET),
            _figure(f"update of {ROWS:,} rows", metered.update, plain.update),
            _figure(f"delete of {ROWS:,} rows", metered.delete, plain.delete),
            _figure("insert of a row", metered.insert_single, plain.insert_single),
        ]
        connection.execute(_METER_STORAGE.encode())
        title = f"insert of {ROWS:,} rows that store bytes: two events each"
        return [*figures, _figure(title, metered.insert, plain.insert)]


def _figure(what: str, metered: Callable[[], float], plain: Callable[[], float], budget: float | None = None) -> Figure:
    found: Comparison = compare(ROUNDS, metered, plain)
    return Figure(
        what,
        f"{found.our_median * 1000:,.1f} ms",
        f"not metered, {found.reference_median * 1000:,.1f} ms",
        found.ratio,
        (at_most(" times", found.median_ratio, budget),) if budget is not None else (),
    )


def main() -> int:
    print(f"{machine()}; {ROUNDS} rounds")
    print_figures(measure())
    return 0


if __name__ == "__main__":
    sys.exit(main())

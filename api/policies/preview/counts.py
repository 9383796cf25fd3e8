"""Counting rows, as the caller of a request and past row security. Every count is exact, or says why there is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg import errors, sql

from api.policies.preview.caller import Caller, Context, acting_as, request
from api.release.catalog import Connection

_HERE = Path(__file__).parent
_RELATIONS = (_HERE / "relations.sql").read_bytes()
_UNFILTERED = (_HERE / "unfiltered.sql").read_bytes()

# Paths choose what a request needs (tenancy.pre_request); one that nothing is known of needs an organization.
_ANY_PATH = "/preview"

NO_RIGHT = "no right"
_LOCKED = "locked by somebody at this moment"


@dataclass(frozen=True)
class Relation:
    """A table of tenants, or a view of the API. `tenant_column` says whose a row is, where there is one."""

    schema: str
    table: str
    is_view: bool
    oid: int
    tenant_column: str | None
    may_read: bool
    may_read_tenant: bool

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Count:
    """A number of rows, or why there is none."""

    rows: int | None
    why: str | None = None


@dataclass(frozen=True)
class Shown:
    """What a relation shows to the caller, and beside it the rows that there are. None: the question makes no sense."""

    relation: Relation
    shown: Count
    of_others: Count | None
    of_organization: Count | None
    whole: Count | None


def relations(conn: Connection, role: str, *, views: bool) -> list[Relation]:
    """Tables first, then views, each by name."""
    return [Relation(*row) for row in conn.execute(_RELATIONS, {"role": role, "views": views})]


class Counter:
    """Counts in the transaction of `conn`, and undoes what it sets there. `timeout` is in seconds, for each query."""

    def __init__(self, conn: Connection, caller: Caller, organization: str | None, timeout: float) -> None:
        self._conn = conn
        self._caller = caller
        self._organization = organization
        self._timeout = timeout

    def context(self) -> Context:
        """What the caller's requests find. Raises MigrationError when they are refused."""
        with self._request(_ANY_PATH) as context:
            return context

    def count(self, relation: Relation, context: Context) -> Shown:
        ours = context.organization_id
        shown, of_others = self._shown(relation, ours) if relation.may_read else (Count(None, NO_RIGHT), None)
        if relation.is_view:
            return Shown(relation, shown, of_others, None, None)
        return Shown(
            relation,
            shown,
            of_others,
            # By itself, as an index finds these while the rest may be too much to count.
            self._all(relation, of=ours) if ours and relation.tenant_column else None,
            self._all(relation),
        )

    def _shown(self, relation: Relation, ours: UUID | None) -> tuple[Count, Count | None]:
        # PostgREST serves a view at its name, and the context depends on that: some views show all of a person's.
        path = f"/{relation.table}" if relation.is_view else _ANY_PATH
        if ours is None or not relation.may_read_tenant:
            (shown,) = self._query(lambda: self._request(path), _counted(relation), 1)
            return shown, None
        # Rows of no organization are nobody else's.
        others = sql.SQL("where {} <> {}").format(sql.Identifier(str(relation.tenant_column)), ours)
        shown, of_others = self._query(lambda: self._request(path), _counted(relation, others), 2)
        return shown, of_others

    def _all(self, relation: Relation, of: UUID | None = None) -> Count:
        become = "set" if self._conn.info.server_version >= 160000 else "member"
        try:
            with self._conn.transaction():
                found = self._conn.execute(_UNFILTERED, {"table": relation.oid, "become": become}).fetchone()
        except errors.LockNotAvailable:
            return Count(None, _LOCKED)
        if found is None:
            return Count(None, f"no role that {self._conn.info.user} can act as may see all of its rows")
        query = _counted(relation)
        if of is not None:
            query += sql.SQL(" where {} = {}").format(sql.Identifier(str(relation.tenant_column)), of)
        (count,) = self._query(lambda: acting_as(self._conn, found[0]), query, 1)
        return count

    def _request(self, path: str) -> AbstractContextManager[Context]:
        return request(self._conn, self._caller, self._organization, path)

    def _query(
        self, as_whom: Callable[[], AbstractContextManager[object]], query: sql.Composed, columns: int
    ) -> list[Count]:
        try:
            with as_whom():
                limit = f"{self._timeout * 1000:.0f}ms"
                self._conn.execute("select set_config('statement_timeout', %s, true)", [limit])
                return [Count(rows) for row in self._conn.execute(query) for rows in row]
        except errors.QueryCanceled:
            why = f"> {self._timeout:g} s"
        except errors.LockNotAvailable:
            why = _LOCKED
        except psycopg.Error as error:
            why = error.diag.message_primary or str(error)
        return [Count(None, why)] * columns


def _counted(relation: Relation, also: sql.Composed | None = None) -> sql.Composed:
    counts = sql.SQL("count(*)") if also is None else sql.SQL("count(*), count(*) filter ({})").format(also)
    return sql.SQL("select {} from {}").format(counts, sql.Identifier(relation.schema, relation.table))

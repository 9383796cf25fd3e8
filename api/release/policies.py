"""The tables that `policies/` speaks of: what the last release made of each, and how a file replaces what is there.

What a table looked like when we last left it is kept in `ops.policy_releases`. If it looks different now, somebody
changed it by hand, perhaps at three in the morning for a good reason: `api.release.drift` finds that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from psycopg import sql
from psycopg.types.json import Jsonb

from api.release import states
from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.release.files import Tree, table_of
from api.release.states import Live

_RECORDED = """
select distinct on (table_name) table_name, fingerprint, live
from ops.policy_releases
order by table_name, id desc
"""

_POLICIES = "select polname from pg_policy where polrelid = %s::regclass order by 1"

_GRANTEES = """
select distinct case when entry.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(entry.grantee)) end
from pg_class c
cross join lateral (
  select c.relacl as acl
  union all
  select attacl from pg_attribute where attrelid = c.oid and not attisdropped
) as a
cross join lateral aclexplode(a.acl) as entry
where c.oid = %s::regclass and entry.grantee <> c.relowner
order by 1
"""

_SWITCHES = ("enable", "disable"), ("force", "no force")


@dataclass(frozen=True)
class Recorded:
    """A table as the last release left it."""

    fingerprint: str
    live: Live


def recorded(conn: Connection) -> dict[str, Recorded]:
    """The tables under our care. One that was given up is recorded with an empty fingerprint, and is not."""
    found = conn.execute("select to_regclass('ops.policy_releases')").fetchone()
    if found is None or found[0] is None:
        return {}
    return {table: Recorded(fingerprint, live) for table, fingerprint, live in conn.execute(_RECORDED) if fingerprint}


def record(conn: Connection, fingerprints: dict[str, str] | None = None, keep: Collection[str] = ()) -> None:
    """Write down how the tables look now, where that differs from what is written down, but for those in `keep`.

    With `fingerprints` (table to hash) these are the released tables from now on. Without, it only follows what a
    migration did to them: a dropped column takes its grants along, a dropped table its policies.
    """
    known = recorded(conn)
    wanted = {table: left.fingerprint for table, left in known.items()} if fingerprints is None else fingerprints
    now = states.tables(conn, sorted({*known, *wanted}))
    for table in sorted({*known, *wanted} - set(keep)):
        fingerprint = wanted.get(table, "") if table in now else ""
        before = known.get(table)
        if before is None and not fingerprint:
            continue
        if before is None or before.fingerprint != fingerprint or before.live != now.get(table):
            _write(conn, table, fingerprint, now.get(table))


def forget(conn: Connection) -> None:
    """After unloading: no table is released any more."""
    for table in recorded(conn):
        _write(conn, table, "", None)


def changed(conn: Connection, tree: Tree) -> tuple[list[str], list[str]]:
    """The policy files to run, and the tables whose file is gone."""
    known = recorded(conn)
    run = [path for path in tree.policies if not _is_released(known, table_of(path), tree.hashes[path])]
    return run, sorted(set(known) - {table_of(path) for path in tree.policies})


def clear(conn: Connection, table: str) -> None:
    """Drop the table's policies and take every grant back. Row security stays on: with no policy nobody sees a row."""
    name = _identifier(table)
    for (policy,) in conn.execute(_POLICIES, [_quoted(name)]).fetchall():
        conn.execute(sql.SQL("drop policy {} on {}").format(sql.Identifier(policy), name))
    for (grantee,) in conn.execute(_GRANTEES, [_quoted(name)]).fetchall():
        conn.execute(sql.SQL("revoke all on {} from {} cascade").format(name, sql.SQL(grantee)))


def clear_existing(conn: Connection, tables: list[str]) -> None:
    """`clear` for those that a migration has not dropped meanwhile."""
    for table in sorted(states.tables(conn, tables)):
        clear(conn, table)


def make_new(conn: Connection, path: str, state: Live | None) -> None:
    """Make the table of a policy file as if nothing had ever been said of it, so that the file alone decides.

    `state` is what it is now. Raises MigrationError when there is no such table.
    """
    table = table_of(path)
    if state is None:
        raise MigrationError(f"{path}: there is no table {table}. If a migration makes it, run `goldleaves migrate`")
    if state["owner"] != "goldleaves_owner":
        _give_to_owner(conn, table)
    clear(conn, table)
    _switch(conn, table, on=False, forced=False)


def align_partitions(conn: Connection, tables: Iterable[str]) -> None:
    """Protect partitions as their tables are, where somebody has changed that: they are reached through those alone."""
    for state in states.tables(conn, tables).values():
        for partition, strange in state.get("partitions", {}).items():
            if "owner" in strange:
                _give_to_owner(conn, partition)
            clear(conn, partition)
            _switch(conn, partition, on=state["row security"], forced=state["forced row security"])
            for trigger in strange.get("triggers off", []):
                command = sql.SQL("alter table only {} enable trigger {}")
                conn.execute(command.format(_identifier(partition), sql.Identifier(trigger)))


def _switch(conn: Connection, table: str, *, on: bool, forced: bool) -> None:
    for (yes, no), wanted in zip(_SWITCHES, (on, forced), strict=True):
        command = sql.SQL("alter table {} {} row level security")
        conn.execute(command.format(_identifier(table), sql.SQL(yes if wanted else no)))


def _give_to_owner(conn: Connection, table: str) -> None:
    conn.execute(sql.SQL("alter table {} owner to goldleaves_owner").format(_identifier(table)))


def _is_released(known: dict[str, Recorded], table: str, digest: str) -> bool:
    return table in known and known[table].fingerprint == digest


def _write(conn: Connection, table: str, fingerprint: str, state: Live | None) -> None:
    conn.execute(
        "insert into ops.policy_releases (table_name, fingerprint, live) values (%s, %s, %s)",
        [table, fingerprint, Jsonb(state or {})],
    )


def _identifier(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split(".", 1))


def _quoted(name: sql.Identifier) -> str:
    return name.as_string(None)

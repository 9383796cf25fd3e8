"""Row security and grants of the tables that `policies/` speaks of: guard what is live, apply what changed, record it.

What a table looked like when we last left it is kept in `ops.policy_releases`. If it looks different now, somebody
changed it by hand, perhaps at three in the morning for a good reason: a conflict for a person to solve, and never to be
overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from api.release.catalog import Connection
from api.release.errors import MigrationError, PolicyConflict
from api.release.files import Tree, table_of

Live = dict[str, Any]

# One canonical document a table. The owner's own rights are left out: they are its by being the owner.
_LIVE = """
select n.nspname || '.' || c.relname, jsonb_build_object(
  'postgres', current_setting('server_version_num')::int / 10000,
  'owner', pg_get_userbyid(c.relowner),
  'row security', c.relrowsecurity,
  'forced row security', c.relforcerowsecurity,
  'policies', (
    select coalesce(jsonb_object_agg(p.polname, jsonb_build_object(
      'permissive', p.polpermissive,
      'command', p.polcmd,
      'roles', (
        select jsonb_agg(role.name order by role.name)
        from (
          select case when id = 0 then 'public' else pg_get_userbyid(id) end as name from unnest(p.polroles) as id
        ) as role
      ),
      'using', pg_get_expr(p.polqual, p.polrelid),
      'check', pg_get_expr(p.polwithcheck, p.polrelid)
    )), '{}')
    from pg_policy p
    where p.polrelid = c.oid
  ),
  'grants', (
    select coalesce(jsonb_agg(g.line order by g.line), '[]')
    from (
      select distinct lower(entry.privilege_type) || coalesce(' (' || quote_ident(a.name) || ')', '')
        || ' to ' || case when entry.grantee = 0 then 'public' else pg_get_userbyid(entry.grantee) end
        || case when entry.is_grantable then ' with grant option' else '' end as line
      from (
        select null::name as name, c.relacl as acl
        union all
        select attname, attacl from pg_attribute where attrelid = c.oid and not attisdropped
      ) as a, aclexplode(a.acl) as entry
      where entry.grantee <> c.relowner
    ) as g
  )
)
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and n.nspname || '.' || c.relname = any(%s)
"""

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


def live(conn: Connection, tables: list[str]) -> dict[str, Live]:
    """The canonical state of those tables that exist. Needs an empty search_path, as expressions are compared."""
    return dict(conn.execute(_LIVE, [tables]).fetchall()) if tables else {}


def check(conn: Connection) -> None:
    """Raise PolicyConflict when a table no longer looks as the last release left it."""
    known = recorded(conn)
    now = live(conn, list(known))
    found = [
        f"{table}: {'; '.join(differences)}"
        for table, left in sorted(known.items())
        if (differences := _differences(left.live, now.get(table)))
    ]
    if found:
        raise PolicyConflict(
            f"changed by hand since the last release, nothing was overwritten: {' | '.join(found)}. "
            "Put the table back as it was; a change that is to stay belongs into its file in policies/."
        )


def record(conn: Connection, fingerprints: dict[str, str] | None = None) -> None:
    """Write down how the tables look now, where that differs from what is written down.

    With `fingerprints` (table to hash) these are the released tables from now on. Without, it only follows what a
    migration did to them: a dropped column takes its grants along, a dropped table its policies.
    """
    known = recorded(conn)
    wanted = {table: left.fingerprint for table, left in known.items()} if fingerprints is None else fingerprints
    now = live(conn, sorted({*known, *wanted}))
    for table in sorted({*known, *wanted}):
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
    name = sql.Identifier(*table.split("."))
    for (policy,) in conn.execute(_POLICIES, [_quoted(name)]).fetchall():
        conn.execute(sql.SQL("drop policy {} on {}").format(sql.Identifier(policy), name))
    for (grantee,) in conn.execute(_GRANTEES, [_quoted(name)]).fetchall():
        conn.execute(sql.SQL("revoke all on {} from {} cascade").format(name, sql.SQL(grantee)))


def clear_existing(conn: Connection, tables: list[str]) -> None:
    """`clear` for those that a migration has not dropped meanwhile."""
    for table in sorted(live(conn, tables)):
        clear(conn, table)


def require_table(conn: Connection, path: str) -> str:
    """The table a policy file is named after. Raises MigrationError when there is none."""
    table = table_of(path)
    if not live(conn, [table]):
        raise MigrationError(f"{path}: there is no table {table}")
    return table


def _is_released(known: dict[str, Recorded], table: str, digest: str) -> bool:
    return table in known and known[table].fingerprint == digest


def _write(conn: Connection, table: str, fingerprint: str, state: Live | None) -> None:
    conn.execute(
        "insert into ops.policy_releases (table_name, fingerprint, live) values (%s, %s, %s)",
        [table, fingerprint, Jsonb(state or {})],
    )


def _quoted(name: sql.Identifier) -> str:
    return name.as_string(None)


def _differences(before: Live, now: Live | None) -> list[str]:
    if now is None:
        return ["the table is gone"]
    # A new major version may print the same expression in another way.
    compare_expressions = before["postgres"] == now["postgres"]
    found = [
        f"{key} was {_word(before[key])}, is {_word(now[key])}"
        for key in ("owner", "row security", "forced row security")
        if before[key] != now[key]
    ]
    policies_before, policies_now = before["policies"], now["policies"]
    found += [f"policy {name} was dropped" for name in sorted(policies_before.keys() - policies_now.keys())]
    found += [f"policy {name} was added" for name in sorted(policies_now.keys() - policies_before.keys())]
    for name in sorted(policies_before.keys() & policies_now.keys()):
        for part, was in policies_before[name].items():
            if (compare_expressions or part not in ("using", "check")) and was != policies_now[name][part]:
                found.append(f"policy {name}: {part} was {_word(was)}, is {_word(policies_now[name][part])}")
    found += [f"grant {line} was revoked" for line in before["grants"] if line not in now["grants"]]
    found += [f"grant {line} was added" for line in now["grants"] if line not in before["grants"]]
    return found


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "nothing" if value is None else str(value)

"""How Postgres reads a table under row security: the plan, and whether an index serves the tenant's rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import sql

from api.policies.explain.catalog import Role, Table
from api.policies.explain.predicates import clauses
from api.policies.explain.sentences import is_held_back, reading_policies
from api.policies.trial import allow_roles
from api.release.catalog import Connection

_ORGANIZATION = """
select m.organization_id, m.user_id, o.slug
from tenancy.memberships m join tenancy.organizations o on o.id = m.organization_id
where m.role = 'owner'
order by o.created_at
limit 1
"""
_SET_CONTEXT = """
select tenancy.set_context(coalesce(%s, gen_random_uuid()), coalesce(%s, gen_random_uuid()), 'owner', null)
"""

# Indexes of the table and of its partitions that begin with the column, and what keeps one from serving a select.
_INDEXES = """
select t.relnamespace::regnamespace::text, t.relname::text, c.relname::text, i.indrelid = %(table)s,
  (
    select string_agg(pg_get_indexdef(i.indexrelid, k, true), ', ' order by k)
    from generate_series(1, i.indnkeyatts) as k
  ),
  case
    when i.indpred is not null then 'holds only a part of the rows'
    when am.amname <> 'btree' then 'is of type ' || am.amname
    when not i.indisvalid then 'is not valid'
  end
from pg_index i
join pg_class t on t.oid = i.indrelid
join pg_class c on c.oid = i.indexrelid
join pg_am am on am.oid = c.relam
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = %(column)s
where i.indrelid = %(table)s or i.indrelid in (select relid from pg_partition_tree(%(table)s))
order by 1, 2, 3
"""
_KEY = """
select a.attname::text
from pg_index i
cross join unnest(i.indkey) with ordinality as key (attnum, place)
join pg_attribute a on a.attrelid = i.indrelid and a.attnum = key.attnum
where i.indrelid = %s and i.indisprimary
order by key.place
"""
_READABLE = """
select attname from pg_attribute
where attrelid = %(table)s and attnum > 0 and not attisdropped
  and has_column_privilege(%(role)s, attrelid, attnum, 'select')
order by attnum
"""
_FUNCTIONS = """
select p.oid::regprocedure::text, n.nspname || '.' || p.proname || '(', array_remove(array[
  case when l.lanname <> 'sql' then 'it is written in ' || l.lanname end,
  case when p.prosecdef then 'it is security definer' end,
  case when p.proconfig is not null then 'it has ' || array_to_string(p.proconfig, ', ') end,
  case when p.proisstrict then 'it is strict' end
], null)
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
join pg_language l on l.oid = p.prolang
where p.oid::regprocedure::text = any(%s)
"""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a plan, and the statements that mend it."""

    text: str
    statements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """`lines` are those of the plan as it is now, `verdict` what to think of it when nothing is wrong."""

    role: str
    organization: str | None
    lines: tuple[str, ...]
    verdict: str | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Scan:
    """A node that reads the table or a partition of it, by its schema and name; which indexes with which conditions."""

    schema: str
    table: str
    indexes: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class _Index:
    schema: str
    table: str
    name: str
    of_parent: bool
    columns: str
    problem: str | None


def plan_of(conn: Connection, table: Table, role: Role) -> Plan:
    """The plan of a select of what the role may read, for the oldest organization, or one that there is not.

    Raises MigrationError when the session may not become the role, psycopg.Error when the role may not read the table.
    """
    allow_roles(conn, [role.name])
    with conn.transaction(force_rollback=True):
        found = conn.execute(_ORGANIZATION).fetchone()
        organization, user, slug = found or (None, None, None)
        conn.execute(_SET_CONTEXT, [organization, user])
        columns = [column for (column,) in conn.execute(_READABLE, {"table": table.oid, "role": role.name})]
        conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role.name)))
        lines = tuple(line for (line,) in conn.execute(_explain(table, columns, "costs off")))
        # A small table is read as a whole, whatever indexes it has: ask how it would be read if it were large.
        conn.execute("set local enable_seqscan = off")
        large = conn.execute(_explain(table, columns, "format json, verbose")).fetchone()
    root = large[0][0]["Plan"] if large else {}
    findings = list(_not_inlined(conn, table, role, root))
    verdict = _judge(conn, table, role, root, findings)
    if verdict and verdict.startswith("Index") and any("Seq Scan" in line for line in lines):
        verdict += " Now the table is small, and reading all of it is cheaper."
    return Plan(role.name, slug, lines, verdict, tuple(findings))


def _explain(table: Table, columns: list[str], options: LiteralString) -> sql.Composed:
    whole = len(columns) == len(table.columns)
    selected = sql.SQL("*") if whole else sql.SQL(", ").join(map(sql.Identifier, columns))
    name = sql.Identifier(*table.name.split(".", 1))
    return sql.SQL("explain ({}) select {} from {}").format(sql.SQL(options), selected, name)


def _judge(conn: Connection, table: Table, role: Role, root: dict[str, Any], findings: list[Finding]) -> str | None:
    """What serves the tenant predicate. What is missing is added to the findings."""
    if not is_held_back(table, role):
        return "No policy is in it: row security does not hold here."
    ways = [
        way
        for policy in reading_policies(table, role)
        for way in clauses(policy.condition("select"), table.tenant_column)
    ]
    if not ways:
        return "No policy lets it see a row."
    column = next((way.tenant_column for way in ways if way.tenant_column), None)
    if column is None:
        return "No policy compares a column with tenancy.current_org(): there is no tenant predicate to serve."
    scans = list(_scans(root))
    indexes = [_Index(*row) for row in conn.execute(_INDEXES, {"table": table.oid, "column": column})]
    serving = {(index.schema, index.table, index.name) for index in indexes if not index.problem}
    unserved = [scan for scan in scans if not _is_served(scan, column, serving)]
    if unserved:
        findings.append(_missing(conn, table, column, unserved, indexes))
        return None
    used = sorted(
        {name for scan in scans for name, condition in scan.indexes if (scan.schema, scan.table, name) in serving}
    )
    if not used:
        return None
    which = f"Indexes such as {used[0]}, one a partition, serve" if len(used) > 1 else f"Index {used[0]} serves"
    return f"{which} the tenant predicate on {column}."


def _is_served(scan: _Scan, column: str, serving: set[tuple[str, str, str]]) -> bool:
    # A condition on any column of an index is an index condition, if only by reading all of it: hence `serving`.
    compared = re.compile(rf'(?:^|[(.\s]){re.escape(column)}\b"? = ')
    return any((scan.schema, scan.table, name) in serving and compared.search(text) for name, text in scan.indexes)


def _missing(conn: Connection, table: Table, column: str, unserved: list[_Scan], indexes: list[_Index]) -> Finding:
    where = ", ".join(sorted({scan.name for scan in unserved}))
    text = (
        f"The tenant predicate on {column} is no index condition in {where}: each request reads the rows of everybody."
    )
    there = [index for index in indexes if any((index.schema, index.table) == (s.schema, s.table) for s in unserved)]
    if unusable := [index for index in there if index.problem]:
        text += f" Index {unusable[0].name} begins with it, but {unusable[0].problem}."
    if any(not index.problem for index in there):
        return Finding(f"{text} An index begins with it, and still is not used: the policy has a way in without it.")
    key = [name for (name,) in conn.execute(_KEY, [table.oid]) if name != column]
    columns = ", ".join(_quoted(name) for name in (column, *key))
    if not table.partitioned:
        return Finding(text, (f"create index concurrently on {_qualified(table.schema, table.table)} ({columns});",))
    return Finding(text, tuple(_index_by_partition(table, columns, unserved, indexes)))


def _index_by_partition(table: Table, columns: str, unserved: list[_Scan], indexes: list[_Index]) -> Iterator[str]:
    """An index of a partitioned table cannot be made concurrently: each partition's is, and then attached."""
    parent = next((index for index in indexes if index.of_parent and index.problem in (None, "is not valid")), None)
    name = parent.name if parent else _index_name(table.table)
    columns = parent.columns if parent else columns
    if parent is None:
        yield f"create index {_quoted(name)} on only {_qualified(table.schema, table.table)} ({columns});"
    for scan in unserved:
        made = _index_name(scan.table)
        yield f"create index concurrently {_quoted(made)} on {_qualified(scan.schema, scan.table)} ({columns});"
        yield f"alter index {_qualified(table.schema, name)} attach partition {_qualified(scan.schema, made)};"


def _index_name(table: str) -> str:
    return f"{table[:47]}_by_organization"


def _not_inlined(conn: Connection, table: Table, role: Role, root: dict[str, Any]) -> Iterator[Finding]:
    conditions = " ".join(_conditions(root))
    called = sorted({name for policy in reading_policies(table, role) for name in policy.functions})
    for function, prefix, reasons in conn.execute(_FUNCTIONS, [called]):
        if prefix in conditions:
            why = f": {' and '.join(reasons)}" if reasons else ""
            yield Finding(
                f"{function} is not inlined{why}. It is called for each row; a plain SQL function "
                "(no SET, no security definer) would become a part of the plan."
            )


def _scans(node: dict[str, Any]) -> Iterator[_Scan]:
    """Those of the select itself, not of what a policy looks up elsewhere."""
    if "Relation Name" in node:
        yield _Scan(node["Schema"], node["Relation Name"], tuple(_indexes(node)))
        return
    for child in node.get("Plans", ()):
        if child.get("Parent Relationship") != "SubPlan":
            yield from _scans(child)


def _indexes(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "Index Name" in node:
        yield node["Index Name"], node.get("Index Cond", "")
    for child in node.get("Plans", ()):
        if child.get("Parent Relationship") != "SubPlan":
            yield from _indexes(child)


def _conditions(node: dict[str, Any]) -> Iterator[str]:
    yield from (node[key] for key in ("Filter", "Index Cond", "Recheck Cond") if key in node)
    for child in node.get("Plans", ()):
        yield from _conditions(child)


def _qualified(schema: str, name: str) -> str:
    return f"{_quoted(schema)}.{_quoted(name)}"


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'

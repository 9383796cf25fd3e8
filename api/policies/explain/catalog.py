"""What the live catalog knows of a table: its switches, rights and policies, its roles, and what is around it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from api.release.catalog import Connection
from api.release.errors import MigrationError

VERBS = ("select", "insert", "update", "delete")
PUBLIC = "PUBLIC"

_HERE = Path(__file__).parent
_TABLE = (_HERE / "table.sql").read_bytes()
_ROLES = (_HERE / "roles.sql").read_bytes()
_SURROUNDINGS = (_HERE / "surroundings.sql").read_bytes()

_FIND = """
select n.nspname || '.' || c.relname, c.oid, c.relkind::text
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^(pg_|information_schema$|yoyo$)'
order by 1
"""
_BEHIND_VIEW = """
select distinct d.refobjid::regclass::text
from pg_rewrite rule
join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = rule.oid and d.refclassid = 'pg_class'::regclass
join pg_class c on c.oid = d.refobjid and c.relkind in ('r', 'p')
where rule.ev_class = %s
order by 1
"""
_RIGHTS = """
select case entry.grantee when 0 then 'PUBLIC' else pg_get_userbyid(entry.grantee) end, lower(entry.privilege_type),
  a.attname, entry.is_grantable
from (
  select null::name as attname, coalesce(relacl, acldefault('r', relowner)) as acl from pg_class where oid = %(table)s
  union all
  select attname, attacl from pg_attribute where attrelid = %(table)s and not attisdropped
) as a, aclexplode(a.acl) as entry
"""
_POLICIES = """
select p.polname,
  case p.polcmd
    when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all'
  end,
  p.polpermissive,
  array(select case id when 0 then 'PUBLIC' else pg_get_userbyid(id) end from unnest(p.polroles) as id order by 1),
  pg_get_expr(p.polqual, p.polrelid),
  pg_get_expr(p.polwithcheck, p.polrelid),
  array(
    select distinct d.refobjid::regprocedure::text
    from pg_depend d
    where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
  )
from pg_policy p
where p.polrelid = %(table)s
order by 1
"""


@dataclass(frozen=True)
class Right:
    """`privilege` on the table, or on one column of it."""

    grantee: str
    privilege: str
    column: str | None = None
    grantable: bool = False


@dataclass(frozen=True)
class Policy:
    """`verb` is one of VERBS or `all`. `functions` are those that its conditions call, built-in ones apart."""

    name: str
    verb: str
    permissive: bool
    roles: tuple[str, ...]
    using: str | None
    check: str | None
    functions: tuple[str, ...] = ()

    def condition(self, verb: str) -> str:
        """What decides which rows the verb may touch, or make."""
        return (self.check if verb == "insert" and self.check is not None else self.using) or "true"


@dataclass(frozen=True)
class Role:
    """A role that has to do with the table. `named`: a right or policy names it, or it is the owner.

    `inherits` are named roles whose rights it has, `becomes` those it can only change to. `owns`: it has the rights of
    the owner. `not_executable` are functions in policies.
    """

    name: str
    superuser: bool = False
    bypassrls: bool = False
    named: bool = True
    enters_schema: bool = True
    owns: bool = False
    reads_all: bool = False
    writes_all: bool = False
    inherits: tuple[str, ...] = ()
    becomes: tuple[str, ...] = ()
    not_executable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Around:
    """A trigger with its function, or a view with its owner. `alarming`: disabled, or shows rows past row security."""

    kind: str
    name: str
    by: str
    alarming: bool
    when: str | None


@dataclass(frozen=True)
class Table:
    name: str
    oid: int
    owner: str
    partitioned: bool
    row_security: bool
    forced: bool
    partition_of: str | None
    columns: tuple[str, ...]
    partitions: int
    partitions_amiss: tuple[str, ...]
    rights: tuple[Right, ...]
    policies: tuple[Policy, ...]
    roles: tuple[Role, ...]
    around: tuple[Around, ...] = ()

    @property
    def schema(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def table(self) -> str:
        return self.name.split(".", 1)[1]

    @property
    def tenant_column(self) -> str:
        """The column that says whose a row is, where the table has it."""
        return "id" if self.name == "tenancy.organizations" else "organization_id"

    @property
    def has_tenants(self) -> bool:
        return self.tenant_column in self.columns


def find_table(conn: Connection, named: str) -> tuple[str, int]:
    """Its name and oid. Raises MigrationError that says what there is instead."""
    found = {name: (oid, kind) for name, oid, kind in conn.execute(_FIND)}
    if named not in found:
        raise MigrationError(f"there is no table {named}{_near(named, [n for n in found if found[n][1] in 'rp'])}")
    oid, kind = found[named]
    if kind in ("r", "p"):
        return named, oid
    if kind == "f":
        raise MigrationError(f"{named} is a foreign table: row security does not exist for it")
    behind = [table for (table,) in conn.execute(_BEHIND_VIEW, [oid])]
    shows = f": ask for what it shows, {', '.join(behind)}" if behind else ""
    raise MigrationError(f"{named} is a view, and policies are on tables{shows}")


def read_table(conn: Connection, name: str, oid: int) -> Table:
    table = {"table": oid}
    become = "set" if conn.info.server_version >= 160000 else "member"
    row = conn.execute(_TABLE, table).fetchone()
    if row is None:
        raise MigrationError(f"{name} was dropped just now")
    owner, partitioned, row_security, forced, partition_of, columns, partitions, amiss = row
    return Table(
        name=name,
        oid=oid,
        owner=owner,
        partitioned=partitioned,
        row_security=row_security,
        forced=forced,
        partition_of=partition_of,
        columns=tuple(columns),
        partitions=partitions,
        partitions_amiss=tuple(amiss),
        rights=tuple(Right(*each) for each in conn.execute(_RIGHTS, table)),
        policies=tuple(
            Policy(policy, verb, permissive, tuple(roles), using, check, tuple(functions))
            for policy, verb, permissive, roles, using, check, functions in conn.execute(_POLICIES, table)
        ),
        roles=tuple(_role(facts) for facts in conn.execute(_ROLES, {**table, "become": become})),
        around=tuple(Around(*each) for each in conn.execute(_SURROUNDINGS, table)),
    )


def _role(facts: tuple[Any, ...]) -> Role:
    return Role(*facts[:8], *(tuple(names) for names in facts[8:]))


def _near(named: str, tables: list[str]) -> str:
    near = [table for table in tables if table.split(".")[1] == named] or get_close_matches(named, tables, 3)
    return f". Perhaps {' or '.join(near)}?" if near else ": name it with its schema, as app.cases"

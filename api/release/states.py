"""What the live database is, as documents that can be kept, compared and said in words.

A table's has its owner, row security, policies and grants, and those of its partitions that are not as they should be.
A function's, view's, trigger's or schema's has its definition, owner and grants; that of a type, sequence, foreign
table or aggregate has its owner and grants. All of it needs an empty search_path,
as expressions are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from api.release.catalog import Connection

Live = dict[str, Any]

# The owner's own rights are left out: they are its by being the owner.
_GRANTS = """
  select coalesce(jsonb_agg(g.line order by g.line), '[]')
  from (
    select distinct lower(entry.privilege_type) || coalesce(' (' || quote_ident(a.name) || ')', '')
      || ' to ' || case when entry.grantee = 0 then 'public' else pg_get_userbyid(entry.grantee) end
      || case when entry.is_grantable then ' with grant option' else '' end as line
    from ({acls}) as a, aclexplode(a.acl) as entry
    where entry.grantee <> {owner}
  ) as g
"""
_OF_RELATION = _GRANTS.format(
    acls="""
      select null::name as name, c.relacl as acl
      union all
      select attname, attacl from pg_attribute where attrelid = c.oid and not attisdropped
    """,
    owner="c.relowner",
)
_OF_FUNCTION = _GRANTS.format(
    acls="select null::name as name, coalesce(p.proacl, acldefault('f', p.proowner)) as acl", owner="p.proowner"
)
_OF_TYPE = _GRANTS.format(
    acls="select null::name as name, coalesce(t.typacl, acldefault('T', t.typowner)) as acl", owner="t.typowner"
)
_OF_SCHEMA = _GRANTS.format(acls="select null::name as name, n.nspacl as acl", owner="n.nspowner")
_VERSION = "current_setting('server_version_num')::int / 10000"

_TABLES = f"""
with wanted as (
  select c.oid
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p')
    and (
      n.nspname || '.' || c.relname = any(%(tables)s)
      or (%(all)s and not c.relispartition and n.nspname = any(%(schemas)s))
    )
),
family as (
  select oid, null::oid as root from wanted
  union all
  select tree.relid, wanted.oid
  from wanted, pg_partition_tree(wanted.oid) as tree
  where tree.relid <> wanted.oid
)
select n.nspname || '.' || c.relname, root_in.nspname || '.' || root.relname, jsonb_build_object(
  'postgres', {_VERSION},
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
    ) || case when d.description is null then '{{}}' else jsonb_build_object('comment', d.description) end), '{{}}')
    from pg_policy p
    left join pg_description d on d.objoid = p.oid and d.classoid = 'pg_policy'::regclass
    where p.polrelid = c.oid
  ),
  'grants', ({_OF_RELATION})
) || case when c.relispartition then jsonb_build_object('triggers off', (
  select coalesce(jsonb_agg(t.tgname order by t.tgname), '[]')
  from pg_trigger t
  where t.tgrelid = c.oid and t.tgenabled in ('D', 'R') and (t.tgparentid = 0 or exists (
    select from pg_trigger parent where parent.oid = t.tgparentid and parent.tgenabled <> t.tgenabled
  ))
)) else '{{}}' end
from family
join pg_class c on c.oid = family.oid
join pg_namespace n on n.oid = c.relnamespace
left join pg_class root on root.oid = family.root
left join pg_namespace root_in on root_in.oid = root.relnamespace
order by 1
"""  # noqa: S608

# Triggers of partitions come and go with the partitions. Adopted tables may lie in a schema that is not ours.
_OBJECTS = f"""
select 'schema ' || quote_ident(n.nspname), jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(n.nspowner), 'grants', ({_OF_SCHEMA})
)
from pg_namespace n
where n.nspname = any(%(schemas)s)
union all
select 'function ' || p.oid::regprocedure::text, jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(p.proowner), 'definition', pg_get_functiondef(p.oid),
  'grants', ({_OF_FUNCTION})
)
from pg_proc p
where p.prokind <> 'a' and p.pronamespace in (select oid from pg_namespace where nspname = any(%(schemas)s))
union all
select 'aggregate ' || p.oid::regprocedure::text, jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(p.proowner), 'grants', ({_OF_FUNCTION})
)
from pg_proc p
where p.prokind = 'a' and p.pronamespace in (select oid from pg_namespace where nspname = any(%(schemas)s))
union all
select 'type ' || t.oid::regtype::text, jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(t.typowner), 'grants', ({_OF_TYPE})
)
from pg_type t
left join pg_class c on c.oid = t.typrelid
where (t.typtype in ('d', 'e', 'r') or c.relkind = 'c')
  and t.typnamespace in (select oid from pg_namespace where nspname = any(%(schemas)s))
union all
select kind.name || ' ' || c.oid::regclass::text, jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(c.relowner), 'grants', ({_OF_RELATION})
) || case c.relkind when 'm' then jsonb_build_object('definition', pg_get_viewdef(c.oid)) else '{{}}' end
from pg_class c
join (values ('m', 'matview'), ('f', 'foreign_table'), ('S', 'sequence')) as kind (letter, name)
  on kind.letter = c.relkind::text
where c.relnamespace in (select oid from pg_namespace where nspname = any(%(schemas)s))
  and not exists (  -- a sequence that belongs to a column
    select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
  )
union all
select 'view ' || c.oid::regclass::text, jsonb_build_object(
  'postgres', {_VERSION}, 'owner', pg_get_userbyid(c.relowner), 'definition', pg_get_viewdef(c.oid),
  'options', coalesce(to_jsonb(c.reloptions), '[]'), 'grants', ({_OF_RELATION})
)
from pg_class c
where c.relkind = 'v' and c.relnamespace in (select oid from pg_namespace where nspname = any(%(schemas)s))
union all
select 'trigger ' || quote_ident(t.tgname) || ' on ' || t.tgrelid::regclass::text, jsonb_build_object(
  'postgres', {_VERSION}, 'definition', pg_get_triggerdef(t.oid),
  'fires', case t.tgenabled when 'O' then 'on' when 'D' then 'off' when 'R' then 'in replicas' else 'always' end
)
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
join pg_namespace n on n.oid = c.relnamespace
where not t.tgisinternal and not c.relispartition
  and (n.nspname = any(%(schemas)s) or c.relowner = 'goldleaves_owner'::regrole)
"""  # noqa: S608

_OUR_SCHEMAS = (
    "select nspname from pg_namespace where nspowner = (select oid from pg_roles where rolname = 'goldleaves_owner')"
)

# A new major version may print the same expression in another way.
_PRINTED = ("definition",)
_PRINTED_OF_POLICY = ("using", "check")


def tables(conn: Connection, names: Iterable[str]) -> dict[str, Live]:
    """Those of the tables that exist."""
    wanted = list(names)
    return _read_tables(conn, wanted, every=False, schemas=[]) if wanted else {}


def everything_else(conn: Connection, schemas: Iterable[str], but: Iterable[str]) -> dict[str, Live]:
    """All there is in the schemas of goldleaves_owner and in `schemas`, and these schemas themselves.

    But not the tables that are named. A table's name begins with `table ` here.
    """
    ours = sorted({*schemas, *(name for (name,) in conn.execute(_OUR_SCHEMAS))})
    found: dict[str, Live] = dict(conn.execute(_OBJECTS, {"schemas": ours}).fetchall())
    apart = set(but)
    unfiled = _read_tables(conn, [], every=True, schemas=ours)
    return found | {f"table {name}": state for name, state in unfiled.items() if name not in apart}


def _read_tables(conn: Connection, names: list[str], *, every: bool, schemas: list[str]) -> dict[str, Live]:
    rows = conn.execute(_TABLES, {"tables": names, "all": every, "schemas": schemas}).fetchall()
    found: dict[str, Live] = {name: state for name, root, state in rows if root is None}
    for name, root, state in rows:
        if root is not None and (strange := _strange(found[root], state)):
            found[root].setdefault("partitions", {})[name] = strange
    return found


def _strange(parent: Live, partition: Live) -> Live:
    """What of a partition is not as it should be: reached through its parent alone, as protected as that is."""
    due = parent | {"policies": {}, "grants": [], "triggers off": []}
    return {
        key: partition[key]
        for key in ("owner", "row security", "forced row security", "policies", "grants", "triggers off")
        if key in partition and partition[key] != due[key]
    }


@dataclass(frozen=True)
class Change:
    """One thing that differs: a policy, a grant, a switch, the definition. None on a side where it is not there."""

    what: str
    before: Any
    after: Any

    @property
    def verb(self) -> str:
        """As a plan calls it: create, change or drop."""
        return "create" if self.before is None else "drop" if self.after is None else "change"

    def parts(self) -> list[tuple[str, Any, Any]]:
        """Of what is there before and after, and has parts: those that differ, as they were and as they are."""
        if not isinstance(self.before, dict) or not isinstance(self.after, dict):
            return []
        both = ((part, self.before.get(part), self.after.get(part)) for part in {**self.before, **self.after})
        return [(part, was, now) for part, was, now in both if was != now]

    def sentences(self) -> list[str]:
        if parts := self.parts():
            return [f"{self.what}: {part} was {word(was)}, is {word(now)}" for part, was, now in parts]
        if self.what.startswith("partition "):
            state = self.after or self.before
            told = ", ".join(f"{key} is {word(value)}" for key, value in state.items())
            return [f"{self.what} {'is' if self.after else 'was'} not as its table: {told}"]
        if self.what in WHOLE:
            return [f"the {self.what} {'is gone' if self.after is None else 'was added'}"]
        if self.what == "definition":
            return ["its definition was changed"]
        if self.before is None:
            return [f"{self.what} was added"]
        if self.after is None:
            return [f"{self.what} was {'revoked' if self.what.startswith('grant ') else 'dropped'}"]
        return [f"{self.what} was {word(self.before)}, is {word(self.after)}"]


WHOLE = (
    *("table", "function", "view", "trigger", "schema"),
    *("aggregate", "type", "matview", "foreign_table", "sequence"),
)


def changes(unit: str, before: Live | None, after: Live | None) -> list[Change]:
    """What it takes to come from one state to the other, the most telling first. None: it is not there."""
    if before is None or after is None:
        kind = unit.partition(" ")[0]
        return [] if before is after else [Change(kind if kind in WHOLE else "table", before, after)]
    same_major = before["postgres"] == after["postgres"]
    left, right = _flat(before, same_major), _flat(after, same_major)
    return [
        Change(what, left.get(what), right.get(what))
        for what in dict.fromkeys([*left, *right])
        if left.get(what) != right.get(what)
    ]


def sentences(unit: str, before: Live | None, after: Live | None) -> list[str]:
    return [text for change in changes(unit, before, after) for text in change.sentences()]


def _flat(state: Live, with_printed: bool) -> dict[str, Any]:
    """One level of what a person would change by one statement."""
    flat = {
        key: value
        for key, value in state.items()
        if key not in ("postgres", "policies", "grants", "partitions") and (with_printed or key not in _PRINTED)
    }
    for name, policy in sorted(state.get("policies", {}).items()):
        flat[f"policy {name}"] = {
            part: value for part, value in policy.items() if with_printed or part not in _PRINTED_OF_POLICY
        }
    flat |= {f"grant {line}": True for line in state["grants"]} if "grants" in state else {}
    return flat | {f"partition {name}": strange for name, strange in sorted(state.get("partitions", {}).items())}


_LITERAL = r"'(?:[^']|'')*'"
_VARIADIC = re.compile(rf"VARIADIC ARRAY\[((?:{_LITERAL}::text(?:, )?)+)\]")
_WORDS = re.compile(rf"({_LITERAL})|\b(AND|OR|NOT|IS NULL|IS NOT NULL|IS DISTINCT FROM)\b")


def readable(expression: str) -> str:
    """An expression as a person would have written it, where the server prints all that it knows of it."""
    shorter = _VARIADIC.sub(lambda found: found[1].replace("'::text", "'"), expression)
    lower = _WORDS.sub(lambda found: found[1] or found[2].lower(), shorter)
    return lower[1:-1] if _is_wrapped(lower) else lower


def _is_wrapped(text: str) -> bool:
    """Whether the first parenthesis is closed by the last."""
    depth = 0
    bare = re.sub(_LITERAL, lambda found: " " * len(found[0]), text)
    for position, letter in enumerate(bare):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return position == len(text) - 1 and text.startswith("(")
    return False


def word(value: Any) -> str:
    """A value of a state, for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    if isinstance(value, dict):
        return ", ".join(value) or "nothing"
    return "nothing" if value is None else readable(str(value))

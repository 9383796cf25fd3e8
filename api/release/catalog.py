"""Questions to the Postgres catalog: which objects are ours, which of them this transaction made, what depends on them.

All names come out qualified because the loader empties the search_path of its transaction. "Ours" is what lives in a
schema that goldleaves_owner owns, so nobody keeps a list of schemas.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

_SCHEMAS = "select oid from pg_namespace where nspowner = (select oid from pg_roles where rolname = 'goldleaves_owner')"

# Triggers of partitions belong to whoever makes partitions, at any time, not to a file. Adopted tables may lie in a
# schema that is not ours.
_OBJECTS = f"""
with own as materialized ({_SCHEMAS}),
object (kind, name, class_id, id) as (
  select 'function', p.oid::regprocedure::text, 'pg_proc'::regclass::oid, p.oid
  from pg_proc p
  where p.pronamespace in (select oid from own)
  union all
  select 'view', c.oid::regclass::text, 'pg_class'::regclass::oid, c.oid
  from pg_class c
  where c.relkind = 'v' and c.relnamespace in (select oid from own)
  union all
  select 'trigger', format('%%I on %%s', t.tgname, t.tgrelid::regclass), 'pg_trigger'::regclass::oid, t.oid
  from pg_trigger t
  join pg_class c on c.oid = t.tgrelid
  where not t.tgisinternal and not c.relispartition
    and (c.relnamespace in (select oid from own) or c.relowner = 'goldleaves_owner'::regrole)
)
select kind || ' ' || name, class_id, id
from object
where %(all)s or id = any(%(ids)s)
order by 1
"""  # noqa: S608

# xmin tells what this transaction wrote, ctid tells two writes of the same row apart. Asked for after each file: names,
# which take most of the time, are only for those that differ.
_WRITTEN = """
select 'pg_proc'::regclass::oid, oid, ctid::text from pg_proc where xmin = pg_current_xact_id()::xid
union all
select 'pg_class'::regclass::oid, oid, ctid::text from pg_class where relkind = 'v' and xmin = pg_current_xact_id()::xid
union all
select 'pg_trigger'::regclass::oid, oid, ctid::text from pg_trigger where xmin = pg_current_xact_id()::xid
"""

# Only 'n' dependencies stop a drop. A dependent is named by what a person would drop: the view, not its rewrite rule.
# Triggers of partitions are forgiven where `drop` takes them along.
_DEPENDENTS = """
with given (class_id, id) as (
  select * from unnest(%(classes)s::oid[], %(ids)s::oid[])
),
target (class_id, id, origin_class, origin_id) as (
  select class_id, id, class_id, id from given
  union all
  select 'pg_type'::regclass::oid, type.oid, given.class_id, given.id
  from given
  join pg_type rowtype on given.class_id = 'pg_class'::regclass and rowtype.typrelid = given.id
  join pg_type type on type.oid in (rowtype.oid, rowtype.typarray)
),
dependent as (
  select distinct
    target.origin_class,
    target.origin_id,
    case when rule.oid is null then d.classid else 'pg_class'::regclass::oid end as class_id,
    coalesce(rule.ev_class, d.objid) as id,
    case when rule.oid is null then d.objsubid else 0 end as sub_id
  from target
  join pg_depend d on d.refclassid = target.class_id and d.refobjid = target.id and d.deptype = 'n'
  left join pg_rewrite rule on d.classid = 'pg_rewrite'::regclass and rule.oid = d.objid
  left join pg_trigger trigger on d.classid = 'pg_trigger'::regclass and trigger.oid = d.objid
  left join pg_class trigger_on on trigger_on.oid = trigger.tgrelid
  where trigger_on.relispartition is not true or not %(forgive_partitions)s
)
select
  dependent.origin_class,
  dependent.origin_id,
  pg_describe_object(dependent.origin_class, dependent.origin_id, 0),
  dependent.class_id,
  dependent.id,
  pg_describe_object(dependent.class_id, dependent.id, dependent.sub_id)
from dependent
where (dependent.class_id, dependent.id) not in (select class_id, id from target)
order by 3, 6
"""

_PARTITION_TRIGGERS = """
select
  t.tgfoid::regprocedure::text,
  format('drop trigger %%I on %%s', t.tgname, t.tgrelid::regclass),
  replace(pg_get_triggerdef(t.oid), 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER')
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
where c.relispartition and t.tgparentid = 0 and t.tgfoid::regprocedure::text = any(%(functions)s)
order by 2
"""

_LOCKABLE_VIEWS = """
select c.oid::regclass::text
from pg_class c
where c.relnamespace = to_regnamespace(%s) and c.relkind = 'v' and c.relowner = 'goldleaves_owner'::regrole
order by 1
"""

_API_MEMBERS = """
select 'pg_class'::regclass::oid, oid from pg_class where relnamespace = to_regnamespace('api') and relkind <> 'i'
union all
select 'pg_proc'::regclass::oid, oid from pg_proc where pronamespace = to_regnamespace('api')
union all
select 'pg_type'::regclass::oid, oid from pg_type where typnamespace = to_regnamespace('api')
union all
select 'pg_trigger'::regclass::oid, t.oid
from pg_trigger t
join pg_class c on c.oid = t.tgrelid
where c.relnamespace = to_regnamespace('api')
"""

# A file must end in the same state whether its objects are new or replaced, but CREATE OR REPLACE keeps owner and
# grants. So those go back to what a new object would have, before the file runs again.
_RESET = """
with object (address, kind, id, acl, owner) as (
  select p.oid::regprocedure::text, 'routine', p.oid, p.proacl, p.proowner from pg_proc p where p.oid = any(%(ids)s)
  union all
  select c.oid::regclass::text, 'table', c.oid, c.relacl, c.relowner from pg_class c where c.oid = any(%(ids)s)
),
fresh (acl) as (
  select coalesce(
    (select d.defaclacl from pg_default_acl d
     where d.defaclrole = current_user::regrole and d.defaclnamespace = 0 and d.defaclobjtype = 'f'),
    acldefault('f', current_user::regrole)
  )
),
command (position, text) as (
  select 1, format('alter %%s %%s owner to %%I', kind, address, current_user) from object
  union all
  select distinct 2, format('revoke all on %%s %%s from %%s cascade', kind, address,
    case when entry.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(entry.grantee)) end)
  from object, aclexplode(object.acl) as entry
  where entry.grantee <> object.owner
  union all
  select distinct 3, format('grant execute on routine %%s to public', address)
  from object, fresh, aclexplode(fresh.acl) as entry
  where object.kind = 'routine' and object.acl is not null and entry.grantee = 0
)
select text from command order by position, text
"""

_OWNED_BY_MIGRATOR = f"""
with own as materialized ({_SCHEMAS})
select format('alter routine %%s owner to goldleaves_owner', oid::regprocedure)
from pg_proc
where proowner = current_user::regrole and pronamespace in (select oid from own)
union all
select format('alter %%s %%s owner to goldleaves_owner',
  case relkind when 'v' then 'view' when 'S' then 'sequence' when 'm' then 'materialized view'
    when 'c' then 'type' else 'table' end,
  oid::regclass)
from pg_class
where relowner = current_user::regrole
  and relnamespace in (select oid from own)
  and relkind in ('r', 'p', 'v', 'm', 'S', 'c')
union all
select format('alter type %%s owner to goldleaves_owner', oid::regtype)
from pg_type
where typowner = current_user::regrole and typnamespace in (select oid from own) and typtype in ('d', 'e', 'r')
"""  # noqa: S608

# The checks of bodies that CREATE FUNCTION would have made.
VALIDATE = """
select case language.lanname
  when 'plpgsql' then plpgsql_validator(p.oid)
  when 'sql' then fmgr_sql_validator(p.oid)
end
from pg_proc p
join pg_language language on language.oid = p.prolang
where p.oid = any(%s)
"""


@dataclass(frozen=True)
class Ref:
    """A catalog object: the class it belongs to (pg_proc, pg_class, pg_trigger) and its oid."""

    class_id: int
    id: int


@dataclass(frozen=True)
class Blocker:
    """`dependent` has to go before `target` can."""

    target: Ref
    target_name: str
    dependent: Ref
    dependent_name: str

    def __str__(self) -> str:
        return f"{self.dependent_name} depends on {self.target_name}"


@dataclass(frozen=True)
class PartitionTrigger:
    """A trigger that was dropped together with its function."""

    function: str
    definition: str


def objects(conn: Connection) -> dict[str, Ref]:
    """Every function, view and trigger in our schemas, by an identity like `view api.cases`."""
    rows = conn.execute(_OBJECTS, {"all": True, "ids": []})
    return {identity: Ref(class_id, oid) for identity, class_id, oid in rows}


def identities(conn: Connection, refs: Collection[Ref]) -> set[str]:
    """Of those that are in our schemas."""
    if not refs:
        return set()
    rows = conn.execute(_OBJECTS, {"all": False, "ids": [ref.id for ref in refs]})
    return {identity for identity, class_id, oid in rows if Ref(class_id, oid) in refs}


def written(conn: Connection) -> set[tuple[Ref, str]]:
    """What this transaction has written, each with the version of its row. Blind to what savepoints wrote."""
    return {(Ref(class_id, oid), version) for class_id, oid, version in conn.execute(_WRITTEN)}


def blockers(conn: Connection, targets: Iterable[Ref], forgive_partitions: bool = True) -> list[Blocker]:
    """What outside `targets` depends on them, and would have to be dropped too."""
    given = list(targets)
    if not given:
        return []
    parameters = {
        "classes": [ref.class_id for ref in given],
        "ids": [ref.id for ref in given],
        "forgive_partitions": forgive_partitions,
    }
    rows = conn.execute(_DEPENDENTS, parameters)
    return [Blocker(Ref(tc, ti), name, Ref(dc, di), dependent) for tc, ti, name, dc, di, dependent in rows]


def api_members(conn: Connection) -> list[Ref]:
    return [Ref(class_id, oid) for class_id, oid in conn.execute(_API_MEMBERS)]


def drop(conn: Connection, wanted: Collection[str]) -> list[PartitionTrigger]:
    """Drop by identity, never CASCADE. Triggers of partitions go with their function: they come back for `restore`."""
    names = sorted(identity.split(" ", 1) for identity in wanted)
    functions = [name for kind, name in names if kind == "function"]
    rows = conn.execute(_PARTITION_TRIGGERS, {"functions": functions}).fetchall()
    for statement in (
        *(statement for _, statement, _ in rows),
        *(f"drop trigger if exists {name}" for kind, name in names if kind == "trigger"),
    ):
        conn.execute(statement.encode())
    _drop_what_depends_first(conn, {name: ref for name, ref in objects(conn).items() if name in wanted})
    return [PartitionTrigger(f"function {function}", definition) for function, _, definition in rows]


def _drop_what_depends_first(conn: Connection, left: dict[str, Ref]) -> None:
    """Views call functions, and functions return the rows of views. Those of a kind go in one statement, in which their
    order does not matter.
    """
    while left:
        word, refs = _next_to_drop(conn, left)
        names = ", ".join(name.split(" ", 1)[1] for name in sorted(refs))
        conn.execute(f"drop {word} {names}".encode())
        left = {name: ref for name, ref in left.items() if name not in refs}


def _next_to_drop(conn: Connection, left: Mapping[str, Ref]) -> tuple[str, dict[str, Ref]]:
    kinds = [
        (word, {name: ref for name, ref in left.items() if name.startswith(f"{kind} ")}) for kind, word in _DROP_WORDS
    ]
    for word, refs in kinds:
        if free := unblocked(conn, refs):
            return word, free
    return next((word, refs) for word, refs in kinds if refs)  # each holds another: the server says so


def unblocked(conn: Connection, refs: Mapping[str, Ref]) -> dict[str, Ref]:
    """Those that can be dropped together, with nothing else."""
    free = dict(refs)
    while found := blockers(conn, free.values()):
        held = {blocker.target for blocker in found}
        free = {name: ref for name, ref in free.items() if ref not in held}
    return free


def restore(conn: Connection, triggers: Iterable[PartitionTrigger]) -> None:
    """Make triggers of partitions again, as far as their functions are back."""
    now = objects(conn)
    for trigger in triggers:
        if trigger.function in now:
            conn.execute(trigger.definition.encode())


_DROP_WORDS = (("view", "view"), ("function", "routine"))


def reset(conn: Connection, refs: Iterable[Ref]) -> None:
    """Give functions and views the owner and grants that they would have if they were new."""
    _execute_all(conn, _RESET, {"ids": [ref.id for ref in refs]})


def hand_over(conn: Connection) -> None:
    """What the migrator still owns in our schemas becomes goldleaves_owner's."""
    _execute_all(conn, _OWNED_BY_MIGRATOR, {})


def let_kernel_create(conn: Connection, allowed: bool) -> None:
    """An owner needs CREATE on the schema at the moment it is given a function, and at no other."""
    verb, word = ("grant", "to") if allowed else ("revoke", "from")
    command = f"{verb} create on schema %%I {word} goldleaves_kernel"
    query = f"select format('{command}', nspname) from pg_namespace where oid in ({_SCHEMAS})"  # noqa: S608
    _execute_all(conn, query, {})


def lock(conn: Connection, table: str, mode: str) -> None:
    """Lock a table and its partitions. `table` is `schema.table` without quotes."""
    name = sql.Identifier(*table.split(".", 1)).as_string(None)
    conn.execute(f"lock table {name} in {mode} mode".encode())


def hold_views(conn: Connection, schema: str) -> None:
    """Let nobody change a view of this schema from now on, nor what it reads. Readers and writers do not mind.

    Only of those that are ours to lock.
    """
    rows = conn.execute(_LOCKABLE_VIEWS, [schema]).fetchall()
    if rows:
        conn.execute(f"lock table {', '.join(name for (name,) in rows)} in access share mode".encode())


def _execute_all(conn: Connection, query: str, parameters: dict[str, Any]) -> None:
    for (statement,) in conn.execute(query.encode(), parameters).fetchall():
        conn.execute(statement.encode())

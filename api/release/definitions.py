"""SQL that makes what a state says: for a person to read beside the file, and to put back what was changed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from psycopg import sql

from api.release.catalog import Connection
from api.release.drift import Drift
from api.release.states import WHOLE, Live, readable

_COMMANDS = {"r": "select", "a": "insert", "w": "update", "d": "delete"}
_GRANT = re.compile(r"(\w+)(?: \((.*)\))? to (.+?)( with grant option)?")
# What ALTER and DROP call it, and what GRANT and REVOKE do.
_KINDS = {
    "table": ("table", "table"),
    "view": ("view", "table"),
    "matview": ("materialized view", "table"),
    "foreign_table": ("foreign table", "table"),
    "function": ("routine", "routine"),
    "aggregate": ("routine", "routine"),
    "trigger": ("trigger", ""),
    "schema": ("schema", "schema"),
    "sequence": ("sequence", "sequence"),
    "type": ("type", "type"),
}
_PUBLIC = "public"
_LINE = "\n"


def definition(conn: Connection, unit: str, state: Live) -> str:
    """Everything of one unit, as a file could say it."""
    text = ""
    for statement in _statements(_Names(conn), unit, state):
        is_policy = statement.startswith("create policy")
        text += (
            f"{_LINE if is_policy and not text.endswith(_LINE * 2) else ''}{statement};\n{_LINE if is_policy else ''}"
        )
    return text


def restoring(conn: Connection, drifted: Drift) -> list[str]:
    """The statements that put something back as it was released. What no release knows is dropped."""
    names = _Names(conn)
    kind, name = _kind_and_name(names, drifted.unit)
    if drifted.released is None:
        return [f"drop {_KINDS[kind][0]} {name}"]
    statements = []
    if drifted.live is not None and kind != "trigger":
        statements += [
            f"revoke all on {_KINDS[kind][1]} {name} from {grantee} cascade"
            for grantee in sorted({names.role(_parsed(line)[2]) for line in drifted.live.get("grants", [])})
        ]
        for policy in drifted.live.get("policies", {}):
            statements.append(f"drop policy {names.quoted(policy)} on {name}")
    elif kind == "trigger" and drifted.live is not None:
        statements.append(f"drop trigger {name}")
    if kind == "matview" and drifted.live is not None:
        statements.append(f"drop materialized view {name}")
    return [*statements, *_statements(names, drifted.unit, drifted.released)]


class _Names:
    """Quotes names as the server would, so that what needs no quotes is readable."""

    def __init__(self, conn: Connection) -> None:
        self._reserved = {word for (word,) in conn.execute("select word from pg_get_keywords() where catcode <> 'U'")}

    def quoted(self, name: str) -> str:
        if re.fullmatch(r"[a-z_][a-z0-9_$]*", name) and name not in self._reserved:
            return name
        return sql.Identifier(name).as_string(None)

    def role(self, name: str) -> str:
        return _PUBLIC if name == _PUBLIC else self.quoted(name)

    def table(self, name: str) -> str:
        """`schema.table` as states name it, without quotes."""
        return ".".join(map(self.quoted, name.split(".", 1)))


def _kind_and_name(names: _Names, unit: str) -> tuple[str, str]:
    kind, _, name = unit.partition(" ")
    if kind not in WHOLE:  # a table with a policy file, whose name may hold spaces, too
        return "table", names.table(unit)
    return kind, names.table(name) if kind == "table" else name


def _statements(names: _Names, unit: str, state: Live) -> Iterator[str]:
    kind, name = _kind_and_name(names, unit)
    if kind == "trigger":
        yield state["definition"]
        if state["fires"] != "on":
            trigger, _, table = name.partition(" on ")
            verb = {"off": "disable", "in replicas": "enable replica", "always": "enable always"}[state["fires"]]
            yield f"alter table {table} {verb} trigger {trigger}"
        return
    if kind == "function":
        yield state["definition"].rstrip()
    if kind == "view":
        options = f" with ({', '.join(state['options'])})" if state["options"] else ""
        yield f"create or replace view {name}{options} as\n{state['definition'].rstrip().rstrip(';')}"
        if not state["options"]:
            yield f"alter view {name} reset (security_invoker, security_barrier, check_option)"
    if kind == "matview":
        yield f"create materialized view {name} as\n{state['definition'].rstrip().rstrip(';')}"
    if kind == "table":
        yield from _switches(name, state)
    if state["owner"] != "goldleaves_owner" or kind != "table":
        yield f"alter {_KINDS[kind][0]} {name} owner to {names.role(state['owner'])}"
    for policy, parts in sorted(state.get("policies", {}).items(), key=_by_command):
        yield _policy(names, policy, name, parts)
        if "comment" in parts:
            text = sql.Literal(parts["comment"]).as_string(None)
            yield f"comment on policy {names.quoted(policy)} on {name} is {text}"
    if kind in ("function", "aggregate", "type"):
        yield f"revoke all on {_KINDS[kind][1]} {name} from public"
    for trigger in state.get("triggers off", []):
        yield f"alter table only {name} disable trigger {names.quoted(trigger)}"
    yield from _grants(
        names,
        name if _KINDS[kind][1] == "table" else f"{_KINDS[kind][1]} {name}",
        state["grants"],
    )
    for partition, strange in sorted(state.get("partitions", {}).items()):
        yield from _statements(names, partition, {"owner": "goldleaves_owner", "policies": {}, "grants": [], **strange})


def _by_command(item: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    return "rawd*".index(item[1]["command"]), item[0]


def _switches(name: str, state: Live) -> Iterator[str]:
    for key, yes, no in (("row security", "enable", "disable"), ("forced row security", "force", "no force")):
        if key in state:
            yield f"alter table {name} {yes if state[key] else no} row level security"


def _policy(names: _Names, policy: str, table: str, parts: dict[str, Any]) -> str:
    restrictive = "" if parts["permissive"] else " as restrictive"
    command = f" for {_COMMANDS[parts['command']]}" if parts["command"] in _COMMANDS else ""
    roles = ", ".join(map(names.role, parts["roles"]))
    lines = [f"create policy {names.quoted(policy)} on {table}{restrictive}{command} to {roles}"]
    lines += [f"  using ({readable(parts['using'])})"] if parts["using"] is not None else []
    lines += [f"  with check ({readable(parts['check'])})"] if parts["check"] is not None else []
    return "\n".join(lines)


def _parsed(line: str) -> tuple[str, str | None, str, bool]:
    """Privilege, column, grantee and whether it may be passed on, of a line of a state."""
    if not (found := _GRANT.fullmatch(line)):
        raise AssertionError(f"not a grant: {line}")
    return found[1], found[2], found[3], found[4] is not None


def _by_verb(privilege: str) -> tuple[int, str]:
    known = list(_COMMANDS.values())
    return known.index(privilege) if privilege in known else len(known), privilege


def _grants(names: _Names, what: str, lines: list[str]) -> Iterator[str]:
    """One statement for each grantee, columns together."""
    by_grantee: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for line in lines:
        privilege, column, grantee, grantable = _parsed(line)
        columns = by_grantee.setdefault((grantee, grantable), {}).setdefault(privilege, [])
        columns += [column] if column is not None else []
    for (grantee, grantable), privileges in sorted(by_grantee.items()):
        listed = ", ".join(
            f"{verb} ({', '.join(privileges[verb])})" if privileges[verb] else verb
            for verb in sorted(privileges, key=_by_verb)
        )
        yield f"grant {listed} on {what} to {names.role(grantee)}{' with grant option' if grantable else ''}"

"""What bringing the files of `policies/` to the live database would change, and what was changed there by hand.

It is found by doing it: the files are loaded in a transaction, the catalog is compared before and after, and all of it
is taken back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from api.migrations import connected, require_known
from api.policies.lint import Finding, lint
from api.release import drift, loader, states
from api.release.catalog import Connection
from api.release.definitions import definition
from api.release.drift import Drift
from api.release.errors import MigrationError
from api.release.files import POLICIES, Tree
from api.release.loader import Choices, LoadReport, Lock
from api.release.states import Change, Live

CREATE, CHANGE, DROP, CONFLICT = "create", "change", "drop", "conflict"
VERSION = 1


@dataclass(frozen=True)
class Action:
    """One thing that a plan would do to the live database, or a conflict, of which it keeps its hands off.

    `unit` is what is released as a whole: a table, or a function, view, trigger or schema. `object` is what of it:
    a policy, a grant, a switch. `before` and `after` are values of `api.release.states`; of a conflict, as it was
    released and as it is now.
    """

    action: str
    unit: str
    object: str
    file: str | None
    before: Any
    after: Any
    says: str

    def as_json(self) -> dict[str, Any]:
        sides = ("released", "live") if self.action == CONFLICT else ("live", "planned")
        return {
            "action": self.action,
            "unit": self.unit,
            "object": self.object,
            "file": self.file,
            sides[0]: self.before,
            sides[1]: self.after,
            "says": self.says,
        }


@dataclass(frozen=True)
class Conflict:
    """Something that was changed by hand, and is left alone until somebody says by name what counts.

    `definition` is the SQL of what is live, None when it is gone. `new` is where that is written, beside the file.
    """

    unit: str
    file: str | None
    new: str
    says: tuple[str, ...]
    definition: str | None

    def as_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "file": self.file,
            "new": self.new,
            "says": list(self.says),
            "live": self.definition,
        }


@dataclass(frozen=True)
class Plan:
    """What would be done, or was.

    `taken_over` are units that were changed by hand to what their file says by now. `unloaded` are files of sql/ that
    differ from what is loaded: `goldleaves migrate` brings those. `findings` are those of lint that it would bring.
    """

    database: str
    actions: tuple[Action, ...]
    conflicts: tuple[Conflict, ...]
    locks: tuple[Lock, ...]
    taken_over: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    report: LoadReport = field(default_factory=LoadReport)

    def as_json(self) -> str:
        body = {
            "kind": "policies",
            "version": VERSION,
            "database": self.database,
            "actions": [action.as_json() for action in self.actions],
            "locks": [{"relation": lock.relation, "mode": lock.mode} for lock in self.locks],
            "conflicts": [conflict.as_json() for conflict in self.conflicts],
            "taken_over": list(self.taken_over),
            "unloaded": list(self.unloaded),
            "findings": [{"rule": each.rule, "object": each.object, "what": each.what} for each in self.findings],
        }
        return json.dumps(body, indent=2) + "\n"

    def count(self, action: str) -> int:
        return sum(each.action == action for each in self.actions)


def make_plan(url: str, root: Path) -> Plan:
    """What `policies apply` would do. Changes nothing.

    Raises MigrationError when a file cannot be loaded, or nothing is loaded yet.
    """
    with connected(url) as conn:
        return carry_out(conn, files_to_apply(conn, root), Tree.read(root), Choices(leave=True), dry_run=True)


def carry_out(
    conn: Connection,
    tree: Tree,
    on_disk: Tree,
    choices: Choices,
    *,
    dry_run: bool,
    wanted: Mapping[str, Live | None] = MappingProxyType({}),
) -> Plan:
    """Load `tree` and tell what that changed, or in a dry run would change.

    `wanted` are tables that have to come out like this, or nothing is changed and MigrationError raised.
    """
    conflicts: list[Conflict] = []
    findings: list[Finding] = []

    def look(report: LoadReport) -> None:
        for table, state in wanted.items():
            if wrong := states.sentences(table, state, report.after.get(table)):
                raise MigrationError(f"{table}: what is live cannot be written down: {'; '.join(wrong)}")
        conflicts[:] = [_conflict(conn, report.drifted[unit]) for unit in sorted(report.conflicts)]
        if dry_run:
            findings[:] = lint(conn)

    def found_now() -> list[Finding]:
        return loader.retry_when_busy(lambda: _findings(conn))

    known = [] if dry_run else found_now()
    report = loader.load(conn, tree, choices, dry_run=dry_run, look=look)
    if not dry_run:
        findings[:] = found_now()  # by now nobody waits for a lock of ours
    elif findings:
        known = found_now()  # all is as it was
    return Plan(
        database=_name(conn),
        actions=tuple(_actions(report, choices)),
        conflicts=tuple(conflicts),
        locks=report.locks,
        taken_over=tuple(sorted(_taken_over(report, choices))),
        unloaded=tuple(_unloaded(tree, on_disk)),
        findings=tuple(each for each in findings if each not in known),
        report=report,
    )


def files_to_apply(conn: Connection, root: Path) -> Tree:
    """The policies of `root`, with the sql/ that is loaded: policies are rolled out without the rest of a deploy.

    Raises MigrationError where `root` is older than the database: it would take back what newer files brought.
    """
    require_known(conn, root)
    return with_policies(released_files(conn), Tree.read(root))


def with_policies(base: Tree, other: Tree) -> Tree:
    """`base`, with the policy files of `other`."""
    kept = {path: text for path, text in base.files.items() if not path.startswith(POLICIES)}
    return Tree(kept | {path: other.files[path] for path in other.policies})


def released_files(conn: Connection) -> Tree:
    """Raises MigrationError where nothing is loaded."""
    tree = loader.released_tree(conn) if loader.has_releases(conn) else Tree({})
    if not tree.files:
        raise MigrationError("Nothing is loaded in this database yet. Run `goldleaves migrate` first.")
    return tree


def find_drift(conn: Connection) -> dict[str, Drift]:
    """What differs from the last release. Raises MigrationError where nothing is loaded."""
    released_files(conn)
    while True:
        before = _latest(conn)
        found = loader.retry_when_busy(lambda: _find_drift(conn))
        # What a release brought meanwhile was changed by nobody.
        if not found or _latest(conn) == before:
            return found


def _find_drift(conn: Connection) -> dict[str, Drift]:
    with conn.transaction():
        loader.begin(conn)
        return drift.find(conn, loader.current_release(conn).objects)


def _latest(conn: Connection) -> tuple[object, ...] | None:
    return conn.execute(
        "select (select max(id) from ops.releases), (select max(id) from ops.policy_releases), "
        "(select max(migration_id) from yoyo._yoyo_migration)"
    ).fetchone()


def resolve(found: Mapping[str, Drift], names: list[str]) -> frozenset[str]:
    """The units that names of a command line mean: as they are printed, or without kind and arguments.

    Raises MigrationError for a name of something that nobody changed by hand, or of several things.
    """
    return frozenset(_resolve_one(found, name) for name in names)


def _resolve_one(found: Mapping[str, Drift], name: str) -> str:
    if name in found:
        return name
    meant = [unit for unit in found if name in _short_names(unit)]
    if len(meant) == 1:
        return meant[0]
    listed = ", ".join(meant or found) or "nothing"
    raise MigrationError(
        f"{name} could be {listed}: name one of them"
        if meant
        else f"{name} was not changed by hand. Changed by hand: {listed}"
    )


def _short_names(unit: str) -> set[str]:
    _, _, name = unit.partition(" ")
    return {name, name.partition("(")[0]} - {""}


def _findings(conn: Connection) -> list[Finding]:
    with conn.transaction():
        loader.begin(conn)
        return lint(conn)


def _name(conn: Connection) -> str:
    return f"{conn.info.dbname} at {conn.info.host}:{conn.info.port}"


def _actions(report: LoadReport, choices: Choices) -> Iterator[Action]:
    for table in sorted({*report.before, *report.after}):
        if table in report.conflicts:
            continue
        file = f"{POLICIES}{table}.sql"
        for change in states.changes(table, report.before.get(table), report.after.get(table)):
            yield Action(change.verb, table, change.what, file, change.before, change.after, _will(change))
    for unit, each in report.drifted.items():
        if unit in report.conflicts:
            yield from _conflicting(each)
        elif not each.is_table_with_file and unit not in choices.accept:
            for change in states.changes(unit, each.live, each.released):
                yield Action(change.verb, unit, change.what, each.file, change.before, change.after, _will(change))


def _conflicting(each: Drift) -> Iterator[Action]:
    for change in each.changes():
        yield Action(
            CONFLICT, each.unit, change.what, each.file, change.before, change.after, "; ".join(change.sentences())
        )


def _will(change: Change) -> str:
    """What will be done, where `Change.sentences` tells what was done."""
    if change.what.startswith("partition "):
        return f"{change.what}: protected as its table is"
    if parts := change.parts():
        return "; ".join(f"{change.what}, {part}: {states.word(was)} → {states.word(now)}" for part, was, now in parts)
    if change.before is None or change.after is None or change.what == "definition":
        return change.what
    return f"{change.what}: {states.word(change.before)} → {states.word(change.after)}"


def _conflict(conn: Connection, each: Drift) -> Conflict:
    text = None if each.live is None else definition(conn, each.unit, each.live)
    _, _, name = each.unit.partition(" ")
    without_file = POLICIES + re.sub(r"[^\w.$-]+", "_", name.partition("(")[0]) + ".sql"
    new = f"{each.file or without_file}.new"
    return Conflict(each.unit, each.file, new, tuple(states.sentences(each.unit, each.released, each.live)), text)


def _taken_over(report: LoadReport, choices: Choices) -> Iterator[str]:
    for unit, each in report.drifted.items():
        if unit in choices.accept or (
            each.is_table_with_file
            and unit not in report.conflicts
            and not states.changes(unit, report.before.get(each.name), report.after.get(each.name))
        ):
            yield unit


def _unloaded(tree: Tree, on_disk: Tree) -> list[str]:
    """Files of sql/ that were added, changed or deleted since they were loaded."""
    paths = {path for path in {*tree.files, *on_disk.files} if not path.startswith(POLICIES)}
    return sorted(path for path in paths if tree.files.get(path) != on_disk.files.get(path))

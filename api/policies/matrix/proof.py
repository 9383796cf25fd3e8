"""The whole proof, in one transaction that leaves nothing behind and locks nothing that others wait for.

Statements name the rows of two organizations that nobody else can see, so that even where a policy is open to everybody
no other row is touched. TRUNCATE is not tried, since it would lock its table: it asks grants alone, and so does this.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from api.policies.declared import VERBS, Declared, declared
from api.policies.matrix import catalog
from api.policies.matrix.attempts import Attempts, Key, Subject
from api.policies.matrix.catalog import Partition, Server, Table
from api.policies.matrix.cells import (
    MOVE,
    TRUNCATE,
    Cell,
    Context,
    Outcome,
    Tried,
    is_declared,
    settle,
    unknown_names,
    worst,
)
from api.policies.matrix.people import (
    OF_DATABASE,
    Actor,
    Kind,
    Organization,
    allow,
    database_actors,
    enter_as_owner,
    make_people,
)
from api.policies.matrix.rows import RowMaker, in_order_of_references
from api.policies.trial import trial
from api.release import MigrationError, Tree
from api.release.catalog import Connection
from api.release.files import table_of
from api.release.loader import retry_when_busy


@dataclass(frozen=True)
class Proof:
    """`alike`: partitions that are treated as the one that was tried. `problems` keep the proof from being whole."""

    server: Server
    made_at: datetime
    seconds: float
    files_are_released: bool
    actors: tuple[Actor, ...]
    tables: tuple[str, ...]
    alike: Mapping[str, tuple[str, ...]]
    silent: tuple[str, ...]
    problems: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def differing(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.differs]

    @property
    def unproved(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.outcome is Outcome.UNPROVED]

    @property
    def holds(self) -> bool:
        return not (self.differing or self.unproved or self.problems)


def prove(url: str, root: Path, only: Sequence[str] = ()) -> Proof:
    """Try everything, and compare with the headers in `root`. Raises MigrationError for a table that is no tenant's."""
    tree = Tree.read(root)

    def attempt() -> Proof:
        with trial(url) as conn:
            return prove_in(conn, tree, only)

    return retry_when_busy(attempt)


def prove_in(conn: Connection, tree: Tree, only: Sequence[str] = ()) -> Proof:
    """The same in a transaction that the caller rolls back."""
    began = time.monotonic()
    conn.execute("set local statement_timeout = '60s'")
    conn.execute("set local jit = off")
    declarations = {table_of(path): declared(path, tree.files[path]) for path in tree.policies}
    return _Proving(conn, tree, declarations).run(only, began)


class _Proving:
    def __init__(self, conn: Connection, tree: Tree, declarations: dict[str, Declared | None]) -> None:
        self.conn = conn
        self.tree = tree
        self.declarations = declarations

    def run(self, only: Sequence[str], began: float) -> Proof:
        server = catalog.server(self.conn)
        roots = {name: table for name, table in self._tenant_tables().items() if table.root is None}
        actors = self._actors_of_database([*roots])
        own, other, people = make_people(self.conn)
        taken = {actor.name for actor in people}
        actors = [replace(each, name=each.name + OF_DATABASE) if each.name in taken else each for each in actors]
        actors = [self._able(actor) for actor in (*people, *actors)]
        subjects, alike = self._subjects(roots, own, other)
        subjects = _chosen(subjects, alike, only)
        cells = self._cells(Attempts(self.conn, own, other, subjects), subjects, actors)
        names = tuple(subject.table.name for subject in subjects)
        return Proof(
            server=server,
            made_at=datetime.now(UTC),
            seconds=time.monotonic() - began,
            files_are_released=server.fingerprint == self.tree.fingerprint,
            actors=tuple(actors),
            tables=names,
            alike=alike,
            silent=tuple(name for name in names if name in roots and self.declarations.get(name) is None),
            problems=tuple(unknown_names(self.declarations, actors)),
            cells=tuple(cells),
        )

    # Who

    def _actors_of_database(self, tables: list[str]) -> list[Actor]:
        named = [name for declaration in self.declarations.values() if declaration for name in declaration.names()]
        return database_actors(self.conn, tables, named)

    def _able(self, actor: Actor) -> Actor:
        return replace(actor, problem=allow(self.conn, actor.database_role))

    # What

    def _tenant_tables(self) -> dict[str, Table]:
        return catalog.tenant_tables(self.conn, self.declarations)

    def _subjects(
        self, roots: Mapping[str, Table], own: Organization, other: Organization
    ) -> tuple[list[Subject], dict[str, tuple[str, ...]]]:
        """Each table with a row of each organization, and one of the partitions that are alike."""
        maker = RowMaker(self.conn, roots, self.declarations)
        maker.others["tenancy.users"] = {"id": own.owner_id}
        for organization in (own, other):
            enter_as_owner(self.conn, organization)
            for table in in_order_of_references(roots):
                maker.make(table, organization.id)
        subjects = [
            Subject(table, maker.made[name, own.id], maker.made[name, other.id]) for name, table in roots.items()
        ]
        tables = self._tenant_tables()
        alike: dict[str, tuple[str, ...]] = {}
        for partition, others in _groups(catalog.partitions(self.conn, roots).values()):
            rows = []
            for organization in (own, other):
                enter_as_owner(self.conn, organization)
                rows.append(maker.make(roots[partition.root], organization.id, partition.pinned))
            subjects.append(Subject(tables[partition.name], *rows))
            alike[partition.name] = others
        return sorted(subjects, key=lambda subject: subject.table.name), alike

    # What came of it

    def _cells(self, attempts: Attempts, subjects: list[Subject], actors: list[Actor]) -> list[Cell]:
        names = [subject.table.name for subject in subjects]
        privileges = catalog.privileges(self.conn, names, {actor.database_role for actor in actors})
        cells = []
        for actor in actors:
            tried = {} if actor.problem else attempts.of(actor, privileges)
            for name in names:
                may = privileges[actor.database_role, name]
                cells += self._cells_of(actor, name, tried)
                truncated = Tried(Outcome.DONE if may.truncate else Outcome.REFUSED)
                cells.append(self._cell(actor, name, TRUNCATE, Context.OTHER, truncated, declared=may.owns))
        return cells

    def _cells_of(self, actor: Actor, table: str, tried: Mapping[Key, list[Tried]]) -> list[Cell]:
        declaration = self.declarations.get(table)
        cells = []
        for verb in (*VERBS, MOVE):
            for context in Context:
                if actor.problem:
                    outcome = Tried(Outcome.UNPROVED, None, actor.problem)
                elif not (outcomes := tried.get((table, verb, context))):
                    continue
                else:
                    outcome = worst(outcomes)
                if _is_meaningless(declaration, actor, verb, context):
                    continue
                allowed = is_declared(declaration, actor, verb, context)
                cells.append(self._cell(actor, table, verb, context, settle(outcome, verb, allowed), allowed))
        return cells

    def _cell(self, actor: Actor, table: str, verb: str, context: Context, tried: Tried, declared: bool) -> Cell:
        return Cell(table, verb, actor.name, context, tried.outcome, declared, tried.code, tried.message)


def _is_meaningless(declaration: Declared | None, actor: Actor, verb: str, context: Context) -> bool:
    if verb == MOVE:  # who updates everywhere may do it
        return context is not Context.OWN or (
            declaration is not None and actor.declared_as in declaration.everywhere.get("update", ())
        )
    return actor.kind is Kind.STRANGER and context is Context.OWN


def _groups(partitions: Iterable[Partition]) -> list[tuple[Partition, tuple[str, ...]]]:
    """One of those that are alike, and the names of the others."""
    groups: dict[tuple[str, str], list[Partition]] = {}
    for partition in partitions:
        groups.setdefault((partition.root, partition.profile), []).append(partition)
    chosen = []
    for group in groups.values():
        one = next((partition for partition in group if partition.pinned), group[0])
        chosen.append((one, tuple(partition.name for partition in group if partition is not one)))
    return chosen


def _chosen(subjects: list[Subject], alike: Mapping[str, tuple[str, ...]], only: Sequence[str]) -> list[Subject]:
    names = {subject.table.name for subject in subjects}
    if unknown := [name for name in only if name not in names]:
        tried = next((name for name, others in alike.items() if unknown[0] in others), None)
        hint = f"it is tried as {tried}, which is alike" if tried else f"one of {', '.join(sorted(names))}"
        raise MigrationError(f"{unknown[0]} is not among the tenant tables: {hint}")
    return [subject for subject in subjects if not only or subject.table.name in only]

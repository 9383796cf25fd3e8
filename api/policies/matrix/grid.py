"""The cells of a proof, brought into the shape in which they are shown: on a console and on a page alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from api.policies.declared import VERBS
from api.policies.matrix.cells import MOVE, NO_ROW, TRUNCATE, Cell, Context, Outcome
from api.policies.matrix.people import Actor
from api.policies.matrix.proof import Proof

LEGEND = (
    ("s i u d", "may select, insert, update, delete rows of the own organization"),
    ("S I U D", "rows of every organization, or without naming one"),
    ("·", "may not"),
    ("!", "differs from what the header declares"),
    ("?", "could not be tried"),
    ("+5", "and as many partitions that are treated alike"),
    ("T M", "truncate; give a row to another organization: shown only where it can"),
)
CONTEXTS = {
    Context.OWN: "rows of the own organization",
    Context.OTHER: "rows of another one",
    Context.NONE: "no context",
    Context.FORGED: "forged context",
}


@dataclass(frozen=True)
class Mark:
    """A verb, for a role on a table: `text` tells all of it without colour."""

    text: str
    is_allowed: bool
    differs: bool


@dataclass(frozen=True)
class Finding:
    """Cells of a table and verb in which the same came of it."""

    table: str
    verb: str
    contexts: tuple[Context, ...]
    roles: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.table}  {self.verb} ({', '.join(self.contexts)}): {self.text}: {', '.join(self.roles)}"


class Grid:
    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        self._cells: dict[tuple[str, str], list[Cell]] = {}
        for cell in proof.cells:
            self._cells.setdefault((cell.table, cell.role), []).append(cell)

    def marks(self, table: str, role: str, contexts: Iterable[Context] = tuple(Context)) -> Iterator[Mark]:
        """One for each verb; of truncate and move only where there is something to tell."""
        asked = set(contexts)
        for verb in (*VERBS, TRUNCATE, MOVE):
            cells = [cell for cell in self._cells[table, role] if cell.verb == verb and cell.context in asked]
            if cells and (verb in VERBS or any(cell.differs or _is_unproved(cell) for cell in cells)):
                yield _mark(verb, cells)

    def busy_actors(self) -> list[Actor]:
        """Those with something to tell on any table. The others may nothing, and that is as declared."""
        telling = {
            cell.role
            for cell in self.proof.cells
            if cell.differs or _is_unproved(cell) or (cell.outcome.is_allowed and cell.verb in VERBS)
        }
        return [actor for actor in self.proof.actors if actor.name in telling]

    def idle_actors(self) -> list[Actor]:
        busy = self.busy_actors()
        return [actor for actor in self.proof.actors if actor not in busy]

    def name(self, table: str) -> str:
        """With how many partitions it stands for."""
        others = self.proof.alike.get(table, ())
        return f"{table} +{len(others)}" if others else table

    def differences(self) -> list[Finding]:
        """By table and verb; first in which contexts each role differs, then which roles differ alike."""
        contexts: dict[tuple[str, str, str, str], list[Context]] = {}
        for cell in self.proof.differing:
            contexts.setdefault((cell.table, cell.verb, cell.role, _said_of(cell)), []).append(cell.context)
        roles: dict[tuple[str, str, str, tuple[Context, ...]], list[str]] = {}
        for (table, verb, role, said), found in contexts.items():
            roles.setdefault((table, verb, said, tuple(found)), []).append(role)
        return [
            Finding(table, verb, found, tuple(names), said)
            for (table, verb, said, found), names in sorted(roles.items(), key=lambda entry: entry[0][0])
        ]

    def unproved(self) -> list[str]:
        """A line for each reason: on a table for all roles, or for a role on all tables."""
        reasons: dict[str, list[Cell]] = {}
        for cell in self.proof.unproved:
            reasons.setdefault(cell.message or "no reason", []).append(cell)
        return [
            f"{_few({cell.table for cell in cells})} for {_few({cell.role for cell in cells})}: {reason}"
            for reason, cells in reasons.items()
        ]

    def notes(self) -> list[str]:
        """What else a reader has to know."""
        notes = []
        if any(cell.message and cell.message.startswith(NO_ROW) for cell in self.proof.unproved):
            notes.append("say in the header of its file what cannot be guessed: -- a row: (column, …) values (…, …)")
        notes += [
            f"policies/{table}.sql declares nothing: write `-- may select: …` into its header"
            for table in self.proof.silent
        ]
        if not self.proof.files_are_released:
            notes.append("the files here are not those that were released last: the headers compared are those here")
        return [*self.proof.problems, *notes]

    def summary(self) -> str:
        proof = self.proof
        counts = f"{len(proof.cells):,} cells, {len(proof.differing):,} differ, {len(proof.unproved):,} unproved"
        tables = f"{len(proof.tables)} table{'' if len(proof.tables) == 1 else 's'}"
        return f"{counts} ({tables}, {len(proof.actors)} roles, {proof.seconds:.1f} s)"


def _mark(verb: str, cells: list[Cell]) -> Mark:
    allowed = [cell for cell in cells if cell.outcome.is_allowed]
    differs = any(cell.differs for cell in cells)
    if not allowed:
        text = "?" if any(_is_unproved(cell) for cell in cells) else "·"
    elif verb in VERBS and all(cell.context is Context.OWN for cell in allowed):
        text = verb[0]
    else:
        text = verb[0].upper()
    return Mark(f"{text}!" if differs else text, bool(allowed), differs)


def _said_of(cell: Cell) -> str:
    if cell.declared:
        return f"declared, but refused{f': {cell.message}' if cell.message else ''}"
    if cell.outcome is Outcome.STOPPED:
        return f"not declared, stopped only by: {cell.message}"
    return "not declared, done"


def _is_unproved(cell: Cell) -> bool:
    return cell.outcome is Outcome.UNPROVED


def _few(names: set[str], most: int = 4) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")

"""What a statement came to, and whether that is what the header declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from api.policies.declared import EVERY_KEY, EVERY_ROLE, VERBS, Declared
from api.policies.matrix.people import Actor, Kind

TRUNCATE = "truncate"
MOVE = "move"  # an update that gives an own row to the other organization
ALL_VERBS = (*VERBS, TRUNCATE, MOVE)

NO_ROW = "no row could be made"

_TIMEOUTS = ("55P03", "40P01", "40001", "57014")


class Context(StrEnum):
    OWN = "own"
    OTHER = "other"
    NONE = "none"
    FORGED = "forged"


class Outcome(StrEnum):
    """`stopped`: the policies let it through, and a trigger or constraint stopped it."""

    DONE = "done"
    STOPPED = "stopped"
    UNPROVED = "unproved"
    REFUSED = "refused"

    @property
    def is_allowed(self) -> bool:
        return self in (Outcome.DONE, Outcome.STOPPED)


_SEVERITY = (Outcome.REFUSED, Outcome.UNPROVED, Outcome.STOPPED, Outcome.DONE)


@dataclass(frozen=True)
class Tried:
    """How one statement ended."""

    outcome: Outcome
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Cell:
    table: str
    verb: str
    role: str
    context: Context
    outcome: Outcome
    declared: bool
    code: str | None
    message: str | None

    @property
    def differs(self) -> bool:
        return self.outcome is not Outcome.UNPROVED and self.outcome.is_allowed != self.declared


def judge(verb: str, rows: int, code: str | None, message: str | None, in_function: bool) -> Tried:
    """Read what the server answered. It looks at grants first; of an insert it then runs BEFORE triggers, asks the
    policies and looks at constraints; of an update or delete the policies have chosen the rows before any trigger runs.
    """
    if code is None:
        return Tried(Outcome.DONE if rows else Outcome.REFUSED)
    if code in _TIMEOUTS:
        return Tried(Outcome.UNPROVED, code, message)
    if code == "42501" and not in_function:
        return Tried(Outcome.REFUSED, code, message)
    if (code.startswith("22") and not in_function) or verb == "select":
        return Tried(Outcome.REFUSED, code, message)  # a policy that cannot be evaluated shows and lets nothing
    if code.startswith("23"):
        return Tried(Outcome.STOPPED, code, message)
    if not in_function:
        return Tried(Outcome.UNPROVED, code, message)
    if verb == MOVE:
        return Tried(Outcome.REFUSED, code, message)  # the row has not moved, whether a policy or a trigger kept it
    return Tried(Outcome.STOPPED, code, message)


def worst(tried: list[Tried]) -> Tried:
    """Of several ways to ask, the one that got furthest."""
    return max(tried, key=lambda one: _SEVERITY.index(one.outcome))


def settle(tried: Tried, verb: str, declared: bool) -> Tried:
    """A trigger before an insert is asked before the policies are: what it stopped tells nothing of them."""
    if (
        verb == "insert"
        and tried.outcome is Outcome.STOPPED
        and not declared
        and not (tried.code or "").startswith("23")
    ):
        return Tried(Outcome.UNPROVED, tried.code, f"stopped before the policies could be asked: {tried.message}")
    return tried


def is_declared(declaration: Declared | None, actor: Actor, verb: str, context: Context) -> bool:
    if declaration is None or verb not in VERBS:
        return False
    if actor.declared_as in declaration.everywhere.get(verb, ()):
        return True
    names = {actor.declared_as}
    if actor.kind is Kind.ROLE:
        names.add(EVERY_ROLE)
    elif actor.kind is Kind.KEY:
        names.add(EVERY_KEY)
    return context is Context.OWN and not names.isdisjoint(declaration.own.get(verb, frozenset()))


def unknown_names(declarations: Mapping[str, Declared | None], actors: list[Actor]) -> list[str]:
    """Names in headers that are nobody's."""
    known = {actor.declared_as for actor in actors} | {EVERY_ROLE, EVERY_KEY}
    return [
        f"policies/{table}.sql declares {name}, which is no role, no scope and no role of the database"
        for table, declaration in sorted(declarations.items())
        if declaration
        for name in sorted(declaration.names() - known)
    ]

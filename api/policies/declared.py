"""What the header of a policy file declares: who may do what. `goldleaves policies matrix` proves it.

    -- may select: owner, admin, data:read; platform_admin everywhere
    -- may delete: owner
    -- a row: (title, due_on) values ('x', '2030-01-01')

Names are roles inside an organization, scopes of API keys, and database roles; `every_role` and `every_key` are all of
the first and of the second, also those that come later. They may do it with rows of the organization that they act for;
those behind a semicolon, which end in `everywhere`, with rows of all organizations and without naming one. A verb that
is not there is nobody's.

To try, the matrix makes rows with values that it guesses from types and constraints. `a row` says those that it cannot
guess: the columns named, each an SQL expression. It is written on one line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from api.release.errors import MigrationError

VERBS = ("select", "insert", "update", "delete")
EVERY_ROLE = "every_role"
EVERY_KEY = "every_key"

_LINE = re.compile(r"--\s*may\s+(\w+)\s*:\s*(.*)")
_ROW = re.compile(r"--\s*a row\s*:\s*\((?P<columns>[^()]+)\)\s*values\s*\((?P<values>.+)\)\s*;?", re.IGNORECASE)
_LOOKS_LIKE_A_ROW = re.compile(r"--\s*a row\s*:", re.IGNORECASE)
_NAME = re.compile(r"[a-z_][a-z0-9_:]*")
_EVERYWHERE = " everywhere"


@dataclass(frozen=True)
class RowValues:
    """Columns of a row to make, and their values as one list of SQL expressions."""

    columns: tuple[str, ...]
    expressions: str


@dataclass(frozen=True)
class Declared:
    """By verb, who may do it with the rows of their organization, and who with those of all organizations."""

    own: Mapping[str, frozenset[str]] = field(default_factory=dict)
    everywhere: Mapping[str, frozenset[str]] = field(default_factory=dict)
    row: RowValues | None = None

    def names(self) -> frozenset[str]:
        """Everybody who is declared to be allowed anything."""
        return frozenset().union(*self.own.values(), *self.everywhere.values())


def declared(path: str, text: str) -> Declared | None:
    """Read the comments that a policy file begins with. None when they declare nothing.

    Raises MigrationError naming the line that cannot be understood.
    """
    own: dict[str, frozenset[str]] = {}
    everywhere: dict[str, frozenset[str]] = {}
    row: RowValues | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("--"):
            break
        if _LOOKS_LIKE_A_ROW.match(line):
            row = _row(f"{path}:{number}", line.strip())
        if not (found := _LINE.fullmatch(line.strip())):
            continue
        verb, names = found[1], found[2]
        if verb not in VERBS or verb in own:
            problem = "is declared twice" if verb in own else f"is not one of {', '.join(VERBS)}"
            raise MigrationError(f"{path}:{number}: {verb} {problem}")
        own[verb], everywhere[verb] = _who(f"{path}:{number}", names)
    return Declared(own, everywhere, row) if own or row else None


def _who(where: str, text: str) -> tuple[frozenset[str], frozenset[str]]:
    own: set[str] = set()
    everywhere: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        target = everywhere if part.endswith(_EVERYWHERE) else own
        names = [name.strip() for name in part.removesuffix(_EVERYWHERE).split(",")]
        for name in names:
            if not _NAME.fullmatch(name):
                raise MigrationError(f"{where}: {name!r} is no name of a role or scope")
        target.update(names)
    return frozenset(own - {"nobody"}), frozenset(everywhere)


def _row(where: str, line: str) -> RowValues:
    if not (found := _ROW.fullmatch(line)):
        raise MigrationError(f"{where}: a row is written on one line: -- a row: (column, …) values (expression, …)")
    return RowValues(tuple(column.strip().strip('"') for column in found["columns"].split(",")), found["values"])

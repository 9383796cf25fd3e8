"""What the header of a policy file declares: who may do what. `goldleaves policies matrix` proves it.

    -- may select: owner, admin, data:read; platform_admin everywhere
    -- may delete: owner

Names are roles inside an organization, scopes of API keys, and database roles. They may do it with rows of the
organization that they act for; those behind a semicolon, which end in `everywhere`, with rows of all organizations and
without naming one. A verb that is not there is nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from api.release.errors import MigrationError

VERBS = ("select", "insert", "update", "delete")

_LINE = re.compile(r"--\s*may\s+(\w+)\s*:\s*(.*)")
_NAME = re.compile(r"[a-z_][a-z0-9_:]*")
_EVERYWHERE = " everywhere"


@dataclass(frozen=True)
class Declared:
    """By verb, who may do it with the rows of their organization, and who with those of all organizations."""

    own: Mapping[str, frozenset[str]] = field(default_factory=dict)
    everywhere: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        """Everybody who is declared to be allowed anything."""
        return frozenset().union(*self.own.values(), *self.everywhere.values())


def declared(path: str, text: str) -> Declared | None:
    """Read the comments that a policy file begins with. None when they declare nothing.

    Raises MigrationError naming the line that cannot be understood.
    """
    own: dict[str, frozenset[str]] = {}
    everywhere: dict[str, frozenset[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("--"):
            break
        if not (found := _LINE.fullmatch(line.strip())):
            continue
        verb, names = found[1], found[2]
        if verb not in VERBS or verb in own:
            problem = "is declared twice" if verb in own else f"is not one of {', '.join(VERBS)}"
            raise MigrationError(f"{path}:{number}: {verb} {problem}")
        own[verb], everywhere[verb] = _who(f"{path}:{number}", names)
    return Declared(own, everywhere) if own else None


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

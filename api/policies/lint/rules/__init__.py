"""The rules, each a file beside this one: a comment and a query.

    -- What is wrong, in a line: the title.
    -- Why: why that matters, which may go on
    -- over several lines.
    -- Level: error | warning
    select … as class, … as id, … as object, … as what, … as mend from …

The query reads from the words of vocabulary.sql and yields a row for each finding: the catalog (`'pg_class'::regclass`)
and oid of the object, whose comment may exempt it; its name; a sentence of what is wrong with it; the statements that
mend it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from api.release.errors import MigrationError

Level = Literal["error", "warning"]

_HEADER = re.compile(r"(?P<title>.+?) Why: (?P<why>.+) Level: (?P<level>\w+)")


@dataclass(frozen=True)
class Rule:
    name: str
    level: Level
    title: str
    why: str
    query: str


@cache
def catalogue() -> tuple[Rule, ...]:
    """All rules, errors first, then by name."""
    found = [_read(path) for path in Path(__file__).parent.glob("*.sql")]
    return tuple(sorted(found, key=lambda rule: (rule.level, rule.name)))


def named(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of these names, all of them when none is given. Raises MigrationError for one that does not exist."""
    wanted = set(names)
    if unknown := wanted - {rule.name for rule in catalogue()}:
        raise MigrationError(
            f"There is no rule {', '.join(sorted(unknown))}. `goldleaves policies lint --list` shows them."
        )
    return tuple(rule for rule in catalogue() if not wanted or rule.name in wanted)


def _read(path: Path) -> Rule:
    lines = path.read_text().splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    header = _HEADER.fullmatch(" ".join(line.removeprefix("--").strip() for line in lines[:length]))
    if header is None or header["level"] not in get_args(Level):
        raise MigrationError(f"{path}: the comment has to say a title, `Why:` and `Level: error` or `warning`")
    level: Level = "error" if header["level"] == "error" else "warning"
    return Rule(path.stem, level, header["title"], header["why"], "\n".join(lines[length:]).rstrip(";\n "))

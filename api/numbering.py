"""The numbers of an adopter's migrations."""

from __future__ import annotations

from pathlib import Path

FIRST_NUMBER = 9001  # so that they come after those of every later version


def next_number(root: Path) -> int:
    """The first number from 9001 on that no migration has, and none before it lacks."""
    numbers = (path.name.partition("_")[0] for path in (root / "migrations").glob("*.sql"))
    return max([FIRST_NUMBER - 1, *(int(number) for number in numbers if number.isdigit())]) + 1

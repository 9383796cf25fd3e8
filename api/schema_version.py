"""Whether the database's migrations are those that this code was written for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from api.settings import PROJECT


@cache  # read once: later there may be no descriptor left to read them with
def known_migrations() -> frozenset[str]:
    """The ids of the migrations of this code."""
    paths = (PROJECT / "migrations").glob("*.sql")
    return frozenset(path.stem for path in paths if not path.name.endswith(".rollback.sql"))


@dataclass(frozen=True)
class SchemaDifference:
    """Migrations that the database lacks, and those that it has and this code does not know. Oldest first."""

    pending: tuple[str, ...]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.pending or self.unknown)

    def __str__(self) -> str:
        """One line: what is wrong, and what mends it."""
        if self.unknown:
            return (
                f"The database is newer than this code, which does not know {', '.join(self.unknown)}. Deploy the "
                f"version that does, or there run `goldleaves rollback {_rollback_to()}`."
            )
        return f"The database is older than this code: {', '.join(self.pending)} pending. Run `goldleaves migrate`."


def compare(applied: Iterable[str]) -> SchemaDifference:
    known, there = known_migrations(), frozenset(applied)
    return SchemaDifference(tuple(sorted(known - there)), tuple(sorted(there - known)))


def _rollback_to() -> str:
    """How the newer version comes back to what this one knows."""
    newest = max(known_migrations(), default=None)
    return f"--to {newest.partition('_')[0]}" if newest else "--all"

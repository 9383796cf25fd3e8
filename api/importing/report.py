"""What an import has done, as it is printed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MOST_SHOWN = 20


@dataclass(slots=True)
class Report:
    dry_run: bool
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # what was counted, a kind of row each
    conflicts: list[str] = field(default_factory=list)
    rejected_to: Path | None = None

    @property
    def is_clean(self) -> bool:
        """Whether every row is in the database as the files say."""
        return not self.conflicts and self.rejected_to is None

    def count(self, kind: str, outcome: str, number: int = 1) -> None:
        if number:
            self.counts.setdefault(kind, Counter())[outcome] += number

    def lines(self) -> list[str]:
        lines = [
            f"{kind}: {', '.join(f'{number:,} {outcome}' for outcome, number in sorted(counter.items()))}"
            for kind, counter in self.counts.items()
        ]
        lines += self.conflicts[:MOST_SHOWN]
        if len(self.conflicts) > MOST_SHOWN:
            lines.append(f"… and {len(self.conflicts) - MOST_SHOWN:,} more that differ from what is there.")
        if self.rejected_to is not None:
            lines.append(f"What was rejected, and why: {self.rejected_to}")
        if self.dry_run:
            lines.append("This was a dry run: the database is as it was.")
        return lines

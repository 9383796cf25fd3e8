"""Tell a waiting person what is being done: a spinner and seconds on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from api.migrations import MigrationReport, RollbackReport


def describe(report: MigrationReport | RollbackReport) -> str:
    """What a migrate or a rollback did, in a few words."""
    if isinstance(report, MigrationReport):
        changes = [("migration", "applied", report.applied), ("file", "loaded", report.loaded)]
        changes.append(("object", "dropped", report.dropped))
    else:
        changes = [("migration", "rolled back", report.rolled_back), ("file", "loaded", report.loaded)]
    return ", ".join(_count(noun, verb, len(items)) for noun, verb, items in changes if items) or "up to date"


def _count(noun: str, verb: str, number: int) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'} {verb}"


@dataclass
class Step:
    """A step under way. Set `outcome` to say more than that it is done."""

    outcome: str = ""


class Progress:
    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(quiet=True)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show the step while the block runs, then what came of it. A failed step is marked and raises on."""
        step = Step()
        started = time.monotonic()
        try:
            with self._console.status(f"{title} …"):
                yield step
        except BaseException:
            self._console.print(f"  [red]✗[/red] {title}", highlight=False)
            raise
        seconds = f"{time.monotonic() - started:.1f} s"
        self._console.print(
            f"  [green]✓[/green] {title:<14} {step.outcome:<36} [dim]{seconds:>6}[/dim]", highlight=False
        )

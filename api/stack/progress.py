"""Tell a waiting person what is being done: a spinner and seconds on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console


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
        line = f"  [green]✓[/green] {title:<16} [dim]{seconds:>6}[/dim]  {step.outcome}"
        self._console.print(line.rstrip(), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something that a person should know of, on a line of its own."""
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

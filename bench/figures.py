"""What a benchmark ends with: a row of a table, and where those tables are kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from api.settings import PROJECT

PERFORMANCE: Final = PROJECT / "docs" / "performance.md"
COLUMNS: Final = ("what", "ours", "reference", "ratio", "budget")


@dataclass(frozen=True)
class Budget:
    text: str
    met: bool

    def __str__(self) -> str:
        return f"{self.text}: {'met' if self.met else '**missed**'}"


@dataclass(frozen=True)
class Figure:
    """`reference` is what ours is compared with, and its figure; `ratio` has both where there is one."""

    what: str
    ours: str
    reference: str = ""
    ratio: str = ""
    budgets: tuple[Budget, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        return self.what, self.ours, self.reference, self.ratio, "; ".join(str(budget) for budget in self.budgets)

    @property
    def is_met(self) -> bool:
        return all(budget.met for budget in self.budgets)


def at_least(unit: str, figure: float, budget: float) -> Budget:
    return Budget(f"≥ {budget:,g}{unit}", figure >= budget)


def at_most(unit: str, figure: float, budget: float) -> Budget:
    return Budget(f"≤ {budget:,g}{unit}", figure <= budget)


def keep(name: str, heading: str, figures: Sequence[Figure]) -> None:
    """Put the table of a benchmark between its markers in docs/performance.md. Raises ValueError where it has none."""
    text = PERFORMANCE.read_text(encoding="utf-8")
    begins, ends = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if text.count(begins) != 1 or text.count(ends) != 1:
        raise ValueError(f"{PERFORMANCE} has no place for the figures of {name}: {begins.strip()} {ends.strip()}")
    pattern = re.compile(f"{re.escape(begins)}.*?{re.escape(ends)}", re.DOTALL)
    table = f"{begins}{heading}\n\n{markdown(figures)}\n{ends}"
    PERFORMANCE.write_text(pattern.sub(lambda _: table, text), encoding="utf-8")


def markdown(figures: Iterable[Figure]) -> str:
    rows = (COLUMNS, ("---",) * len(COLUMNS), *(figure.cells for figure in figures))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def print_figures(figures: Iterable[Figure]) -> None:
    """For a benchmark that is run by itself: what it found is not kept."""
    print(f"\n{markdown(figures)}")

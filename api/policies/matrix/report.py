"""A proof on the console, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.policies.matrix.cells import Context
from api.policies.matrix.grid import CONTEXTS, LEGEND, Grid, Mark
from api.policies.matrix.proof import Proof

_WIDTH = 120


def as_json(proof: Proof, *, only_differences: bool) -> dict[str, Any]:
    cells = [*proof.differing, *proof.unproved] if only_differences else proof.cells
    return {
        "holds": proof.holds,
        "made_at": proof.made_at.isoformat(),
        "seconds": round(proof.seconds, 3),
        "server": asdict(proof.server),
        "files_are_released": proof.files_are_released,
        "tables": list(proof.tables),
        "partitions_alike": proof.alike,
        "roles": [{"name": actor.name, "kind": actor.kind.value} for actor in proof.actors],
        "declare_nothing": list(proof.silent),
        "problems": list(proof.problems),
        "summary": {
            "cells": len(proof.cells),
            "differ": len(proof.differing),
            "unproved": len(proof.unproved),
        },
        "cells": [{**asdict(cell), "differs": cell.differs} for cell in cells],
    }


def show(console: Console, proof: Proof, *, in_detail: bool, only_differences: bool) -> None:
    """One grid of all tables, or in detail one of each; then what differs, what is unproved, and the sum."""
    grid = Grid(proof)
    wide = Console(width=max(console.width, _WIDTH))  # also where there is no terminal
    if not only_differences:
        tables = [_detail(grid, table) for table in proof.tables] if in_detail else _overview(grid)
        for table in tables:
            wide.print(table)
            wide.print()
        _lines(console, (f"{sign:<8} {meaning}" for sign, meaning in LEGEND))
        if not in_detail and (idle := grid.idle_actors()):
            _lines(console, ["", f"Nothing anywhere, as declared: {', '.join(actor.name for actor in idle)}"])
        console.print()
    for finding in grid.differences():
        console.print(Text(str(finding), style="bold"), soft_wrap=True)
    _lines(console, (f"unproved: {line}" for line in grid.unproved()))
    _lines(console, grid.notes())
    console.print(Text(grid.summary(), style="green" if proof.holds else "bold red"), soft_wrap=True)


def _overview(grid: Grid) -> Iterator[Table]:
    """All tables and roles; when the roles do not fit beside each other, some of them below the others."""
    columns = [
        (_broken(actor.name), [_text(grid.marks(table, actor.name)) for table in grid.proof.tables])
        for actor in grid.busy_actors()
    ]
    names = [grid.name(table) for table in grid.proof.tables]
    room = _WIDTH - max(map(len, names), default=0) - 1
    while columns:
        widths = accumulate(max(*map(len, head.split("\n")), *map(len, cells)) + 1 for head, cells in columns)
        fitting = max(1, sum(width <= room for width in widths))
        table = _grid(*(head for head, _ in columns[:fitting]))
        for row, name in enumerate(names):
            table.add_row(name, *(cells[row] for _, cells in columns[:fitting]))
        yield table
        columns = columns[fitting:]


def _detail(grid: Grid, name: str) -> Table:
    table = _grid(*CONTEXTS.values())
    table.title, table.title_justify = grid.name(name), "left"
    for actor in grid.proof.actors:
        table.add_row(actor.name, *(_text(grid.marks(name, actor.name, [context])) for context in Context))
    return table


def _grid(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _broken(name: str) -> str:
    """On two lines, since the cells below are four letters wide."""
    return name.replace(":", ":\n", 1).replace("_", "_\n", 1)


def _text(marks: Iterable[Mark]) -> Text:
    text = Text()
    for mark in marks:
        text.append(mark.text, ("bold " if mark.differs else "") + ("green" if mark.is_allowed else "red"))
    return text


def _lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

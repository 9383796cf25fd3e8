"""How the story is printed: scenes, tables, lines that can be copied, and money as people write it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def scene(console: Console, number: int, title: str) -> None:
    console.print()
    console.rule(Text(f"{number}. {title}"), align="left")


def copyable(console: Console, line: str) -> None:
    """One line whatever the width, so that it can be copied."""
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def table_of(*columns: str, **options: Any) -> Table:
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        **options,
    )


def message_of(entry: dict[str, str]) -> str:
    return f"{entry['code']}: {entry['message']}"


def exact(number: float) -> Decimal:
    """The number that was sent: JSON knows decimals only."""
    return Decimal(str(number))


def money(cents: float | None) -> str:
    """Dollars, or cents where there are fractions of them, as a price may have."""
    if cents is None:
        return ""
    if cents < 0:
        return f"-{money(-cents)}"
    return f"${cents / 100:,.2f}" if cents == int(cents) else f"{exact(cents):,f}¢"


def short(text: str) -> str:
    """The end of an id, which is where UUIDv7s differ."""
    return f"…{text[-8:]}" if len(text) > 9 else text


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

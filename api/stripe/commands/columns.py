"""Rows in columns, as they are: they may be piped, and what Stripe said does nothing to a terminal."""

from __future__ import annotations

from collections.abc import Iterator


def aligned(*rows: tuple[str, ...]) -> Iterator[str]:
    plain = [tuple("".join(c if c.isprintable() else " " for c in cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in plain) for column in range(len(plain[0]))]
    for row in plain:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

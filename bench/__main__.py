"""`python -m bench [NAME …]`: the benchmarks one after the other, their table, and docs/performance.md. `make bench`.

One that fails costs no other. Exit code 1 when one failed; a missed budget is no failure, but a line of the table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from bench import (
    closing,
    entitlements,
    events,
    gateway,
    lag,
    proof,
    rls,
    stripe_reports,
    stripe_webhooks,
    summary,
    triggers,
)
from bench.figures import COLUMNS, Figure, keep
from bench.stack import when_and_where

BENCHMARKS: Final[dict[str, Callable[[], Sequence[Figure]]]] = {
    "bench.gateway": gateway.measure,
    "bench.events": events.measure,
    "bench.summary": summary.measure,
    "bench.lag": lag.measure,
    "bench.triggers": triggers.measure,
    "bench.closing": closing.measure,
    "bench.proof": proof.measure,
    "bench.entitlements": entitlements.measure,
    "bench.stripe_webhooks": stripe_webhooks.measure,
    "bench.stripe_reports": stripe_reports.measure,
    "bench.rls": rls.measure,
}


def main() -> int:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        print(f"There is no {unknown[0]}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 1
    failed, console = [], Console(width=160, highlight=False)
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    started = time.monotonic()
    for name in chosen:
        print(f"\n== python -m {name}", flush=True)
        try:
            figures = BENCHMARKS[name]()
            keep(name, f"`python -m {name}`, {when_and_where()}", figures)
        except Exception as error:
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        for figure in figures:
            table.add_row(*(cell.replace("**", "") for cell in figure.cells), style=None if figure.is_met else "red")
    console.print()
    console.print(table)
    print(f"\n{time.monotonic() - started:.0f} s. docs/performance.md has these figures.")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

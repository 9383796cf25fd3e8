"""Failures on demand: which calls fail, how, how often, and whether before or after the work was done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

KINDS: Final = ("status", "hang", "close", "slow", "duplicate")
WHEN: Final = ("before", "after")


@dataclass
class Fault:
    """`path`: how the path of a call begins. `times`: for so many calls; None: until it is taken away.

    status: answers that, with `retry_after` seconds if given. hang: never answers. close: hangs up. slow: takes
    `milliseconds` longer. duplicate: as if the identifier of a meter event had been there before. `when` after: the
    work is done, and its answer is lost.
    """

    kind: str
    path: str = "/"
    method: str | None = None
    times: int | None = 1
    when: str = "before"
    status: int = 500
    code: str | None = None
    retry_after: int | None = None
    milliseconds: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.when not in WHEN:
            raise ValueError(f"a fault is one of {', '.join(KINDS)}, {' or '.join(WHEN)}")


@dataclass
class Faults:
    planned: list[Fault] = field(default_factory=list)

    def plan(self, **members: Any) -> None:
        self.planned.append(Fault(**members))

    def take(self, method: str, path: str) -> list[Fault]:
        """Those that this call meets: all that are slow, and the first of the others."""
        met: list[Fault] = []
        for fault in list(self.planned):
            if not path.startswith(fault.path) or fault.method not in (None, method):
                continue
            if fault.kind != "slow" and any(other.kind != "slow" for other in met):
                continue
            met.append(fault)
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self.planned.remove(fault)
        return met

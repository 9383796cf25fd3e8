"""What the stand-in knows: objects by kind and key. With a file, it knows it also after it was killed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Json = dict[str, Any]


class Store:
    """Each kind in the order in which its keys were first put. A line of the file is what was put, or removed."""

    def __init__(self, file: Path | None = None) -> None:
        self._kinds: dict[str, dict[str, Json]] = {}
        self._changes: Counter[str] = Counter()
        self._journal: TextIO | None = None
        if file is not None:
            if file.exists():
                self._read(file)
            self._journal = file.open("a")

    def put(self, kind: str, key: str, value: Json) -> Json:
        self._kinds.setdefault(kind, {})[key] = value
        self._write(kind, key, value)
        return value

    def get(self, kind: str, key: str) -> Json | None:
        return self._kinds.get(kind, {}).get(key)

    def all(self, kind: str) -> Iterator[Json]:
        return iter(list(self._kinds.get(kind, {}).values()))

    def items(self, kind: str) -> Iterator[tuple[str, Json]]:
        return iter(list(self._kinds.get(kind, {}).items()))

    def changes(self, kind: str) -> int:
        """How often something of that kind was put or removed."""
        return self._changes[kind]

    def remove(self, kind: str, key: str) -> Json | None:
        found = self._kinds.get(kind, {}).pop(key, None)
        if found is not None:
            self._write(kind, key, None)
        return found

    def clear(self) -> None:
        for kind, objects in self._kinds.items():
            for key in objects:
                self._write(kind, key, None)
        self._kinds.clear()

    def _read(self, file: Path) -> None:
        with file.open() as lines:
            for line in lines:
                if not line.endswith("\n"):  # it was killed while it wrote that
                    break
                kind, key, value = json.loads(line)
                if value is None:
                    self._kinds.get(kind, {}).pop(key, None)
                else:
                    self._kinds.setdefault(kind, {})[key] = value

    def _write(self, kind: str, key: str, value: Json | None) -> None:
        self._changes[kind] += 1
        if self._journal is not None:
            self._journal.write(json.dumps([kind, key, value]) + "\n")
            self._journal.flush()

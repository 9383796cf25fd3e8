"""The files that `goldleaves dev` watches, as they are at one moment.

Only contents count. An editor's draft, its backup, and a file that was saved unchanged are no changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDERS: Final = ("sql", "policies", "migrations", "api")
_SUFFIXES: Final = {"sql": (".sql",), "policies": (".sql",), "migrations": (".sql", ".py"), "api": (".py",)}


@dataclass(frozen=True)
class Sources:
    """Paths relative to the project, with what is in them."""

    files: Mapping[str, bytes]

    @classmethod
    def read(cls, root: Path) -> Sources:
        """Waits for nobody: a file that an editor is replacing at this moment is missing, until the next look."""
        files = {}
        for folder in FOLDERS:
            for path in sorted((root / folder).rglob("*")):
                if path.suffix in _SUFFIXES[folder] and not path.name.startswith("."):
                    try:
                        files[path.relative_to(root).as_posix()] = path.read_bytes()
                    except OSError:
                        continue
        return cls(files)

    def changed_since(self, before: Sources) -> list[str]:
        """What was added, edited or removed."""
        paths = {*self.files, *before.files}
        return sorted(path for path in paths if self.files.get(path) != before.files.get(path))

    def is_empty(self, path: str) -> bool:
        """There, but with nothing in it: a draft, or the first half of a save that truncates before it writes."""
        return path in self.files and not self.files[path].strip()

    def line(self, path: str, number: int) -> str | None:
        """That line of the file, counted from 1."""
        lines = self.files.get(path, b"").decode("utf-8", "replace").splitlines()
        return lines[number - 1].rstrip() if 0 < number <= len(lines) else None

"""plan.json for files: what is to be created, as data that a person can read, keep, and apply elsewhere.

    {"kind": "files", "version": 1, "actions": [
      {"action": "create", "path": "policies/app.tasks.sql", "content": "…"}]}

Paths are relative to the project and lie in one of FOLDERS.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from api.release import MigrationError

FOLDERS = ("migrations", "sql", "policies", "tests", "docs")


def _is_a_place_of_ours(path: str) -> str:
    if PurePosixPath(path).is_absolute() or "\\" in path or ":" in path:
        raise ValueError("is not relative to the project")
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("has a part that is empty, . or ..")
    if not path.isprintable():
        raise ValueError("holds characters that cannot be seen")
    if len(parts) < 2 or parts[0] not in FOLDERS:
        raise ValueError(f"lies outside of {'/, '.join(FOLDERS)}/")
    return path


class CreateFile(BaseModel):
    """A file that is to be there, with exactly this content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["create"] = "create"
    path: Annotated[str, AfterValidator(_is_a_place_of_ours)]
    content: str


class FilesPlan(BaseModel):
    """Files to create. Applying it twice is the same as once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["files"] = "files"
    version: Literal[1] = 1
    actions: tuple[CreateFile, ...]

    @model_validator(mode="after")
    def _names_each_path_once(self) -> FilesPlan:
        paths = [action.path for action in self.actions]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"names {', '.join(twice)} more than once")
        return self


def plan_of(files: dict[str, str]) -> FilesPlan:
    """A plan that creates these: paths with their contents."""
    return FilesPlan(actions=tuple(CreateFile(path=path, content=content) for path, content in files.items()))


def read_plan(path: Path) -> FilesPlan:
    """Raises MigrationError, in one line, when the file holds no plan for files."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MigrationError(f"{path}: this is no JSON: {error}") from error
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind == "policies":
        raise MigrationError(f"{path}: a plan for policies: apply it with `goldleaves policies apply`")
    if kind != "files":
        raise MigrationError(f'{path}: this is no plan for files: expected "kind": "files", got {json.dumps(kind)}')
    try:
        return FilesPlan.model_validate(found)
    except ValidationError as error:
        raise MigrationError(f"{path}: {'; '.join(map(_problem, error.errors()[:3]))}") from error


def write_plan(path: Path, plan: FilesPlan) -> None:
    """An earlier plan in that file is replaced, and nothing else. Raises MigrationError when it is something else."""
    if path.exists():
        _require_a_plan(path)
    path.write_text(plan.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _require_a_plan(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "kind" not in found:
        raise MigrationError(f"{path} is there and is no plan: name another file with --plan")


def _problem(found: ErrorDetails) -> str:
    where = ".".join(map(str, found["loc"]))
    said = str(found["msg"]).removeprefix("Value error, ")
    value = f" {found['input']!r}" if isinstance(found["input"], str) and len(found["input"]) < 200 else ""
    return f"{where}:{value} {said}" if where else said

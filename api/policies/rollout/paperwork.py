"""The files that a plan leaves for people and scripts: plan.json, conflicts.json, and what is live beside the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from api.policies.rollout.plan import Conflict, Plan
from api.release.errors import MigrationError

PLAN = "plan.json"
CONFLICTS = "conflicts.json"


def refuse_others_plan(path: Path) -> None:
    """Raise MigrationError when something else lies there than the last plan: of policies, or of a scaffold."""
    if path.is_file() and path.stat().st_size and not _is_plan(path):
        raise MigrationError(f"{path} is no plan of ours, and is not overwritten: move it, or name another with --out")


def refuse_others_conflicts(path: Path) -> None:
    """Raise MigrationError when something else lies there: it would be overwritten, or removed."""
    if path.exists() and _listed(path) is None:
        raise MigrationError(f"{path} lists no conflicts of policies, and is not overwritten: move it away")


def _is_plan(path: Path) -> bool:
    found = _json(path)
    return isinstance(found, dict) and found.get("kind") in ("policies", "files")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError):
        return None


def write_plan(plan: Plan, path: Path) -> None:
    path.write_text(plan.as_json(), encoding="utf-8")


def write_conflicts(conflicts: Iterable[Conflict], root: Path, path: Path) -> list[Path]:
    """Write each live definition beside its file, and the list of all. Without conflicts both go, if they are there.

    What lies at a `.new` path is written anew: it is a copy of what is live. Returns the `.new` files.
    """
    found = list(conflicts)
    texts = _texts(found)
    for stale in (_listed(path) or set()) - texts.keys():
        (root / stale).unlink(missing_ok=True)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    if found:
        path.write_text(json.dumps([each.as_json() for each in found], indent=2) + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)
    return [root / name for name in texts]


def _texts(conflicts: list[Conflict]) -> dict[str, str]:
    """By path: several things that one file makes may have been changed."""
    parts: dict[str, list[str]] = {}
    for each in conflicts:
        told = "\n".join(f"-- {line}" for line in (f"{each.unit}, as it is live.", *each.says))
        parts.setdefault(each.new, []).append(f"{told}\n{each.definition or '-- It is gone.' + chr(10)}")
    return {path: "\n".join(texts) for path, texts in parts.items()}


def _listed(path: Path) -> set[str] | None:
    """The `.new` files of the last conflicts.json. None when it is not one of ours."""
    found = _json(path)
    if not isinstance(found, list):
        return None
    names = [each.get("new") if isinstance(each, dict) else None for each in found]
    return {name for name in names if name is not None} if all(map(_is_ours, names)) else None


def _is_ours(name: object) -> bool:
    """Whether a conflict may have been written there: beside a file of ours, and nowhere else."""
    return (
        isinstance(name, str)
        and name.endswith(".new")
        and name.startswith(("policies/", "sql/"))
        and ".." not in name.split("/")
    )

"""The files that a plan leaves for people and scripts: plan.json, conflicts.json, and what is live beside the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from api.policies.rollout.plan import Conflict, Plan

PLAN = "plan.json"
CONFLICTS = "conflicts.json"


def write_plan(plan: Plan, path: Path) -> None:
    path.write_text(plan.as_json(), encoding="utf-8")


def write_conflicts(conflicts: Iterable[Conflict], root: Path, path: Path) -> list[Path]:
    """Write each live definition beside its file, and the list of all. Without conflicts both go, if they are there.

    What lies at a `.new` path is written anew: it is a copy of what is live. Returns the `.new` files.
    """
    found = list(conflicts)
    texts = _texts(found)
    for stale in _listed_before(path) - texts.keys():
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


def _listed_before(path: Path) -> set[str]:
    """The `.new` files of the last conflicts.json, as far as it is one of ours."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {each["new"] for each in listed if each["new"].endswith(".new")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()

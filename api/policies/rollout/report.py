"""Plans, drift and releases in words, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from api.command_line import console, say
from api.policies.rollout.history import PolicyRelease
from api.policies.rollout.plan import CHANGE, CONFLICT, CREATE, DROP, Plan
from api.release.drift import Drift

_SIGNS = {CREATE: ("+", "green"), CHANGE: ("~", "yellow"), DROP: ("-", "red"), CONFLICT: ("!", "bold red")}
_BLOCKS = {
    "AccessExclusiveLock": "nobody reads or writes it meanwhile",
    "ShareRowExclusiveLock": "nobody writes it meanwhile",
    "ShareLock": "nobody writes it meanwhile",
}


def print_plan(plan: Plan, *, applied: bool, written: Iterable[Path] = ()) -> None:
    """What it does or did, a unit after the other, and one sentence that sums it up. `written` are the `.new` files."""
    for unit, actions in groupby(plan.actions, key=attrgetter("unit")):
        listed = list(actions)
        where = listed[0].file or "no file"
        _line(Text.assemble((unit, "bold"), f"  {where}" if where != unit else ""))
        for action in listed:
            sign, style = _SIGNS[action.action]
            _line(Text.assemble("  ", (f"{sign} ", style), action.says))
    for unit in plan.taken_over:
        say(f"{unit}  is as it shall be: only recorded")
    if plan.conflicts:
        _print_conflicts(plan, written=written)
    if plan.findings:
        say(f"\nLint, once this {'is' if applied else 'would be'} applied (goldleaves policies lint says more):")
        for finding in plan.findings:
            _line(Text.assemble("  ", ("! ", "bold red"), f"{finding.rule}: {finding.what}"))
    if plan.locks and not applied:
        say("\nLocks while it is applied:")
        for lock in plan.locks:
            say(f"  {lock.relation}  {lock.mode}{f' ({_BLOCKS[lock.mode]})' if lock.mode in _BLOCKS else ''}")
    if plan.unloaded:
        say(f"\nNot part of this: {len(plan.unloaded)} changed files of sql/, which goldleaves migrate brings.")
    if plan.actions:
        say("")
    did_something = applied and (plan.taken_over or any(action.action != CONFLICT for action in plan.actions))
    say(f"{_sum(plan)} {'Applied.' if did_something else 'Nothing was changed.'}")


def _sum(plan: Plan) -> str:
    counts = [(CREATE, "to create"), (CHANGE, "to change"), (DROP, "to drop")]
    parts = [f"{plan.count(action)} {words}" for action, words in counts if plan.count(action)]
    if number := len(plan.conflicts):
        parts.append(f"{number} conflict{'' if number == 1 else 's'}")
    return f"{plan.database}: {', '.join(parts) or 'as the files say'}."


def _print_conflicts(plan: Plan, *, written: Iterable[Path]) -> None:
    say("\nChanged by hand since the last release, and left alone. Say what counts, by name:")
    name = plan.conflicts[0].unit
    name = f"'{name}'" if " " in name else name
    say(f"  goldleaves policies apply --apply --overwrite {name}      what the file says, or what was released")
    say(f"  goldleaves policies apply --apply --accept-live {name}    what is live now")
    for path in written:
        say(f"What is live: {path}")


def print_drift(found: Mapping[str, Drift]) -> None:
    for each in found.values():
        _line(Text.assemble(("! ", "bold red"), str(each)))
    things = "thing was" if len(found) == 1 else "things were"
    say(f"\n{len(found)} {things} changed by hand since the last release. goldleaves policies apply resolves that.")


def print_releases(releases: Iterable[PolicyRelease]) -> None:
    table = Table("release", "when (UTC)", "by", "revision", "changed", box=None, pad_edge=False, header_style="bold")
    for each in reversed(list(releases)):
        changed = ", ".join(path.removeprefix("policies/").removesuffix(".sql") for path in each.changed[:4])
        more = f" and {len(each.changed) - 4} more" if len(each.changed) > 4 else ""
        back = f"back to {each.restores}: " if each.restores else ""
        when = each.released_at.strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(str(each.id), when, each.operator or "", _short(each.git_revision), f"{back}{changed}{more}")
    console.print(table)


def _short(revision: str | None) -> str:
    """As git abbreviates it; `-dirty` stays, since such files are in no commit."""
    commit, dirty, _ = (revision or "").partition("-dirty")
    return commit[:12] + dirty


def _line(text: Text) -> None:
    console.print(text, highlight=False, soft_wrap=True)

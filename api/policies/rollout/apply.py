"""Bring the files of `policies/` to the live database, or go back to the release before."""

from __future__ import annotations

from pathlib import Path

from api.migrations import locked
from api.policies.rollout import history
from api.policies.rollout.history import PolicyRelease
from api.policies.rollout.plan import (
    Plan,
    carry_out,
    files_to_apply,
    find_drift,
    released_files,
    resolve,
)
from api.release.catalog import Connection
from api.release.definitions import definition
from api.release.drift import Drift, with_new_files
from api.release.errors import MigrationError
from api.release.files import Tree
from api.release.loader import Choices, begin
from api.release.provenance import sign
from api.settings import Settings, SettingsError


def refuse_closed_gate(settings: Settings) -> None:
    """RLS_ENABLED=false keeps policies from being rolled out to an environment. It switches nothing off."""
    if not settings.rls_enabled:
        raise SettingsError("RLS_ENABLED is false: policies are not applied here. Nothing was changed.")


def apply(
    url: str,
    root: Path,
    *,
    overwrite: list[str],
    accept_live: list[str],
    write: bool,
    operator: str | None = None,
) -> Plan:
    """Load the policy files, in one transaction, and leave alone what was changed by hand but for what is named.

    `overwrite`: the file counts, or where there is none what was released. `accept_live`: what is live counts, and is
    written into the file. Without `write` it is only tried. Raises MigrationError.
    """
    with locked(url) as conn:
        sign(conn, root, operator=operator)
        found = with_new_files(find_drift(conn), Tree.read(root))
        accepted = resolve(found, accept_live)
        overwritten = resolve(found, overwrite)
        if both := sorted(accepted & overwritten):
            raise MigrationError(f"{', '.join(both)}: either --overwrite or --accept-live, not both")
        files = _accepted_files(conn, root, [found[unit] for unit in sorted(accepted)])
        tree = files_to_apply(conn, root)
        tree = Tree(dict(tree.files) | files)
        # An accepted table is released again from the file that now says what is live.
        tables = {unit for unit in accepted if found[unit].is_table_with_file}
        choices = Choices(overwrite=overwritten | tables, accept=accepted - tables, leave=True)
        wanted = {found[unit].name: found[unit].live for unit in tables}
        before = {path: (root / path).read_text(encoding="utf-8") if (root / path).exists() else None for path in files}
        try:
            if write:
                _write(root, files)
            return carry_out(conn, tree, Tree.read(root), choices, dry_run=not write, wanted=wanted)
        except BaseException:
            if write:
                _write(root, before)
            raise


def roll_back(
    url: str, root: Path, to: int | None, *, write: bool, operator: str | None = None
) -> tuple[PolicyRelease, Plan]:
    """Load the policies of the release before, or of release `to`. Their files on disk stay as they are.

    Raises PolicyConflict when that would overwrite a change by hand, and MigrationError when there is no such release.
    """
    with locked(url) as conn:
        released_files(conn)
        known = history.releases(conn)
        target = history.release_before(known) if to is None else history.release_named(known, to)
        sign(conn, root, operator=operator, restores=target.id)
        tree = history.files_of(conn, target)
        return target, carry_out(conn, tree, tree, Choices(), dry_run=not write)


def _accepted_files(conn: Connection, root: Path, accepted: list[Drift]) -> dict[str, str]:
    """What the files of these tables will be: their old header, then what is live."""
    files: dict[str, str] = {}
    for each in accepted:
        if each.file is not None and not each.is_table_with_file:
            raise MigrationError(
                f"{each.unit}: {each.file} makes it. Put what {each.file}.new says into it; `goldleaves migrate` then "
                "finds that both say the same, and takes it over"
            )
        if each.live is None and each.is_table_with_file:
            raise MigrationError(f"{each.unit}: the table is gone. If that is to stay, delete {each.file}")
        if each.live is not None and (partitions := each.live.get("partitions")):
            raise MigrationError(
                f"{each.unit}: {', '.join(partitions)} cannot stay like that: partitions are reached through their "
                f"table alone. --overwrite {each.unit} protects them again"
            )
        if each.is_table_with_file and each.file is not None and each.live is not None:
            with conn.transaction():
                begin(conn)
                files[each.file] = _header(root / each.file) + definition(conn, each.unit, each.live)
    return files


def _header(path: Path) -> str:
    """The comments that a file begins with."""
    if not path.exists():
        return ""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        lines.append(line)
    return "\n".join([*lines, ""])


def _write(root: Path, files: dict[str, str] | dict[str, str | None]) -> None:
    """Each file whole or not at all. None: it is not there."""
    for path, text in files.items():
        if text is None:
            (root / path).unlink(missing_ok=True)
            continue
        draft = root / f"{path}.tmp"
        draft.write_text(text, encoding="utf-8")
        draft.replace(root / path)


def differing_files(root: Path, target: PolicyRelease) -> list[str]:
    """Policy files on disk that do not say what this release did."""
    on_disk = Tree.read(root)
    now = {path: on_disk.hashes[path] for path in on_disk.policies}
    return sorted(path for path in {*now, *target.policies} if now.get(path) != target.policies.get(path))

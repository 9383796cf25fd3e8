"""What somebody changed by hand since the last release: the live database compared with what releases wrote down.

A change by hand is never overwritten unseen. It is a conflict where the next load would do that, unless the file says
by now what is live: then the two agree, and the file takes over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from api.release import objects, policies, states
from api.release.catalog import Connection
from api.release.errors import PolicyConflict
from api.release.files import POLICIES, Tree
from api.release.states import Live


@dataclass(frozen=True)
class Drift:
    """One that differs: a table by its name, anything else by kind and name, as `function tenancy.current_org()`.

    `released` is None when no release knows it, `live` when it is gone. `file` is what makes it, if a file does.
    """

    unit: str
    released: Live | None
    live: Live | None
    file: str | None = None

    def changes(self) -> list[states.Change]:
        return states.changes(self.unit, self.released, self.live)

    def __str__(self) -> str:
        return f"{self.unit}: {'; '.join(states.sentences(self.unit, self.released, self.live))}"

    @property
    def name(self) -> str:
        """Of a table, as its file is named."""
        return self.unit.removeprefix("table ")

    @property
    def is_table_with_file(self) -> bool:
        return self.file is not None and self.file.startswith(POLICIES)

    @property
    def is_in_api(self) -> bool:
        """A load that touches anything in sql/ rebuilds api as a whole."""
        kind, _, name = self.unit.partition(" ")
        return self.unit == "schema api" or (name.rpartition(" on ")[2] if kind == "trigger" else name).startswith(
            "api."
        )

    @property
    def is_lost_with_behaviour(self) -> bool:
        """Whether it goes when sql/ is unloaded or rebuilt."""
        return self.live is not None and (self.is_in_api or (self.file is not None and not self.is_table_with_file))

    def is_overwritten_by(self, tree: Tree, hashes: Mapping[str, str]) -> bool | None:
        """Whether loading `tree` would undo the change. None: that depends on what the file says now.

        `hashes` are those of the files as last released.
        """
        if self.live is None:
            # A file that is there makes an object again. A table comes by migrations alone.
            return self.is_table_with_file and self.file in tree.files
        if self.file is None:
            return self.is_in_api
        if self.file in tree.files and hashes.get(self.file) != tree.hashes[self.file] and not self.has_new_owner:
            return None
        return True

    @property
    def has_new_owner(self) -> bool:
        """Then we may not even be allowed to load its file."""
        return bool(self.released and self.live and self.released.get("owner") != self.live.get("owner"))


def find(conn: Connection, made_by: Mapping[str, Iterable[str]]) -> dict[str, Drift]:
    """Everything that differs, by unit. `made_by` tells which file made which objects."""
    filed = policies.recorded(conn)
    found = _of_files(conn, filed)
    known = objects.recorded(conn)
    if not known:
        return found
    files = {name: path for path, names in made_by.items() for name in names}
    others = objects.live(conn, known, filed)
    return found | {
        unit: Drift(unit, known.get(unit), others.get(unit), files.get(unit))
        for unit in sorted({*known, *others})
        if states.changes(unit, known.get(unit), others.get(unit))
    }


def find_in_policies(conn: Connection) -> dict[str, Drift]:
    """Only the tables with a policy file."""
    return _of_files(conn, policies.recorded(conn))


def _of_files(conn: Connection, filed: Mapping[str, policies.Recorded]) -> dict[str, Drift]:
    now = states.tables(conn, list(filed))
    return {
        table: Drift(table, left.live, now.get(table), f"{POLICIES}{table}.sql")
        for table, left in filed.items()
        if states.changes(table, left.live, now.get(table))
    }


def with_new_files(found: Mapping[str, Drift], tree: Tree) -> dict[str, Drift]:
    """Also with the files that tables without one have got by now: loading those would undo what was changed there."""
    return {unit: _with_new_file(each, tree) for unit, each in found.items()}


def _with_new_file(each: Drift, tree: Tree) -> Drift:
    path = f"{POLICIES}{each.name}.sql"
    # What no release has known yet, as a table to adopt, has no state that its first file could undo.
    is_new = each.file is None and each.released and each.unit.startswith("table ") and path in tree.files
    return replace(each, file=path) if is_new else each


def in_the_way(found: Mapping[str, Drift], tree: Tree, hashes: Mapping[str, str]) -> tuple[list[Drift], list[Drift]]:
    """What loading `tree` would overwrite for certain, and what it would if its file does not say the same."""
    verdicts = [(drift, drift.is_overwritten_by(tree, hashes)) for drift in found.values()]
    return [drift for drift, verdict in verdicts if verdict], [drift for drift, verdict in verdicts if verdict is None]


def refuse(conflicts: Collection[Drift]) -> None:
    """Raise PolicyConflict when there are any."""
    if conflicts:
        listed = "".join(f"\n  {conflict}" for conflict in conflicts)
        raise PolicyConflict(
            f"changed by hand since the last release, nothing was overwritten:{listed}\n"
            "Put it back as it was, or let its file say the same, or resolve it with `goldleaves policies apply`.",
            [(each.unit, each.file, states.sentences(each.unit, each.released, each.live)) for each in conflicts],
        )


def refuse_losses(found: Mapping[str, Drift]) -> None:
    """Before all behaviour is unloaded: raise PolicyConflict for everything that would be gone with it."""
    refuse([each for each in found.values() if each.is_lost_with_behaviour or (each.is_table_with_file and each.live)])


def hashes_of(tree_hashes: Mapping[str, str], filed: Mapping[str, policies.Recorded]) -> dict[str, str]:
    """Those of sql/ from the release, those of policies/ from each table's own record."""
    return {path: digest for path, digest in tree_hashes.items() if not path.startswith(POLICIES)} | {
        f"{POLICIES}{table}.sql": left.fingerprint for table, left in filed.items()
    }

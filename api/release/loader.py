"""Bring sql/ and policies/ to the live database, all of it in one transaction that is retried as a whole.

Under traffic all locks come first, in the order in which a request takes them (`_take_locks`): after that nothing here
waits, so that no request can be caught in a deadlock. Then the domains, `api` anew, and policies last, only those that
changed, because even an unchanged CREATE POLICY locks readers out. What the files no longer make is dropped, never with
CASCADE.

Files run as the migrator, whole, sorted by path; one that misses what another makes runs after that, in a new try. No
savepoint may be open while they do: which file made which object is told by the transaction id in the catalog rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import SystemRandom
from typing import TypeVar

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from api.release import catalog, definitions, drift, objects, policies, states
from api.release.catalog import Connection, Ref
from api.release.drift import Drift
from api.release.errors import MigrationError, ReleaseTableMissing, explain
from api.release.files import API, Tree, table_of, without_comments
from api.release.states import Live

MIGRATION_LOCK = 0x601D1EAF  # advisory, one number for all that migrates or loads, per database
LOCK_TIMEOUT = "500ms"  # below deadlock_timeout (1 s): in a deadlock it is we who give way, and not a request
TRIES = 60
MOST_STARTS = 500  # files that miss each other take some

# CREATE OR REPLACE cannot change a result type or a view's columns, and plain CREATE cannot replace. Then drop first.
_CANNOT_REPLACE = (
    errors.InvalidFunctionDefinition,
    errors.InvalidTableDefinition,
    errors.DuplicateFunction,
    errors.DuplicateObject,
    errors.DuplicateTable,
)
# A trigger's function, say, or the view that a view reads: bodies of functions are checked at the end.
_MISSING = (errors.UndefinedFunction, errors.UndefinedTable, errors.UndefinedObject)
_BEFORE_API = "tenancy."
_BUSY = (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Choices:
    """What to do about changes by hand, by the names of `Drift.unit`. Without any a change stops the load.

    `overwrite`: what the release, or the file, says counts. `accept`: what is live counts from now on. `leave`: all
    others stay as they are, and the rest is loaded.
    """

    overwrite: frozenset[str] = frozenset()
    accept: frozenset[str] = frozenset()
    leave: bool = False


_STRICT = Choices()


@dataclass(frozen=True)
class Lock:
    """A lock that the load took on a table or view, and held until it was done."""

    relation: str
    mode: str


@dataclass(frozen=True)
class LoadReport:
    """Files that ran, objects that were dropped because no file makes them any more, and what that did to policies.

    `before` and `after` are the tables with policy files, as they were and as they came out. `drifted` is everything
    that was found changed by hand, `conflicts` what of it was left alone.
    """

    loaded: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    before: Mapping[str, Live] = field(default_factory=dict)
    after: Mapping[str, Live] = field(default_factory=dict)
    drifted: Mapping[str, Drift] = field(default_factory=dict)
    conflicts: frozenset[str] = frozenset()
    locks: tuple[Lock, ...] = ()


@dataclass(frozen=True)
class Release:
    """The last row of ops.releases: which files made which objects. No fingerprint: nothing is loaded."""

    head: str = ""
    fingerprint: str = ""
    hashes: dict[str, str] = field(default_factory=dict)
    objects: dict[str, list[str]] = field(default_factory=dict)


class _FileError(MigrationError):
    """The server refused a file. Its cause is the server's error."""


class _Recreate(Exception):
    """Start over, and drop what these files made before they run."""

    def __init__(self, paths: Iterable[str]) -> None:
        super().__init__()
        self.paths = set(paths)


class _Again(Exception):
    """Start over: what was learned in this try changes the order of the files."""


class _Leave(Exception):
    """Start over, and leave these alone: their files do not say what is live."""

    def __init__(self, units: Iterable[str]) -> None:
        super().__init__()
        self.units = set(units)


class _Order:
    """The order in which files run: as they are listed, those that missed something last."""

    def __init__(self) -> None:
        self._missed: dict[str, tuple[int, _FileError]] = {}

    def of(self, paths: Iterable[str]) -> list[str]:
        """Of `paths`, which are in the order that they have as long as nobody misses anything."""
        late = list(self._missed)
        return sorted(paths, key=lambda path: late.index(path) if path in late else -1)

    def put_off(self, path: str, ran_before: int, error: _FileError) -> None:
        """Raises _Again, or MigrationError naming all that miss something when putting off has not got us further."""
        ran_last_time, _ = self._missed.pop(path, (-1, error))
        self._missed[path] = ran_before, error
        if ran_before <= ran_last_time:
            raise MigrationError("\n".join(str(each) for _, each in self._missed.values())) from error
        raise _Again


def load(
    conn: Connection,
    tree: Tree,
    choices: Choices = _STRICT,
    *,
    dry_run: bool = False,
    look: Callable[[LoadReport], None] | None = None,
) -> LoadReport:
    """Make the database behave as `tree` says. Does nothing when it already does.

    `conn` is in autocommit mode. Raises PolicyConflict, or MigrationError naming the file; the old release then stays,
    as it does after a dry run, which does all of it and takes it back. `look` is called while the transaction is open.
    """
    conn.prepare_threshold = None  # a file is many statements, which cannot be prepared
    recreate: set[str] = set()
    left: set[str] = set()
    order = _Order()
    starts = 0

    def attempt() -> LoadReport:
        with conn.transaction(force_rollback=dry_run):
            report = _load_once(conn, tree, choices, recreate, left, order)
            if look is not None:
                look(report)
            return report

    while True:
        try:
            return retry_when_busy(attempt)
        except _Recreate as again:
            recreate |= again.paths
        except _Leave as again:
            left |= again.units
        except _Again:
            starts += 1
            if starts > MOST_STARTS:
                raise MigrationError(
                    "what is live keeps changing while it is released: try again when nobody changes it by hand"
                ) from None


def unload(conn: Connection) -> tuple[str, ...]:
    """Drop all behaviour in the current transaction: api, triggers, views, functions, policies. Returns their names.

    Raises PolicyConflict when a change by hand would be lost with it.
    """
    begin(conn)
    if not has_releases(conn):
        return ()
    release = current_release(conn)
    found = drift.find(conn, release.objects)
    drift.refuse_losses(found)
    existing = catalog.objects(conn)
    _drop_api(conn)
    policies.clear_existing(conn, list(policies.recorded(conn)))
    made = _made_by_domains(release)
    dropped = sorted(made & existing.keys())
    _refuse_blocked(conn, [existing[name] for name in dropped])
    catalog.drop(conn, dropped)
    policies.forget(conn)
    objects.record(conn, [], keep=[unit for unit, each in found.items() if each.file is None])
    _record(conn, Tree({}), {}, fingerprint="")
    conn.execute("notify pgrst, 'reload schema'")
    return tuple(dropped)


def recorded_tree(conn: Connection, head: str | None) -> Tree | None:
    """The files of the last release that was loaded at this migration, or None if there was none."""
    if head is None or not has_releases(conn):
        return None
    row = conn.execute(
        "select files from ops.releases where migration_head = %s and fingerprint <> '' order by id desc limit 1",
        [head],
    ).fetchone()
    return None if row is None else Tree({path: file["content"] for path, file in row[0].items()})


def released_tree(conn: Connection) -> Tree:
    """The files of the last release, whatever it was. Empty when nothing is loaded."""
    row = conn.execute("select files from ops.releases order by id desc limit 1").fetchone()
    return Tree({path: file["content"] for path, file in row[0].items()} if row else {})


def begin(conn: Connection) -> None:
    """What every transaction of ours starts with: bounded waiting, and no name resolved by accident."""
    conn.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'".encode())
    conn.execute("set local search_path = ''")
    # Questions to the catalog look expensive and are not: compiling them takes a server that can many times as long.
    conn.execute("set local jit = off")
    conn.execute("set local check_function_bodies = off")


def is_busy(error: psycopg.Error) -> bool:
    """Somebody else held, or was changing, what the statement needed: the same transaction may go through later."""
    return isinstance(error, _BUSY) or "concurrently updated" in str(error)


def retry_when_busy(work: Callable[[], Result]) -> Result:
    """Run a whole transaction again while traffic holds what it needs. Gives up after TRIES with MigrationError."""
    for attempt in range(TRIES):
        try:
            return work()
        except psycopg.Error as error:
            if not is_busy(error):
                raise
            if attempt == TRIES - 1:
                raise MigrationError(f"gave up after {TRIES} tries, the tables are too busy: {error}") from error
        time.sleep(SystemRandom().uniform(0.05, 0.25) * min(attempt + 1, 8))
    raise AssertionError("unreachable")


def current_release(conn: Connection) -> Release:
    row = conn.execute(
        """
        select migration_head, fingerprint,
          (select coalesce(jsonb_object_agg(key, value ->> 'sha256'), '{}') from jsonb_each(files)),
          objects
        from ops.releases
        order by id desc
        limit 1
        """
    ).fetchone()
    return Release() if row is None else Release(*row)


def migration_head(conn: Connection) -> str:
    row = conn.execute("select coalesce(max(migration_id), '') from yoyo._yoyo_migration").fetchone()
    return "" if row is None else str(row[0])


def _load_once(
    conn: Connection, tree: Tree, choices: Choices, recreate: set[str], left: set[str], order: _Order
) -> LoadReport:
    begin(conn)
    conn.execute("select pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])  # a migrate holds it already
    if not has_releases(conn):
        raise ReleaseTableMissing("ops.releases does not exist at this migration, so nothing can be loaded")
    release = current_release(conn)
    filed = policies.recorded(conn)
    found = drift.with_new_files(drift.find(conn, release.objects), tree)
    _refuse_owners_out_of_reach(conn, [found[unit] for unit in found.keys() & choices.overwrite])
    undecided = {unit: each for unit, each in found.items() if unit not in choices.overwrite | choices.accept}
    certain, unclear = drift.in_the_way(undecided, tree, drift.hashes_of(release.hashes, filed))
    conflicts = {each.unit for each in certain} | left
    if conflicts and not choices.leave:
        drift.refuse([found[unit] for unit in sorted(conflicts)])
    # What is left alone stays with its released file, if it has one: then nothing of it is loaded.
    tree = _with_released_files(conn, tree, [each for each in undecided.values() if each.unit in conflicts])
    tables = sorted({*filed, *map(table_of, tree.policies)})
    before = states.tables(conn, tables)
    kept = frozenset(unit for unit, each in undecided.items() if unit in conflicts or each.file is None)
    report = _Load(conn, tree, release, choices, found, kept, recreate, order).run()
    after = states.tables(conn, tables)
    if disagreeing := _still_drifted(conn, [each for each in unclear if each.unit not in left], after):
        if not choices.leave:
            drift.refuse(disagreeing)
        raise _Leave(each.unit for each in disagreeing)
    return replace(report, before=before, after=after, drifted=found, conflicts=kept, locks=tuple(_locks_held(conn)))


def _refuse_owners_out_of_reach(conn: Connection, overwritten: Iterable[Drift]) -> None:
    for each in overwritten:
        if each.live is None or each.released is None:
            continue  # what is gone has no owner, and what was added is dropped by the schema's
        owner = each.live.get("owner")
        row = conn.execute("select pg_has_role(oid, 'usage') from pg_roles where rolname = %s", [owner]).fetchone()
        if row is not None and not row[0]:
            raise MigrationError(
                f"{each.unit} belongs to {owner}, from whom {conn.info.user} cannot take it: give it back to "
                f"{each.released['owner']} as a superuser (alter … owner to …)"
            )


def _still_drifted(conn: Connection, unclear: list[Drift], after: Mapping[str, Live]) -> list[Drift]:
    """Those whose file has made something else of them than what was live."""
    if not unclear:
        return []
    others = objects.live(conn, [], list(after))
    return [
        each
        for each in unclear
        if states.changes(
            each.unit, each.live, after.get(each.name) if each.is_table_with_file else others.get(each.unit)
        )
    ]


def _with_released_files(conn: Connection, tree: Tree, left_alone: list[Drift]) -> Tree:
    paths = {each.file for each in left_alone if each.is_table_with_file and each.file is not None}
    if not paths:
        return tree
    released = released_tree(conn)
    kept = {path: text for path, text in tree.files.items() if path not in paths}
    return Tree(kept | {path: released.files[path] for path in paths if path in released.files})


def _locks_held(conn: Connection) -> list[Lock]:
    rows = conn.execute(_LOCKS).fetchall()
    return [Lock(relation, mode) for relation, mode in rows]


_LOCKS = """
select c.oid::regclass::text, m.modes[min(array_position(m.modes, l.mode))]
from (
  select array[
    'AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock', 'ShareUpdateExclusiveLock'
  ] as modes
) as m
join pg_locks l on l.mode = any(m.modes)
join pg_class c on c.oid = l.relation
join pg_namespace n on n.oid = c.relnamespace
where l.pid = pg_backend_pid() and l.locktype = 'relation' and c.relkind in ('r', 'p', 'v')
  and l.database = (select oid from pg_database where datname = current_database())
  and n.nspname not in ('pg_catalog', 'pg_toast')
group by c.oid, m.modes
order by 1
"""


class _Load:
    """One try: the state that the steps of a load share."""

    def __init__(
        self,
        conn: Connection,
        tree: Tree,
        release: Release,
        choices: Choices,
        found: Mapping[str, Drift],
        keep: frozenset[str],
        recreate: set[str],
        order: _Order,
    ) -> None:
        self.conn = conn
        self.tree = tree
        self.choices = choices
        self.found = found
        self.keep = keep  # stays written down as it was released
        self.recreate = recreate
        self.order = order
        self.release = release
        self.released = released_tree(conn)
        self.filed = policies.recorded(conn)
        self.existing = catalog.objects(conn)
        self.loaded: list[str] = []
        self.dropped: list[str] = []
        self.removed: set[str] = set()  # to be made anew, or dropped if no file does
        self.manifest: dict[str, list[str]] = {}
        self.written: set[tuple[Ref, str]] = set()  # until now, by this transaction

    def run(self) -> LoadReport:
        files, given_up = self._changed_policies()
        behaviour = self._changed_domains(), self._api_changed()
        if any(behaviour) or self._gone_paths():
            drift.refuse(
                [each for unit, each in self.found.items() if unit in self.keep and each.is_lost_with_behaviour]
            )
            self._take_locks(behaviour[0], [*map(table_of, files), *given_up], with_api=True)
            self._load_behaviour(behaviour[0])
        else:
            self.manifest = dict(self.release.objects)
            if not files and not given_up and not self._decided() and self._is_current():
                return LoadReport()
            self._take_locks([], [*map(table_of, files), *given_up], with_api=False)
        self._load_policies(files, given_up)
        self._drop_leftovers()
        self._overwrite_objects()
        catalog.hand_over(self.conn)
        catalog.let_kernel_create(self.conn, False)
        if any(behaviour):
            self._validate()
        policies.record(self.conn, {table_of(path): self.tree.hashes[path] for path in self.tree.policies}, self.keep)
        objects.record(self.conn, [table_of(path) for path in self.tree.policies], self.keep)
        _record(self.conn, self.tree, self.manifest, self.tree.fingerprint)
        self.conn.execute("notify pgrst, 'reload schema'")
        return LoadReport(tuple(self.loaded), tuple(self.dropped))

    # What has to be done

    def _is_current(self) -> bool:
        return self.release.fingerprint == self.tree.fingerprint and self.release.head == migration_head(self.conn)

    def _is_changed(self, path: str) -> bool:
        made = self.release.objects.get(path, [])
        return (
            path in self.recreate
            or self.release.hashes.get(path) != self.tree.hashes[path]
            or any(name not in self.existing for name in made)
        )

    def _changed_domains(self) -> list[str]:
        return [path for path in self.tree.domains if self._is_changed(path)]

    def _api_changed(self) -> bool:
        return any(self._is_changed(path) for path in self.tree.api)

    def _gone_paths(self) -> list[str]:
        return [path for path in self.release.objects if path not in self.tree.files]

    # Locks

    def _take_locks(self, changed: list[str], policy_tables: list[str], with_api: bool) -> None:
        """Everything that a request may hold, in its own order: the pre-request reads `tenancy`, the statement names a
        view of `api` and through it a table, and triggers go on from `app` to `billing` to `metering`.
        """
        modes = dict.fromkeys(self._tables_with_triggers(changed), "share row exclusive")
        modes |= dict.fromkeys(self._tables_with_triggers([*self.recreate, *self._gone_paths()]), "access exclusive")
        modes |= dict.fromkeys(policy_tables, "access exclusive")
        tables = sorted(states.tables(self.conn, list(modes)))
        before_api = [table for table in tables if table.startswith(_BEFORE_API)]
        for table in before_api:
            catalog.lock(self.conn, table, modes[table])
        if with_api:
            catalog.hold_views(self.conn, "api")
            self._start_over_if_changed(drift.find(self.conn, self.release.objects), self.found)
            _drop_api(self.conn)
        for table in tables:
            if table not in before_api:
                catalog.lock(self.conn, table, modes[table])
        if with_api:
            before = {unit: each for unit, each in self.found.items() if unit in self.filed}
            self._start_over_if_changed(drift.find_in_policies(self.conn), before)
        else:
            self._start_over_if_changed(drift.find(self.conn, self.release.objects), self.found)

    def _start_over_if_changed(self, now: Mapping[str, Drift], before: Mapping[str, Drift]) -> None:
        """Raise _Again when whoever held a lock that we waited for has changed by hand what we are about to replace."""
        if {unit: each.live for unit, each in now.items()} != {unit: each.live for unit, each in before.items()}:
            raise _Again

    def _tables_with_triggers(self, paths: Iterable[str]) -> set[str]:
        made = {name for path in paths for name in self.release.objects.get(path, [])}
        return {name.rsplit(" on ", 1)[1] for name in made if name.startswith("trigger ")}

    # Functions, triggers, views

    def _load_behaviour(self, changed: list[str]) -> None:
        catalog.let_kernel_create(self.conn, True)
        lost = self._drop_for_recreation()
        # Of all files at once, since an object may have moved from one to another.
        catalog.reset(self.conn, self._made_before([*changed, *self._gone_paths()]))
        self.manifest = {path: self.release.objects.get(path, []) for path in self.tree.domains if path not in changed}
        self.written = catalog.written(self.conn)
        for path in self.order.of(changed):
            self._run_domain_file(path, changed)
        catalog.restore(self.conn, lost)
        self._drop_what_is_free()
        if self.tree.api:
            self.conn.execute("create schema api authorization goldleaves_owner")
            catalog.let_kernel_create(self.conn, True)
        self.written = catalog.written(self.conn)
        for path in self.order.of(self.tree.api):
            self._run_and_claim(path)

    def _run_domain_file(self, path: str, changed: list[str]) -> None:
        """Run a file. If it cannot replace what is there, that goes first: its own objects, or those it took over."""
        try:
            self._run_and_claim(path)
        except _FileError as error:
            if not isinstance(error.__cause__, _CANNOT_REPLACE):
                raise
            gone = [gone for gone in self._gone_paths() if not gone.startswith(API)]
            for paths in ({path} if self._made_before([path]) else set(), {*changed, *gone}):
                if not paths <= self.recreate:
                    raise _Recreate(paths) from error
            raise

    def _made_before(self, paths: Iterable[str]) -> list[Ref]:
        names = {name for path in paths for name in self.release.objects.get(path, [])}
        return [self.existing[name] for name in sorted(names) if name in self.existing]

    def _run_and_claim(self, path: str) -> None:
        try:
            self._run_file(path)
        except _FileError as error:
            if isinstance(error.__cause__, _MISSING):
                self.order.put_off(path, len(self.loaded), error)
            raise
        before, self.written = self.written, catalog.written(self.conn)
        claimed = {name for names in self.manifest.values() for name in names}
        made = catalog.identities(self.conn, {ref for ref, _ in self.written - before})
        self.manifest[path] = sorted(made - claimed)

    def _run_file(self, path: str) -> None:
        text = self.tree.files[path]
        try:
            self.conn.execute(text.encode())
        except psycopg.Error as error:
            if is_busy(error):
                raise
            raise _FileError(explain(error, path, text)) from error
        self.loaded.append(path)

    # Dropping

    def _drop_for_recreation(self) -> list[catalog.PartitionTrigger]:
        """What cannot be replaced goes first, with what our own files built on it. Anything else on it is an error."""
        names = {name for path in self.recreate for name in self.release.objects.get(path, []) if name in self.existing}
        made_by = {
            self.existing[name]: path
            for path, made in self.release.objects.items()
            for name in made
            if path in self.tree.domains and name in self.existing
        }
        found = catalog.blockers(self.conn, [self.existing[name] for name in names])
        if found and all(blocker.dependent in made_by for blocker in found):
            raise _Recreate(made_by[blocker.dependent] for blocker in found)
        _refuse(found)
        self.removed = names
        return catalog.drop(self.conn, names)

    def _leftovers(self) -> dict[str, Ref]:
        """What an earlier release made and no file makes now. `api` is not among it: it was dropped as a whole."""
        made = _made_by_domains(self.release)
        kept = {name for names in self.manifest.values() for name in names}
        now = catalog.objects(self.conn)
        return {name: now[name] for name in made - kept if name in now}

    def _drop_what_is_free(self) -> None:
        """Before `api` is rebuilt, so that its views cannot bind to a function that is about to go."""
        self._drop(catalog.unblocked(self.conn, self._leftovers()))

    def _drop_leftovers(self) -> None:
        """What old policies needed until now."""
        left = self._leftovers()
        _refuse_blocked(self.conn, left.values())
        self._drop(left)
        self.dropped += sorted(self.removed - {name for names in self.manifest.values() for name in names})

    def _drop(self, refs: dict[str, Ref]) -> None:
        catalog.drop(self.conn, refs)
        self.dropped += sorted(refs)

    # Policies

    def _decided(self) -> list[Drift]:
        """Those changes by hand for which somebody has said what counts."""
        return [each for unit, each in self.found.items() if unit in self.choices.overwrite | self.choices.accept]

    def _changed_policies(self) -> tuple[list[str], list[str]]:
        files, given_up = policies.changed(self.conn, self.tree)
        files = [path for path in files if not self._says_what_it_said(path)]
        again = {each.file for each in self._decided() if each.is_table_with_file} & set(self.tree.policies)
        return sorted({*files, *filter(None, again)}), given_up

    def _says_what_it_said(self, path: str) -> bool:
        """Whether only comments differ from what was released, and is there: then nobody has to wait for a lock."""
        before = self.released.files.get(path)
        return (
            before is not None
            and table_of(path) in self.filed
            and table_of(path) not in self.found
            and without_comments(before) == without_comments(self.tree.files[path])
        )

    def _load_policies(self, files: list[str], given_up: list[str]) -> None:
        policies.clear_existing(self.conn, given_up)
        before = states.tables(self.conn, map(table_of, files))
        for path in files:
            policies.make_new(self.conn, path, before.get(table_of(path)))
            self._run_file(path)
        policies.align_partitions(self.conn, map(table_of, files))

    def _overwrite_objects(self) -> None:
        """Put back what no policy file speaks of, as it was released; what no release knows goes."""
        for each in self._decided():
            if each.unit in self.choices.overwrite and not each.is_table_with_file:
                self._put_back(each)

    def _put_back(self, each: Drift) -> None:
        try:
            for statement in definitions.restoring(self.conn, each):
                self.conn.execute(statement.encode())
        except _CANNOT_REPLACE as error:  # a view that has got a column, say: then it goes first
            if each.file is None or each.file not in self.tree.files or each.file in self.recreate:
                raise
            raise _Recreate([each.file]) from error

    # The pass that check_function_bodies = off left out

    def _validate(self) -> None:
        """Check every function body of ours. Raises MigrationError that names each broken one and its file."""
        self.conn.execute("set local check_function_bodies = on")
        now = catalog.objects(self.conn)
        made = [
            (path, name, now[name])
            for path, names in sorted(self.manifest.items())
            for name in names
            if name.startswith("function ")
        ]
        if self._error_of([ref for _, _, ref in made]) is None:
            return
        broken = [
            explain(error, path, self.tree.files[path], name)
            for path, name, ref in made
            if (error := self._error_of([ref])) is not None
        ]
        if broken:
            raise MigrationError("\n".join(broken))

    def _error_of(self, functions: list[Ref]) -> psycopg.Error | None:
        """What the server says of the first that is broken."""
        try:
            with self.conn.transaction():
                self.conn.execute(catalog.VALIDATE, [[ref.id for ref in functions]])
        except psycopg.Error as error:
            if is_busy(error):
                raise
            return error
        return None


def _made_by_domains(release: Release) -> set[str]:
    return {name for path, names in release.objects.items() if not path.startswith(API) for name in names}


def _drop_api(conn: Connection) -> None:
    """Drop the schema with all that is in it, after making sure that nothing outside is built on it."""
    found = catalog.blockers(conn, catalog.api_members(conn), forgive_partitions=False)
    if found:
        raise MigrationError(f"schema api cannot be rebuilt: {_listed(found)}. Drop that first.")
    conn.execute("drop schema if exists api cascade")


def _refuse_blocked(conn: Connection, refs: Iterable[Ref]) -> None:
    _refuse(catalog.blockers(conn, refs))


def _refuse(found: list[catalog.Blocker]) -> None:
    if found:
        raise MigrationError(f"cannot drop what others are built on: {_listed(found)}")


def _listed(found: list[catalog.Blocker], most: int = 8) -> str:
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(map(str, found[:most])) + more


def has_releases(conn: Connection) -> bool:
    row = conn.execute("select to_regclass('ops.releases') is not null").fetchone()
    return bool(row and row[0])


def _record(conn: Connection, tree: Tree, manifest: dict[str, list[str]], fingerprint: str) -> None:
    files = {path: {"sha256": tree.hashes[path], "content": text} for path, text in tree.files.items()}
    conn.execute(
        "insert into ops.releases (migration_head, fingerprint, files, objects) values (%s, %s, %s, %s)",
        [migration_head(conn), fingerprint, Jsonb(files), Jsonb(manifest)],
    )

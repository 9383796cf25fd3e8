"""Migrate, roll back, and tell where a database stands. yoyo keeps the books; `api.release` loads the behaviour.

Two things are done differently from yoyo's own command. A migration and its mark are one transaction, so a kill between
the two cannot leave one that is applied but unmarked. And the lock is an advisory one that Postgres gives back when its
holder dies; yoyo's row in a table stays after a kill, so it is cleared by whoever holds the real lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yoyo  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend  # type: ignore[import-untyped]
from yoyo.connections import DatabaseURI  # type: ignore[import-untyped]
from yoyo.migrations import parse_metadata_from_sql_comments  # type: ignore[import-untyped]

from api.release import LoadReport, MigrationError, Tree, drift, load, objects, policies, recorded_tree, unload
from api.release.catalog import Connection
from api.release.errors import ReleaseTableMissing, explain
from api.release.files import refuse_transaction_commands
from api.release.loader import MIGRATION_LOCK, Release, begin, current_release, has_releases, retry_when_busy
from api.release.provenance import sign
from api.settings import PROJECT, Settings

__all__ = ["MigrationError", "MigrationReport", "RollbackReport", "Status", "migrate", "rollback", "status"]

_POLL_SECONDS = 0.1
_NAME = "goldleaves migrate"


@dataclass(frozen=True)
class MigrationReport:
    """What a migrate changed. All empty when the database was up to date.

    `generation` is the one that began because the database had come from another cluster, as a restored one does.
    """

    applied: tuple[str, ...]
    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    head: str | None
    generation: int | None = None

    def __str__(self) -> str:
        done = _counted(applied=self.applied, loaded=self.loaded, dropped=self.dropped)
        note = f"; came from another cluster, generation {self.generation} begins" if self.generation else ""
        return f"at {self.head or 'zero'}: {done or 'nothing to do'}{note}"


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback undid. `behaviour` is false when no release is recorded for `head`: nothing was loaded then."""

    rolled_back: tuple[str, ...]
    loaded: tuple[str, ...]
    head: str | None
    behaviour: bool

    def __str__(self) -> str:
        done = _counted(rolled_back=self.rolled_back, loaded=self.loaded) or "nothing to do"
        note = "" if self.behaviour or self.head is None else "; no release is recorded here, so nothing was loaded"
        return f"at {self.head or 'zero'}: {done}{note}"


def _counted(**done: tuple[str, ...]) -> str:
    nouns = {"applied": "migration", "rolled_back": "migration", "loaded": "file", "dropped": "object"}
    return ", ".join(
        f"{what.replace('_', ' ')} {len(names)} {nouns[what]}{'' if len(names) == 1 else 's'}"
        for what, names in done.items()
        if names
    )


@dataclass(frozen=True)
class Status:
    """Migration ids, oldest first. `unknown` ones are applied but have no file: this checkout is behind."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Migration:
    """A migration of this checkout: what yoyo knows of it, and its text."""

    entry: Any  # yoyo's Migration

    @property
    def id(self) -> str:
        return str(self.entry.id)

    @property
    def path(self) -> Path:
        return Path(self.entry.path)

    def script(self, direction: str) -> Path:
        """The file that goes up or down. A Python migration does both."""
        up = direction == "apply" or self.path.suffix != ".sql"
        return self.path if up else self.path.with_suffix(".rollback.sql")

    def require_rollback(self) -> None:
        path = self.script("rollback")
        if not path.exists():
            raise MigrationError(f"migrations/{self.path.name}: there is no {path.name} to roll it back")

    @property
    def runs_whole(self) -> bool:
        """Not so a Python migration, or one with `-- transactional: false`: yoyo runs those, statement by statement."""
        if self.path.suffix != ".sql":
            return False
        directives, _, _ = parse_metadata_from_sql_comments(self.path.read_text(encoding="utf-8"))
        return bool(directives.get("transactional", "true").lower() != "false")


def migrate(url: str, settings: Settings, root: Path = PROJECT) -> MigrationReport:
    """Apply what is pending, bring sql/ and policies/ up to date, begin a generation, seed prices, make partitions.

    `url` is that of goldleaves_migrator. Waits for another migrate. Raises MigrationError; what was applied before it
    stays applied.
    """
    with locked(url) as conn, _yoyo(url) as backend:
        known = _read(root)
        applied = _applied(conn)
        _refuse_unknown(known, applied)
        pending = [migration for name, migration in known.items() if name not in applied]
        tree = Tree.read(root)
        sign(conn, root)
        sign(backend.connection, root)
        if pending:
            _check_policies(conn, tree)
        for migration in pending:
            _run(backend, migration, "apply")
        report = load(conn, tree)
        began = conn.execute("select metering.begin_generation()").fetchone()
        conn.execute("select billing.seed_prices(%s)", [settings.usage_rate_cents])
        conn.execute(
            "select billing.set_defaults(%s, %s, %s)",
            [settings.trial_days, settings.past_due_grace_days, settings.invoice_mode],
        )
        conn.execute("select stripe.set_plan_prices(%s)", [Jsonb(settings.stripe_prices())])
        conn.execute("select ops.maintain()")
        return MigrationReport(
            applied=tuple(migration.id for migration in pending),
            loaded=report.loaded,
            dropped=report.dropped,
            head=max(known, default=None),
            generation=began[0] if began else None,
        )


def rollback(url: str, to: str | None, root: Path = PROJECT) -> RollbackReport:
    """Undo the migrations after `to` (None: all of them), newest first, then load the release recorded at `to`.

    Behaviour is unloaded first: views block changes of columns. Raises MigrationError when `to` is not applied. Where a
    migration refuses to go back it is raised too, and all is brought back to where it was.
    """
    with locked(url) as conn, _yoyo(url) as backend:
        known = _read(root)
        applied = _applied(conn)
        _refuse_unknown(known, applied)
        head = None if to is None else _named(to, applied)
        undo = [name for name in reversed(applied) if head is None or name > head]
        sign(conn, root)
        for name in undo:
            known[name].require_rollback()
        if undo:
            retry_when_busy(lambda: _unload(conn))
        undone: list[str] = []
        try:
            for name in undo:
                _run(backend, known[name], "rollback")
                undone.append(name)
        except MigrationError:
            # One refuses: what serves now goes on, and needs all of its tables and behaviour.
            for name in reversed(undone):
                _run(backend, known[name], "apply")
            _load_recorded(conn, applied[-1])
            raise
        report = _load_recorded(conn, head)
        return RollbackReport(
            rolled_back=tuple(undo),
            loaded=report.loaded if report else (),
            head=head,
            behaviour=report is not None,
        )


def status(url: str, root: Path = PROJECT) -> Status:
    """Which migrations are applied and which are pending. Changes nothing and waits for nobody."""
    with connected(url) as conn:
        applied = _applied(conn)
    known = _read(root)
    return Status(
        applied=tuple(applied),
        pending=tuple(name for name in known if name not in applied),
        unknown=tuple(name for name in applied if name not in known),
    )


def require_known(conn: Connection, root: Path) -> None:
    """Raises MigrationError where the database has migrations of which `root` has no file: it is behind."""
    _refuse_unknown(_read(root), _applied(conn))


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection in autocommit mode. Whatever the server still has to say leaves here as a MigrationError."""
    try:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None, application_name=_NAME) as conn:
            yield conn
    except psycopg.Error as error:
        raise MigrationError(" ".join((error.diag.message_primary or str(error)).split())) from error


@contextmanager
def locked(url: str) -> Iterator[Connection]:
    """Alone with the database: the lock and the load share a session, so that one cannot be lost without the other.

    Polls instead of waiting in the server: a waiting statement holds a snapshot, and CREATE INDEX CONCURRENTLY of the
    migrate that is running would wait for it in turn.
    """
    with connected(url) as conn:
        _refuse_superuser(conn)
        _refuse_other_encodings(conn)
        conn.execute("set idle_session_timeout = 0")
        while not _try_lock(conn):
            time.sleep(_POLL_SECONDS)
        conn.execute("set client_min_messages = warning")
        conn.execute("create schema if not exists yoyo")
        yield conn


def _try_lock(conn: Connection) -> bool:
    row = conn.execute("select pg_try_advisory_lock(%s)", [MIGRATION_LOCK]).fetchone()
    return bool(row and row[0])


def _refuse_superuser(conn: Connection) -> None:
    row = conn.execute("select rolsuper, current_user from pg_roles where rolname = current_user").fetchone()
    if row and row[0]:
        raise MigrationError(
            f"{row[1]} is a superuser, who would own what it makes and hide missing rights: use goldleaves_migrator"
        )


def _refuse_other_encodings(conn: Connection) -> None:
    if (encoding := conn.info.parameter_status("server_encoding")) != "UTF8":
        raise MigrationError(
            f"the database's encoding is {encoding}, Goldleaves needs UTF8: "
            "create it with … template template0 encoding 'UTF8'"
        )


@contextmanager
def _yoyo(url: str) -> Iterator[Any]:
    """yoyo's backend with its tables in schema yoyo, its lock taken over from a migrate that was killed."""
    parts = conninfo_to_dict(url)
    backend = PostgresqlPsycopgBackend(
        DatabaseURI(
            scheme="postgresql+psycopg",
            username=parts.pop("user", None),
            password=parts.pop("password", None),
            hostname=parts.pop("host", None),
            port=parts.pop("port", None),
            database=parts.pop("dbname", None),
            args={**parts, "schema": "yoyo", "application_name": _NAME},
        ),
        yoyo.default_migration_table,
    )
    with backend:
        backend.connection.prepare_threshold = None
        # A killed migrate must not go on in the server, holding locks that the next one needs.
        backend.execute("set client_connection_check_interval = '1s'")
        backend.execute("set client_min_messages = warning")
        if backend.lock_table not in backend.list_tables():  # yoyo would try, and fill the server's log with errors
            backend.create_lock_table()
        backend.ensure_internal_schema_updated()
        backend.break_lock()
        with backend.lock():
            yield backend


def _read(root: Path) -> dict[str, _Migration]:
    """The migrations of this checkout by id, in the order of their numbers."""
    entries = yoyo.read_migrations(str(root / "migrations"))
    if not entries:
        raise MigrationError(f"there is nothing in {root / 'migrations'}: is this the project's directory?")
    return {entry.id: _Migration(entry) for entry in sorted(entries, key=lambda entry: str(entry.id))}


def _applied(conn: Connection) -> list[str]:
    found = conn.execute("select to_regclass('yoyo._yoyo_migration') is not null").fetchone()
    if not found or not found[0]:
        return []
    rows = conn.execute('select migration_id from yoyo._yoyo_migration order by migration_id collate "C"')
    return [name for (name,) in rows]


def _named(name: str, applied: list[str]) -> str:
    """The applied migration that `name`, or the number it starts with, means."""
    found = [candidate for candidate in applied if name in (candidate, candidate.split("_", 1)[0])]
    if len(found) != 1:
        raise MigrationError(f"{name} is not an applied migration. Applied are: {', '.join(applied) or 'none'}")
    return found[0]


def _refuse_unknown(known: dict[str, _Migration], applied: list[str]) -> None:
    if unknown := [name for name in applied if name not in known]:
        back = f"--to {max(known).partition('_')[0]}" if known else "--all"
        raise MigrationError(
            f"the database is newer than this checkout, which has no file for {', '.join(unknown)}. Deploy the version "
            f"that has, or there run `goldleaves rollback {back}`"
        )


def _check_policies(conn: Connection, tree: Tree) -> None:
    """Before anything is applied: raise PolicyConflict when the load afterwards would."""
    with conn.transaction():
        begin(conn)
        release = current_release(conn) if has_releases(conn) else Release()
        found = drift.find(conn, release.objects)
        certain, _ = drift.in_the_way(found, tree, drift.hashes_of(release.hashes, policies.recorded(conn)))
        drift.refuse(certain)


def _unload(conn: Connection) -> None:
    with conn.transaction():
        unload(conn)


def _load_recorded(conn: Connection, head: str | None) -> LoadReport | None:
    tree = recorded_tree(conn, head)
    if tree is None:
        return None
    try:
        return load(conn, tree)
    except ReleaseTableMissing:
        return None


def _run(backend: Any, migration: _Migration, direction: str) -> None:
    """Apply or roll back one migration and keep the books, in one transaction.

    If views, triggers or policies stand in the way of the change, it is tried again with all behaviour unloaded; the
    load that follows brings it back.
    """
    try:
        if not migration.runs_whole:
            migration.entry.load()
            if not migration.entry.use_transactions:
                migration.entry.process_steps(backend, direction)
        retry_when_busy(lambda: _run_once(backend, migration, direction, without_behaviour=False))
    except (psycopg.errors.DependentObjectsStillExist, psycopg.errors.FeatureNotSupported):
        try:
            retry_when_busy(lambda: _run_once(backend, migration, direction, without_behaviour=True))
        except psycopg.Error as error:
            raise _explained(error, migration, direction) from error
    except psycopg.Error as error:
        raise _explained(error, migration, direction) from error


def _explained(error: psycopg.Error, migration: _Migration, direction: str) -> MigrationError:
    script = migration.script(direction)
    return MigrationError(explain(error, f"migrations/{script.name}", script.read_text(encoding="utf-8")))


def _run_once(backend: Any, migration: _Migration, direction: str, without_behaviour: bool) -> None:
    conn: Connection = backend.connection
    with backend.transaction():
        if without_behaviour:
            unload(conn)
        begin(conn)
        drifted = drift.find(conn, current_release(conn).objects if has_releases(conn) else {})
        conn.execute("set local check_function_bodies = on")
        if migration.runs_whole:
            script = migration.script(direction)
            text = script.read_text(encoding="utf-8")
            refuse_transaction_commands(f"migrations/{script.name}", text)
            conn.execute(text.encode())
        elif migration.entry.use_transactions:
            migration.entry.process_steps(backend, direction)
        conn.execute("reset role")
        conn.execute("set local search_path = ''")
        policies.record(conn, keep=drifted)
        objects.record(conn, list(policies.recorded(conn)), keep=drifted)
        conn.execute("set local search_path = yoyo")
        if direction == "apply":
            backend.mark_one(migration.entry, log=False)
        else:
            backend.unmark_one(migration.entry, log=False)
        backend.log_migration(migration.entry, direction)

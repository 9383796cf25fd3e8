"""Adopting tables: the plan that `tenancy.adopt_tables` makes becomes files, and a migrate brings them to the database.

So the next environment gets by its own migrate what this one got: the migration, the policies and the triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from api.migrations import MigrationReport, migrate, status
from api.numbering import next_number
from api.release import MigrationError
from api.release.loader import begin, retry_when_busy
from api.settings import PROJECT, Settings

_ROWS_GO_TO = "adoption.organization_id"

_SEE_ORGANIZATIONS = (
    "-- While no policies are loaded, such as after a rollback, nobody sees organizations, a new foreign key neither.",
    "do $$",
    "begin",
    "  if not exists (select from pg_policy where polrelid = 'tenancy.organizations'::regclass) then",
    "    alter table tenancy.organizations no force row level security;",
    "  end if;",
    "end",
    "$$;",
    "",
)
_HIDE_ORGANIZATIONS = (
    "",
    "do $$",
    "begin",
    "  if not (select relforcerowsecurity from pg_class where oid = 'tenancy.organizations'::regclass) then",
    "    alter table tenancy.organizations force row level security;",
    "  end if;",
    "end",
    "$$;",
    "",
)


@dataclass(frozen=True)
class Step:
    """A statement of the plan, the file that it belongs in, how to take it back, and what to know about it."""

    belongs_in: str
    statement: str
    undo: str | None
    note: str | None


@dataclass(frozen=True)
class Adoption:
    """What was, or in a dry run would be, written and done. `migrated` is None in a dry run."""

    tables: tuple[str, ...]
    steps: tuple[Step, ...]
    files: dict[str, str]
    migrated: MigrationReport | None


@dataclass(frozen=True)
class _Receiver:
    """The organization that gets the rows which are there."""

    id: UUID
    slug: str


@dataclass(frozen=True)
class _Plan:
    tables: tuple[str, ...]
    steps: tuple[Step, ...]
    protection: dict[str, str]
    triggers: dict[str, str]


def adopt(
    url: str,
    settings: Settings,
    tables: Sequence[str],
    organization: str | None = None,
    *,
    dry_run: bool = False,
    root: Path = PROJECT,
) -> Adoption:
    """Write what adopting the tables takes, and migrate. Does nothing when they are tenants' tables already.

    `url` is that of goldleaves_migrator. Raises MigrationError that lists everything that is in the way.
    """
    if pending := status(url, root).pending:
        raise MigrationError(f"not applied yet: {', '.join(pending)}. Run `goldleaves migrate` first.")
    with psycopg.connect(url, autocommit=True, application_name="goldleaves adopt") as conn:
        try:
            receiver = None if organization is None else _receiver(conn, organization)
            plan = retry_when_busy(lambda: _plan(conn, tables, receiver))
        except psycopg.Error as error:
            raise MigrationError(_explained(error)) from error
    files = _files(plan, receiver, root)
    if dry_run:
        return Adoption(plan.tables, plan.steps, files, None)
    return Adoption(plan.tables, plan.steps, files, _bring(files, url, settings, root))


def report(adoption: Adoption) -> list[str]:
    """What a person reads: what was done, where it is written, what is left to do."""
    listed = ", ".join(adoption.tables)
    if not adoption.steps and not adoption.files:
        return [f"{listed}: tenants' tables already, nothing to do"]
    lines = [f"{step.statement};" for step in adoption.steps] if adoption.migrated is None else []
    lines += [f"Note: {note}" for note in dict.fromkeys(step.note for step in adoption.steps if step.note)]
    verb = "Would write" if adoption.migrated is None else "Wrote"
    lines += [f"{verb} {path}" for path in adoption.files]
    if adoption.migrated is None:
        return lines
    return [
        *lines,
        str(adoption.migrated),
        "Left to do: a view of each in sql/api/, so that PostgREST shows it; a migration that creates what a new "
        "database lacks; rows for the tests. See docs/adopting.md.",
    ]


def _bring(files: dict[str, str], url: str, settings: Settings, root: Path) -> MigrationReport:
    """Write the files and migrate. What was not applied is not left behind for the next migrate to stumble over."""
    try:
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return migrate(url, settings, root)
    except BaseException:
        if not {Path(path).stem for path in files if path.startswith("migrations/")} & set(status(url, root).applied):
            for path in files:
                (root / path).unlink(missing_ok=True)
        raise


def _receiver(conn: psycopg.Connection[Any], named: str) -> _Receiver:
    query = "select id, slug from tenancy.organizations where %(named)s in (slug, id::text)"
    with conn.cursor(row_factory=class_row(_Receiver)) as cursor:
        found = cursor.execute(query, {"named": named}).fetchone()
    if found is None:
        raise MigrationError(f"there is no organization {named}: name one by its slug or id")
    return found


def _plan(conn: psycopg.Connection[Any], tables: Sequence[str], receiver: _Receiver | None) -> _Plan:
    with conn.transaction():
        begin(conn)
        ids = conn.execute("select distinct t::oid, t::text from unnest(%s::regclass[]) t order by 2", [list(tables)])
        named = {oid: name for oid, name in ids.fetchall()}
        with conn.cursor(row_factory=class_row(Step)) as cursor:
            steps = cursor.execute(
                "select * from tenancy.adopt_tables(%s::oid[]::regclass[], %s, true)",
                [list(named), receiver and receiver.id],
            ).fetchall()
        return _Plan(
            tuple(named.values()),
            tuple(steps),
            {name: _policy_file(conn, name) for name in named.values()},
            {name: _trigger_file(conn, name) for name in named.values()},
        )


def _policy_file(conn: psycopg.Connection[Any], table: str) -> str:
    policies = _column(conn, "select statement from tenancy.policy_statements(%s::regclass) order by phase", table)
    grants = _column(conn, "select statement from tenancy.grant_statements(%s::regclass) order by phase", table)
    name = table.split(".")[-1].replace("_", " ").capitalize()
    return "\n".join(
        [
            f"-- {name} belong to one organization.",
            "--",
            "-- may select: owner, admin, member, viewer, data:read; platform_admin everywhere",
            "-- may insert: owner, admin, member, data:write",
            "-- may update: owner, admin, member, data:write",
            "-- may delete: owner, admin",
            f"alter table {table} enable row level security;",
            f"alter table {table} force row level security;",
            "",
            *(f"{statement};\n" for statement in policies),
            *(f"{statement};" for statement in grants),
            "",
        ]
    )


def _trigger_file(conn: psycopg.Connection[Any], table: str) -> str:
    query = "select statement from tenancy.trigger_statements(%s::regclass) order by phase"
    return "\n".join(
        [
            f"-- {table}: the id of a row is fixed, who made it and when is ours to say, changes are audited.",
            *(f"{statement};" for statement in _column(conn, query, table)),
            "",
        ]
    )


def _column(conn: psycopg.Connection[Any], query: str, table: str) -> list[str]:
    return [value for (value,) in conn.execute(query.encode(), [table]).fetchall()]


def _files(plan: _Plan, receiver: _Receiver | None, root: Path) -> dict[str, str]:
    """Those that are not there yet. What somebody wrote stays as it is."""
    files: dict[str, str] = {}
    if steps := [step for step in plan.steps if step.belongs_in == "migrations/"]:
        name = f"migrations/{next_number(root):04}_{_name(plan.tables)}"
        files[f"{name}.sql"] = _migration(plan.tables, steps, receiver)
        files[f"{name}.rollback.sql"] = _rollback(plan.tables, steps)
    for table in plan.tables:
        files[f"policies/{table}.sql"] = plan.protection[table]
        files[f"sql/adopted/{table}.sql"] = plan.triggers[table]
    return {path: text for path, text in files.items() if not (root / path).exists()}


def _name(tables: Sequence[str]) -> str:
    names = [table.split(".")[-1] for table in tables]
    return "adopt_" + ("_".join(names) if len(names) < 3 else f"{names[0]}_and_{len(names) - 1}_more")


def _migration(tables: Sequence[str], steps: Sequence[Step], receiver: _Receiver | None) -> str:
    lines = [
        f"-- {', '.join(tables)} become tenants' tables.",
        "-- policies/ and sql/adopted/ say who may do what with their rows.",
        "-- A database in which they are not there yet needs a migration before this one that creates them.",
        *(f"{step.statement};" for step in steps if _is_lock(step)),
        "",
        *_SEE_ORGANIZATIONS,
        *([] if receiver is None else _find(receiver, tables)),
    ]
    for step in steps:
        statement = step.statement
        if receiver is not None:
            found_here = f"nullif(current_setting('{_ROWS_GO_TO}'), '')::uuid"
            statement = statement.replace(f"'{receiver.id}'::uuid", found_here)
        if not _is_lock(step):
            lines += [*([f"-- {step.note}"] if step.note else []), f"{statement};"]
    return "\n".join([*lines, *_HIDE_ORGANIZATIONS])


def _find(receiver: _Receiver, tables: Sequence[str]) -> list[str]:
    """The organization has another id elsewhere. A new database has neither it nor rows that it could get."""
    rows = " union all ".join(f"select from {table}" for table in tables)
    return [
        f"-- The rows that are there go to organization {receiver.slug}.",
        "do $$",
        "begin",
        f"  perform set_config('{_ROWS_GO_TO}', coalesce(max(id::text), ''), true) from tenancy.organizations",
        f"  where slug = '{receiver.slug}';",
        f"  if current_setting('{_ROWS_GO_TO}') = '' and exists ({rows}) then",
        f"    raise exception 'there is no organization {receiver.slug} to give the rows to';",
        "  end if;",
        "end",
        "$$;",
        "",
    ]


def _rollback(tables: Sequence[str], steps: Sequence[Step]) -> str:
    return "\n".join(
        [
            f"-- {', '.join(tables)} as they were, but for owners and grants.",
            "-- Whose a row was is gone with organization_id, if that was new.",
            *(f"{step.statement};" for step in steps if _is_lock(step)),
            *(f"{step.undo};" for step in reversed(steps) if step.undo),
            "",
        ]
    )


def _is_lock(step: Step) -> bool:
    return step.statement.startswith("lock table ")


def _explained(error: psycopg.Error) -> str:
    """What is in the way, a line each. Everything else in one line."""
    message = " ".join((error.diag.message_primary or str(error)).split())
    if error.sqlstate == "PT409" and error.diag.message_detail:
        reasons = "".join(f"\n  - {reason}" for reason in error.diag.message_detail.splitlines())
        return f"{message}{reasons}\n{error.diag.message_hint}"
    if isinstance(error, psycopg.errors.UndefinedTable):
        return f"{message}. Name tables with their schemas, as app.tasks."
    if (schema := message.removeprefix("permission denied for schema ")) != message:
        return f"{message}. As its owner: grant usage on schema {schema} to goldleaves_migrator"
    return message

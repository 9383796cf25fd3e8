"""`goldleaves bootstrap`, `migrate`, `rollback`, `adopt` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from api import migrations
from api.adopt import adopt as adopt_tables
from api.adopt import report as adoption_report
from api.command_line import explain_errors, migration_url, say
from api.importing import ImportFailed, ImportFiles, import_files
from api.settings import SettingsError, load_settings
from api.stack.bootstrap import Plan
from api.stack.bootstrap import bootstrap as bootstrap_server

commands = typer.Typer()


@commands.command()
@explain_errors
def migrate() -> None:
    """Bring the database up to date: migrations, then sql/ and policies/.

    Migrates MIGRATION_DATABASE_URL (as goldleaves_migrator) when that is set, else the running embedded stack.

    Example:  MIGRATION_DATABASE_URL=postgresql://goldleaves_migrator:…@db/goldleaves goldleaves migrate
    """
    settings = load_settings()
    say(migrations.migrate(migration_url(settings), settings))


@commands.command()
@explain_errors
def adopt(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE", help="Tables with their schemas, as app.tasks.")],
    organization: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Whose the rows are that are there, by slug or id.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
) -> None:
    """Make tenants' tables of existing tables, or say what is in the way.

    Writes a migration with its rollback, policies/ and sql/adopted/ of each table, and migrates. Tables that refer to
    each other are adopted together. Once they are tenants' tables it does nothing.

    Example:  goldleaves adopt app.projects app.tasks --organization acme
    """
    settings = load_settings()
    found = adopt_tables(migration_url(settings), settings, tables, organization, dry_run=dry_run)
    for line in adoption_report(found):
        say(line)


@commands.command()
@explain_errors
def bootstrap() -> None:
    """Prepare a server, then migrate: the role that migrates, the database, and the passwords of the services.

    For a Postgres of your own, once, and after each change of a password. ADMIN_DATABASE_URL is that of a superuser,
    or of a role with CREATEROLE and CREATEDB; nothing else needs it. MIGRATION_DATABASE_URL names the database to make.
    The passwords to set are AUTHENTICATOR_PASSWORD, SIDECAR_PASSWORD and, if wanted, MONITOR_PASSWORD.

    Example:  ADMIN_DATABASE_URL=postgresql://postgres:…@db/postgres goldleaves bootstrap
    """
    settings = load_settings()
    say(bootstrap_server(Plan.of(settings), settings))


@commands.command()
@explain_errors
def rollback(
    to: Annotated[
        str | None, typer.Option(metavar="ID", help="The last one that stays: its id, or only its number.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Undo every migration: an empty database.")] = False,
) -> None:
    """Undo migrations. The tables they made go, and the data in them.

    Example:  goldleaves rollback --to 0003
    """
    if (to is not None) == everything:
        raise SettingsError("Say how far: --to ID (that migration stays), or --all.")
    say(migrations.rollback(migration_url(load_settings()), to))


def _csv(columns: str) -> Any:
    return typer.Option(metavar="FILE", exists=True, dir_okay=False, readable=True, help=f"Columns: {columns}.")


@commands.command(name="import")
@explain_errors
def import_(
    users: Annotated[Path | None, _csv("subject, email")] = None,
    organizations: Annotated[Path | None, _csv("name, slug, owner, and some more")] = None,
    memberships: Annotated[Path | None, _csv("organization, subject, role")] = None,
    usage: Annotated[Path | None, _csv("id, organization, event, quantity, time, and any more")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try it, and write nothing.")] = False,
) -> None:
    """Bring people, organizations and past usage from somewhere else, out of CSV files.

    Users, organizations and memberships come together or not at all; users without an organization get one each.
    What is there stays as it is, so that a file can be imported again. Usage that cannot be counted is written to
    FILE.rejected.csv. docs/adopting.md lists the columns. Exit code 3 when something differs from what is there, or was
    rejected.

    Example:  goldleaves import --users users.csv --organizations organizations.csv --memberships memberships.csv
    """
    files = ImportFiles(users=users, organizations=organizations, memberships=memberships, usage=usage)
    if files == ImportFiles():
        raise ImportFailed("Name a file: --users, --organizations, --memberships or --usage.")
    report = import_files(migration_url(load_settings()), files, dry_run=dry_run)
    for line in report.lines():
        say(line)
    if not report.is_clean:
        raise typer.Exit(3)

"""The `goldleaves` command. A mistake of its user ends in one line on stderr and exit code 1, never in a traceback."""

from __future__ import annotations

import http.client
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from api import contract, migrations
from api.adopt import adopt as adopt_tables
from api.adopt import report as adoption_report
from api.audit import erase as erase_from_audit_log
from api.audit import verify as verify_audit_log
from api.command_line import console, errors, explain_errors, migration_url, say
from api.contract.error_reference import error_reference
from api.contract.typescript import database_types
from api.demo import play, running_venue, stack_venue
from api.dev.session import develop
from api.importing import ImportFailed, ImportFiles, import_files
from api.policies.cli import policies_app
from api.scaffold.cli import apply_plan_command, scaffold_app
from api.settings import LONGEST_LIFETIME_MINUTES, Settings, SettingsError, load_settings
from api.stack import SUPERVISOR, Endpoints, Stack
from api.stack.bootstrap import Plan
from api.stack.bootstrap import bootstrap as bootstrap_server
from api.stack.progress import Progress
from api.stack.psql import become_psql
from api.tokens import LONGEST_SUBJECT, Role, mint_token

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Goldleaves: usage metering and billing inside Postgres.

    A first look:  [bold]goldleaves demo[/bold]

    To work with it:  [bold]goldleaves up[/bold], then [bold]goldleaves token --sub ann[/bold], then send requests to
    http://127.0.0.1:8000/api/v1/…  Every setting is an environment variable or a line in .env; see .env.example.""",
)
audit_app = typer.Typer(no_args_is_help=True, help="Verify the audit log, and erase what it knows of people.")
app.add_typer(audit_app, name="audit")
app.add_typer(policies_app, name="policies")
app.add_typer(scaffold_app, name="scaffold")
app.command(name="apply-plan")(apply_plan_command)


@app.command()
@explain_errors
def up(
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay, and print what happens to the stack. Ctrl-C stops it.")
    ] = False,
) -> None:
    """Start the stack and leave it running: Postgres, PostgREST and the sidecar.

    What runs already stays; what was killed is started again; the database is migrated. The data outlives `down`. A
    supervisor stays behind: it starts again what dies, and `status` tells what it had to do.

    Example:  GATEWAY_PORT=8080 goldleaves up
    """
    stack = _stack()
    with _terminable():
        endpoints = stack.up()
        _say_where(stack, endpoints)
        if follow:
            _follow(stack)


def _say_where(stack: Stack, endpoints: Endpoints) -> None:
    console.print(f"\nGateway    {endpoints.gateway_url}/api/v1/", highlight=False)
    console.print(f"PostgREST  {endpoints.postgrest_url}", highlight=False)
    console.print(f"Addresses and secrets: {stack.state.stack_file}", highlight=False, soft_wrap=True)


def _follow(stack: Stack) -> None:
    """Print the supervisor's events until the user, or `down`, ends it."""
    console.print("Watching the stack. Ctrl-C stops it.\n")
    try:
        for event in stack.events():
            console.print(event, highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        pass
    finally:
        stack.down()


@app.command()
@explain_errors
def down() -> None:
    """Stop the stack, every process of it. The data stays.

    Example:  goldleaves down
    """
    if not _stack().down():
        console.print("Nothing was running.")


@app.command()
@explain_errors
def dev() -> None:
    """Run the stack in the foreground, and reload what is saved in sql/, policies/, migrations/ and api/.

    What cannot be loaded is shown with its line, and the last good version stays. Ctrl-C leaves the stack as it was.

    Example:  goldleaves dev
    """
    with _terminable():
        develop(console, _stack())


@app.command()
@explain_errors
def demo(
    against: Annotated[
        str | None, typer.Option(metavar="URL", help="A gateway that runs elsewhere, instead of the stack.")
    ] = None,
) -> None:
    """Play one metered month against the real stack, as a short story.

    Starts the stack when it is not running, and then stops it at the end. With --against it is played on the gateway at
    that URL, whose JWT_SECRET has to be set here too: the people of the story sign in with it. One scene tries SQL, if
    ADMIN_DATABASE_URL is set. New organizations stay there, each time.

    Example:  goldleaves demo --against http://127.0.0.1:8000
    """
    if against is not None:
        play(console, running_venue(against, load_settings()))
        return
    stack = _stack()
    with _terminable(), stack.borrowed() as endpoints:
        play(console, stack_venue(endpoints, stack.settings))


@app.command()
@explain_errors
def migrate() -> None:
    """Bring the database up to date: migrations, then sql/ and policies/.

    Migrates MIGRATION_DATABASE_URL (as goldleaves_migrator) when that is set, else the running embedded stack.

    Example:  MIGRATION_DATABASE_URL=postgresql://goldleaves_migrator:…@db/goldleaves goldleaves migrate
    """
    settings = load_settings()
    say(migrations.migrate(migration_url(settings), settings))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command(name="import")
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


@audit_app.command(name="verify")
@explain_errors
def verify_audit(
    organization: Annotated[str | None, typer.Option(metavar="SLUG", help="Only its log, by slug or id.")] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What --json printed earlier: nothing before that was rewritten."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON. Keep it elsewhere, for a later --anchor.")
    ] = False,
) -> None:
    """Compute the hashes of the audit log anew, and name the first entry of each chain that is not what was written.

    Each organization has a chain, the platform one more. Prints where each ends: organization, position, hash. Exit
    code 1 when something is broken.

    Example:  goldleaves audit verify --json > audit.json; later  goldleaves audit verify --anchor audit.json
    """
    verdict = verify_audit_log(migration_url(load_settings()), organization, anchor)
    if as_json:
        typer.echo(verdict.as_json())
    else:
        for end in verdict.ends:
            typer.echo(end)
        for broken in verdict.broken:
            errors.print(str(broken), style="red", markup=False, highlight=False, soft_wrap=True)
        for table in verdict.unwatched:
            errors.print(f"{table}: a trigger of the audit log is disabled or gone there", style="red", soft_wrap=True)
    if not verdict.is_whole:
        raise typer.Exit(1)


@audit_app.command(name="erase")
@explain_errors
def erase_audit(
    email: Annotated[str | None, typer.Option(help="Everything that mentions this address.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="What a person did or was told of, by subject or id.")
    ] = None,
    organization: Annotated[
        str | None, typer.Option(metavar="SLUG", help="Everybody in the log of an organization, by slug or id.")
    ] = None,
) -> None:
    """Erase what the audit log knows of people: addresses, e-mails, names. What was done by whom with which id stays.

    The chains stay whole, and the log says that something was erased, not what.

    Example:  goldleaves audit erase --email ann@example.com
    """
    erased = erase_from_audit_log(migration_url(load_settings()), email=email, user=user, organization=organization)
    console.print(f"Erased {erased} part{'' if erased == 1 else 's'} of entries.", highlight=False)


@app.command()
@explain_errors
def token(
    sub: Annotated[str, typer.Option(metavar="SUBJECT", help="Who: the identity provider's id, any text.")],
    email: Annotated[str | None, typer.Option(help="Names the personal organization of a new user.")] = None,
    org: Annotated[str | None, typer.Option(metavar="ID", help="Organization (UUID or slug) to act in.")] = None,
    role: Annotated[Role, typer.Option(help="What the token may do.")] = "member",
    minutes: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST_LIFETIME_MINUTES, help="Valid for; JWT_EXPIRATION_MINUTES by default."),
    ] = None,
) -> None:
    """Print a JWT that the running stack accepts, and nothing else.

    Example:  curl -H "Authorization: Bearer $(goldleaves token --sub ann --email ann@example.com)" http://127.0.0.1:8000/api/v1/cases
    """
    if not 1 <= len(sub) <= LONGEST_SUBJECT:
        raise typer.BadParameter(f"expected 1 to {LONGEST_SUBJECT} characters, got {len(sub)}", param_hint="--sub")
    settings = load_settings()
    secret = Stack(settings).jwt_secret()
    if secret is None:
        raise SettingsError("JWT_SECRET is not set, and no stack has made one yet. Run `goldleaves up` first.")
    lifetime = timedelta(minutes=minutes or settings.jwt_expiration_minutes)
    typer.echo(
        mint_token(
            secret,
            sub,
            role=role,
            email=email,
            organization=org,
            lifetime=lifetime,
            algorithm=settings.jwt_algorithm,
            audience=settings.jwt_audience,
        )
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@explain_errors
def psql(context: typer.Context) -> None:
    """Open psql on the database of the running stack, as its superuser. What follows is for psql.

    Example:  goldleaves psql -c 'select * from metering.meters'
    """
    become_psql(load_settings(), context.args)


@app.command()
@explain_errors
def types() -> None:
    """Print TypeScript types of the API, for @supabase/postgrest-js: rows, writes, relationships and functions.

    They are read from MIGRATION_DATABASE_URL when that is set, else from the running embedded stack.

    Example:  goldleaves types > src/database.ts
    """
    typer.echo(database_types(contract.read_catalog(migration_url(load_settings()))), nl=False)


@app.command()
@explain_errors
def openapi(
    write: Annotated[bool, typer.Option("--write", help="Renew docs/openapi.json; says what breaks clients.")] = False,
) -> None:
    """Print the OpenAPI document of the API, which a sidecar serves at /openapi.json.

    docs/openapi.json is what clients were promised: a test fails when the API breaks it.

    Example:  goldleaves openapi --write
    """
    catalog = contract.read_catalog(migration_url(load_settings()))
    if not write:
        typer.echo(contract.document_text(catalog), nl=False)
        return
    for change in contract.write_document(catalog):
        console.print(f"[red]breaks clients[/red]  {escape(change)}", highlight=False, soft_wrap=True)
    console.print(f"Wrote {contract.DOCUMENT}", highlight=False, soft_wrap=True)


@app.command(name="errors")
@explain_errors
def print_errors(
    write: Annotated[bool, typer.Option("--write", help="Renew docs/errors.md.")] = False,
) -> None:
    """Print what every error code means and what to do about it.

    Example:  goldleaves errors | less
    """
    if not write:
        typer.echo(error_reference(), nl=False)
        return
    contract.ERRORS.write_text(error_reference(), encoding="utf-8")
    console.print(f"Wrote {contract.ERRORS}", highlight=False, soft_wrap=True)


@app.command()
@explain_errors
def status() -> None:
    """Show what runs and how it is. Exit code 1 when a part is down.

    Example:  goldleaves status
    """
    stack = _stack()
    parts = stack.status()
    table = Table("part", "state", "pid", "restarts", "url", box=None, pad_edge=False, header_style="bold")
    for part in parts:
        state = "[green]running[/green]" if part.pid else "[red]down[/red]"
        table.add_row(part.name, state, str(part.pid or "-"), str(part.history.restarts), part.url)
    console.print(table)
    for part in parts:
        if part.history.reason is not None:
            console.print(f"{part.name} {part.history.reason} at {part.history.at}", highlight=False, markup=False)
    _look_after_supervisor(stack)
    health = _health(stack.settings)
    if health is not None:
        console.print_json(json.dumps(health))
    if health is None or not all(part.pid for part in parts):
        raise typer.Exit(1)


def _look_after_supervisor(stack: Stack) -> None:
    if stack.supervisor_died():
        console.print("The supervisor had died, so nothing would have been started again:", style="red")
        stack.supervise()
    pid = stack.supervisor()
    console.print(
        f"supervisor: {'none' if pid is None else f'pid {pid}'}, log {stack.state.log(SUPERVISOR)}", soft_wrap=True
    )


def _stack() -> Stack:
    return Stack(load_settings(), Progress(console))


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the block like Ctrl-C does, so that what it started is stopped."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _health(settings: Settings) -> object | None:
    """What the sidecar says of itself and the others, also when it is not well. None when it does not answer."""
    connection = http.client.HTTPConnection(settings.host, settings.gateway_port, timeout=15)
    try:
        connection.request("GET", "/health")
        body: object = json.loads(connection.getresponse().read())
        return body
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()

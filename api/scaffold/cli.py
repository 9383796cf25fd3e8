"""`goldleaves scaffold …` and `goldleaves apply-plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Grid
from rich.text import Text

from api.command_line import console, explain_errors, migration_url, say
from api.scaffold.columns import read_columns
from api.scaffold.files import Report, State, apply_plan
from api.scaffold.plan import read_plan, write_plan
from api.scaffold.scaffold import scaffold_table
from api.scaffold.table import HOME, Table
from api.settings import PROJECT, SettingsError, load_settings

CONFLICT = 3  # exit code
_STYLES = {State.CREATE: "green", State.UNCHANGED: "dim", State.CONFLICT: "bold red"}

commands = typer.Typer()
scaffold_app = typer.Typer(no_args_is_help=True, help="Write the files of a table of your own: yours from then on.")
commands.add_typer(scaffold_app, name="scaffold")


@scaffold_app.callback()
def scaffold() -> None:
    """Without a callback typer would make a lone command the whole program."""


@scaffold_app.command(name="table")
@explain_errors
def scaffold_table_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called, in the plural: tasks.")],
    columns: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS",
            help="As in CREATE TABLE, with commas between. Behind a type: not null, default …, unique, check (…), "
            "references schema.table on delete …. Keys get organization_id put before.",
        ),
    ],
    schema: Annotated[str, typer.Option(metavar="SCHEMA", help="Where it lies; a schema of your own is made.")] = HOME,
    plan: Annotated[Path, typer.Option(metavar="FILE", help="Where the plan is written.")] = Path("plan.json"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the plan, and no file of it.")] = False,
) -> None:
    """Write what a tenants' table takes: migration and rollback, policies, triggers, API view, isolation test.

    All of it is tried on the database first, in a transaction that is rolled back. Then it is written to plan.json and
    applied as `goldleaves apply-plan --apply` does: nothing is ever overwritten. Exit code 3 when a file is there that
    says something else.

    Example:  goldleaves scaffold table tasks --columns "title text not null, case_id uuid references app.cases"
    """
    made = scaffold_table(Table(schema, name, read_columns(columns)), _database(), PROJECT)
    write_plan(plan, made.plan)
    for note in made.notes:
        say(note)
    report = apply_plan(made.plan, PROJECT, write=not dry_run)
    _show(report, f"`goldleaves apply-plan {plan} --apply`")
    if not dry_run and not report.has_conflicts:
        say(f"Next: goldleaves migrate, then .venv/bin/pytest -n0 {made.paths.test}")
    if report.has_conflicts:
        raise typer.Exit(CONFLICT)


@commands.command(name="apply-plan")
@explain_errors
def apply_plan_command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan for files, as of `goldleaves scaffold`.", dir_okay=False)
    ],
    apply: Annotated[bool, typer.Option("--apply", help="Create the files. Without, only say what would be.")] = False,
) -> None:
    """Create the files of a plan that are absent. Says what it would do, and does it with --apply.

    A file that is there is never overwritten: where it says something else, the plan's is written beside it as .new.
    Exit code 3 when there was such a conflict.

    Example:  goldleaves apply-plan plan.json --apply
    """
    report = apply_plan(read_plan(plan), PROJECT, write=apply)
    _show(report, "--apply")
    if report.has_conflicts:
        raise typer.Exit(CONFLICT)


def _database() -> str | None:
    settings = load_settings()
    try:
        return migration_url(settings)
    except SettingsError:
        return None


def _show(report: Report, how: str) -> None:
    grid = Grid(box=None, pad_edge=False, show_header=False)
    for outcome in report.outcomes:
        state = "created" if report.applied and outcome.state is State.CREATE else str(outcome.state)
        beside = f"{'see' if report.applied else 'would write'} {outcome.beside}" if outcome.beside else ""
        grid.add_row(Text(state, _STYLES[outcome.state]), Text(outcome.path), Text(beside))
    console.print(grid, soft_wrap=True)
    say(_sentence(report, how))


def _sentence(report: Report, how: str) -> str:
    created, unchanged, conflicts = (len(report.of(state)) for state in State)
    if not report.applied:
        return (
            f"Would create {_files(created)}, {unchanged} unchanged, {_conflicts(conflicts)}. "
            f"Nothing was written: {how} does."
        )
    merge = " Take from each .new what you want, then delete it." if conflicts else ""
    return f"Created {_files(created)}, {unchanged} unchanged, {_conflicts(conflicts)}.{merge}"


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def _conflicts(number: int) -> str:
    return f"{number} conflict{'' if number == 1 else 's'}"

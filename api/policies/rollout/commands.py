"""`goldleaves policies plan`, `apply`, `verify`, `rollback` and `releases`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from api.command_line import explain_errors, migration_url, say
from api.migrations import connected
from api.policies.rollout import history, paperwork, report
from api.policies.rollout.apply import apply as apply_policies
from api.policies.rollout.apply import differing_files, refuse_closed_gate, roll_back
from api.policies.rollout.plan import Plan, find_drift, make_plan, released_files
from api.release.errors import PolicyConflict
from api.settings import PROJECT, load_settings

commands = typer.Typer()

CONFLICT_EXIT = 3

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="Where the plan is written.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who does it, for the record; default: your login name.")]


@commands.command()
@explain_errors
def plan(as_json: AsJson = False, out: Out = Path(paperwork.PLAN)) -> None:
    """Show what the files of policies/ would change in the live database, without changing it.

    The files are loaded in a transaction, the catalog is compared before and after, and all of it is taken back. For
    that moment it holds the locks that it lists. Writes plan.json: a list of actions create, change, drop and conflict.
    Exit code 3 when something was changed by hand (conflict), else 0.

    Example:  goldleaves policies plan
    """
    paperwork.refuse_others_plan(out)
    with _explained_conflicts(as_json):
        made = make_plan(migration_url(load_settings()), PROJECT)
    with _told_anyway(made, applied=False, as_json=as_json):
        paperwork.write_plan(made, out)
    _print(made, applied=False, as_json=as_json)


@commands.command()
@explain_errors
def apply(
    write: Annotated[bool, typer.Option("--apply", help="Do it. Without this it is only tried.")] = False,
    overwrite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Changed by hand: the file counts, or what was released. Repeatable."),
    ] = None,
    accept_live: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Changed by hand: what is live counts, and is written into its file."),
    ] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Bring the files of policies/ to the live database, in one transaction. A dry run without --apply.

    What somebody changed by hand is left alone: its live definition is written beside the file as .new, it is listed in
    conflicts.json, and the exit code is 3. --overwrite and --accept-live resolve it by name. The rest is applied, and
    recorded in ops.policy_releases.

    Example:  goldleaves policies apply --apply
    """
    settings = load_settings()
    if write:
        refuse_closed_gate(settings)
    paperwork.refuse_others_conflicts(Path(paperwork.CONFLICTS))
    with _explained_conflicts(as_json):
        made = apply_policies(
            migration_url(settings),
            PROJECT,
            overwrite=overwrite or [],
            accept_live=accept_live or [],
            write=write,
            operator=by,
        )
    with _told_anyway(made, applied=write, as_json=as_json):
        written = paperwork.write_conflicts(made.conflicts, PROJECT, Path(paperwork.CONFLICTS))
    _print(made, applied=write, as_json=as_json, written=written)


@commands.command()
@explain_errors
def verify(as_json: AsJson = False) -> None:
    """Tell whether the live database is still what was last released. For cron and CI: it takes no locks.

    Compares policies, row security, grants and owners of tables and their partitions, and definitions, owners and
    grants of functions, views, triggers and schemas. Exit code 0 when nothing was changed by hand, else 1.

    Example:  goldleaves policies verify || echo 'somebody was here'
    """
    with connected(migration_url(load_settings())) as conn:
        found = find_drift(conn)
    if as_json:
        differences = [
            {"unit": each.unit, "file": each.file, "says": [text for c in each.changes() for text in c.sentences()]}
            for each in found.values()
        ]
        typer.echo(json.dumps({"ok": not found, "differences": differences}, indent=2))
    elif found:
        report.print_drift(found)
    else:
        say("The live database is what was last released.")
    if found:
        raise typer.Exit(1)


@commands.command()
@explain_errors
def rollback(
    to: Annotated[int | None, typer.Option(metavar="RELEASE", help="As `policies releases` numbers them.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Go back to the policies of the release before. Once more goes one further back.

    Functions, views and tables stay. So do the files of policies/: the next `policies apply` or `migrate` brings them
    again, unless they are changed back too. Exit code 3 when something was changed by hand: nothing is done then.

    Example:  goldleaves policies rollback
    """
    settings = load_settings()
    if not dry_run:
        refuse_closed_gate(settings)
    with _explained_conflicts(as_json):
        target, made = roll_back(migration_url(settings), PROJECT, to, write=not dry_run, operator=by)
    if as_json:
        typer.echo(made.as_json(), nl=False)
        return
    where = f"release {target.id} of {target.released_at:%Y-%m-%d %H:%M:%S} UTC"
    say(f"It would go back to {where}." if dry_run else f"Back to {where}.")
    report.print_plan(made, applied=not dry_run)
    if files := differing_files(PROJECT, target):
        say(f"The next apply or migrate undoes this, as these files say otherwise: {', '.join(files)}")


@commands.command()
@explain_errors
def releases(as_json: AsJson = False) -> None:
    """List the releases of policies, the latest first: when, by whom, from which commit, and which files changed.

    Example:  goldleaves policies releases
    """
    with connected(migration_url(load_settings())) as conn:
        released_files(conn)
        known = history.releases(conn)
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in reversed(known)], indent=2))
    else:
        report.print_releases(known)


def _as_json(release: history.PolicyRelease) -> dict[str, object]:
    return {
        "id": release.id,
        "released_at": release.released_at.isoformat(),
        "operator": release.operator,
        "git_revision": release.git_revision,
        "restores": release.restores,
        "changed": release.changed,
    }


@contextmanager
def _explained_conflicts(as_json: bool) -> Iterator[None]:
    """What was changed by hand and stops everything: nothing is done then."""
    try:
        yield
    except PolicyConflict as error:
        if as_json:
            conflicts = [{"unit": unit, "file": file, "says": says} for unit, file, says in error.conflicts]
            typer.echo(json.dumps({"kind": "policies", "actions": [], "conflicts": conflicts}, indent=2))
        else:
            say(str(error))
        raise typer.Exit(CONFLICT_EXIT) from error


@contextmanager
def _told_anyway(made: Plan, *, applied: bool, as_json: bool) -> Iterator[None]:
    """What was done is told also where its files cannot be written, as in a directory that is read-only."""
    try:
        yield
    except OSError:
        _show(made, applied=applied, as_json=as_json)
        raise


def _print(made: Plan, *, applied: bool, as_json: bool, written: Iterable[Path] = ()) -> None:
    _show(made, applied=applied, as_json=as_json, written=written)
    if made.conflicts:
        raise typer.Exit(CONFLICT_EXIT)


def _show(made: Plan, *, applied: bool, as_json: bool, written: Iterable[Path] = ()) -> None:
    if as_json:
        typer.echo(made.as_json(), nl=False)
    else:
        report.print_plan(made, applied=applied, written=written)

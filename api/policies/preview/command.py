"""The command, and how it prints."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from api.command_line import console, errors, explain_errors, migration_url, say
from api.policies.preview import caller as callers
from api.policies.preview.caller import Caller, Context
from api.policies.preview.counts import NO_RIGHT, Count, Counter, Shown, relations
from api.policies.trial import allow_roles, trial
from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.settings import SettingsError, load_settings

commands = typer.Typer()

StaffRole = Literal["platform_admin", "service"]

_NO_RIGHT_SIGN = "\N{EN DASH}"
# Whose rows a person sees wherever they are a member.
_OWN_ANYWHERE = {"tenancy.organizations", "tenancy.memberships", "api.organizations", "api.memberships"}


@dataclass(frozen=True)
class Preview:
    """What each relation shows. `organization` is the slug of the one that the caller acts for, if any."""

    caller: Caller
    organization: str | None
    context: Context
    shown: tuple[Shown, ...]


@commands.command()
@explain_errors
def preview(
    as_user: Annotated[
        str | None, typer.Option("--as", metavar="USER", help="A person: subject of the token, e-mail or id.")
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="PREFIX", help="An API key instead, by its prefix.")] = None,
    token_role: Annotated[StaffRole | None, typer.Option(help="The role of a token that is no person's.")] = None,
    organization: Annotated[
        str | None, typer.Option("--org", metavar="ORG", help="Slug or id; without it the caller's default one.")
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="Also the views of the API.")] = False,
    timeout: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="For each count.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many rows each table shows to somebody, beside how many there are.

    The context is the one that a request gets, made by the same function, in a transaction that is rolled back: whom a
    request refuses, this refuses too. Counts are exact; one that takes longer than --timeout is given up.

    Example:  goldleaves policies preview --as ann@example.com --org acme
    """
    url = migration_url(load_settings())
    if sum(given is not None for given in (as_user, key, token_role)) != 1:
        raise SettingsError("Say whose eyes: --as USER, --key PREFIX, or --token-role platform_admin; one of them.")
    with trial(url) as conn, errors.status("Counting…"):
        # One snapshot, so that no count is of another moment than the one beside it.
        conn.execute("set transaction isolation level repeatable read")
        found = _preview(conn, _caller(conn, as_user, key, token_role), organization, views=views, timeout=timeout)
    if as_json:
        typer.echo(json.dumps(_document(found), indent=2))
    else:
        _print(found)


def _caller(conn: Connection, user: str | None, key: str | None, role: StaffRole | None) -> Caller:
    if user is not None:
        return callers.person(conn, user)
    if key is not None:
        return callers.key(conn, key)
    return Caller(str(role), str(role))


def _preview(conn: Connection, caller: Caller, organization: str | None, *, views: bool, timeout: float) -> Preview:
    if organization is not None:
        callers.require_organization(conn, organization)
    allow_roles(conn, [caller.role])
    with suppress(MigrationError):  # staff sees what the kernel does not. Where nobody sees all, the counts say so
        allow_roles(conn, ["platform_admin"])
    counter = Counter(conn, caller, organization, timeout)
    context = counter.context()
    return Preview(
        caller,
        None if context.organization_id is None else callers.slug_of(conn, context.organization_id),
        context,
        tuple(counter.count(relation, context) for relation in relations(conn, caller.role, views=views)),
    )


def _document(found: Preview) -> dict[str, Any]:
    """Numbers, or null with the reason under `why`."""
    return {
        "as": found.caller.name,
        "role": found.caller.role,
        "organization": found.organization,
        "organization_role": found.context.organization_role,
        "relations": [_entry(each) for each in found.shown],
    }


def _entry(each: Shown) -> dict[str, Any]:
    counts = {
        "shown": each.shown,
        "shown_of_others": each.of_others,
        "of_organization": each.of_organization,
        "whole": each.whole,
    }
    return {
        "name": each.relation.name,
        "kind": "view" if each.relation.is_view else "table",
        **{name: count and count.rows for name, count in counts.items()},
        "why": {name: count.why for name, count in counts.items() if count and count.why},
    }


def _print(found: Preview) -> None:
    role = found.context.organization_role
    place = f"{f', {role} of' if role else ' for'} {found.organization}" if found.organization else ""
    say(f"{found.caller.name}{place}: the rows that each table shows to role {found.caller.role}. Counts are exact.\n")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    headings = ["shown"]
    if found.organization:
        headings += ["of others", f"of {found.organization}"]
    for heading in [*headings, "whole table"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found.shown:
        cells = [_cell(each.shown)]
        if found.organization:
            cells += [_alarming(each, found.caller), _cell(each.of_organization)]
        table.add_row(Text(each.relation.name), *cells, _cell(each.whole))
    # A narrow terminal breaks lines; rich would leave out digits instead.
    table.width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(table, soft_wrap=True)
    notes = _notes(found)
    if notes:
        say("")
    for note in notes:
        say(note)


def _cell(count: Count | None) -> Text:
    if count is None:
        return Text("")
    if count.rows is not None:
        return Text(f"{count.rows:,}", style="" if count.rows else "dim")
    if count.why == NO_RIGHT:
        return Text(_NO_RIGHT_SIGN, style="dim")
    return Text(str(count.why) if str(count.why).startswith(">") else "?", style="yellow")


def _alarming(each: Shown, caller: Caller) -> Text:
    text = _cell(each.of_others)
    if each.of_others and each.of_others.rows and caller.role == "member":
        text.stylize("bold red" if each.relation.name not in _OWN_ANYWHERE else "yellow")
    return text


def _notes(found: Preview) -> list[str]:
    """What the signs in the table mean, of those that are there."""
    reasons: dict[str, list[str]] = {}
    for each in found.shown:
        counts = (each.shown, each.of_others, each.of_organization, each.whole)
        for why in {count.why for count in counts if count and count.why}:
            reasons.setdefault(why, []).append(each.relation.name)
    notes = []
    if reasons.pop(NO_RIGHT, None):
        notes.append(f"{_NO_RIGHT_SIGN}  no right to read it")
    for why, names in reasons.items():
        if why.startswith(">"):
            notes.append(f"{why}  counting took longer: give it more with --timeout")
        else:
            notes.append(f"?  {', '.join(names)}: {why}")
    if found.caller.role == "member":
        others = [each.relation.name for each in found.shown if each.of_others and each.of_others.rows]
        if own := [name for name in others if name in _OWN_ANYWHERE]:
            notes.append(f"{', '.join(own)}: a person's own in other organizations too")
        if holes := [name for name in others if name not in _OWN_ANYWHERE]:
            notes.append(
                f"!  {', '.join(holes)}: rows of other organizations are shown. Ask `goldleaves policies lint`."
            )
    return notes

"""`goldleaves stripe events` and `goldleaves stripe replay`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from api.command_line import explain_errors, migration_url, say
from api.settings import load_settings
from api.stripe.commands.columns import aligned
from api.stripe.events import Event, events, replay, replay_dead
from api.stripe.failed import StripeCommandFailed

HEADINGS: Final = ("RECEIVED", "ID", "TYPE", "WHOSE", "STATUS", "ATTEMPTS", "MESSAGE")
DATES: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

commands = typer.Typer()


@commands.command(name="events")
@explain_errors
def list_events(
    status: Annotated[
        str | None,
        typer.Option(metavar="dead", help="Only dead, failed, unlinked, applied, stale or ignored ones."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON an event.")] = False,
) -> None:
    """Show what Stripe has sent, and what became of it.

    Example:  goldleaves stripe events --status dead
    """
    found = events(migration_url(load_settings()), status, most)
    if as_json:
        for event in found:
            typer.echo(json.dumps(asdict(event), default=_text))
    elif not found:
        say("No events.")
    else:
        for line in aligned(HEADINGS, *(_row(event) for event in found)):
            say(line)


@commands.command(name="replay")
@explain_errors
def replay_events(
    ids: Annotated[list[str] | None, typer.Argument(metavar="EVENT_ID…", help="Such as evt_….")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that are not tried any more.")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(help="With --dead: only what came from then on (UTC).", formats=DATES),
    ] = None,
) -> None:
    """Have events read anew and applied again by the sidecar. Where nothing was wrong, nothing changes.

    Example:  goldleaves stripe replay --dead --since 2026-01-31
    """
    if bool(ids) == dead:
        raise StripeCommandFailed("Name the events by their ids, or say --dead.")
    if since is not None and not dead:
        raise StripeCommandFailed("--since goes with --dead.")
    url = migration_url(load_settings())
    if dead:
        number = replay_dead(url, since.replace(tzinfo=UTC) if since is not None else None)
    else:
        number = replay(url, ids or [])
    say(f"{number} event{'' if number == 1 else 's'} to be applied again.")


def _row(event: Event) -> tuple[str, ...]:
    return (
        f"{event.received_at:%Y-%m-%d %H:%M:%S}Z",
        event.id,
        event.type,
        event.whose,
        event.status,
        str(event.attempts),
        event.message or "",
    )


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

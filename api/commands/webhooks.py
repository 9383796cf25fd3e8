"""`goldleaves webhooks …`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final
from uuid import UUID

import typer

from api.command_line import errors, explain_errors, migration_url, say
from api.settings import load_settings
from api.webhooks.outbox import Message, OutboxError, messages, replay, replay_dead, send_test

WAIT_SECONDS: Final = 20.0  # an attempt takes at most 15
HEADINGS: Final = ("written at", "id", "type", "organization", "status", "attempts", "last error")
DATES: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

commands = typer.Typer()
webhooks_app = typer.Typer(no_args_is_help=True, help="Messages to your application: look at them, send them again.")
commands.add_typer(webhooks_app, name="webhooks")


@webhooks_app.callback()
def webhooks() -> None:
    """Typer makes a group only of what has commands or a callback."""


@webhooks_app.command(name="list")
@explain_errors
def list_messages(
    status: Annotated[str | None, typer.Option(metavar="dead", help="Only pending, delivered or dead ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a message.")] = False,
) -> None:
    """Show messages, and what became of them.

    Example:  goldleaves webhooks list --status dead
    """
    found = messages(migration_url(load_settings()), status, limit)
    if as_json:
        for message in found:
            typer.echo(json.dumps(asdict(message), default=_text))
        return
    if not found:
        say("No messages.")
        return
    rows = [HEADINGS, *(_row(message) for message in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@webhooks_app.command(name="replay")
@explain_errors
def replay_messages(
    ids: Annotated[list[UUID] | None, typer.Argument(metavar="ID…", help="The messages.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="All that could not be delivered.")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(help="With --dead: only what was written from then on (UTC).", formats=DATES),
    ] = None,
) -> None:
    """Send messages again, under the ids that they have: now, and if that fails, as often as new ones.

    Example:  goldleaves webhooks replay --dead --since 2026-01-31
    """
    if bool(ids) == dead:
        raise OutboxError("Name the messages by their ids, or say --dead.")
    if since is not None and not dead:
        raise OutboxError("--since goes with --dead.")
    url = migration_url(load_settings())
    if dead:
        number = replay_dead(url, since.replace(tzinfo=UTC) if since is not None else None)
    else:
        number = replay(url, ids or [])
    say(f"{number} message{'' if number == 1 else 's'} to be sent again.")


@webhooks_app.command(name="test")
@explain_errors
def test() -> None:
    """Send a message of type webhook.test, and say what your application answered. Exit code 1 when it took it not.

    Example:  goldleaves webhooks test
    """
    settings = load_settings()
    message = send_test(migration_url(settings), WAIT_SECONDS)
    if message.status == "delivered":
        say(f"Delivered {message.id}: {message.last_status}.")
        return
    errors.print(_why_not(message), style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def _row(message: Message) -> tuple[str, ...]:
    return (
        f"{message.created_at:%Y-%m-%d %H:%M:%S}Z",
        str(message.id),
        message.type,
        message.organization,
        message.status,
        str(message.attempts),
        _plain(message.last_error or ""),
    )


def _why_not(message: Message) -> str:
    if message.attempts:
        error = _plain(message.last_error or "")
        return f"Not delivered, and tried again at {message.next_attempt_at:%H:%M:%S} UTC: {error}"
    return f"Nobody has sent {message.id} yet. Is WEBHOOK_URL set, and does a sidecar run?"


def _plain(text: str) -> str:
    """What a receiver answered does nothing to a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

"""`goldleaves up`, `down`, `dev`, `demo` and `status`."""

from __future__ import annotations

import http.client
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table

from api.command_line import console, explain_errors
from api.demo import play, running_venue, stack_venue
from api.dev.session import develop
from api.settings import Settings, load_settings
from api.stack.endpoints import Endpoints
from api.stack.progress import Progress
from api.stack.stack import Stack
from api.stack.supervisor import NAME as SUPERVISOR

commands = typer.Typer()


@commands.command()
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


@commands.command()
@explain_errors
def down() -> None:
    """Stop the stack, every process of it. The data stays.

    Example:  goldleaves down
    """
    if not _stack().down():
        console.print("Nothing was running.")


@commands.command()
@explain_errors
def dev() -> None:
    """Run the stack in the foreground, and reload what is saved in sql/, policies/, migrations/ and api/.

    What cannot be loaded is shown with its line, and the last good version stays. Ctrl-C leaves the stack as it was.

    Example:  goldleaves dev
    """
    with _terminable():
        develop(console, _stack())


@commands.command()
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


@commands.command()
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

"""`goldleaves up`, `down` and `status`."""

from __future__ import annotations

import http.client
import json
from typing import Annotated

import typer
from rich.table import Table

from api.command_line import console, explain_errors
from api.commands.whole_stack import stack_here, terminable
from api.settings import Settings
from api.stack.endpoints import Endpoints
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
    stack = stack_here()
    with terminable():
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
    if not stack_here().down():
        console.print("Nothing was running.")


@commands.command()
@explain_errors
def status() -> None:
    """Show what runs and how it is. Exit code 1 when a part is down.

    Example:  goldleaves status
    """
    stack = stack_here()
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

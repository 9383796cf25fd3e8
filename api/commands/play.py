"""`goldleaves dev` and `demo`: the stack for a while, to work on it or to see it."""

from __future__ import annotations

from typing import Annotated

import typer

from api.command_line import console, explain_errors
from api.commands.whole_stack import stack_here, terminable
from api.demo import play, running_venue, stack_venue
from api.dev.session import develop
from api.settings import load_settings

commands = typer.Typer()


@commands.command()
@explain_errors
def dev() -> None:
    """Run the stack in the foreground, and reload what is saved in sql/, policies/, migrations/ and api/.

    What cannot be loaded is shown with its line, and the last good version stays. Ctrl-C leaves the stack as it was.

    Example:  goldleaves dev
    """
    with terminable():
        develop(console, stack_here())


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
    stack = stack_here()
    with terminable(), stack.borrowed() as endpoints:
        play(console, stack_venue(endpoints, stack.settings))

"""What every `goldleaves` command shares: where it prints, how it fails, and which database it means."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

from api.settings import Settings, SettingsError

P = ParamSpec("P")
R = TypeVar("R")

console = Console()
errors = Console(stderr=True)


def explain_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what can go wrong outside the program into one line and exit code 1."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return command(*arguments, **options)
        except typer.Exit:
            raise
        except Exception as error:
            from api.failures import explanation  # knows the errors of everything: too much for a command that succeeds

            text = explanation(error)
            if text is None:
                raise
        errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)

    return run


def say(text: object) -> None:
    """A line for people, as it is: no markup, no colours of its own, not broken."""
    console.print(str(text), highlight=False, markup=False, soft_wrap=True)


def migration_url(settings: Settings) -> str:
    """MIGRATION_DATABASE_URL, else the embedded stack as goldleaves_migrator. Raises SettingsError when neither is."""
    if settings.migration_database_url is not None:
        return settings.migration_database_url
    from api.stack.access import stack_migration_url  # a server that has a Postgres of its own needs none of it

    url = stack_migration_url(settings)
    if url is None:
        raise SettingsError("MIGRATION_DATABASE_URL is not set, and no stack runs here. Run `goldleaves up` first.")
    return url

"""The `goldleaves` command. A mistake of its user ends in one line on stderr and exit code 1, never in a traceback."""

from __future__ import annotations

from typing import Final

import typer

from api.lazy_commands import lazy_group

# In the order in which --help lists them.
COMMANDS: Final = {
    "up": "api.commands.stack",
    "down": "api.commands.stack",
    "dev": "api.commands.play",
    "demo": "api.commands.play",
    "status": "api.commands.stack",
    "token": "api.commands.access",
    "psql": "api.commands.access",
    "bootstrap": "api.commands.database",
    "migrate": "api.commands.database",
    "rollback": "api.commands.database",
    "adopt": "api.commands.database",
    "import": "api.commands.database",
    "export": "api.commands.export",
    "policies": "api.policies.cli",
    "scaffold": "api.scaffold.cli",
    "apply-plan": "api.scaffold.cli",
    "audit": "api.commands.audit",
    "billing": "api.commands.billing",
    "webhooks": "api.commands.webhooks",
    "stripe": "api.commands.stripe",
    "openapi": "api.commands.contract",
    "types": "api.commands.contract",
    "errors": "api.commands.contract",
}

app = typer.Typer(
    cls=lazy_group(COMMANDS),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Goldleaves: usage metering and billing inside Postgres.

    A first look:  [bold]goldleaves demo[/bold]

    To work with it:  [bold]goldleaves up[/bold], then [bold]goldleaves token --sub ann[/bold], then send requests to
    http://127.0.0.1:8000/api/v1/…  Every setting is an environment variable or a line in .env; see .env.example.""",
)


@app.callback()
def goldleaves() -> None:
    """Typer makes a group only of what has commands or a callback."""

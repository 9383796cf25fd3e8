"""`goldleaves policies …`: each command is a module beside this one, and named here."""

from __future__ import annotations

from typing import Final

import typer

from api.lazy_commands import lazy_group

# In the order in which --help lists them.
COMMANDS: Final = {
    "preview": "api.policies.preview.command",
    "lint": "api.policies.lint.command",
    "matrix": "api.policies.matrix.command",
    "plan": "api.policies.rollout.commands",
    "apply": "api.policies.rollout.commands",
    "verify": "api.policies.rollout.commands",
    "rollback": "api.policies.rollout.commands",
    "releases": "api.policies.rollout.commands",
    "explain": "api.policies.explain.command",
}

commands = typer.Typer()
policies_app = typer.Typer(
    cls=lazy_group(COMMANDS),
    no_args_is_help=True,
    help="""Read, plan, prove and roll out row security and grants: the files of policies/ are the truth.

    A change, step by step:  edit [bold]policies/app.cases.sql[/bold], then [bold]goldleaves policies plan[/bold],
    [bold]lint[/bold], [bold]apply --apply[/bold], [bold]matrix[/bold].""",
)
commands.add_typer(policies_app, name="policies")


@policies_app.callback()
def policies() -> None:
    """Typer makes a group only of what has commands or a callback."""

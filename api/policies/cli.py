"""`goldleaves policies …`: each command is a module beside this one, and registered here."""

from __future__ import annotations

import typer

from api.policies.explain.command import explain
from api.policies.lint.command import lint
from api.policies.matrix.command import matrix
from api.policies.preview.command import preview
from api.policies.rollout import commands as rollout

policies_app = typer.Typer(
    no_args_is_help=True,
    help="""Read, plan, prove and roll out row security and grants: the files of policies/ are the truth.

    A change, step by step:  edit [bold]policies/app.cases.sql[/bold], then [bold]goldleaves policies plan[/bold],
    [bold]lint[/bold], [bold]apply --apply[/bold], [bold]matrix[/bold].""",
)


@policies_app.callback()
def policies() -> None:
    """Without a callback typer would make a lone command the whole program."""


policies_app.command()(preview)
policies_app.command()(lint)
policies_app.command()(matrix)
for command in (rollout.plan, rollout.apply, rollout.verify, rollout.rollback, rollout.releases):
    policies_app.command()(command)
policies_app.command()(explain)

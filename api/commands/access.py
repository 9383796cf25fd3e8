"""`goldleaves token` and `psql`: ways into the running stack."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from api.command_line import explain_errors
from api.settings import LONGEST_LIFETIME_MINUTES, SettingsError, load_settings
from api.stack.access import stack_jwt_secret
from api.stack.psql import become_psql
from api.tokens import LONGEST_SUBJECT, Role, mint_token

commands = typer.Typer()


@commands.command()
@explain_errors
def token(
    sub: Annotated[str, typer.Option(metavar="SUBJECT", help="Who: the identity provider's id, any text.")],
    email: Annotated[str | None, typer.Option(help="Names the personal organization of a new user.")] = None,
    org: Annotated[str | None, typer.Option(metavar="ID", help="Organization (UUID or slug) to act in.")] = None,
    role: Annotated[Role, typer.Option(help="What the token may do.")] = "member",
    minutes: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST_LIFETIME_MINUTES, help="Valid for; JWT_EXPIRATION_MINUTES by default."),
    ] = None,
) -> None:
    """Print a JWT that the running stack accepts, and nothing else.

    Example:  curl -H "Authorization: Bearer $(goldleaves token --sub ann --email ann@example.com)" http://127.0.0.1:8000/api/v1/cases
    """
    if not 1 <= len(sub) <= LONGEST_SUBJECT:
        raise typer.BadParameter(f"expected 1 to {LONGEST_SUBJECT} characters, got {len(sub)}", param_hint="--sub")
    settings = load_settings()
    secret = stack_jwt_secret(settings)
    if secret is None:
        raise SettingsError("JWT_SECRET is not set, and no stack has made one yet. Run `goldleaves up` first.")
    lifetime = timedelta(minutes=minutes or settings.jwt_expiration_minutes)
    typer.echo(
        mint_token(
            secret,
            sub,
            role=role,
            email=email,
            organization=org,
            lifetime=lifetime,
            algorithm=settings.jwt_algorithm,
            audience=settings.jwt_audience,
        )
    )


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@explain_errors
def psql(context: typer.Context) -> None:
    """Open psql on the database of the running stack, as its superuser. What follows is for psql.

    Example:  goldleaves psql -c 'select * from metering.meters'
    """
    become_psql(load_settings(), context.args)

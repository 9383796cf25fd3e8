"""The command, and how it prints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import psycopg
import typer
from rich.markup import escape
from rich.text import Text

from api.command_line import console, explain_errors, migration_url
from api.policies.explain.catalog import PUBLIC, Around, Role, Table, find_table, read_table
from api.policies.explain.plan import Plan, plan_of
from api.policies.explain.sentences import Said, Sentence, describe, say_of, say_who_may
from api.policies.trial import trial
from api.release.catalog import Connection
from api.release.errors import MigrationError
from api.settings import load_settings

commands = typer.Typer()

_PLANNED = "member"


@dataclass(frozen=True)
class Explained:
    table: Table
    said: list[Said]
    plan: Plan | None
    no_plan: str | None


@commands.command()
@explain_errors
def explain(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="With its schema, as app.cases.")],
    as_role: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Only this database role; the plan is member's by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say who may do what with a table, and how it is read under row security.

    Both come from the live database, not from files: rights and policies put together as Postgres does it. The plan is
    that of a select of the whole table; it warns where no index serves the tenant predicate, and says how to make one.

    Example:  goldleaves policies explain app.cases
    """
    with trial(migration_url(load_settings())) as conn:
        found = _explained(conn, table, as_role)
    if as_json:
        typer.echo(json.dumps(_document(found), indent=2))
    else:
        _print(found)


def _explained(conn: Connection, named: str, as_role: str | None) -> Explained:
    table = read_table(conn, *find_table(conn, named))
    planned = as_role or _PLANNED
    role = next((role for role in table.roles if role.name == planned), None)
    if role is None:
        if conn.execute("select from pg_roles where rolname = %s", [planned]).fetchone() is None:
            raise MigrationError(f"there is no role {planned}")
        role = Role(planned)
    said = say_who_may(table) if as_role is None else [Said((planned,), tuple(say_of(table, role)))]
    try:
        with conn.transaction():
            return Explained(table, said, plan_of(conn, table, role), None)
    except MigrationError as error:
        return Explained(table, said, None, str(error))
    except psycopg.errors.InsufficientPrivilege as error:
        return Explained(table, said, None, f"{planned} may not read it: {error.diag.message_primary}")
    except psycopg.Error as error:
        return Explained(table, said, None, f"{planned}: {error.diag.message_primary or error}")


def _document(found: Explained) -> dict[str, Any]:
    table = found.table
    return {
        "table": table.name,
        "owner": table.owner,
        "row_security": table.row_security,
        "forced": table.forced,
        "about": [asdict(sentence) for sentence in describe(table)],
        "roles": [
            {"role": role, "sentences": [asdict(sentence) for sentence in said.sentences]}
            for said in found.said
            for role in said.roles
        ],
        "around": [asdict(each) for each in table.around],
        "plan": None if found.plan is None else asdict(found.plan),
        "no_plan": found.no_plan,
    }


def _print(found: Explained) -> None:
    for sentence in describe(found.table):
        _say(sentence)
    for said in found.said:
        _heading(", ".join("PUBLIC (everybody)" if role == PUBLIC else role for role in said.roles))
        for sentence in said.sentences:
            _say(sentence, "  ")
    for kind, heading in (("trigger", "Triggers"), ("view", "Views that show it")):
        if lines := [each for each in found.table.around if each.kind.endswith(kind)]:
            _heading(heading)
            for each in lines:
                _line(_around(each), "  ", alarming=each.alarming)
    _print_plan(found)


def _print_plan(found: Explained) -> None:
    if found.plan is None:
        _heading("No plan of a select")
        _line(str(found.no_plan), "  ")
        return
    of = f" for {found.plan.organization}" if found.plan.organization else ""
    _heading(f"A select by {found.plan.role}{of}")
    for line in found.plan.lines:
        _line(line, "  ", "dim")
    if found.plan.verdict:
        _line(found.plan.verdict, "  ", "green")
    for finding in found.plan.findings:
        _line(finding.text, "  ", alarming=True)
        for statement in finding.statements:
            _line(statement, "    ")


def _around(each: Around) -> str:
    if each.kind == "trigger":
        return f"{each.name}: {each.when}: {each.by}{'; DISABLED' if each.alarming else ''}"
    if each.kind == "materialized view":
        return f"{each.name}: MATERIALIZED, it shows what {each.by} saw, past row security"
    if each.alarming:
        return f"{each.name}: NOT security_invoker, it shows what {each.by} may see"
    return f"{each.name}: with the rights of whoever reads it"


def _heading(text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False, soft_wrap=True)


def _say(sentence: Sentence, indent: str = "") -> None:
    names = f"  ({', '.join(sentence.policies)})" if sentence.policies else ""
    _line(sentence.text, indent, alarming=sentence.alarming, after=names)


def _line(text: str, indent: str, style: str = "", *, alarming: bool = False, after: str = "") -> None:
    # The sign is for who sees no colours.
    line = Text(f"{indent}! ", "bold red").append(text) if alarming else Text(indent).append(text, style)
    console.print(line.append(after, "dim"), highlight=False, soft_wrap=True)

"""`goldleaves policies lint`: the findings of a live database, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import psycopg
import typer

from api.command_line import console, explain_errors, migration_url, say
from api.policies.lint.linting import Report, examine
from api.policies.lint.rules import Rule, named
from api.settings import load_settings

commands = typer.Typer()


@commands.command()
@explain_errors
def lint(
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule. May be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    show_rules: Annotated[bool, typer.Option("--list", help="Print the rules, and look at nothing.")] = False,
) -> None:
    """Look for known holes in the live database, with the statement that mends each. Only reads.

    Exit code 1 when there is an error; with --strict also for a warning.

    Example:  goldleaves policies lint --rule row_security_off --rule policy_without_tenant
    """
    if show_rules:
        _print_rules(named(rule or []), as_json)
        return
    report = _look(migration_url(load_settings()), rule or [])
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        _print(report)
    if any(strict or finding.level == "error" for finding in report.findings):
        raise typer.Exit(1)


def _look(url: str, only: list[str]) -> Report:
    with psycopg.connect(url, application_name="goldleaves policies lint") as conn:
        conn.read_only = True
        conn.execute("set local search_path = ''")
        conn.execute("set local jit = off")  # as in every transaction of ours: api.release.loader.begin
        return examine(conn, only)


def _print(report: Report) -> None:
    for rule, findings in groupby(report.findings, key=lambda finding: finding.rule):
        each = list(findings)
        console.print(
            f"[bold {'red' if each[0].level == 'error' else 'yellow'}]{each[0].level}[/] [bold]{rule}[/]",
            highlight=False,
        )
        say(f"  Why: {each[0].why}")
        for finding in each:
            say(f"\n  {finding.what}")
            for line in finding.mend.splitlines():
                console.print(f"    {line}", style="green", highlight=False, markup=False, soft_wrap=True)
        say("")
    errors = sum(finding.level == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    exempted = _count(len(report.exemptions), "exemption")
    say(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}, {exempted} with a reason, which --json shows")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _print_rules(rules: Iterable[Rule], as_json: bool) -> None:
    if as_json:
        listed = [{"name": rule.name, "level": rule.level, "title": rule.title, "why": rule.why} for rule in rules]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    for rule in rules:
        style = "red" if rule.level == "error" else "yellow"
        console.print(f"[{style}]{rule.level}[/] [bold]{rule.name}[/]", highlight=False)
        say(f"  {rule.title}\n  Why: {rule.why}")

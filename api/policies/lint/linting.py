"""Run the rules on a live database. They only read, and leave the transaction as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql
from psycopg.rows import tuple_row

from api.policies.lint.predicates import predicates
from api.policies.lint.rules import Level, named
from api.release.catalog import Connection
from api.release.errors import MigrationError

_VOCABULARY = (Path(__file__).parent / "vocabulary.sql").read_text()

# All rules are one statement, so that the words are looked up once. A reason stands in the comment of the object, on a
# line of its own: `goldleaves lint <rule>: <reason>`.
_FINDINGS = """
, finding as (
{rules}
)
select finding.rule, finding.object, finding.what, finding.mend,
  (regexp_match(comment.text, '^goldleaves lint ' || finding.rule || ': *(.+)$', 'n'))[1]
from finding
cross join lateral (
  select coalesce(
    obj_description(finding.id, finding.class::name), shobj_description(finding.id, finding.class::name)
  ) as text
) as comment
order by finding.position, finding.object, finding.what
"""
_OF_RULE = """
select {position} as position, '{rule}'::text as rule, one.object, one.what, one.mend, one.id, one.class
from (
{query}
) as one
"""


@dataclass(frozen=True)
class Finding:
    """`what` is wrong with `object`, `why` that matters, and the statements that `mend` it."""

    rule: str
    level: Level
    object: str
    what: str
    why: str
    mend: str


@dataclass(frozen=True)
class Exemption:
    """What would be a finding, were it not for the reason that the comment of the object gives."""

    rule: str
    object: str
    reason: str


@dataclass(frozen=True)
class Report:
    findings: list[Finding]
    exemptions: list[Exemption]


def lint(conn: Connection, only: Iterable[str] = ()) -> list[Finding]:
    """What the rules find, errors first. Works inside an open transaction; its search_path has to be empty.

    `only` names rules. Raises MigrationError for one that does not exist, or where nothing was migrated.
    """
    return examine(conn, only).findings


def examine(conn: Connection, only: Iterable[str] = ()) -> Report:
    """The findings, and what was exempted from being one."""
    report = Report([], [])
    with conn.cursor(row_factory=tuple_row) as cursor:
        if cursor.execute("select to_regprocedure('tenancy.current_org()') is null").fetchone() == (True,):
            raise MigrationError("Nothing was migrated here yet. Run `goldleaves migrate` first.")
        facts = sql.Literal(json.dumps(predicates(conn))).as_string(conn)
        vocabulary = _VOCABULARY.replace(":predicates", facts)
        rules = {rule.name: rule for rule in named(only)}
        queries = [
            _OF_RULE.format(position=position, rule=rule.name, query=rule.query)
            for position, rule in enumerate(rules.values())
        ]
        query = vocabulary + _FINDINGS.format(rules="union all".join(queries))
        for name, subject, what, mend, reason in cursor.execute(query.encode()).fetchall():
            if reason is None:
                rule = rules[name]
                report.findings.append(Finding(name, rule.level, subject, what, rule.why, mend))
            else:
                report.exemptions.append(Exemption(name, subject, reason))
    return report

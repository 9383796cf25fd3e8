"""Every statement as everybody in every context: one round trip for each context of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from secrets import token_hex

from psycopg import sql
from psycopg.types.json import Jsonb

from api.policies.declared import VERBS
from api.policies.matrix.candidates import has_equality
from api.policies.matrix.catalog import Privileges, Table
from api.policies.matrix.cells import MOVE, NO_ROW, Context, Outcome, Tried, judge
from api.policies.matrix.people import Actor, Kind, Organization
from api.policies.matrix.rows import Made, insertion
from api.release.catalog import Connection

Key = tuple[str, str, Context]  # table, verb, context

_NOTHING_SET = {
    "app.current_org": "",
    "app.current_user_id": "",
    "app.current_org_role": "",
    "app.current_key_id": "",
    "app.my_organizations": "",
    "app.settings.jwt_aud": "",
    "request.jwt.claims": "",
    "request.headers": "",
    "request.method": "GET",
    "request.path": "",
}
_GARBAGE = {
    "app.current_org": "not an organization",
    "app.current_org_role": "owner",
    "app.my_organizations": "{not an organization}",
}


@dataclass(frozen=True)
class Subject:
    """A table to try, with the rows that the two organizations have in it."""

    table: Table
    own: Made
    other: Made


@dataclass(frozen=True)
class _Entry:
    """One way to come in, and the organizations whose rows are then asked for."""

    settings: Mapping[str, str]
    pre_request: bool
    asks: tuple[tuple[Context, bool], ...]  # whether for the own organization's
    is_garbled: bool = False


@dataclass(frozen=True)
class _Statement:
    table: str
    verb: str
    context: Context
    text: str
    problem: str | None


class Attempts:
    """Makes what trying takes, in a schema that goes with the transaction, and tries."""

    def __init__(self, conn: Connection, own: Organization, other: Organization, subjects: list[Subject]) -> None:
        self.conn = conn
        self.own = own
        self.other = other
        self.subjects = subjects
        self.schema = sql.Identifier(f"goldleaves_matrix_{token_hex(6)}")
        self._make_schema()

    def of(self, actor: Actor, privileges: Mapping[tuple[str, str], Privileges]) -> dict[Key, list[Tried]]:
        """Everything that this one tries."""
        tried: dict[Key, list[Tried]] = {}
        for entry in _entries(actor, self.own, self.other):
            statements = [
                statement
                for subject in self.subjects
                for context, is_own in entry.asks
                for statement in self._statements(
                    subject, privileges[actor.database_role, subject.table.name], context, is_own
                )
            ]
            for statement, outcome in self._try(actor, entry, statements):
                tried.setdefault((statement.table, statement.verb, statement.context), []).append(outcome)
        return tried

    def _try(self, actor: Actor, entry: _Entry, statements: list[_Statement]) -> Iterator[tuple[_Statement, Tried]]:
        query = sql.SQL("select {}.attempt(%s, %s, %s, %s)").format(self.schema)
        texts = [statement.text for statement in statements]
        ((answer,),) = self.conn.execute(
            query, [actor.database_role, Jsonb(dict(entry.settings)), entry.pre_request, texts]
        ).fetchall()
        for statement, (rows, code, message, in_function) in zip(statements, answer["results"], strict=True):
            outcome = judge(statement.verb, rows, code, message, in_function)
            if code and code.startswith("22") and entry.is_garbled:
                outcome = Tried(Outcome.REFUSED, code, message)
            if outcome.outcome is Outcome.REFUSED and code is None:
                if statement.problem:
                    outcome = Tried(Outcome.UNPROVED, None, f"{NO_ROW}: {statement.problem}")
                elif answer["refused"]:
                    outcome = Tried(Outcome.REFUSED, None, answer["refused"])
            yield statement, outcome

    # Statements

    def _make_schema(self) -> None:
        function = files("api.policies.matrix").joinpath("attempt.sql").read_text(encoding="utf-8")
        self.conn.execute(sql.SQL("create schema {}").format(self.schema))
        self.conn.execute(sql.SQL(function).format(schema=self.schema))
        for number, subject in enumerate(self.subjects):
            for organization in (self.own, self.other):
                self.conn.execute(
                    sql.SQL("create view {} with (security_invoker) as select * from {} where {} = {}").format(
                        self._view(number, organization),
                        subject.table.identifier,
                        sql.Identifier(subject.table.key),
                        sql.Literal(organization.id),
                    )
                )
        self.conn.execute(sql.SQL("grant usage on schema {} to public").format(self.schema))
        self.conn.execute(sql.SQL("grant all on all tables in schema {} to public").format(self.schema))

    def _view(self, number: int, organization: Organization) -> sql.Composed:
        """The rows of one organization. A WHERE clause of the statement itself would ask the policies for select, too,
        and without any the statement would go over the whole table wherever a policy is open.
        """
        name = f"own_{number}" if organization is self.own else f"other_{number}"
        return sql.SQL("{}.{}").format(self.schema, sql.Identifier(name))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {subject.table.name: number for number, subject in enumerate(self.subjects)}

    def _statements(self, subject: Subject, may: Privileges, context: Context, is_own: bool) -> Iterator[_Statement]:
        organization, made = (self.own, subject.own) if is_own else (self.other, subject.other)
        table = subject.table
        view = self._view(self._numbers[table.name], organization)
        changed = _column_to_change(table, made, may.update)
        texts = {
            "select": _selection(table, organization, made, may.select),
            "insert": insertion(table, made.another, may.insert | {table.key}),
            "update": sql.SQL("update {} set {} = {}").format(
                view, sql.Identifier(changed), sql.Literal(made.values.get(changed))
            ),
            "delete": sql.SQL("delete from {}").format(view),
        }
        for verb in VERBS:
            problem = None if verb == "insert" else made.problem
            yield _Statement(table.name, verb, context, texts[verb].as_string(self.conn), problem)
        if context is Context.OWN:
            move = sql.SQL("update {} set {} = {}").format(view, sql.Identifier(table.key), sql.Literal(self.other.id))
            yield _Statement(table.name, MOVE, context, move.as_string(self.conn), made.problem)


def _selection(table: Table, organization: Organization, made: Made, may: frozenset[str]) -> sql.Composed:
    """Ask for the organization's rows by its id, or where that may not be read, by all that may."""
    conditions: Mapping[str, str | None] = {table.key: organization.id}
    if may and table.key not in may:
        conditions = {name: value for name, value in made.values.items() if name in may and value is not None}
    tests = (
        sql.SQL("{}{} = {}").format(
            sql.Identifier(name),
            sql.SQL("" if has_equality(table.columns[name]) else "::text"),
            sql.Literal(value),
        )
        for name, value in conditions.items()
    )
    return sql.SQL("select 1 from {} where {} limit 1").format(
        table.identifier, sql.SQL(" and ").join(tests) if conditions else sql.SQL("true")
    )


def _column_to_change(table: Table, made: Made, may: frozenset[str]) -> str:
    """One that may be updated, best one that no key and no other row depends on. It gets the value that it has."""
    keys = [*table.unique.values(), *(key.columns for key in table.foreign_keys)]
    linked = {name for names in keys for name in names}
    free = [name for name in made.values if name in may]
    best = sorted(free, key=lambda name: (name == table.key, name in linked, made.values[name] is None))
    return best[0] if best else table.key


# Contexts


def _entries(actor: Actor, own: Organization, other: Organization) -> list[_Entry]:
    theirs: tuple[tuple[Context, bool], ...] = ((Context.OWN, True), (Context.OTHER, False))
    if actor.kind is Kind.DIRECT:
        return [
            _Entry(_NOTHING_SET | _settings_of(own), False, theirs),
            _Entry(_NOTHING_SET, False, ((Context.NONE, False),)),
            _Entry(_NOTHING_SET | _GARBAGE, False, ((Context.FORGED, False),), is_garbled=True),
        ]
    if actor.kind is Kind.STRANGER:
        own, other = other, own  # to a stranger both are foreign; the first one has people and keys
        path, theirs = "/organizations", ((Context.OTHER, True),)
    else:
        path = "/cases"
    is_own = (
        actor.kind is Kind.STRANGER
    )  # the one organization that a stranger has nothing to do with is as good as the other
    forged = ((Context.FORGED, is_own),)
    header = {} if actor.is_of_organization or actor.kind is Kind.STRANGER else {"x-organization-id": own.id}
    request = _request(actor, path, header)
    entries = [
        _Entry(request, True, theirs),
        _Entry(request, False, ((Context.NONE, is_own),)),
        # What a careless set_config(…, false) would leave behind on a pooled connection.
        _Entry(request | _settings_of(other), True, forged),
        _Entry(request | _GARBAGE, False, forged, is_garbled=True),
    ]
    if actor.kind is not Kind.REQUEST or actor.name == "anon":
        entries += [
            _Entry(_request(actor, path, {"x-organization-id": other.id}), True, forged),
            _Entry(_request(actor, path, {}, {"org_id": other.id}), True, forged),
        ]
    if actor.is_of_organization:
        entries.append(_Entry(_request(actor, "/organizations", {}), True, ((Context.OTHER, False),)))
    return entries


def _request(
    actor: Actor, path: str, headers: Mapping[str, str], claims: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The settings that PostgREST makes of a request."""
    return _NOTHING_SET | {
        "request.jwt.claims": json.dumps({**actor.claims, **(claims or {})}),
        "request.headers": json.dumps(dict(headers)),
        "request.path": path,
    }


def _settings_of(organization: Organization) -> dict[str, str]:
    """What tenancy.enter() sets for its owner."""
    return {
        "app.current_org": organization.id,
        "app.current_user_id": organization.owner_id,
        "app.current_org_role": "owner",
        "app.my_organizations": f"{{{organization.id}}}",
    }

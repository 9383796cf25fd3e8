"""`--columns`: name, type, and at most `not null`, `default …`, `unique`, `check (…)` and `references schema.table`.

Taken apart as far as keys have to be made of it: every key of a tenants' table starts with organization_id. What a type
or an expression means is for Postgres to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from api.release import MigrationError

LONGEST_TABLE: Final = 56  # bytes: the longest name made of it ends in _delete, and Postgres cuts at 63
OURS: Final = ("organization_id", "id", "created_by", "created_at")

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*")
_PARAMETERS: Final = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict", "and", "or", "not"})
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")*")
      | (?P<refused>--|/\*|[;$\\])
      | (?P<word>\w+(?:\.\d+)?)
      | (?P<symbol>::|[^\s\w'"])""",
    re.VERBOSE,
)
_CLAUSES: Final = ("not", "null", "default", "references", "unique", "check")
_ELSEWHERE: Final = (
    "primary",
    "generated",
    "collate",
    "constraint",
    "deferrable",
    "initially",
    "storage",
    "compression",
)
_OF_TABLES: Final = ("primary", "unique", "foreign", "check", "constraint", "exclude", "like")
_SERIALS: Final = ("serial", "bigserial", "smallserial", "serial4", "serial8", "serial2")
_ON_DELETE: Final = ("cascade", "restrict", "set null", "no action")


@dataclass(frozen=True)
class Reference:
    """To a row of the same organization, whatever the key of that table is called."""

    table: str
    key: str
    on_delete: str


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    unique: bool = False
    checks: tuple[str, ...] = ()
    reference: Reference | None = None

    @property
    def definition(self) -> str:
        """As CREATE TABLE has it, but for keys."""
        parts = [self.name, self.type]
        parts += ["not null"] if self.not_null else []
        parts += [f"default {self.default}"] if self.default else []
        return " ".join([*parts, *(f"check {check}" for check in self.checks)])


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int
    depth: int  # in parentheses and brackets


def check_name(kind: str, name: str) -> None:
    """Raise MigrationError for a name that would have to be quoted, in SQL or in a query of PostgREST."""
    # Imported here: no other command has to wait for it to start.
    from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

    if not _NAME.fullmatch(name):
        raise MigrationError(f"{kind} {name}: a name is made of a-z, 0-9 and _, so that nobody ever has to quote it")
    if name in RESERVED_WORDS or name in _PARAMETERS:
        raise MigrationError(f"{kind} {name}: the word has a meaning of its own in SQL or in the API, take another one")
    if len(name) > LONGEST_TABLE:
        raise MigrationError(f"{kind} {name}: the name is longer than {LONGEST_TABLE} characters")


def read_columns(text: str) -> tuple[Column, ...]:
    """Raises MigrationError that names the column and what to write instead."""
    columns = tuple(_column(_Definition(text, tokens)) for tokens in _definitions(text))
    names = [column.name for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MigrationError(f"--columns names {', '.join(twice)} twice")
    return columns


def _definitions(text: str) -> list[list[_Token]]:
    found: list[list[_Token]] = [[]]
    for token in _tokens(text):
        if token.text == "," and token.depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    if not all(found):
        raise MigrationError(
            '--columns: say at least one column between commas, as in "title text not null, due_on date"'
        )
    return found


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = depth = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise MigrationError(f"--columns: a quote is not closed: {text[position:]}")
        kind, part = str(found.lastgroup), found[0]
        if kind == "refused":
            raise MigrationError(
                f"--columns: {part} does not belong there; what needs it goes into the migration by hand"
            )
        depth -= part in (")", "]")
        if depth < 0:
            raise MigrationError(f"--columns: there is a {part} too many: {text[: found.end()]}")
        if kind != "space":
            tokens.append(_Token(kind, part, position, found.end(), depth))
        depth += part in ("(", "[")
        position = found.end()
    if depth:
        raise MigrationError(f"--columns: a parenthesis is not closed: {text}")
    return tokens


class _Definition:
    """One column's words, read from left to right."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self.name = tokens[0].text

    def error(self, problem: str) -> MigrationError:
        return MigrationError(f"column {self.name}: {problem}")

    @property
    def word(self) -> str:
        """The next one in lower case, or nothing at the end."""
        return self._tokens[0].text.lower() if self._tokens else ""

    def take(self) -> str:
        return self._tokens.pop(0).text if self._tokens else ""

    def accept(self, *words: str) -> bool:
        if tuple(token.text.lower() for token in self._tokens[: len(words)]) != words:
            return False
        del self._tokens[: len(words)]
        return True

    def until_a_clause(self, at_least: int = 0) -> str:
        """The text up to the next clause, but this many words of it whatever they are."""
        taken: list[_Token] = []
        while self._tokens and (len(taken) < at_least or not self._is_clause(self._tokens[0])):
            taken.append(self._tokens.pop(0))
        return " ".join(self._text[taken[0].start : taken[-1].end].split()) if taken else ""

    def parenthesized(self) -> str:
        if self.word != "(":
            raise self.error("check wants a condition in parentheses")
        inner = self._tokens[0].depth
        end = next(n for n, token in enumerate(self._tokens) if token.text == ")" and token.depth == inner)
        taken, self._tokens = self._tokens[: end + 1], self._tokens[end + 1 :]
        return self._text[taken[0].start : taken[-1].end]

    @staticmethod
    def _is_clause(token: _Token) -> bool:
        return token.depth == 0 and token.kind == "word" and token.text.lower() in (*_CLAUSES, *_ELSEWHERE)


def _column(definition: _Definition) -> Column:
    name = definition.take()
    if name.lower() in _OF_TABLES:
        raise MigrationError(
            f"--columns: {name.lower()} comes behind the column it is about, or into the migration by hand"
        )
    if name in OURS:
        raise MigrationError(f"column {name}: every scaffolded table has it already")
    check_name("column", name)
    column = Column(name, _type(definition))
    while word := definition.word:
        read = _READ.get(word)
        if read is None:
            raise definition.error(f"{word} is not understood here: write it into the migration by hand")
        definition.take()
        column = read(definition, column)
    return column


def _type(definition: _Definition) -> str:
    found = definition.until_a_clause()
    if not found:
        raise definition.error(f"say its type, as in {definition.name} text")
    if found.lower() in _SERIALS:
        raise definition.error("numbers from a sequence tell every tenant how much the others write: take a uuid")
    return found


def _not_null(definition: _Definition, column: Column) -> Column:
    if not definition.accept("null"):
        raise definition.error("not wants null behind it")
    return replace(column, not_null=True)


def _null(definition: _Definition, column: Column) -> Column:
    return replace(column, not_null=False)


def _default(definition: _Definition, column: Column) -> Column:
    if not (found := definition.until_a_clause(at_least=1)):
        raise definition.error("default wants a value behind it")
    return replace(column, default=found)


def _unique(definition: _Definition, column: Column) -> Column:
    return replace(column, unique=True)


def _check(definition: _Definition, column: Column) -> Column:
    return replace(column, checks=(*column.checks, definition.parenthesized()))


def _references(definition: _Definition, column: Column) -> Column:
    schema, dot, table = definition.take(), definition.take(), definition.take()
    if dot != "." or not table:
        raise definition.error(f"references wants a table with its schema, as in references app.{schema or 'cases'}")
    check_name("schema", schema)
    check_name("table", table)
    key = "id"
    if definition.accept("("):
        key = definition.take()
        if not definition.accept(")"):
            raise definition.error("references one column: organization_id is put before it")
        check_name("column", key)
    # Known when all of it has been read: a column may say `not null` behind `references`.
    on_delete = ""
    if definition.accept("on", "delete"):
        on_delete = next((action for action in _ON_DELETE if definition.accept(*action.split())), "")
        if not on_delete:
            raise definition.error(f"on delete wants one of {', '.join(_ON_DELETE)}")
    return replace(column, reference=Reference(f"{schema}.{table}", key, on_delete))


_READ: Final[dict[str, Callable[[_Definition, Column], Column]]] = {
    "not": _not_null,
    "null": _null,
    "default": _default,
    "unique": _unique,
    "check": _check,
    "references": _references,
}

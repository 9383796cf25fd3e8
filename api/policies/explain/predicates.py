"""What the condition of a policy says, in words. It is read as Postgres prints it: each AND and OR in parentheses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

_NAME = r'(?:[a-z_][\w$]*|"(?:[^"]|"")+")'
_ARGUMENTS = r"VARIADIC ARRAY\[(?P<{0}>(?:'[^']*'::text(?:, )?)+)\]"


def _comparison(operator: str, function: str) -> re.Pattern[str]:
    call = rf"tenancy\.{function}\(\)|\( ?SELECT tenancy\.{function}\(\) AS {function}\)"
    return re.compile(rf"(?P<left>{_NAME}) {operator} (?:{call})|(?:{call}) {operator} (?P<right>{_NAME})")


_CURRENT_ORGANIZATION = _comparison("=", "current_org")
_OWN = _comparison("=", "current_user_id")
_NOT_OWN = _comparison("<>", "current_user_id")
_MINE = re.compile(rf"(?P<left>{_NAME}) = ANY \(tenancy\.my_organizations\(\)\)(?P<right>)")
_ROLES = re.compile(rf"tenancy\.current_role_in\({_ARGUMENTS.format('names')}\)")
_ROLES_THERE = re.compile(
    rf"(?P<left>{_NAME}) = tenancy\.current_org_for\({_ARGUMENTS.format('names')}\)|"
    rf"tenancy\.current_org_for\({_ARGUMENTS.format('turned')}\) = (?P<right>{_NAME})"
)

_TEXT_LITERAL = re.compile(r"('(?:[^']|'')*')::text\b")

_PEOPLE = {"owner": "owners", "admin": "admins", "member": "members", "viewer": "viewers", "billing": "billing users"}
_MOST_CLAUSES = 12


@dataclass(frozen=True)
class Clause:
    """One way to satisfy a condition: every part of it holds.

    `who` are roles in an organization and scopes of API keys, None for whoever has the database role. `tenant_column`
    is compared with the organization that the request acts for. `conditions` is everything else.
    """

    who: frozenset[str] | None = None
    tenant_column: str | None = None
    conditions: tuple[str, ...] = ()

    def __and__(self, other: Clause) -> Clause:
        who = other.who if self.who is None else self.who if other.who is None else self.who & other.who
        more = tuple(each for each in other.conditions if each not in self.conditions)
        return Clause(who, self.tenant_column or other.tenant_column, self.conditions + more)

    @property
    def is_everything(self) -> bool:
        return self == Clause()

    @property
    def is_unbound(self) -> bool:
        """Whether rows of any organization satisfy it, also such as have nothing to do with who asks."""
        return not self.tenant_column and not any(each.startswith(_OF_NO_OTHER) for each in self.conditions)

    def rows(self, everything: str) -> str:
        """Which rows, as in `may select …`; `everything` is what to call all there are."""
        if self.tenant_column == "id":
            found = "the organization they act for"
        elif self.tenant_column:
            found = "rows of the organization they act for"
        elif self.conditions and all(each.startswith(_OF_NO_OTHER) for each in self.conditions):
            return " and ".join(self.conditions)
        else:
            found = everything
        return ", ".join([found, *self.conditions]) if self.conditions else found

    def people(self) -> str | None:
        """`owners, admins, and API keys with data:read`, or None for whoever has the database role."""
        if self.who is None:
            return None
        ordered = [name for name in _PEOPLE if name in self.who] + sorted(self.who - _PEOPLE.keys())
        roles = [_PEOPLE.get(name, f"people with role {name}") for name in ordered if ":" not in name]
        scopes = [name for name in ordered if ":" in name]
        return listed(roles + ([f"API keys with {listed(scopes, 'or')}"] if scopes else []))


_OWN_ROWS = "their own rows"
_MY_ORGANIZATIONS = "organizations that they belong to"
_SHARED_ROWS = "rows of no organization"
_OF_NO_OTHER = (_OWN_ROWS, _MY_ORGANIZATIONS, _SHARED_ROWS)

EVERYTHING = Clause()


def clauses(expression: str, tenant_column: str) -> tuple[Clause, ...]:
    """The ways to satisfy a condition; none when nothing does."""
    found = tuple(dict.fromkeys(_clauses(expression.strip(), tenant_column)))
    if EVERYTHING in found:
        return (EVERYTHING,)
    return found if len(found) <= _MOST_CLAUSES else (Clause(conditions=(f"where {unwrapped(expression)}",)),)


def both(left: tuple[Clause, ...], right: tuple[Clause, ...]) -> tuple[Clause, ...]:
    """The ways to satisfy two conditions at once."""
    return tuple(dict.fromkeys(one & other for one, other in product(left, right) if (one & other).who != frozenset()))


def listed(words: list[str], conjunction: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _clauses(expression: str, tenant_column: str) -> Iterator[Clause]:
    bare = unwrapped(expression)
    if len(parts := _split(bare, " OR ")) > 1:
        for part in parts:
            yield from _clauses(part, tenant_column)
    elif len(parts := _split(bare, " AND ")) > 1:
        found: tuple[Clause, ...] = (EVERYTHING,)
        for part in parts:
            found = both(found, tuple(_clauses(part, tenant_column)))
            if len(found) > _MOST_CLAUSES:
                found = (Clause(conditions=(f"where {bare}",)),)
                break
        yield from found
    elif bare != "false":
        yield _atom(bare, tenant_column)


def _atom(text: str, tenant_column: str) -> Clause:
    if text == "true":
        return EVERYTHING
    if (match := _CURRENT_ORGANIZATION.fullmatch(text)) and _column(match) == tenant_column:
        return Clause(tenant_column=tenant_column)
    if text == f"{tenant_column} IS NULL":
        return Clause(conditions=(_SHARED_ROWS,))
    if match := _ROLES.fullmatch(text):
        return Clause(who=_quoted(match["names"]))
    if (match := _ROLES_THERE.fullmatch(text)) and _column(match) == tenant_column:
        return Clause(who=_quoted(match["names"] or match["turned"]), tenant_column=tenant_column)
    if match := _OWN.fullmatch(text):
        return Clause(conditions=(f"{_OWN_ROWS} ({_column(match)})",))
    if match := _NOT_OWN.fullmatch(text):
        return Clause(conditions=(f"but not their own ({_column(match)})",))
    if match := _MINE.fullmatch(text):
        return Clause(conditions=(f"{_MY_ORGANIZATIONS} ({_column(match)})",))
    plain = _TEXT_LITERAL.sub(r"\1", text)
    return Clause(conditions=(f"where {plain}",))


def _quoted(names: str) -> frozenset[str]:
    return frozenset(re.findall(r"'([^']*)'", names))


def _column(match: re.Match[str]) -> str:
    return str(match["left"] or match["right"]).strip('"')


def unwrapped(expression: str) -> str:
    """Without the parentheses around all of it."""
    text = expression.strip()
    while text.startswith("(") and _end_of_group(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _end_of_group(text: str) -> int:
    for position, depth in _depths(text):
        if depth == 0:
            return position
    return -1


def _split(text: str, word: str) -> list[str]:
    """At this word, where it stands outside parentheses and quotes."""
    outside = {position for position, depth in _depths(text) if depth == 0}
    found, start = [], 0
    for match in re.finditer(word, text):
        if match.start() in outside:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """How many parentheses are open behind each character, leaving out what is quoted."""
    depth, quote = 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
            continue
        if character in "'\"":
            quote = character
            continue
        depth += (character in "([") - (character in ")]")
        yield position, depth

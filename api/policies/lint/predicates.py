"""Whether a policy binds the rows it allows to the caller's organization, read from what Postgres has parsed.

The parsed expression (pg_node_tree) names operators and functions by oid, so that no spelling, search_path or operator
of one's own changes what it is. Only two shapes are taken to bind: the comparison itself, and `and`s and `or`s of which
each way through leads over one. Everything else might let a row through, so it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from psycopg.rows import tuple_row

from api.release.catalog import Connection

Tree: TypeAlias = "str | list[Tree] | Node"

_UUID_EQUALS = "2972"  # pg_catalog.=(uuid, uuid), by an oid that Postgres never changes
_TOKEN = re.compile(r"[{}()]|(?:\\.|[^\s{}()\\])+", re.DOTALL)

# Two tables show a caller more than the current organization: all of their own memberships and organizations. People
# have no organization, and see themselves.
_POLICIES = """
select p.oid, p.polqual::text, p.polwithcheck::text, comparison.kind, comparison.columns, comparison.functions
from pg_policy p
cross join lateral (
  select
    array_agg(c.kind) as kind, array_agg(a.attnum::text) as columns, array_agg(c.function::oid::text) as functions
  from (
    values
      ('OPEXPR', null, 'organization_id', to_regprocedure('tenancy.current_org()'), false),
      ('OPEXPR', null, 'organization_id', to_regprocedure('tenancy.current_org_for(text[])'), false),
      ('OPEXPR', 'tenancy.organizations', 'id', to_regprocedure('tenancy.current_org()'), false),
      ('OPEXPR', 'tenancy.organizations', 'id', to_regprocedure('tenancy.current_org_for(text[])'), false),
      ('SCALARARRAYOPEXPR', 'tenancy.organizations', 'id', to_regprocedure('tenancy.my_organizations()'), true),
      ('OPEXPR', 'tenancy.memberships', 'user_id', to_regprocedure('tenancy.current_user_id()'), true),
      ('OPEXPR', 'tenancy.users', 'id', to_regprocedure('tenancy.current_user_id()'), false)
  ) as c (kind, only_on, column_name, function, only_read)
  join pg_attribute a on a.attrelid = p.polrelid and a.attname = c.column_name and not a.attisdropped
  where (c.only_on is null or to_regclass(c.only_on) = p.polrelid)
    and (not c.only_read or p.polcmd = 'r')
) as comparison
"""


@dataclass(frozen=True)
class Node:
    """`{KIND :field value …}`."""

    kind: str
    fields: dict[str, Tree]

    def __getitem__(self, field: str) -> str:
        """A field of one token, else an empty text."""
        value = self.fields.get(field)
        return value if isinstance(value, str) else ""

    @property
    def arguments(self) -> list[Tree]:
        value = self.fields.get("args")
        return value if isinstance(value, list) else []


@dataclass(frozen=True)
class Comparison:
    """An operator between a column and the result of a function, which binds whatever its arguments are."""

    kind: str
    column: str
    function: str


def predicates(conn: Connection) -> list[dict[str, int | bool | None]]:
    """For every policy: whether USING and WITH CHECK bind rows to the organization, None where it has none."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        rows = cursor.execute(_POLICIES).fetchall()
    found: list[dict[str, int | bool | None]] = []
    for policy, using, check, *comparisons in rows:
        allowed = {Comparison(*parts) for parts in zip(*(column or [] for column in comparisons), strict=True)}
        found.append(
            {
                "policy": policy,
                "using_binds": None if using is None else binds(parse(using), allowed),
                "check_binds": None if check is None else binds(parse(check), allowed),
            }
        )
    return found


def binds(tree: Tree, allowed: set[Comparison]) -> bool:
    """Whether the expression can only be true where one of the allowed comparisons is."""
    if not isinstance(tree, Node):
        return False
    if tree.kind == "BOOLEXPR" and tree["boolop"] == "and":
        return any(binds(each, allowed) for each in tree.arguments)
    if tree.kind == "BOOLEXPR" and tree["boolop"] == "or":
        return all(binds(each, allowed) for each in tree.arguments)
    return _comparison(tree) in allowed or _is_false(tree)


def _comparison(tree: Node) -> Comparison | None:
    if tree["opno"] != _UUID_EQUALS or (tree.kind == "SCALARARRAYOPEXPR" and tree["useOr"] != "true"):
        return None
    arguments = {each.kind: each for each in map(_bare, tree.arguments) if isinstance(each, Node)}
    if arguments.keys() != {"VAR", "FUNCEXPR"}:
        return None
    column, function = arguments["VAR"], arguments["FUNCEXPR"]
    if (column["varno"], column["varlevelsup"]) != ("1", "0"):
        return None
    return Comparison(tree.kind, column["varattno"], function["funcid"])


def _bare(tree: Tree) -> Tree:
    """Of a column of a domain, the column: it is compared as what the domain is made of."""
    return tree.fields["arg"] if isinstance(tree, Node) and tree.kind == "RELABELTYPE" else tree


def _is_false(tree: Node) -> bool:
    """The constant false, or null: nobody gets in by it."""
    value = tree.fields.get("constvalue")
    return tree.kind == "CONST" and (value == "<>" or (isinstance(value, list) and set(value[2:-1]) == {"0"}))


def parse(text: str) -> Tree:
    """Read the text of a pg_node_tree."""
    return _values(iter(_TOKEN.findall(text)), ")")[0][0]


def _values(tokens: Iterator[str], end: str) -> tuple[list[Tree], str]:
    """Values up to the closing token `end`, or up to the name of the next field; and the token that ended them."""
    values: list[Tree] = []
    for word in tokens:
        if word == end or (end == "}" and word.startswith(":")):
            return values, word
        match word:
            case "{":
                values.append(_node(tokens))
            case "(":
                values.append(_values(tokens, ")")[0])
            case _:
                values.append(word)
    return values, ""


def _node(tokens: Iterator[str]) -> Node:
    kind = next(tokens)
    fields: dict[str, Tree] = {}
    field = next(tokens, "}")
    while field.startswith(":"):
        values, following = _values(tokens, "}")
        fields[field[1:]] = values[0] if len(values) == 1 else values
        field = following
    return Node(kind, fields)

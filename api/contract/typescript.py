"""TypeScript types of schema api, in the shape that `new PostgrestClient<Database>(url)` takes, which is that of
@supabase/postgrest-js: rows, what may be inserted and updated, relationships for embedding, and functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

from api.contract.catalog import Catalog, Column, Function, View

_NUMBERS: Final = frozenset({"smallint", "integer", "bigint", "numeric", "real", "double precision"})
_IDENTIFIER: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_NOTHING: Final = "{ [_ in never]: never }"
_INDENT: Final = "  "

_HEAD: Final = """\
// Made by `goldleaves types` from the database. Make it anew after a migration; do not edit it.
//
// timestamptz and date are ISO 8601 texts. numeric and bigint are exact in the JSON, but JavaScript numbers keep 15 to
// 17 digits: select them as text (`total_cents::text`) where each counts, and add up no money in floating point.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[]

"""


def database_types(catalog: Catalog) -> str:
    """The module as text: `Json` and `Database`."""
    lines = [
        "export type Database = {",
        *_indented(
            [
                "api: {",
                *_indented(
                    [
                        f"Tables: {_NOTHING}",
                        *_block("Views", (line for view in catalog.views for line in _view(view))),
                        *_block("Functions", (line for function in catalog.functions for line in _function(function))),
                        f"Enums: {_NOTHING}",
                        f"CompositeTypes: {_NOTHING}",
                    ]
                ),
                "}",
            ]
        ),
        "}",
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _view(view: View) -> Iterator[str]:
    yield from _comment(view.comment)
    inner = [*_block("Row", _row(view.columns))]
    if view.insertable:
        inner += _block("Insert", _written(view.insertable, {c.name for c in view.columns if c.is_required_on_insert}))
    if view.updatable:
        inner += _block("Update", _written(view.updatable, set()))
    yield from _block(_name(view.name), [*inner, *_relationships(view)])


def _row(columns: Iterable[Column]) -> Iterator[str]:
    for column in columns:
        yield from _comment(column.comment)
        yield f"{_name(column.name)}: {_column_type(column)}"


def _written(columns: Iterable[Column], required: set[str]) -> Iterator[str]:
    for column in columns:
        yield f"{_name(column.name)}{'' if column.name in required else '?'}: {_column_type(column)}"


def _relationships(view: View) -> list[str]:
    if not view.relationships:
        return ["Relationships: []"]
    lines = ["Relationships: ["]
    for relationship in view.relationships:
        inner = [
            f"foreignKeyName: {_literal(relationship.name)}",
            f"columns: [{', '.join(map(_literal, relationship.columns))}]",
            f"isOneToOne: {'true' if relationship.one_to_one else 'false'}",
            f"referencedRelation: {_literal(relationship.referenced)}",
            f"referencedColumns: [{', '.join(map(_literal, relationship.referenced_columns))}]",
        ]
        lines += _indented(["{", *_indented(inner), "},"])
    return [*lines, "]"]


def _function(function: Function) -> Iterator[str]:
    yield from _comment(function.comment)
    inner: list[str] = []
    if function.arguments:
        arguments = (f"{_name(a.name)}{'' if a.required else '?'}: {_type(a.type)}" for a in function.arguments)
        inner += _block("Args", arguments)
    else:
        inner.append("Args: never")
    inner += _returns(function)
    if function.returns_view is not None:
        inner += _block(
            "SetofOptions",
            [
                'from: "*"',
                f"to: {_literal(function.returns_view)}",
                f"isOneToOne: {'false' if function.set else 'true'}",
                f"isSetofReturn: {'true' if function.set else 'false'}",
            ],
        )
    yield from _block(_name(function.name), inner)


def _returns(function: Function) -> list[str]:
    many = "[]" if function.set else ""
    if function.returns_view is not None:
        return [f'Returns: Database["api"]["Views"][{_literal(function.returns_view)}]["Row"]{many}']
    if function.columns:
        *block, end = _block("Returns", _row(function.columns))
        return [*block, end + many]
    return [f"Returns: {_type(function.returns)}{many}"]


def _column_type(column: Column) -> str:
    named = " | ".join(map(_literal, column.values)) if column.values else _type(column.type)
    return f"{named} | null" if column.may_be_null and named != "Json" else named


def _type(postgres_type: str) -> str:
    if postgres_type.endswith("[]"):
        return f"({_type(postgres_type[:-2])})[]"
    if postgres_type in _NUMBERS or postgres_type.startswith("numeric("):
        return "number"
    return {"boolean": "boolean", "json": "Json", "jsonb": "Json", "void": "undefined"}.get(postgres_type, "string")


def _comment(text: str | None) -> Iterator[str]:
    lines = (text or "").replace("*/", "* /").split("\n")
    if len(lines) > 1:
        yield from ("/**", *(f" * {line}".rstrip() for line in lines), " */")
    elif text:
        yield f"/** {lines[0]} */"


def _block(name: str, inner: Iterable[str]) -> list[str]:
    return [f"{name}: {{", *_indented(inner), "}"]


def _indented(lines: Iterable[str]) -> list[str]:
    return [_INDENT + line for line in lines]


def _name(name: str) -> str:
    return name if _IDENTIFIER.fullmatch(name) else _literal(name)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

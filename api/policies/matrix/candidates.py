"""Values that a column may take, as text: the likeliest first, then others for when a check refuses those."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from secrets import randbelow, token_hex
from uuid import uuid4

from api.policies.matrix.catalog import Check, Column

_DAY = timedelta(days=1)
_TIMES = ("date", "timestamp", "timestamptz")
_NUMBERS = ("int2", "int4", "int8", "numeric", "float4", "float8", "money", "oid", "xid", "xid8")
_FIXED = {
    "bool": ("true", "false"),
    "time": ("12:00",),
    "timetz": ("12:00Z",),
    "interval": ("1 day",),
    "json": ("{}", "[]"),
    "jsonb": ("{}", "[]"),
    "inet": ("192.0.2.1",),
    "cidr": ("192.0.2.0/24",),
    "macaddr": ("02:00:00:00:00:01",),
    "macaddr8": ("02:00:00:00:00:00:00:01",),
    "xml": ("<a/>",),
    "pg_lsn": ("0/1",),
    "point": ("(0,0)",),
    "line": ("{1,1,1}",),
    "lseg": ("[(0,0),(1,1)]",),
    "box": ("(1,1),(0,0)",),
    "path": ("((0,0),(1,1))",),
    "polygon": ("((0,0),(1,1),(1,0))",),
    "circle": ("<(0,0),1>",),
    "tsvector": ("a",),
    "tsquery": ("a",),
    "regclass": ("pg_catalog.pg_class",),
    "regtype": ("text",),
}
# In the likeness of what texts are checked for: slugs and codes, dotted names, addresses, zones, currencies, numbers.
_TEXTS = ("a.b", "ab@example.com", "https://example.com/", "UTC", "usd", "ABC-123", "+15551234567", "1", "X", "x y")


def candidates(column: Column, checks: Iterable[Check], nth_time: int = 0) -> list[str]:
    """`nth_time`: how many columns of a time stand before it in the table. Later ones get later times."""
    about = [check for check in checks if column.name in check.columns]
    listed = [text for check in about if check.is_list for text in check.literals]
    mentioned = [text for check in about if not check.is_list for text in check.literals]
    plain = [*listed, *column.labels, *_of_type(column, nth_time)]
    if column.is_array:
        plain = [_array(text) for text in dict.fromkeys([*plain, *mentioned])] + ["{}"]
    elif column.kind == "b" and column.category in ("S", "N"):
        plain += mentioned
    fitting = (text if column.length is None or column.category != "S" else text[: column.length] for text in plain)
    return list(dict.fromkeys(fitting))


def is_time(column: Column) -> bool:
    return column.type_name in _TIMES and not column.is_array


def is_random(column: Column) -> bool:
    """Whether another value is as good: then another row of the same table gets another one."""
    return not column.is_array and (column.type_name == "uuid" or column.category == "S")


def has_equality(column: Column) -> bool:
    """Whether its values compare with `=`: json and points do not."""
    return column.kind in ("b", "e") and column.category in "BDENSU" and column.type_name not in ("json", "xml")


def _of_type(column: Column, nth_time: int) -> list[str]:
    name = column.type_name
    if column.kind == "r":
        return ["empty"]
    if column.kind == "m":
        return ["{}"]
    if column.kind == "c":
        return [f"({',' * (column.parts - 1)})"]
    if name in _FIXED:
        return list(_FIXED[name])
    if name == "uuid":
        return [str(uuid4())]
    if name == "bytea":
        return [f"\\x{token_hex(32)}", f"\\x{token_hex(16)}", "\\x"]
    if name in _TIMES:
        return [(datetime.now(UTC) + nth_time * _DAY).isoformat()]
    if name in ("bit", "varbit"):
        return ["0" * (column.length or 1)]
    if name in _NUMBERS:
        return ["1", "0", str(2 + randbelow(30_000)), "-1"]
    if column.category == "S":
        return [token_hex(6), *_TEXTS]
    return [token_hex(6)]


def _array(text: str) -> str:
    return '{"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"}'

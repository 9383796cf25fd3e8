"""What is wrong with a setting, in words for the person who wrote it: what was expected, and what is there instead."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

LONGEST_SHOWN: Final = 60

_KINDS: Final[Mapping[object, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Decimal: "a decimal number",
    Path: "a path",
    timedelta: "a duration, in seconds or as PT5M (ISO 8601),",
    str: "text",
}


def explain(field: FieldInfo, error: ErrorDetails) -> str:
    """One line without the variable's name, and without the value of a secret, or of a URL that may hold one."""
    if error["type"] == "value_error":  # from a validator of ours, which says it better
        return error["msg"].removeprefix("Value error, ")
    return f"expected {_expected(field)}, got {_given(field, error['input'])}"


def _expected(field: FieldInfo) -> str:
    kind = _plain(field.annotation)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(kind))}"
    return " ".join([_KINDS.get(kind, "another value"), *_bounds(field)])


def _bounds(field: FieldInfo) -> list[str]:
    found = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)}
    if "ge" in found and "le" in found:
        return [f"from {found['ge']} to {found['le']}"]
    words = {"ge": "of at least", "gt": "greater than", "le": "of at most"}
    return [f"{words[name]} {bound}" for name, bound in found.items()]


def _given(field: FieldInfo, value: Any) -> str:
    text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    if _plain(field.annotation) is SecretStr or not field.repr:
        return f"{len(text)} characters of something else"
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…")


def _plain(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation

"""Which parameters a call takes. Stripe refuses those that it does not know, and so what we misspell is found here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.stripe.standin.refusals import Refusal


class Text:
    pass


class Whole:
    pass


class Flag:
    pass


class Words:
    """Any names, with texts: metadata, payloads."""


@dataclass(frozen=True)
class OneOf:
    values: tuple[str, ...]


@dataclass(frozen=True)
class ListOf:
    of: Kind


@dataclass(frozen=True)
class Members:
    """An object with these members. `needs`: those that have to be there."""

    of: Mapping[str, Kind]
    needs: tuple[str, ...] = ()


Kind = Text | Whole | Flag | Words | OneOf | ListOf | Members

TEXT, WHOLE, FLAG, WORDS = Text(), Whole(), Flag(), Words()
EXPAND: dict[str, Kind] = {"expand": ListOf(TEXT)}
PAGE: dict[str, Kind] = {"limit": WHOLE, "starting_after": TEXT, "ending_before": TEXT}
RANGE = Members({"gt": WHOLE, "gte": WHOLE, "lt": WHOLE, "lte": WHOLE})


def checked(params: Mapping[str, Any], kind: Members) -> dict[str, Any]:
    """The parameters as what they are: texts, numbers, flags. Raises Refusal with Stripe's codes."""
    return _members(params, Members({**kind.of, **EXPAND}, kind.needs), "")


def _members(value: Any, kind: Members, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Refusal(f"Invalid object: {name}", code="parameter_invalid_empty" if value == "" else None, param=name)
    for needed in kind.needs:
        if needed not in value:
            param = _inner(name, needed)
            raise Refusal(f"Missing required param: {param}.", code="parameter_missing", param=param)
    for unknown in value:
        if unknown not in kind.of:
            param = _inner(name, unknown)
            raise Refusal(f"Received unknown parameter: {param}", code="parameter_unknown", param=param)
    return {member: _value(inner, kind.of[member], _inner(name, member)) for member, inner in value.items()}


def _value(value: Any, kind: Kind, name: str) -> Any:
    match kind:
        case Members():
            return _members(value, kind, name)
        case ListOf():
            if not isinstance(value, list):
                raise Refusal("Invalid array", param=name)
            return [_value(inner, kind.of, f"{name}[{number}]") for number, inner in enumerate(value)]
        case Words():
            if value == "":
                return {}
            if not isinstance(value, Mapping) or not all(isinstance(inner, str) for inner in value.values()):
                raise Refusal("Invalid object", param=name)
            return dict(value)
    if not isinstance(value, str):
        raise Refusal(f"Invalid string: {value}", param=name)
    match kind:
        case Whole():
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdecimal()):
                raise Refusal(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
            return int(value)
        case Flag():
            if value not in ("true", "false"):
                raise Refusal(f"Invalid boolean: {value}", param=name)
            return value == "true"
        case OneOf():
            if value not in kind.values:
                raise Refusal(f"Invalid {name}: must be one of {', '.join(kind.values)}", param=name)
            return value
    if value == "":
        raise Refusal(
            f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; "
            f"however '{name}' cannot be unset.",
            code="parameter_invalid_empty",
            param=name,
        )
    return value


def _inner(name: str, member: str) -> str:
    return f"{name}[{member}]" if name else member

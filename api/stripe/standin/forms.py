"""Bodies and queries as Stripe's clients write them: `items[0][price]=price_pro`, `expand[]=customer`."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl

from api.stripe.standin.refusals import Refusal

_NAME: Final = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_INDEX: Final = re.compile(r"\[([^\[\]]*)\]")


def parse(text: str) -> dict[str, Any]:
    """Nested as the brackets say. Lists are written with indexes, or with empty brackets."""
    tree: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        found = _NAME.fullmatch(name)
        if found is None:
            raise Refusal(f"Invalid name of a parameter: {name}", param=name)
        _put(tree, [found[1], *_INDEX.findall(found[2])], value, name)
    return {name: _with_lists(value) for name, value in tree.items()}


def _put(tree: dict[str, Any], path: list[str], value: str, name: str) -> None:
    *parents, last = path
    for part in parents:
        tree = tree.setdefault(part or str(len(tree)), {})
        if not isinstance(tree, dict):
            raise Refusal(f"Invalid parameter: {name} is a value and an object at once", param=name)
    tree[last or str(len(tree))] = value


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = {name: _with_lists(inner) for name, inner in value.items()}
    if made and all(name.isdecimal() for name in made):
        return [made[name] for name in sorted(made, key=int)]
    return made

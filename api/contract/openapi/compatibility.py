"""Which changes between two versions of the document break a client written against the first. Additions do not.

Requests and answers break in opposite directions: a server may take more than before and answer less freely, not the
other way round. What is well kept of such comparisons is written in Go or Java; this one knows what our documents use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from api.contract.openapi.components import Json

Direction = Literal["request", "answer"]

_ANY: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_AT_MOST: Final = ("maxLength", "maximum", "exclusiveMaximum", "maxItems")
_AT_LEAST: Final = ("minLength", "minimum", "exclusiveMinimum", "minItems")


def breaking_changes(before: Json, after: Json) -> list[str]:
    """One line for each, which names the place: `GET /api/v1/cases: parameter limit (query) is gone`."""
    return list(_Comparison(before, after).run())


class _Comparison:
    def __init__(self, before: Json, after: Json) -> None:
        self._before = before
        self._after = after

    def run(self) -> Iterator[str]:
        for path, operations in self._before["paths"].items():
            if path not in self._after["paths"]:
                yield f"{path} is gone"
                continue
            for method, operation in operations.items():
                changed = self._after["paths"][path].get(method)
                where = f"{method.upper()} {path}"
                if changed is None:
                    yield f"{where} is gone"
                else:
                    yield from self._operation(where, operation, changed)

    def _operation(self, where: str, before: Json, after: Json) -> Iterator[str]:
        if {} in before.get("security", [{}]) and {} not in (after.get("security") or [{}]):
            yield f"{where}: needs a token now"
        yield from self._parameters(where, before, after)
        yield from self._request_body(where, before.get("requestBody"), after.get("requestBody"))
        for status, response in before["responses"].items():
            if not status.startswith("2"):
                continue
            if status not in after["responses"]:
                yield f"{where}: answer {status} is gone"
                continue
            changed = _resolve(self._after, after["responses"][status])
            yield from self._content(f"{where}: answer {status}", _resolve(self._before, response), changed, "answer")

    def _parameters(self, where: str, before: Json, after: Json) -> Iterator[str]:
        known = _parameters(self._before, before)
        now = _parameters(self._after, after)
        for key, parameter in known.items():
            name = f"{where}: parameter {key[1]} ({key[0]})"
            if key not in now:
                yield f"{name} is gone"
                continue
            if now[key].get("required") and not parameter.get("required"):
                yield f"{name} is required now"
            yield from self._schema(name, parameter.get("schema", {}), now[key].get("schema", {}), "request")
        for key in now.keys() - known.keys():
            if now[key].get("required"):
                yield f"{where}: parameter {key[1]} ({key[0]}) is new and required"

    def _request_body(self, where: str, before: Json | None, after: Json | None) -> Iterator[str]:
        if after is None:
            if before is not None:
                yield f"{where}: takes no body any more"
            return
        if after.get("required") and not (before or {}).get("required"):
            yield f"{where}: body is required now"
        if before is not None:
            yield from self._content(f"{where}: body", before, after, "request")

    def _content(self, where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
        for media_type, content in before.get("content", {}).items():
            changed = after.get("content", {}).get(media_type)
            if changed is None:
                yield f"{where}: {media_type} is gone"
            else:
                yield from self._schema(where, content.get("schema", {}), changed.get("schema", {}), direction)

    def _schema(self, where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
        before, after = _resolve(self._before, before), _resolve(self._after, after)
        if "oneOf" in before or "oneOf" in after:
            yield from self._alternatives(where, before, after, direction)
            return
        yield from _types(where, before, after, direction)
        yield from _values(where, before, after, direction)
        if direction == "request":
            yield from _limits(where, before, after)
        yield from self._properties(where, before, after, direction)
        if "items" in before and "items" in after:
            yield from self._schema(f"{where}[]", before["items"], after["items"], direction)

    def _alternatives(self, where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
        """What could be sent still can, and what can be answered could be before."""
        old, new = before.get("oneOf", [before]), after.get("oneOf", [after])
        if direction == "request":
            fits = all(any(not list(self._schema(where, o, n, direction)) for n in new) for o in old)
        else:
            fits = all(any(not list(self._schema(where, o, n, direction)) for o in old) for n in new)
        if not fits and len(old) == len(new):
            for one, other in zip(old, new, strict=True):
                yield from self._schema(where, one, other, direction)
        elif not fits:
            yield f"{where}: has other alternatives"

    def _properties(self, where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
        known, now = before.get("properties", {}), after.get("properties", {})
        for name, schema in known.items():
            if name not in now:
                yield f"{where}: {name} is gone"
            else:
                yield from self._schema(f"{where}: {name}", schema, now[name], direction)
        needed, needs = set(before.get("required", ())), set(after.get("required", ()))
        if direction == "request":
            yield from (f"{where}: {name} is required now" for name in sorted(needs - needed))
        else:
            yield from (f"{where}: {name} may be absent now" for name in sorted((needed - needs) & now.keys()))


def _resolve(document: Json, node: Json) -> Json:
    while "$ref" in node:
        found = document
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def _parameters(document: Json, operation: Json) -> dict[tuple[str, str], Json]:
    resolved = (_resolve(document, parameter) for parameter in operation.get("parameters", ()))
    return {(parameter["in"], parameter["name"]): parameter for parameter in resolved}


def _types(where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
    old, new = _types_of(before), _types_of(after)
    wider, narrower = (new, old) if direction == "request" else (old, new)
    if not narrower <= wider:
        if new - old == {"null"}:
            yield f"{where}: may be null now"
        elif old - new == {"null"}:
            yield f"{where}: may not be null any more"
        else:
            yield f"{where}: was {_spoken(old)} and is {_spoken(new)}"
    elif before.get("format") != after.get("format"):
        yield f"{where}: format was {before.get('format')} and is {after.get('format')}"


def _types_of(schema: Json) -> frozenset[str]:
    """What values of it can be. Integers are numbers, too."""
    named = schema.get("type")
    if named is None:
        return _ANY
    types = frozenset([named] if isinstance(named, str) else named)
    return types | {"integer"} if "number" in types else types


def _spoken(types: frozenset[str]) -> str:
    return "anything" if types == _ANY else " or ".join(sorted(types - ({"integer"} if "number" in types else set())))


def _values(where: str, before: Json, after: Json, direction: Direction) -> Iterator[str]:
    """A value that is gone breaks whoever filters by it or sends it. A new one in answers is an addition."""
    if "enum" not in after:
        return
    if "enum" not in before:
        if direction == "request":
            yield f"{where}: takes only some values now"
        return
    for value in before["enum"]:
        if value not in after["enum"]:
            yield f"{where}: value {value} is gone"


def _limits(where: str, before: Json, after: Json) -> Iterator[str]:
    for name in _AT_MOST:
        if name in after and after[name] < before.get(name, float("inf")):
            yield f"{where}: {name} is {after[name]} now"
    for name in _AT_LEAST:
        if name in after and after[name] > before.get(name, float("-inf")):
            yield f"{where}: {name} is {after[name]} now"
    if "pattern" in after and after["pattern"] != before.get("pattern"):
        yield f"{where}: has another pattern"

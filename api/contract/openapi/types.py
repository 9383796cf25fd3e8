"""Postgres types as JSON Schema: how PostgREST writes their values."""

from __future__ import annotations

from typing import Final

from api.contract.catalog import Column
from api.contract.openapi.components import Json

EXACT: Final = (
    "Every digit is in the JSON. Readers that take numbers for doubles, such as JavaScript's, keep 15 to 17 of "
    "them: ask for text (`select={name}::text`) where that matters."
)

_TYPES: Final[dict[str, Json]] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": {"type": "string"},
    "boolean": {"type": "boolean"},
    "smallint": {"type": "integer", "minimum": -(2**15), "maximum": 2**15 - 1},
    "integer": {"type": "integer", "format": "int32"},
    "bigint": {"type": "integer", "format": "int64"},
    "numeric": {"type": "number"},
    "date": {"type": "string", "format": "date"},
    "timestamp with time zone": {"type": "string", "format": "date-time"},
    "json": {},
    "jsonb": {},
}


def schema_of(postgres_type: str) -> Json:
    if postgres_type.endswith("[]"):
        return {"type": "array", "items": schema_of(postgres_type[:-2])}
    return dict(_TYPES.get(postgres_type, {"type": "string", "format": postgres_type}))


def column_schema(column: Column) -> Json:
    schema = schema_of(column.type)
    if column.values is not None:
        schema["enum"] = list(column.values)
    if column.may_be_null and "type" in schema:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    description = column.comment or ""
    if column.type == "numeric":
        description = f"{description} {EXACT.format(name=column.name)}".strip()
    if description:
        schema["description"] = description
    return schema

"""The operations that the gateway passes on to PostgREST, made from the catalog: a path for each view and function of
schema api, with what its roles may do, and nothing that nobody may.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from api.contract.catalog import Argument, Column, Function, View
from api.contract.openapi.components import REQUEST_ID, SECURED, Json, refusals
from api.contract.openapi.examples import RESULTS, ROWS
from api.contract.openapi.types import column_schema, schema_of
from api.routes import GATEWAY_PREFIX

PREFIX: Final = GATEWAY_PREFIX.decode()
FUNCTIONS: Final = "Functions"

# Any request that is passed on can end with these.
_ALWAYS: Final = (
    "COUNT_NOT_EXACT",
    "DATABASE_BUSY",
    "DATABASE_UNAVAILABLE",
    "JWKS_UNAVAILABLE",
    "NOT_A_MEMBER",
    "ORGANIZATION_NOT_FOUND",
    "ORGANIZATION_REQUIRED",
    "POSTGREST_UNAVAILABLE",
    "QUOTA_EXCEEDED",
    "RATE_LIMITED",
    "SCOPE_REQUIRED",
    "42501",
)
_READ: Final = ("PGRST100", "PGRST103", "PGRST116", "PGRST200", "22P02", "42703")
_WRITE: Final = ("PGRST100", "PGRST102", "PGRST116", "PGRST204", "22P02", "23502", "23503", "23505", "23514", "42703")
_DELETE: Final = ("PGRST100", "22P02", "23503", "42703")
_CALL: Final = ("PGRST102", "PGRST202", "22P02")

_ROW_MEDIA: Final = "application/vnd.pgrst.object+json"


def _query(name: str, description: str, schema: Json, **more: object) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


PARAMETERS: Final[Json] = {
    "select": _query(
        "select",
        "Columns, comma-separated, and what is embedded of related views: `id,title,clients(name)`. `name:column` "
        "renames, `column::text` casts. Without it: all columns.",
        {"type": "string"},
    ),
    "order": _query(
        "order", "Columns to sort by, each with `.asc` or `.desc`, `.nullsfirst` or `.nullslast`.", {"type": "string"}
    ),
    "limit": _query("limit", "At most this many rows.", {"type": "integer", "minimum": 0}),
    "offset": _query("offset", "Rows to skip.", {"type": "integer", "minimum": 0}),
    "columns": _query("columns", "Take only these columns from the body.", {"type": "string"}),
    "on_conflict": _query(
        "on_conflict",
        "Columns of the unique key that an upsert goes by. Without it: the primary key.",
        {"type": "string"},
    ),
    "PreferRead": {
        "name": "Prefer",
        "in": "header",
        "description": "`count=exact` adds the number of all rows to Content-Range, and answers 206 when there are "
        "more.",
        "schema": {"type": "string", "enum": ["count=exact"]},
    },
    "PreferInsert": {
        "name": "Prefer",
        "in": "header",
        "description": "Comma-separated. `return=representation` answers with the rows, `return=headers-only` with "
        "Location; `resolution=merge-duplicates` or `ignore-duplicates` makes it an upsert; `missing=default` gives "
        "left-out columns of a bulk insert their defaults.",
        "schema": {"type": "string"},
    },
    "PreferChange": {
        "name": "Prefer",
        "in": "header",
        "description": "Comma-separated. `return=representation` answers with the rows; `count=exact` counts them in "
        "Content-Range; `tx=rollback` is not available.",
        "schema": {"type": "string"},
    },
}

_HEADERS: Final[Json] = {
    **REQUEST_ID,
    "Content-Range": {
        "description": "First and last row of this answer, and the number of all after `/` when it was asked for: "
        "`0-24/573`.",
        "schema": {"type": "string"},
    },
}


def tags(views: Iterable[View]) -> list[Json]:
    named = [{"name": view.name, "description": view.comment or ""} for view in views]
    return [
        *named,
        {"name": FUNCTIONS, "description": "Called with POST and a JSON object; those that only read also with GET."},
    ]


def schemas(views: Iterable[View]) -> Json:
    found: Json = {}
    for view in views:
        found[view.name] = _row(view.columns, [column.name for column in view.columns], view.comment)
        if view.name in ROWS:
            found[view.name]["examples"] = [ROWS[view.name]]
        if view.insertable:
            required = [column.name for column in view.columns if column.is_required_on_insert]
            found[f"{view.name}.insert"] = _row(view.insertable, required)
        if view.updatable:
            found[f"{view.name}.update"] = _row(view.updatable, [])
    return found


def paths(views: Iterable[View], functions: Iterable[Function]) -> Json:
    found: Json = {f"{PREFIX}/{view.name}": _view_operations(view) for view in views}
    return found | {f"{PREFIX}/rpc/{function.name}": _function_operations(function) for function in functions}


def _row(columns: Iterable[Column], required: list[str], description: str | None = None) -> Json:
    schema: Json = {"type": "object", "properties": {column.name: column_schema(column) for column in columns}}
    if required:
        schema["required"] = required
    if description:
        schema["description"] = description
    return schema


def _view_operations(view: View) -> Json:
    operations: Json = {}
    filters = [_filter(column) for column in view.columns]
    if view.select:
        operations["get"] = _operation(
            view.name,
            f"list_{view.name}",
            f"Read rows of {view.name}",
            view.select,
            (view.comment or "") + "\n\nThe answer has all columns unless `select` picks some.",
            [*filters, *_parameters("select", "order", "limit", "offset", "PreferRead", "RequestId")],
            {"200": _rows(view, "The rows."), "206": _rows(view, "Some of the rows: Content-Range says which.")},
            _READ,
        )
    if view.insertable:
        roles = _roles(column.insert for column in view.insertable)
        operations["post"] = _operation(
            view.name,
            f"insert_{view.name}",
            f"Insert rows into {view.name}",
            roles,
            "One row, or several at once: all of them or none.",
            _parameters("select", "columns", "on_conflict", "PreferInsert", "RequestId"),
            {
                "201": _written(view, "Inserted."),
                "200": _written(view, "Merged into rows that were there (an upsert)."),
            },
            _WRITE,
        ) | {"requestBody": _body(f"{view.name}.insert", view.insertable, view, many=True)}
    if view.updatable:
        roles = _roles(column.update for column in view.updatable)
        operations["patch"] = _operation(
            view.name,
            f"update_{view.name}",
            f"Update rows of {view.name}",
            roles,
            "Changes every row that the filters leave, and that you may change: name the row, `id=eq.…`.",
            [*filters, *_parameters("select", "columns", "PreferChange", "RequestId")],
            {"204": _nothing("Changed."), "200": _written(view, "Changed, with `return=representation`.")},
            _WRITE,
        ) | {"requestBody": _body(f"{view.name}.update", view.updatable, view, many=False)}
    if view.delete:
        operations["delete"] = _operation(
            view.name,
            f"delete_{view.name}",
            f"Delete rows of {view.name}",
            view.delete,
            "Deletes every row that the filters leave, and that you may delete: name the row, `id=eq.…`.",
            [*filters, *_parameters("select", "PreferChange", "RequestId")],
            {"204": _nothing("Deleted."), "200": _written(view, "Deleted, with `return=representation`.")},
            _DELETE,
        )
    return operations


def _function_operations(function: Function) -> Json:
    result = _result(function)
    answer = {"description": "The result.", "headers": REQUEST_ID, "content": {"application/json": result}}
    operations: Json = {}
    if function.read_only:
        arguments = [_argument(argument) for argument in function.arguments]
        operations["get"] = _call(function, f"read_{function.name}", [*arguments, *_parameters("RequestId")], answer)
    operations["post"] = _call(function, f"call_{function.name}", _parameters("RequestId"), answer)
    if function.arguments:
        required = [argument.name for argument in function.arguments if argument.required]
        schema: Json = {
            "type": "object",
            "properties": {argument.name: schema_of(argument.type) for argument in function.arguments},
        }
        if required:
            schema["required"] = required
        operations["post"]["requestBody"] = {
            "required": bool(required),
            "content": {"application/json": {"schema": schema}},
        }
    return operations


def _call(function: Function, operation_id: str, parameters: list[Json], answer: Json) -> Json:
    return _operation(
        FUNCTIONS,
        operation_id,
        function.summary,
        function.execute,
        function.description,
        parameters,
        {"200": answer},
        (*_CALL, *function.codes),
    )


def _result(function: Function) -> Json:
    if function.returns_view is not None:
        schema: Json = {"$ref": f"#/components/schemas/{function.returns_view}"}
    elif function.columns:
        schema = _row(function.columns, [column.name for column in function.columns])
    else:
        schema = schema_of(function.returns)
    content: Json = {"schema": {"type": "array", "items": schema} if function.set else schema}
    if function.name in RESULTS:
        content["example"] = RESULTS[function.name]
    return content


def _operation(
    tag: str,
    operation_id: str,
    summary: str,
    roles: Iterable[str],
    description: str,
    parameters: list[Json],
    answers: Json,
    codes: Iterable[str],
) -> Json:
    allowed = list(roles)
    open_to_all = "anon" in allowed
    return {
        "tags": [tag],
        "operationId": operation_id,
        "summary": summary,
        "description": f"{description.strip()}\n\nRoles: {', '.join(allowed)}.",
        "security": [{}, *SECURED] if open_to_all else SECURED,
        "parameters": parameters,
        "responses": answers | refusals((*_ALWAYS, *codes)),
    }


def _argument(argument: Argument) -> Json:
    required: Json = {"required": True} if argument.required else {}
    if argument.type.endswith("[]"):
        return _query(argument.name, "As Postgres writes an array: `{one,other}`.", {"type": "string"}, **required)
    return _query(argument.name, "", schema_of(argument.type), **required)


def _filter(column: Column) -> Json:
    values = f" Of {', '.join(column.values)}." if column.values else ""
    text = f"Filter: an operator and a value, such as `eq.…`, `neq.…`, `gte.…`, `in.(…,…)` or `is.null`.{values}"
    return _query(column.name, text, {"type": "string"})


def _parameters(*names: str) -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _roles(allowed: Iterable[tuple[str, ...]]) -> list[str]:
    return sorted({role for roles in allowed for role in roles})


def _rows(view: View, text: str) -> Json:
    row = {"$ref": f"#/components/schemas/{view.name}"}
    return {
        "description": text,
        "headers": _HEADERS,
        "content": {
            "application/json": {"schema": {"type": "array", "items": row}},
            _ROW_MEDIA: {"schema": row},
            "text/csv": {"schema": {"type": "string"}},
        },
    }


def _written(view: View, text: str) -> Json:
    row = {"$ref": f"#/components/schemas/{view.name}"}
    return {
        "description": f"{text} The rows are in the body only with `Prefer: return=representation`.",
        "headers": _HEADERS,
        "content": {
            "application/json": {"schema": {"type": "array", "items": row}},
            _ROW_MEDIA: {"schema": row},
        },
    }


def _nothing(text: str) -> Json:
    return {"description": text, "headers": _HEADERS}


def _body(schema_name: str, columns: Iterable[Column], view: View, *, many: bool) -> Json:
    row: Json = {"$ref": f"#/components/schemas/{schema_name}"}
    content: Json = {"schema": {"oneOf": [row, {"type": "array", "items": row}]} if many else row}
    if view.name in ROWS:
        made_by_us = {"id", "organization_id", "created_by", "created_at"}
        elsewhere = {name for relationship in view.relationships for name in relationship.columns}
        names = {column.name for column in columns} - made_by_us - elsewhere  # so that it can be tried out as it is
        content["example"] = {name: value for name, value in ROWS[view.name].items() if name in names}
    return {"required": True, "content": {"application/json": content}}

"""What keeps /api/v1 additive: each kind of breaking change is seen, and no addition is taken for one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from api.contract.openapi.compatibility import breaking_changes

Document = dict[str, Any]
Change = Callable[[Document], object]

DOCUMENT: Document = {
    "paths": {
        "/cases": {
            "get": {
                "security": [{}, {"bearer": []}],
                "parameters": [
                    {"$ref": "#/components/parameters/limit"},
                    {"name": "order", "in": "query", "schema": {"type": "string", "enum": ["asc", "desc"]}},
                ],
                "responses": {
                    "200": {
                        "content": {
                            "application/json": {
                                "schema": {"type": "array", "items": {"$ref": "#/components/schemas/case"}}
                            },
                            "text/csv": {"schema": {"type": "string"}},
                        }
                    },
                    "206": {},
                    "404": {},
                },
            },
            "post": {
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "oneOf": [
                                    {"$ref": "#/components/schemas/new"},
                                    {"type": "array", "items": {"$ref": "#/components/schemas/new"}},
                                ]
                            }
                        }
                    }
                },
                "responses": {"201": {}},
            },
        },
        "/health": {"get": {"responses": {"200": {}}}},
    },
    "components": {
        "parameters": {"limit": {"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 100}}},
        "schemas": {
            "case": {
                "type": "object",
                "properties": {
                    "id": {"type": "string", "format": "uuid"},
                    "status": {"type": "string", "enum": ["open", "closed"]},
                    "total": {"type": "number"},
                    "client": {"type": ["string", "null"]},
                },
                "required": ["id", "status", "total", "client"],
            },
            "new": {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "maxLength": 200},
                    "status": {"type": "string", "enum": ["open", "closed"]},
                    "client": {"type": ["string", "null"]},
                },
                "required": ["title"],
            },
        },
    },
}


def get(document: Document) -> Document:
    found: Document = document["paths"]["/cases"]["get"]
    return found


def post(document: Document) -> Document:
    found: Document = document["paths"]["/cases"]["post"]
    return found


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


def row(document: Document) -> Document:
    found: Document = schema(document, "case")["properties"]
    return found


def new(document: Document) -> Document:
    found: Document = schema(document, "new")["properties"]
    return found


ROW = "GET /cases: answer 200[]"
BODY = "POST /cases: body"

BREAKING: dict[str, tuple[Change, str]] = {
    "path": (lambda d: d["paths"].pop("/health"), "/health is gone"),
    "operation": (lambda d: d["paths"]["/cases"].pop("post"), "POST /cases is gone"),
    "parameter": (lambda d: get(d)["parameters"].pop(0), "GET /cases: parameter limit (query) is gone"),
    "parameter required": (
        lambda d: get(d)["parameters"][1].update(required=True),
        "GET /cases: parameter order (query) is required now",
    ),
    "new required parameter": (
        lambda d: get(d)["parameters"].append({"name": "org", "in": "header", "required": True}),
        "GET /cases: parameter org (header) is new and required",
    ),
    "parameter type": (
        lambda d: d["components"]["parameters"]["limit"].update(schema={"type": "string"}),
        "GET /cases: parameter limit (query): was integer and is string",
    ),
    "parameter value": (
        lambda d: get(d)["parameters"][1]["schema"]["enum"].remove("desc"),
        "GET /cases: parameter order (query): value desc is gone",
    ),
    "limit lowered": (
        lambda d: d["components"]["parameters"]["limit"]["schema"].update(maximum=10),
        "GET /cases: parameter limit (query): maximum is 10 now",
    ),
    "token": (lambda d: get(d).update(security=[{"bearer": []}]), "GET /cases: needs a token now"),
    "answer": (lambda d: get(d)["responses"].pop("206"), "GET /cases: answer 206 is gone"),
    "media type": (
        lambda d: get(d)["responses"]["200"]["content"].pop("text/csv"),
        "GET /cases: answer 200: text/csv is gone",
    ),
    "column": (lambda d: row(d).pop("total"), f"{ROW}: total is gone"),
    "column type": (lambda d: row(d)["total"].update(type="string"), f"{ROW}: total: was number and is string"),
    "column format": (lambda d: row(d)["id"].pop("format"), f"{ROW}: id: format was uuid and is None"),
    "column null": (lambda d: row(d)["id"].update(type=["string", "null"]), f"{ROW}: id: may be null now"),
    "column absent": (lambda d: schema(d, "case")["required"].remove("total"), f"{ROW}: total may be absent now"),
    "column value": (lambda d: row(d)["status"]["enum"].remove("closed"), f"{ROW}: status: value closed is gone"),
    "body": (lambda d: post(d).pop("requestBody"), "POST /cases: takes no body any more"),
    "body required": (lambda d: post(d)["requestBody"].update(required=True), "POST /cases: body is required now"),
    "field": (lambda d: new(d).pop("client"), f"{BODY}: client is gone"),
    "field required": (lambda d: schema(d, "new")["required"].append("client"), f"{BODY}: client is required now"),
    "new required field": (
        lambda d: (new(d).update(kind={}), schema(d, "new")["required"].append("kind")),
        f"{BODY}: kind is required now",
    ),
    "field not null": (lambda d: new(d)["client"].update(type="string"), f"{BODY}: client: may not be null any more"),
    "field type": (lambda d: new(d)["title"].update(type="integer"), f"{BODY}: title: was string and is integer"),
    "field value": (lambda d: new(d)["status"]["enum"].remove("open"), f"{BODY}: status: value open is gone"),
    "field shorter": (lambda d: new(d)["title"].update(maxLength=100), f"{BODY}: title: maxLength is 100 now"),
    "field values": (lambda d: new(d)["title"].update(enum=["a"]), f"{BODY}: title: takes only some values now"),
    "field pattern": (lambda d: new(d)["title"].update(pattern="^a"), f"{BODY}: title: has another pattern"),
    "alternative": (
        lambda d: post(d)["requestBody"]["content"]["application/json"]["schema"]["oneOf"].pop(),
        f"{BODY}: has other alternatives",
    ),
}

ADDITIONS: dict[str, Change] = {
    "nothing": lambda d: None,
    "path": lambda d: d["paths"].update({"/invoices": {"get": {"responses": {}}}}),
    "operation": lambda d: d["paths"]["/health"].update(post={"responses": {}}),
    "optional parameter": lambda d: get(d)["parameters"].append({"name": "offset", "in": "query"}),
    "limit raised": lambda d: d["components"]["parameters"]["limit"]["schema"].update(maximum=1000),
    "error answer gone": lambda d: get(d)["responses"].pop("404"),
    "column": lambda d: (row(d).update(due={"type": "string"}), schema(d, "case")["required"].append("due")),
    "column never null": lambda d: row(d)["client"].update(type="string"),
    "column value": lambda d: row(d)["status"]["enum"].append("archived"),
    "column integer": lambda d: row(d)["total"].update(type="integer"),
    "optional field": lambda d: new(d).update(due={"type": "string"}),
    "field optional": lambda d: schema(d, "new")["required"].remove("title"),
    "field null": lambda d: new(d)["title"].update(type=["string", "null"]),
    "field longer": lambda d: new(d)["title"].update(maxLength=300),
    "field free": lambda d: new(d)["status"].pop("enum"),
    "alternative": lambda d: post(d)["requestBody"]["content"]["application/json"]["schema"]["oneOf"].append(
        {"type": "string"}
    ),
    "words": lambda d: row(d)["id"].update(description="Another text."),
}


def changed(change: Change) -> Document:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


@pytest.mark.parametrize("kind", BREAKING)
def test_breaking_change_is_named(kind: str) -> None:
    change, named = BREAKING[kind]
    assert named in breaking_changes(DOCUMENT, changed(change))


@pytest.mark.parametrize("kind", ADDITIONS)
def test_addition_is_no_breaking_change(kind: str) -> None:
    assert breaking_changes(DOCUMENT, changed(ADDITIONS[kind])) == []

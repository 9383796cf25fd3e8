"""Invoices and previews at paths of their own: what the functions answer, as JSON, as CSV and as a page to print."""

from __future__ import annotations

from typing import Final

from api.contract.openapi.components import REQUEST_ID, Json

_RPC: Final = "/api/v1/rpc/"
_JSON: Final = "application/json"
_INVOICE_ID: Final[Json] = {
    "name": "invoice_id",
    "in": "path",
    "required": True,
    "description": "Of the view invoices: its id, not its number.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}
_PATHS: Final = {
    "invoice_document": ("/billing/invoices/{invoice_id}", "An invoice"),
    "preview_invoice": ("/billing/preview-invoice", "What the invoice of an open period would be"),
}
_FORMATS: Final = {
    "": (_JSON, "with everything that is on it"),
    ".csv": ("text/csv", "as CSV (RFC 4180), a row a line, tax included"),
    ".html": ("text/html", "as a page to print"),
}
_HEADERS: Final[Json] = {
    **REQUEST_ID,
    "Content-Disposition": {"description": "A name for the file, with the number.", "schema": {"type": "string"}},
}


def paths(of_gateway: Json) -> Json:
    """`of_gateway`: the paths among which the functions are."""
    return {
        f"/api{path}{suffix}": {
            "get": {
                **_like(of_gateway[_RPC + function]["get"], media_type),
                "operationId": f"{function}_as_{media_type.rpartition('/')[2]}",
                "summary": f"{what}, {how}",
            }
        }
        for function, (path, what) in _PATHS.items()
        for suffix, (media_type, how) in _FORMATS.items()
    }


def _like(read: Json, media_type: str) -> Json:
    parameters = [_INVOICE_ID if each.get("name") == "invoice_id" else each for each in read["parameters"]]
    answer, refused = read["responses"]["200"], read["responses"]["400"]
    examples = {"UNKNOWN_PARAMETER": {"$ref": "#/components/examples/UNKNOWN_PARAMETER"}}
    examples |= refused["content"][_JSON]["examples"]
    return {
        **read,
        "description": f"{read['description']}\n\nNot billed. Also without `/api`. Other parameters are refused.",
        "parameters": parameters,
        "responses": {
            **read["responses"],
            "200": {
                **answer,
                "headers": _HEADERS,
                "content": {
                    media_type: answer["content"][_JSON] if media_type == _JSON else {"schema": {"type": "string"}}
                },
            },
            "400": {
                **refused,
                "description": f"{refused['description']}, `UNKNOWN_PARAMETER`",
                "content": {_JSON: {**refused["content"][_JSON], "examples": examples}},
            },
        },
    }

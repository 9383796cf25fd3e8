"""The plans at a path of their own, which needs no token."""

from __future__ import annotations

from typing import Final

from api.contract.openapi.components import Json

_VIEW: Final = "/api/v1/plans"
_PATH: Final = "/api/billing/plans"


def paths(of_gateway: Json) -> Json:
    """`of_gateway`: the paths among which the view is."""
    read = of_gateway[_VIEW]["get"]
    rows = read["responses"]["200"]["content"]["application/json"]
    caching = {
        "ETag": {"description": "Send it as If-None-Match.", "schema": {"type": "string"}},
        "Cache-Control": {"description": "How long it may be shown again.", "schema": {"type": "string"}},
    }
    answer: Json = {
        "description": "The plans.",
        "headers": {**read["responses"]["200"]["headers"], **caching},
        "content": {"application/json": rows},
    }
    answer["headers"].pop("Content-Range", None)
    others = {status: response for status, response in read["responses"].items() if status not in ("200", "206")}
    unchanged = {"description": "As it was: `If-None-Match` names it.", "headers": answer["headers"]}
    return {
        _PATH: {
            "get": {
                **read,
                "operationId": "list_plans_for_everybody",
                "summary": "What plans there are, and what they cost",
                "description": f"{read['description']}\n\nNot billed. Also at `/billing/plans`.",
                "responses": {"200": answer, "304": unchanged, **others},
            }
        }
    }

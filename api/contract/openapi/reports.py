"""Reports of usage at paths of their own, which name the organization: what the functions answer, for whom they do."""

from __future__ import annotations

from typing import Final

from api.contract.openapi.components import Json

_FUNCTIONS: Final = "/api/v1/rpc/"
_PATHS: Final = "/api/billing/"
_REPORTS: Final = ("usage-summary", "usage-report")
_GROUP_BY: Final[Json] = {
    "name": "group_by",
    "in": "query",
    "description": "Dimensions, comma-separated: `endpoint,method`.",
    "schema": {"type": "array", "items": {"type": "string"}},
    "style": "form",
    "explode": False,
}
_TENANT: Final[Json] = {
    "name": "tenant_id",
    "in": "path",
    "required": True,
    "description": "Id or slug of the organization. What X-Organization-ID and the token say does not matter here.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,63}$"},
}


def paths(of_gateway: Json) -> Json:
    """`of_gateway`: the paths among which the functions are."""
    found: Json = {}
    for report in _REPORTS:
        function = report.replace("-", "_")
        read = of_gateway[_FUNCTIONS + function]["get"]
        found[f"{_PATHS}{report}/{{tenant_id}}"] = {
            "get": {
                **read,
                "operationId": f"{function}_of_tenant",
                "description": f"{read['description']}\n\nNot billed. Also at `/billing/{report}/{{tenant_id}}`.",
                "security": [{"bearer": []}],
                "parameters": [
                    _TENANT,
                    *(_GROUP_BY if each.get("name") == "group_by" else each for each in read["parameters"]),
                ],
            }
        }
    return found

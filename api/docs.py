"""GET /openapi.json: the contract of the API, for clients, generators and the documentation page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.openapi import build_document


async def openapi(_: Request) -> Response:
    return JSONResponse(build_document())

"""The documentation: GET /openapi.json, the contract, and GET /docs, a page that shows it and tries it out.

The page is Swagger UI, from a Python package and served by us. A strict Content-Security-Policy keeps it from asking
anybody else for anything.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from api.contract.catalog import Catalog
from api.contract.openapi import build_document, render
from api.database import Database, DatabaseError
from api.errors import problem

FRESH_SECONDS: Final = 5.0

_PAGE: Final = Path(__file__).with_name("docs_page")
_FILES: Final = {
    "page.css": _PAGE,
    "page.js": _PAGE,
    "swagger-ui.css": None,
    "swagger-ui-bundle.js": None,
    "favicon-32x32.png": None,
}
_HEADERS: Final = {
    # Swagger UI sets style attributes; its icons are data: URLs in its style sheet.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src "
    "'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def docs_routes(database: Database) -> list[Route]:
    document = Document(database)

    async def openapi(_: Request) -> Response:
        return Response(await document.text(), media_type="application/json", headers={"Cache-Control": "no-cache"})

    return [
        Route("/openapi.json", openapi),
        Route("/docs", _page),
        Route("/docs/{name}", _file),
    ]


class Document:
    """The document as text, made anew from the catalog when it is older than a few seconds, once for all who ask."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._text = ""
        self._until = 0.0

    async def text(self) -> str:
        async with self._lock:
            if monotonic() >= self._until:
                try:
                    catalog = Catalog.model_validate(await self._database.describe_api())
                except DatabaseError as error:
                    raise error.problem() or error from None
                self._text = render(build_document(catalog))
                self._until = monotonic() + FRESH_SECONDS
            return self._text


async def _page(_: Request) -> Response:
    return FileResponse(_PAGE / "index.html", headers=_HEADERS)


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise problem("ROUTE_NOT_FOUND", "there is nothing at this path", hint="The documentation is at /docs.")
    return FileResponse((_FILES[name] or _swagger_ui()) / name, headers=_HEADERS)


def _swagger_ui() -> Path:
    """Where the package keeps the files. It is found, not imported: its code is for other frameworks."""
    spec = find_spec("swagger_ui")
    assert spec is not None and spec.submodule_search_locations is not None  # noqa: S101
    return Path(spec.submodule_search_locations[0]) / "static"

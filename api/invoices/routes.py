"""GET /api/billing/invoices/<id> and /api/billing/preview-invoice, each as JSON, .csv and .html. PostgREST is asked
with the caller's own token, by the gateway: who may see a document is decided there, and refusals are passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem
from api.gateway_answer import GatewayAnswer, ask
from api.invoices import page
from api.invoices.document import Document
from api.invoices.lines_csv import lines_csv

_PREVIEW_PARAMETERS: Final = ("period_start", "billing_entity_type")


@dataclass(frozen=True)
class Format:
    suffix: str
    media_type: str
    disposition: str
    write: Callable[[Document], str] | None  # None: as PostgREST answers it
    headers: Mapping[str, str]


FORMATS: Final = (
    Format(".csv", "text/csv; charset=utf-8", "attachment", lines_csv, {}),
    Format(".html", "text/html; charset=utf-8", "inline", page.page, page.HEADERS),
    Format("", "application/json; charset=utf-8", "inline", None, {}),
)


def invoice_routes(gateway: ASGIApp) -> list[Route]:
    # The bare path comes last: it would take a suffix for a part of the id.
    return [
        Route(f"{mount}/billing/{document}{form.suffix}", InvoiceDocuments(gateway, form), methods=["GET"])
        for mount in ("/api", "")
        for document in ("invoices/{invoice_id}", "preview-invoice")
        for form in FORMATS
    ]


class InvoiceDocuments:
    """An ASGI application, for one format."""

    def __init__(self, gateway: ASGIApp, form: Format) -> None:
        self._gateway = gateway
        self._format = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await ask(self._gateway, scope, receive, _query(Request(scope)))
        if answer is None:
            return  # the client hung up
        response = await self._written(answer) if answer.status == 200 else answer.passed_on()
        await response(scope, receive, send)

    async def _written(self, answer: GatewayAnswer) -> Response:
        document = Document.of_json(answer.body)
        form = self._format
        # Large ones take a while, in which others are to be answered.
        content = await run_in_threadpool(form.write, document) if form.write is not None else answer.body
        headers = {
            "Cache-Control": "private, no-cache",
            "Content-Disposition": f'{form.disposition}; filename="{document.name}{form.suffix or ".json"}"',
            "X-Content-Type-Options": "nosniff",
            **form.headers,
        }
        return Response(content, headers=headers, media_type=form.media_type)


def _query(request: Request) -> bytes:
    """The arguments of the function. Passed over, a slip in a name would show another period than the one meant."""
    invoice_id = request.path_params.get("invoice_id")
    allowed = _PREVIEW_PARAMETERS if invoice_id is None else ()
    given = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    names = [name for name, _ in given]
    for name in names:
        if name not in allowed or names.count(name) > 1:
            raise problem(
                "UNKNOWN_PARAMETER",
                f"{name[:80]!r} is no parameter here, or there twice",
                hint=f"A preview takes {' and '.join(_PREVIEW_PARAMETERS)}, an invoice none.",
            )
    return urlencode(given if invoice_id is None else [("invoice_id", invoice_id)]).encode()

"""The contract of the API as one OpenAPI 3.1 document: what the gateway passes on to PostgREST, and what the sidecar
answers itself.
"""

from __future__ import annotations

import json

from api.contract.openapi.components import Json
from api.contract.openapi.document import build_document

__all__ = ["build_document", "render"]


def render(document: Json) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

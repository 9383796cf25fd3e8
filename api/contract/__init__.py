"""What clients can rely on: schema api as the database describes it (catalog), and what is made of that: the OpenAPI
document, the TypeScript types, and the reference of error codes. Here are the files that keep it.
"""

from __future__ import annotations

import json
from typing import Final

import psycopg

from api.contract.catalog import Catalog
from api.contract.openapi import build_document, render
from api.contract.openapi.compatibility import breaking_changes
from api.settings import PROJECT

DOCUMENT: Final = PROJECT / "docs" / "openapi.json"
ERRORS: Final = PROJECT / "docs" / "errors.md"


def read_catalog(database_url: str) -> Catalog:
    """What schema api is in that database, asked as one who may migrate it."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("select ops.describe_api()").fetchone()
    return Catalog.model_validate(row[0] if row is not None else None)


def document_text(catalog: Catalog) -> str:
    return render(build_document(catalog))


def write_document(catalog: Catalog) -> list[str]:
    """Renew DOCUMENT. Returns what breaks clients that were written against the one before."""
    after = build_document(catalog)
    before = json.loads(DOCUMENT.read_text(encoding="utf-8")) if DOCUMENT.exists() else after
    DOCUMENT.write_text(render(after), encoding="utf-8")
    return breaking_changes(before, after)

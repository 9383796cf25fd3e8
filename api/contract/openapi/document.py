"""The document, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from api.contract.catalog import Catalog
from api.contract.openapi import gateway, invoices, plans, reports, sidecar, stripe
from api.contract.openapi.components import COMPONENTS, Json, examples

_READERS: Final = """

Open **Authorize** and paste a token; name an organization there too when it is not your default one. Then every *Try it
out* is a real request of yours, metered like any other.

Each operation names the roles that may use it. Within an organization, what its owner, admin, member, viewer or billing
user may do is narrower, and the database shows every organization its own rows alone.
"""


def build_document(catalog: Catalog) -> Json:
    of_gateway = gateway.paths(catalog.views, catalog.functions)
    title, _, description = (catalog.comment or "Goldleaves").partition("\n")
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("goldleaves"), "description": description.strip() + _READERS},
        "servers": [{"url": "/", "description": "This gateway"}],
        "tags": [*gateway.tags(catalog.views), *stripe.TAGS, *sidecar.TAGS],
        "paths": of_gateway
        | reports.paths(of_gateway)
        | invoices.paths(of_gateway)
        | plans.paths(of_gateway)
        | stripe.PATHS
        | sidecar.PATHS,
        "components": {
            **COMPONENTS,
            "examples": examples(),
            "parameters": COMPONENTS["parameters"] | gateway.PARAMETERS,
            "schemas": COMPONENTS["schemas"] | gateway.schemas(catalog.views) | stripe.SCHEMAS | sidecar.SCHEMAS,
        },
    }

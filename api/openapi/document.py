"""The document, put together."""

from __future__ import annotations

from importlib.metadata import version

from api.openapi import sidecar
from api.openapi.components import COMPONENTS, Json


def build_document() -> Json:
    return {
        "openapi": "3.1.0",
        "info": {"title": "Goldleaves", "version": version("goldleaves")},
        "servers": [{"url": "/", "description": "This gateway"}],
        "paths": sidecar.PATHS,
        "components": {**COMPONENTS, "schemas": {**COMPONENTS["schemas"], **sidecar.SCHEMAS}},
    }

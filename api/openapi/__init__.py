"""The contract of the API as one OpenAPI 3.1 document: what the gateway passes on to PostgREST, and what the sidecar
answers itself.
"""

from api.openapi.document import build_document

__all__ = ["build_document"]

"""How a request is called: in every answer, in the log, in the database, and in what is metered."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope
from uuid_utils import uuid7

HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_name(scope: Scope) -> tuple[str, bool]:
    """A sane X-Request-ID, else a new one (UUIDv7), and whether it came with the request."""
    sent = [value for name, value in scope["headers"] if name == HEADER]
    if len(sent) == 1 and _SANE.fullmatch(sent[0]) is not None:
        return sent[0].decode("ascii"), True
    return str(uuid7()), False

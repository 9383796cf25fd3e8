"""Where events come from that are no CloudEvents, which name a source of their own."""

from __future__ import annotations

from typing import Final

SOURCE: Final = "api"

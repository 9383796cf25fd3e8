from __future__ import annotations

import psycopg


def said_by_postgres(error: psycopg.Error) -> str:
    """What is wrong and what to do, in one line, and not where in which function."""
    parts = (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
    said = ". ".join(part.rstrip(".") for part in parts if part) or str(error)
    return " ".join(said.split()) or type(error).__name__

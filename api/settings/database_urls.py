"""Addresses of databases, as libpq understands them. Apart, since nobody who names none has to wait for its client."""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


def is_database_url(text: str) -> bool:
    try:
        conninfo_to_dict(text)
    except psycopg.Error:
        return False
    return True


def with_password(url: str, password: str) -> str:
    """The URL with that password, unless it has one."""
    return url if "password" in conninfo_to_dict(url) else make_conninfo(url, password=password)

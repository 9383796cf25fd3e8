"""Where a running stack is reached and as whom, and the one exception of this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

DATABASE: Final = "goldleaves"
SUPERUSER: Final = "postgres"
MIGRATOR: Final = "goldleaves_migrator"


class StackError(Exception):
    """The stack cannot do what was asked. The text is for the person at the terminal: what is wrong and what helps."""


@dataclass(frozen=True)
class Endpoints:
    """What `stack.json` holds. `database_url` is the embedded superuser's, as psql takes it."""

    gateway_url: str
    postgrest_url: str
    database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)


def http_url(host: str, port: int) -> str:
    return f"http://{url_host(host)}:{port}"


def url_host(host: str) -> str:
    """The host a local client connects to: a wildcard address is reached over loopback, IPv6 is bracketed."""
    reachable = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{reachable}]" if ":" in reachable else reachable


def postgres_url(user: str, password: str, host: str, port: int, database: str) -> str:
    """A libpq URL. Generated passwords are URL-safe, so nothing needs quoting."""
    return f"postgresql://{user}:{password}@{url_host(host)}:{port}/{database}"

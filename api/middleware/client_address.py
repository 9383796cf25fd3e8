"""Finds out where a request came from when proxies of ours are before us: what is metered and audited names it.

uvicorn's ProxyHeadersMiddleware does nearly this, but takes any text for an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

Network = IPv4Network | IPv6Network

HEADER: Final = b"x-forwarded-for"
_WITH_PORT: Final = re.compile(r"\[(?P<six>[^]]*)\](:\d+)?|(?P<four>[^:]*):\d+")  # some proxies add it


class ClientAddress:
    """Sets the client of the scope to the rightmost address of X-Forwarded-For that is no proxy's: each proxy appends
    whom it was asked by, so what is left of that one was written by the client.
    """

    def __init__(self, app: ASGIApp, proxies: tuple[Network, ...]) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is not None:
            forwarded = b",".join(value for name, value in scope["headers"] if name == HEADER)
            found = client_behind(self._proxies, client[0], reversed(forwarded.decode("latin-1").split(",")))
            scope["client"] = (found, client[1] if found == client[0] else 0)
        await self._app(scope, receive, send)


def client_behind(proxies: tuple[Network, ...], peer: str, nearest_first: Iterable[str]) -> str:
    """The first address that is no proxy's, going away from us; or the last proxy before something that is none."""
    client = peer
    for named in nearest_first:
        if not _is_proxy(proxies, client):
            break
        address = _address(named.strip())
        if address is None:
            break
        client = address
    return client


def _is_proxy(proxies: tuple[Network, ...], address: str) -> bool:
    parsed = _plain(address)
    return any(parsed in network for network in proxies)


def _address(text: str) -> str | None:
    with_port = _WITH_PORT.fullmatch(text)
    try:
        return str(_plain((with_port["six"] or with_port["four"]) if with_port else text))
    except ValueError:
        return None


def _plain(address: str) -> IPv4Address | IPv6Address:
    """Of a socket that takes both kinds, IPv4 addresses come as ::ffff:10.1.2.3."""
    parsed = ip_address(address)
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed

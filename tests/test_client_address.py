"""Behind proxies of ours the client is whom they name. What clients write themselves is never believed."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest

from api.middleware.client_address import client_behind
from tests.conftest import MakeOrganization, OpenStack
from tests.observe import eventually, gateway_events

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("127.0.0.1/32"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.3, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.7", "203.0.113.9", "203.0.113.7"),
        ("203.0.113.7", "10.0.0.1", "203.0.113.7"),
        ("fd00::1", "2001:db8::9", "2001:db8::9"),
        ("10.0.0.1", "[2001:db8::9]:4711", "2001:db8::9"),
        ("10.0.0.1", "[2001:db8::9]", "2001:db8::9"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9,::ffff:10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, '; drop table x", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2, ", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, 999.0.0.1", "10.0.0.1"),
    ],
)
def test_the_client_is_the_nearest_that_is_no_proxy(peer: str, forwarded: str, client: str) -> None:
    assert client_behind(PROXIES, peer, reversed(forwarded.split(","))) == client


@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.1", "203.0.113.9"), ("10.0.0.0/8", "127.0.0.1")])
def test_what_is_metered_names_the_client(
    open_stack: OpenStack, make_organization: MakeOrganization, trusted: str, client: str
) -> None:
    with open_stack(trusted_proxies=trusted, usage_ip="full") as stack:
        organization = make_organization(stack.database)
        headers = [
            ("Authorization", f"Bearer {stack.token(organization['owner'].subject)}"),
            ("X-Forwarded-For", "198.51.100.1"),
            ("X-Forwarded-For", "203.0.113.9"),
        ]
        answer = httpx.get(f"{stack.gateway_url}/api/v1/cases", headers=headers, trust_env=False)
        assert answer.status_code == 200
        (event,) = eventually(lambda: gateway_events(stack, organization.id), bool)
        assert event["dimensions"]["ip"] == client

"""`python -m bench.gateway`: the metering gateway against bare PostgREST, with wrk.

A page of ten rows is read, and rows are written one by one, over kept-alive connections; then the page is read with an
API key and with a person's token. wrk, Postgres, PostgREST and the sidecar share the machine. At the end the usage
events are counted: each answered request has to be one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from bench.rounds import compare, show
from bench.stack import BenchStack, bench_stack, machine
from bench.wrk import CONNECTIONS, MISSING, Wrk, is_there

ROUNDS: Final = 7
DELIVERY_SECONDS: Final = 60
PAGE: Final = "/cases?select=id,title,status&order=id&limit=10"
POST_SCRIPT: Final = Path(__file__).with_name("post_case.lua")

COUNT: Final = "select count(*) from metering.usage_events where event_name = 'api.request'"


def main() -> int:
    if not is_there():
        print(MISSING, file=sys.stderr)
        return 1
    print(f"{machine()}; wrk -t1 -c{CONNECTIONS}")
    with bench_stack() as stack:
        token = (f"Authorization: Bearer {stack.token('bench')}",)
        _provision(stack, token)
        # Named by both, since the gateway names it in any case, and PostgREST finds a default one at another price.
        organization = stack.value("select id from tenancy.organizations")
        headers = (*token, f"X-Organization-ID: {organization}")
        metered = sum(
            (
                _measure(stack, headers, "GET"),
                _measure(stack, headers, "POST", POST_SCRIPT),
                _measure_keys(stack, headers),
            )
        )
        recorded = _delivered(stack, metered)
    cut = 4 * (ROUNDS + 1) * CONNECTIONS  # wrk hangs up in the middle of as many
    print(f"\n{metered:,} requests were answered through the gateway, {recorded:,} usage events recorded:", end=" ")
    if not metered <= recorded <= metered + cut:
        print("that is not every one of them")
        return 1
    print(f"every one, and {recorded - metered} that wrk did not wait for")
    return 0


def _provision(stack: BenchStack, headers: tuple[str, ...]) -> None:
    """The first request makes the user and their organization; then it gets the rows that are read."""
    Wrk("first", f"{stack.gateway_url}/api/v1/organizations", headers).run()
    stack.value(
        "insert into app.cases (organization_id, title) "
        "select id, 'Case ' || n from tenancy.organizations, generate_series(1, 1000) n returning 1"
    )


def _measure(stack: BenchStack, headers: tuple[str, ...], method: str, script: Path | None = None) -> int:
    """Prints the comparison. Returns how many requests the gateway answered."""
    path = PAGE if method == "GET" else "/cases"
    gateway = Wrk("gateway", f"{stack.gateway_url}/api/v1{path}", headers, script)
    bare = Wrk("bare PostgREST", f"{stack.postgrest_url}{path}", headers, script)
    before = stack.processor_seconds("sidecar")
    comparison = compare(ROUNDS, gateway.run, bare.run)
    spent = (stack.processor_seconds("sidecar") - before) / gateway.answered
    show(f"{method} {path}", comparison, "requests/s", (gateway.name, bare.name))
    print(f"  {'sidecar':<20} {spent * 1e6:>9,.0f} µs of processor time a request, delivery of its record included")
    return gateway.answered


def _measure_keys(stack: BenchStack, headers: tuple[str, ...]) -> int:
    """Prints what coming with an API key costs, against a person's token. Returns how many requests were answered."""
    key = stack.value(
        """
        with made as (select 'gl_' || substr(md5('bench'), 1, 12) || '_' || encode(sha256('bench'), 'hex') as key)
        insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
        select 'organization', o.id, 'bench', substr(m.key, 4, 12), sha256(m.key::bytea), '{data:read}'
        from made m, tenancy.organizations o
        returning (select key from made)
        """
    )
    target = f"{stack.gateway_url}/api/v1{PAGE}"
    by_key, by_token = Wrk("API key", target, (f"Authorization: Bearer {key}",)), Wrk("token", target, headers)
    comparison = compare(ROUNDS, by_key.run, by_token.run)
    show(f"GET {PAGE}", comparison, "requests/s", (by_key.name, by_token.name))
    return by_key.answered + by_token.answered


def _delivered(stack: BenchStack, at_least: int) -> int:
    """How many requests are usage events, once the gateway has delivered its records."""
    deadline = time.monotonic() + DELIVERY_SECONDS
    last = -1
    while (now := int(str(stack.value(COUNT)))) < at_least or now != last:
        if time.monotonic() > deadline:
            break
        last = now
        time.sleep(1)
    return now


if __name__ == "__main__":
    sys.exit(main())

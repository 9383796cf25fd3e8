"""`python -m bench.gateway`: the metering gateway against bare PostgREST, with wrk.

A page of ten rows is read, and rows are written one by one, over kept-alive connections; then the page is read with an
API key and with a person's token, and with rate limits and without. wrk, Postgres, PostgREST and the sidecar share the
machine. At the end the usage events are counted: each answered request has to be one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from api.rate_limits.tiers import TierRateLimits
from bench.figures import Figure, at_least, print_figures
from bench.rounds import compare, show
from bench.stack import BenchStack, bench_stack
from bench.wrk import CONNECTIONS, Wrk, require_wrk

ROUNDS: Final = 5
SECONDS: Final = 3
BUDGET: Final = 0.80
RATE_LIMIT_ROUNDS: Final = 10  # small differences need many
RATE_LIMIT_BUDGET: Final = 0.97
NEVER_REACHED: Final = 1_000_000  # requests a minute
DELIVERY_SECONDS: Final = 60
PAGE: Final = "/cases?select=id,title,status&order=id&limit=10"
POST_SCRIPT: Final = Path(__file__).with_name("post_case.lua")

COUNT: Final = "select count(*) from metering.usage_events where event_name = 'api.request'"


def measure() -> list[Figure]:
    """Raises RuntimeError when a request that was answered is no usage event."""
    require_wrk()
    with bench_stack() as stack:
        bench = _Gateway(stack)
        figures = list(bench.figures())
        recorded = _delivered(stack, bench.metered)
    cut = (4 * (ROUNDS + 1) + 2 * (RATE_LIMIT_ROUNDS + 1)) * CONNECTIONS  # wrk hangs up in the middle of as many
    said = f"{bench.metered:,} requests were answered through the gateway, {recorded:,} usage events recorded"
    if not bench.metered <= recorded <= bench.metered + cut:
        raise RuntimeError(f"{said}: that is not every one of them")
    print(f"\n{said}: every one, and {recorded - bench.metered} that wrk did not wait for")
    return figures


class _Gateway:
    """`metered`: how many requests the gateway has answered."""

    def __init__(self, stack: BenchStack) -> None:
        self._stack = stack
        self.metered = 0
        token = f"Authorization: Bearer {stack.token('bench')}"
        # The first request makes the user and their organization; then it gets the rows that are read.
        Wrk("first", f"{stack.gateway_url}/api/v1/organizations", (token,)).run()
        organization = stack.value("select id from tenancy.organizations where kind = 'personal'")
        stack.value(
            "insert into app.cases (organization_id, title) select %s, 'Case ' || n from generate_series(1, 1000) n "
            "returning 1",
            organization,
        )
        # Named by both, since the gateway names it in any case, and PostgREST finds a default one at another price.
        self._headers = (token, f"X-Organization-ID: {organization}")

    def figures(self) -> Iterator[Figure]:
        yield self._against_postgrest("GET", "GET of ten rows")
        yield self._against_postgrest("POST", "POST of a row", POST_SCRIPT)
        yield self._with_a_key()
        yield self._with_rate_limits()

    def _against_postgrest(self, method: str, what: str, script: Path | None = None) -> Figure:
        path = PAGE if method == "GET" else "/cases"
        gateway = Wrk("gateway", f"{self._stack.gateway_url}/api/v1{path}", self._headers, script, seconds=SECONDS)
        bare = Wrk("bare PostgREST", f"{self._stack.postgrest_url}{path}", self._headers, script, seconds=SECONDS)
        before = self._stack.processor_seconds("sidecar")
        comparison = compare(ROUNDS, gateway.run, bare.run)
        spent = (self._stack.processor_seconds("sidecar") - before) / gateway.answered * 1e6
        show(f"{method} {path}", comparison, "requests/s", (gateway.name, bare.name))
        print(f"  {'sidecar':<20} {spent:>9,.0f} µs of processor time a request, delivery of its record included")
        self.metered += gateway.answered
        return Figure(
            f"gateway, {what}, {CONNECTIONS} connections",
            f"{comparison.our_median:,.0f}/s; sidecar {spent:,.0f} µs of processor time a request",
            f"bare PostgREST, {comparison.reference_median:,.0f}/s",
            comparison.ratio,
            (at_least("", comparison.median_ratio, BUDGET),),
        )

    def _with_a_key(self) -> Figure:
        """What coming with an API key costs."""
        key = self._stack.value(
            """
            with made as (select 'gl_' || substr(md5('bench'), 1, 12) || '_' || encode(sha256('bench'), 'hex') as key)
            insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
            select 'organization', o.id, 'bench', substr(m.key, 4, 12), sha256(m.key::bytea), '{data:read}'
            from made m, tenancy.organizations o
            where o.kind = 'personal'
            returning (select key from made)
            """
        )
        target = f"{self._stack.gateway_url}/api/v1{PAGE}"
        by_key = Wrk("API key", target, (f"Authorization: Bearer {key}",), seconds=SECONDS)
        by_token = Wrk("token", target, self._headers, seconds=SECONDS)
        comparison = compare(ROUNDS, by_key.run, by_token.run)
        show(f"GET {PAGE}", comparison, "requests/s", (by_key.name, by_token.name))
        self.metered += by_key.answered + by_token.answered
        return Figure(
            "gateway, with an API key",
            f"{comparison.our_median:,.0f}/s",
            f"with a token, {comparison.reference_median:,.0f}/s",
            comparison.ratio,
        )

    def _with_rate_limits(self) -> Figure:
        """What counting requests costs, where nobody comes to the limit."""
        with self._stack.another_sidecar(tier_rate_limits=TierRateLimits({"starter": NEVER_REACHED})) as url:
            limited = Wrk("rate limits", f"{url}/api/v1{PAGE}", self._headers, seconds=SECONDS)
            unlimited = Wrk("none", f"{self._stack.gateway_url}/api/v1{PAGE}", self._headers, seconds=SECONDS)
            comparison = compare(RATE_LIMIT_ROUNDS, limited.run, unlimited.run)
        show(f"GET {PAGE}", comparison, "requests/s", (limited.name, unlimited.name))
        self.metered += limited.answered + unlimited.answered
        return Figure(
            "gateway, with rate limits",
            f"{comparison.our_median:,.0f}/s",
            f"without, {comparison.reference_median:,.0f}/s",
            comparison.ratio,
            (at_least("", comparison.median_ratio, RATE_LIMIT_BUDGET),),
        )


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
    print_figures(measure())

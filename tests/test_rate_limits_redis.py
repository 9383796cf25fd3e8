"""Two sidecars and a real Redis: together they let exactly as many requests through as one would. Redis may be killed,
or hang: nobody is refused for that, each sidecar goes on from what it knew, and both come back by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Event

import httpx
import pytest

from api.settings import Settings
from api.stack.endpoints import http_url
from api.stack.processes import Part, start, stop, wait_until_ready
from api.stack.services import sidecar_part
from tests.conftest import HOST, MakeOrganization, OpenStack, docker_answers
from tests.harness import Organization, RunningStack, free_port
from tests.limited import FREE, at_once, make_limited
from tests.observe import eventually
from tests.redis_server import PASSWORD, RedisServer, redis_server

LIMIT = 30
TIERS = f'{{"starter": {{"api": {LIMIT}}}}}'
SIDECARS = ("sidecar", "other")


@dataclass(frozen=True)
class Pair:
    """The stack's own sidecar, and another one beside it."""

    stack: RunningStack
    other: Part
    redis: RedisServer
    make: MakeOrganization

    @property
    def urls(self) -> tuple[str, str]:
        return self.stack.gateway_url, http_url(HOST, self.other.port)

    def start_other(self) -> None:
        wait_until_ready(self.other, start(self.other, self.stack.state), self.stack.state)

    def stop_other(self) -> None:
        stop(self.other.name, self.stack.state)

    def organization(self) -> Organization:
        return make_limited(self.make, self.stack.database)

    def clients(self, stack: ExitStack, organization: Organization, each: int = 2) -> list[httpx.Client]:
        token = self.stack.token(organization["owner"].subject)
        headers = {"Authorization": f"Bearer {token}", "X-Organization-ID": str(organization.id)}
        return [
            stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False))
            for url in self.urls
            for _ in range(each)
        ]

    def redis_is(self, status: str) -> bool:
        """What both say, once they do."""

        def said() -> set[str]:
            return {httpx.get(f"{url}/health", trust_env=False).json()["redis"]["status"] for url in self.urls}

        return eventually(said, lambda found: found == {status}) == {status}

    def said(self, name: str) -> list[str]:
        """What its log says of Redis."""
        lines = self.stack.state.log(name).read_text().splitlines()
        events = [str(json.loads(line).get("event")) for line in lines if line.startswith("{")]
        return [event for event in events if event.startswith("redis_")]

    def exactly_as_one(self) -> None:
        """While Redis answers, which on a busy machine it may not for a moment."""
        is_undisturbed = False
        while not is_undisturbed:
            assert self.redis_is("ok")
            before = [self.said(name) for name in SIDECARS]
            with ExitStack() as stack:
                answers = at_once(self.clients(stack, self.organization(), each=5), 5)
            is_undisturbed = [self.said(name) for name in SIDECARS] == before
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (LIMIT, len(answers) - LIMIT)
        left = [int(answer.headers["RateLimit-Remaining"]) for answer in answers if answer.status_code == 200]
        assert sorted(left) == list(range(LIMIT)), "two have the same place in the count"


@pytest.fixture(scope="module")
def pair(open_stack: OpenStack, make_organization: MakeOrganization) -> Iterator[Pair]:
    with (
        redis_server(in_container=docker_answers()) as redis,
        open_stack(tier_rate_limits=TIERS, redis_url=redis.url, log_level="INFO") as stack,
    ):
        settings = Settings(
            state_dir=stack.state.root,
            gateway_port=free_port(),
            postgrest_port=stack.parts["postgrest"].port,
            postgres_port=stack.database.port,
            tier_rate_limits=TIERS,  # type: ignore[arg-type]  # as text, like the variable
            redis_url=redis.url,
            spool_drain_seconds=3,
        )
        spool = stack.state.root / "other-spool"
        other = replace(sidecar_part(settings, stack.database.sidecar, stack.jwt_secret, spool), name="other")
        pair = Pair(stack, other, redis, make_organization)
        try:
            pair.start_other()
            yield pair
        finally:
            pair.stop_other()


def test_two_sidecars_let_through_what_one_would(pair: Pair) -> None:
    assert pair.redis_is("ok")
    pair.exactly_as_one()


def test_a_kill_in_the_middle_fails_no_request(pair: Pair) -> None:
    assert pair.redis_is("ok")
    before = {name: len(pair.said(name)) for name in SIDECARS}
    began, killed = Event(), Event()

    def keep_asking(client: httpx.Client) -> list[httpx.Response]:
        answers: list[httpx.Response] = []
        while not killed.is_set() or len(answers) < 2 * LIMIT:
            answers.append(client.get(FREE))
            if len(answers) == 3:
                began.set()
        return answers

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        clients = pair.clients(stack, pair.organization())
        asking = [pool.submit(keep_asking, client) for client in clients]
        assert began.wait(60)
        pair.redis.kill()
        killed.set()
        answers = [answer for one in asking for answer in one.result()]
    assert {answer.status_code for answer in answers} == {200, 429}
    good = [answer for answer in answers if answer.status_code == 200]
    assert LIMIT <= len(good) <= 2 * LIMIT  # each sidecar alone lets no more through than the limit
    assert pair.redis_is("down")
    assert metric(pair) == "0.0"

    pair.stop_other()
    pair.start_other()  # without Redis
    assert pair.redis_is("down")

    pair.redis.start()
    assert pair.redis_is("ok")
    assert metric(pair) == "1.0"
    pair.exactly_as_one()

    for name in SIDECARS:  # not with each request and attempt, and without the password
        said = pair.said(name)[before[name] :]
        assert (said[0], said[-1]) == ("redis_is_away", "redis_is_back")
        assert len(said) < len(answers) / 10
        text = pair.stack.state.log(name).read_text()
        assert f'"redis":"{HOST}:{pair.redis.port}"' in text.replace(": ", ":")
        assert PASSWORD not in text


def test_one_that_hangs_is_not_waited_for_again(pair: Pair) -> None:
    assert pair.redis_is("ok")
    firm = pair.organization()
    with ExitStack() as stack:
        clients = pair.clients(stack, firm)
        with pair.redis.paused():
            assert {answer.status_code for answer in at_once(clients, 3)} == {200}
            assert pair.redis_is("down")
        assert pair.redis_is("ok")


def metric(pair: Pair) -> str:
    def shown(url: str) -> str:
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        return next(line.partition(" ")[2] for line in lines if line.startswith("goldleaves_rate_limits_shared "))

    [said] = {shown(url) for url in pair.urls}
    return said

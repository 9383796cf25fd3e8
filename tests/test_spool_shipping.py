"""What is in the spool reaches Postgres: late, sent twice, beside unreadable records, after a time without Postgres."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from psycopg import sql

from api.settings import PROJECT
from api.spool import Spool
from api.stack.processes import members
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Database, Organization, RunningStack
from tests.observe import metered_ids, spool_state, wait_until_shipped

MEBIBYTE = 1024 * 1024


@pytest.fixture
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


def test_a_segment_sent_twice_counts_once(stack: RunningStack, organization: Organization) -> None:
    """As when the sidecar dies after Postgres has answered and before the segment is deleted."""
    keys = [str(uuid4()) for _ in range(2500)]
    stack.stop()
    segment = spooled(stack, [record(organization, key) for key in keys])
    again = segment.read_bytes()
    for _ in range(2):
        stack.start()
        wait_until_shipped(stack.state)
        assert not segment.exists()
        stack.stop()
        segment.write_bytes(again)
    segment.unlink()
    stack.start()
    assert sorted(metered_ids(stack, organization.id)) == sorted(keys)


def test_what_postgres_refuses_is_kept_with_its_reason_and_costs_nobody_else(
    stack: RunningStack, organization: Organization
) -> None:
    keys = [str(uuid4()) for _ in range(40)]
    good = [record(organization, key) for key in keys]
    refused = {
        b'{"id": "cut of': "INVALID_EVENT",
        b'{"id": "nul-\\u0000", "event": "api.request", "quantity": 1}': "INVALID_EVENT",
        b'{"id": "huge", "event": "api.request", "quantity": 1e999999}': "INVALID_EVENT",
        b"\xff\xfe not even text": "INVALID_EVENT",
        record(organization, "negative", quantity=-1): "INVALID_EVENT",
        record(organization, "nameless", event=None): "INVALID_EVENT",
        record(organization, "guarded"): "NOT_ON_SUNDAYS",
    }
    with stack.database.connect() as superuser:  # a refusal by SQL of the whole batch, as a trigger may
        superuser.execute(
            """
            create function public.guard() returns trigger language plpgsql as $$
            begin
              raise sqlstate 'PT409' using message = 'NOT_ON_SUNDAYS: come back tomorrow';
            end $$;
            create trigger guarded before insert on metering.usage_events
            for each row when (new.request_id = 'guarded') execute function public.guard()
            """
        )
    stack.stop()
    spooled(stack, [*good[:7], *list(refused)[:3], *good[7:30], *list(refused)[3:], *good[30:]])
    stack.start()
    wait_until_shipped(stack.state)
    assert sorted(metered_ids(stack, organization.id)) == sorted(keys)
    with stack.database.connect() as connection:
        kept = connection.execute("select code, message, event from metering.rejected_events").fetchall()
    assert sorted(code for code, _, _ in kept) == sorted(refused.values())
    assert all(message for _, message, _ in kept)
    assert sum("cut of" in json.dumps(event) for _, _, event in kept) == 1, "what could not be read is there to be read"


def test_a_torn_tail_costs_only_itself(stack: RunningStack, organization: Organization) -> None:
    stack.stop()
    segment = spooled(
        stack, [record(organization, "first"), record(organization, "second"), record(organization, "torn")]
    )
    segment.write_bytes(segment.read_bytes()[:-5])
    stack.start()
    wait_until_shipped(stack.state)
    assert sorted(metered_ids(stack, organization.id)) == ["first", "second"]
    assert segment.with_suffix(".damaged").exists()


def test_a_spool_has_one_sidecar(stack: RunningStack) -> None:
    part = stack.parts["sidecar"]
    environment = os.environ | dict(part.environment)
    second = subprocess.run(part.command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert second.returncode == 2
    assert second.stderr == f"SPOOL_DIR {stack.state.spool} is in use by another sidecar.\n"
    assert httpx.get(f"{stack.gateway_url}/health", trust_env=False).status_code == 200


def test_requests_go_on_while_nobody_takes_the_records(stack: RunningStack, organization: Organization) -> None:
    """Also over an orderly stop, which must not wait for a database that is away."""
    with stack.client(organization["owner"].subject) as client:
        assert client.get("/api/v1/cases").status_code == 200
        with sidecar_cut_off(stack.database):
            for number in range(20):
                answer = client.get("/api/v1/cases", headers={"X-Request-ID": f"cut-off-{number}"})
                assert answer.status_code == 200
            assert spool_state(stack)["pending_bytes"] > 0
            (process,) = members("sidecar", stack.state)
            process.terminate()
            process.wait(timeout=20)
        stack.stop()
        stack.start()
    wait_until_shipped(stack.state)
    assert {f"cut-off-{number}" for number in range(20)} <= set(metered_ids(stack, organization.id))


def test_a_full_spool_serves_on_and_says_so(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    with open_stack(spool_max_bytes=MEBIBYTE) as stack:
        organization = make_organization(stack.database)
        token = stack.token(organization["owner"].subject)

        def ask(_: int) -> list[int]:
            headers = {"Authorization": f"Bearer {token}", "User-Agent": "x" * 256}
            with httpx.Client(base_url=stack.gateway_url, headers=headers, timeout=30, trust_env=False) as client:
                return [client.get("/api/v1/cases?limit=0").status_code for _ in range(500)]

        with ThreadPoolExecutor(4) as pool, sidecar_known(stack, organization), sidecar_cut_off(stack.database):
            statuses = [status for answers in pool.map(ask, range(4)) for status in answers]
            assert set(statuses) == {200}
            state = spool_state(stack)
            assert state["full"] is True
            assert 0 < state["dropped"] < len(statuses)
            assert state["pending_bytes"] <= MEBIBYTE
            assert httpx.get(f"{stack.gateway_url}/health", trust_env=False).status_code == 503
        wait_until_shipped(stack.state)
        assert len(metered_ids(stack, organization.id)) == 1 + len(statuses) - state["dropped"]
        with sidecar_known(stack, organization):
            assert spool_state(stack)["full"] is False


def record(organization: Organization, key: str, **changes: Any) -> bytes:
    """A record as the gateway writes it."""
    event = {
        "id": key,
        "event": "api.request",
        "quantity": 1,
        "unit": "request",
        "time": datetime.now(UTC).isoformat(),
        "organization_id": str(organization.id),
        "request_id": key,
        "dimensions": {},
    }
    return json.dumps({**event, **changes}).encode()


def spooled(stack: RunningStack, records: Iterable[bytes]) -> Path:
    """Leave a segment in the spool of a sidecar that does not run."""
    with Spool(stack.state.spool, 64 * MEBIBYTE) as spool:
        for payload in records:
            assert spool.append(payload)
        spool.seal()
        segment = spool.oldest_sealed()
        assert segment is not None
        return segment.path


@contextmanager
def sidecar_known(stack: RunningStack, organization: Organization) -> Iterator[None]:
    """The sidecar has just looked the owner up, and will remember."""
    with stack.client(organization["owner"].subject) as client:
        assert client.get("/api/v1/cases").status_code == 200
    yield


@contextmanager
def sidecar_cut_off(database: Database) -> Iterator[None]:
    """The sidecar cannot reach Postgres, while PostgREST can."""
    name = sql.Identifier(database.name)
    with database.connect() as superuser:
        superuser.execute(sql.SQL("revoke connect on database {} from sidecar").format(name))
        superuser.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'sidecar'")
        try:
            yield
        finally:
            superuser.execute(sql.SQL("grant connect on database {} to sidecar").format(name))

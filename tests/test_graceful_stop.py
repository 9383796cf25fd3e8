"""A sidecar that is told to stop delivers what it holds, says what stays, and never takes longer than it may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from api.stack.processes import members
from tests.conftest import MakeOrganization, OpenStack
from tests.harness import Organization, RunningStack
from tests.observe import eventually, gateway_events, metered_ids, wait_until_shipped
from tests.test_spool_shipping import record, sidecar_cut_off, spooled

LONGER_THAN_ANYBODY_WAITS = 3600


@contextmanager
def cut_off_with_records(
    stack: RunningStack, organization: Organization, number: int
) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The sidecar's process and the ids of what it cannot deliver."""
    ids = [f"kept-{each}" for each in range(number)]
    with stack.client(organization["owner"].subject) as client:
        assert client.get("/api/v1/cases").status_code == 200
        wait_until_shipped(stack.state)
        with sidecar_cut_off(stack.database):
            for request_id in ids:
                assert client.get("/api/v1/cases", headers={"X-Request-ID": request_id}).status_code == 200
            (process,) = members("sidecar", stack.state)
            yield process, ids


def answers(stack: RunningStack) -> bool:
    try:
        httpx.get(f"{stack.gateway_url}/nothing", trust_env=False)
    except httpx.TransportError:
        return False
    return True


def last_words(stack: RunningStack) -> dict[str, Any]:
    lines = [json.loads(line) for line in stack.state.log("sidecar").read_text().splitlines()]
    (said,) = (line for line in lines if line["event"] == "sidecar_stopped")
    return dict(said)


def test_a_stop_delivers_what_is_in_the_spool(open_stack: OpenStack, make_organization: MakeOrganization) -> None:
    """More than goes out while a stop waits for requests."""
    with open_stack(spool_drain_seconds=60) as stack:
        organization = make_organization(stack.database)
        stack.kill()
        keys = [f"many-{number}" for number in range(20_000)]
        spooled(stack, [record(organization, key) for key in keys])
        process = stack.launch()
        assert eventually(lambda: answers(stack), bool, seconds=60)
        process.terminate()
        assert process.wait(timeout=90) == 0
        assert last_words(stack)["records_left"] == 0
        assert sorted(metered_ids(stack, organization.id)) == sorted(keys)


def test_a_stop_without_postgres_ends_in_time_and_says_what_stays(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack(spool_drain_seconds=1) as stack:
        organization = make_organization(stack.database)
        with cut_off_with_records(stack, organization, 7) as (process, ids):
            process.terminate()
            assert process.wait(timeout=60) == 0
            assert last_words(stack)["records_left"] >= len(ids)
        stack.stop()
        stack.start()
        wait_until_shipped(stack.state)
        assert set(ids) <= set(metered_ids(stack, organization.id))


def test_a_second_signal_ends_the_wait_and_loses_nothing(
    open_stack: OpenStack, make_organization: MakeOrganization
) -> None:
    with open_stack(spool_drain_seconds=LONGER_THAN_ANYBODY_WAITS) as stack:
        organization = make_organization(stack.database)
        with cut_off_with_records(stack, organization, 3) as (process, ids):
            process.terminate()
            with pytest.raises(psutil.TimeoutExpired):
                process.wait(timeout=1)
            process.terminate()
            assert process.wait(timeout=60) == 0
            assert last_words(stack)["records_left"] >= len(ids)
        stack.stop()
        stack.start()
        wait_until_shipped(stack.state)
        assert set(ids) <= set(metered_ids(stack, organization.id))
        assert len(gateway_events(stack, organization.id)) == len(ids) + 1

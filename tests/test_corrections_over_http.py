"""DELETE and PUT /v1/events/{id}: a backend takes back, or replaces, an event by the id that it gave it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import pytest

from tests.audit_log import entries
from tests.conftest import MakeOrganization
from tests.harness import Organization, RunningStack
from tests.observe import assert_problem


@pytest.fixture(scope="module")
def organization(stack: RunningStack, make_organization: MakeOrganization) -> Organization:
    return make_organization(stack.database)


@pytest.fixture(scope="module")
def backend(stack: RunningStack, organization: Organization) -> Iterator[httpx.Client]:
    with stack.client("backend", role="service", org=organization.id) as client:
        yield client


def path(key: object) -> str:
    return f"/v1/events/{quote(str(key), safe='')}"


def send(backend: httpx.Client, key: str | None = None, **changes: Any) -> str:
    event = {"id": key or str(uuid4()), "event": "pages.scanned", "quantity": 3, **changes}
    answer = backend.post("/v1/events", json=event)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1), answer.text
    return str(event["id"])


def total(stack: RunningStack, organization: Organization, column: str, value: object) -> Any:
    with stack.database.connect() as connection:
        row = connection.execute(
            f"select sum(quantity) from metering.usage_events where organization_id = %s and {column} = %s",
            [organization.id, value],
        ).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("key", ["plain", "with/a slash", "é?#&=%2F", "..."])
def test_an_event_is_taken_back_once_by_the_id_that_it_was_sent_with(
    stack: RunningStack, organization: Organization, backend: httpx.Client, key: str
) -> None:
    send(backend, key, resource_id=f"document {key}")
    first, again = (backend.delete(path(key), params={"reason": "scanned twice"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200), first.text
    assert [first.json()["already"], again.json()["already"]] == [False, True]
    assert first.json()["void_id"] == again.json()["void_id"]
    assert total(stack, organization, "resource_id", f"document {key}") == 0


def test_an_event_is_replaced_by_another_one(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    key = send(backend, resource_id="replaced")
    better = {"id": f"{key}-2", "quantity": 5}
    first, again = (backend.put(path(key), json=better) for _ in range(2))
    assert [first.status_code, first.json()["already"], again.json()["already"]] == [200, False, True], first.text
    assert UUID(first.json()["replacement_id"])
    assert total(stack, organization, "resource_id", "replaced") == 5
    assert_problem(backend.put(path(key), json={"id": f"{key}-3"}), 409, "EVENT_AMENDED")
    assert_problem(backend.delete(path(key)), 409, "EVENT_AMENDED")
    assert backend.delete(path(first.json()["replacement_id"])).json()["already"] is False
    assert total(stack, organization, "resource_id", "replaced") == 0


def test_events_of_others_are_named_by_their_source(backend: httpx.Client) -> None:
    event = {"specversion": "1.0", "id": str(uuid4()), "source": "/scanner 1", "type": "pages.scanned"}
    sent = backend.post("/v1/events", json=event, headers={"Content-Type": "application/cloudevents+json"})
    assert sent.json()["accepted"] == 1
    assert_problem(backend.delete(path(event["id"])), 404, "EVENT_NOT_FOUND")
    assert backend.delete(path(event["id"]), params={"source": "/scanner 1"}).status_code == 200


def test_who_did_it_and_why_is_in_the_audit_log(
    stack: RunningStack, organization: Organization, backend: httpx.Client
) -> None:
    done = backend.delete(path(send(backend)), params={"reason": "wrong page"}, headers={"X-Request-ID": "audited-1"})
    with stack.database.connect() as connection:
        [entry] = [one for one in entries(connection, organization.id) if one.target_id == done.json()["id"]]
    assert (entry.action, entry.request_id) == ("usage_event.voided", "audited-1")
    assert (entry.after or {})["reason"] == "wrong page"


BODIES: dict[str, tuple[dict[str, Any], int, str]] = {
    "not JSON": ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "INVALID_BODY"),
    "no object": ({"json": []}, 400, "INVALID_EVENT"),
    "no id": ({"json": {"quantity": 1}}, 400, "INVALID_EVENT"),
    "negative": ({"json": {"id": "x", "quantity": -1}}, 400, "INVALID_EVENT"),
    "no type": ({"content": b"{}"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    "NDJSON": ({"content": b"{}", "headers": {"Content-Type": "application/x-ndjson"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    "large": ({"json": {"id": "x", "unit": "x" * 70_000}}, 413, "BODY_TOO_LARGE"),
    "another late": ({"json": {"id": "x"}, "params": {"late": "never"}}, 400, "INVALID_EVENT"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_replacement_is_refused_by_name(backend: httpx.Client, name: str) -> None:
    request, status, code = BODIES[name]
    assert_problem(backend.put(path(send(backend)), **request), status, code)


def test_paths_are_read_as_they_are(stack: RunningStack, backend: httpx.Client) -> None:
    assert_problem(backend.delete("/v1/events/%ff"), 400, "INVALID_ENCODING")
    assert_problem(backend.delete("/v1/events/%00"), 400, "INVALID_PATH")
    assert_problem(backend.delete("/v1/events/unknown"), 404, "EVENT_NOT_FOUND")
    assert_problem(backend.delete("/v1/events%2Funknown"), 404, "ROUTE_NOT_FOUND")
    assert backend.delete(f"/v1/%65vents/{path(send(backend)).rpartition('/')[2]}").status_code == 200
    for name in ("reason", "source", "late"):
        assert_problem(backend.delete("/v1/events/unknown", params={name: "a\0"}), 400, "INVALID_EVENT")
    assert_problem(backend.get("/v1/events/unknown"), 405, "METHOD_NOT_ALLOWED")
    with stack.client("backend", role="service") as nobodys:
        assert_problem(nobodys.delete("/v1/events/unknown"), 400, "ORGANIZATION_REQUIRED")


@pytest.mark.parametrize("role", ["member", "platform_admin"])
def test_only_the_provider_s_backend_corrects(
    stack: RunningStack, organization: Organization, backend: httpx.Client, role: str
) -> None:
    key = send(backend, resource_id=f"not for {role}")
    with stack.client(organization["owner"].subject, role=role, org=organization.id) as client:
        assert_problem(client.delete(path(key)), 403, "ROLE_REQUIRED")
        assert_problem(client.put(path(key), json={"id": "x"}), 403, "ROLE_REQUIRED")
    assert total(stack, organization, "resource_id", f"not for {role}") == 3

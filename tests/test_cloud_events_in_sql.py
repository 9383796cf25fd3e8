"""A CloudEvent is an event like ours: source and id are its key, its subject is who is billed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.usage import Connection, moment, value


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made, made.transaction(force_rollback=True):
        yield made


def cloud_event(id: str = "1", **changes: Any) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": id, "source": "/shop/7", "type": "answers.given", **changes}
    return {name: member for name, member in made.items() if member is not ...}


def receive(connection: Connection, body: object, organization: UUID | None = None, late: str = "reject") -> Any:
    query = "select metering.receive_events(%s, %s, 'api', %s, null, 'cloudevents')"
    return value(connection, query, json.dumps(body), organization, late)


def refusal(connection: Connection, event: object, organization: UUID | None = None) -> str:
    answer = receive(connection, event, organization)
    assert (answer["accepted"], len(answer["rejected"])) == (0, 1)
    message: str = answer["rejected"][0]["message"]
    return message.removeprefix("event 0: ")


@pytest.mark.parametrize("named_by", ["id", "slug", "header"])
def test_it_is_stored_with_all_that_it_says(connection: Connection, organization: Organization, named_by: str) -> None:
    data = {"quantity": 2.5, "unit": "GB", "user_id": "u", "workspace_id": "w", "resource_id": "r", "request_id": "q"}
    more = {"model": "large", "dimensions": {"inner": 1}, "context": {"type": "project", "project": "Apollo"}}
    sent = cloud_event(
        subject={"id": str(organization.id), "slug": organization.slug}.get(named_by, ...),
        time=moment(0).isoformat(),
        datacontenttype="application/json",
        dataschema="https://example.com/schema",
        region="eu",
        data=data | more,
    )
    answer = receive(connection, sent, organization.id if named_by == "header" else None)
    assert answer["accepted"] == 1
    found = connection.execute(
        """
        select organization_id, occurred_at, source, idempotency_key, event_name,
          quantity::float, unit, user_id, workspace_id, resource_id, request_id, dimensions, context
        from metering.usage_events
        """
    ).fetchall()
    dimensions = {"region": "eu", "model": "large", "inner": 1}
    assert found == [
        (organization.id, moment(0), "/shop/7", "1", "answers.given", *data.values(), dimensions, more["context"])
    ]


def test_its_source_and_id_are_the_key(connection: Connection, organization: Organization) -> None:
    batch = [
        cloud_event("a"),
        cloud_event("a"),
        cloud_event("a", source="/shop/8"),
        cloud_event("a", data={"quantity": 2}),
    ]
    answer = receive(connection, batch, organization.id)
    assert (answer["accepted"], answer["duplicates"]) == (2, 1)
    assert [(one["index"], one["code"]) for one in answer["conflicts"]] == [(3, "IDEMPOTENCY_CONFLICT")]
    assert receive(connection, batch, organization.id)["accepted"] == 0


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"specversion": ...}, 'specversion needs to be "1.0"'),
        ({"specversion": "0.3"}, 'specversion needs to be "1.0"'),
        ({"specversion": 1.0}, 'specversion needs to be "1.0"'),
        ({"source": ...}, "source needs a string of 1 to 256 characters"),
        ({"source": ""}, "source needs a string of 1 to 256 characters"),
        ({"source": "x" * 257}, "source needs a string of 1 to 256 characters"),
        ({"source": ["gateway"]}, "source needs a string of 1 to 256 characters"),
        *(
            ({"source": name}, "source: gateway, trigger and void are reserved")
            for name in ("gateway", "trigger", "void")
        ),
        ({"id": ...}, "id needs a string of 1 to 256 characters"),
        ({"type": ...}, "type needs a name of 1 to 128 letters, digits and _ . : -"),
        ({"time": "yesterday"}, "time needs RFC 3339 with an offset, such as 2026-01-31T09:30:00Z"),
        ({"subject": 7}, "subject needs a string: the id or the slug of the organization that is billed"),
        ({"subject": "nobody-has-this"}, "subject is not the organization of X-Organization-ID or of the API key"),
        ({"data": "text"}, "data needs an object"),
        ({"data": [1]}, "data needs an object"),
        ({"data": ..., "data_base64": "e30="}, "data_base64 is not read: send data as JSON"),
        ({"data": {"quantity": "1"}}, "quantity needs a number"),
        ({"data": {"quantity": None}}, "quantity needs a number"),
        ({"data": {"dimensions": 5}}, "dimensions needs an object"),
        ({"data": {"late": "never"}}, 'late needs to be "reject" or "adjust"'),
    ],
    ids=str,
)
def test_what_is_wrong_with_it_is_said_and_kept_as_it_came(
    connection: Connection, organization: Organization, changed: dict[str, Any], problem: str
) -> None:
    sent = cloud_event(**changed)
    assert refusal(connection, sent, organization.id) == problem
    kept = connection.execute("select event, code, message from metering.rejected_events").fetchall()
    assert kept == [(sent, "INVALID_EVENT", f"event 0: {problem}")]


def test_its_subject_has_to_be_the_organization_of_the_request(
    connection: Connection, organization: Organization
) -> None:
    other = "subject is not the organization of X-Organization-ID or of the API key"
    assert refusal(connection, cloud_event(subject=str(uuid4())), organization.id) == other
    platform = value(connection, "select slug from tenancy.organizations where kind = 'platform'")
    assert refusal(connection, cloud_event(subject=platform), organization.id) == other
    # The same when there is none: a key of one organization is not told which others there are.
    assert refusal(connection, cloud_event(subject="nobody-has-this"), organization.id) == other
    for nobody in (str(uuid4()), "nobody-has-this", ""):
        assert refusal(connection, cloud_event(subject=nobody)) == "subject: there is no such organization"
    assert refusal(connection, cloud_event()) == "subject is missing: name it here or in X-Organization-ID"


@pytest.mark.parametrize("body", ["null", "5", '"text"', "{"])
def test_what_is_no_cloud_event_at_all(connection: Connection, organization: Organization, body: str) -> None:
    query = "select metering.receive_events(%s, %s, 'api', 'reject', null, 'cloudevents')"
    with pytest.raises(psycopg.Error) as refused, connection.transaction():
        connection.execute(query, [body, organization.id])
    assert refused.value.sqlstate == ("22P02" if body == "{" else "PT400")


def test_one_bad_one_costs_the_others_nothing(connection: Connection, organization: Organization) -> None:
    bodies = [json.dumps(cloud_event("a")), '{"id": "\\u0000"}', "null", json.dumps(cloud_event("b"))]
    query = "select metering.receive_events(%s, %s, 'api', 'reject', null, 'cloudevents')"
    answer = value(connection, query, f"[{', '.join(bodies)}]", organization.id)
    assert answer["accepted"] == 2
    assert [(one["index"], one["code"]) for one in answer["rejected"]] == [(1, "INVALID_EVENT"), (2, "INVALID_EVENT")]


def test_lines_are_events_of_ours(connection: Connection, organization: Organization) -> None:
    lines = [
        '{"id": "a", "event": "x", "quantity": 1}\r',
        "",
        "  \t",
        "{broken",
        '{"id": "b", "event": "x", "quantity": 1}',
    ]
    query = "select metering.receive_events(%s, %s, 'api', 'reject', null, 'ndjson')"
    answer = value(connection, query, "\n".join(lines), organization.id)
    assert answer["accepted"] == 2
    assert [(one["index"], one["code"]) for one in answer["rejected"]] == [(1, "INVALID_EVENT")]
    assert value(connection, "select event from metering.rejected_events") == "{broken"
    assert value(connection, query, "\n\n", organization.id)["accepted"] == 0

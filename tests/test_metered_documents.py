"""What happens to documents is usage, written in the transaction of the change itself: exactly once, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization, RunningStack
from tests.usage import Connection, race, value

UPLOAD, PROCESSED = "doc.upload", "doc.processed"


@pytest.fixture
def connection(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as made:
        yield made


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> UUID:
    return make_organization(shared_database, roles=("owner",)).id


def metered(connection: Connection, organization: UUID) -> dict[str, int]:
    """Events by name; each must be about a document of its own organization."""
    assert not value(
        connection,
        """
        select count(*) from metering.usage_events e
        left join app.documents d on d.organization_id = e.organization_id and d.id::text = e.resource_id
        where e.organization_id = %s
          and (d.id is null or e.quantity <> 1 or e.source <> 'trigger' or e.event_type <> 'usage')
        """,
        organization,
    )
    return dict(
        connection.execute(
            "select event_name, count(*) from metering.usage_events where organization_id = %s group by 1",
            [organization],
        ).fetchall()
    )


def upload(connection: Connection, organization: UUID, status: str = "uploaded") -> UUID:
    made: UUID = value(
        connection,
        "insert into app.documents (organization_id, title, status) values (%s, 'a', %s) returning id",
        organization,
        status,
    )
    return made


@pytest.mark.parametrize("status", ["uploaded", "processing", "failed"])
def test_one_upload_a_row(connection: Connection, organization: UUID, status: str) -> None:
    upload(connection, organization, status)
    assert metered(connection, organization) == {UPLOAD: 1}


def test_five_hundred_rows_in_one_statement(connection: Connection, organization: UUID) -> None:
    connection.execute(
        """
        insert into app.documents (organization_id, title, status)
        select %s, 'a', case when n %% 5 = 0 then 'processed' else 'uploaded' end from generate_series(1, 500) n
        """,
        [organization],
    )
    assert metered(connection, organization) == {UPLOAD: 500, PROCESSED: 100}
    assert value(connection, "select count(distinct resource_id) from metering.usage_events") >= 500


def test_rows_of_several_organizations_in_one_statement(
    connection: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    organizations = [make_organization(shared_database, roles=("owner",)).id for _ in range(5)]
    connection.execute(
        """
        insert into app.documents (organization_id, title)
        select o, 'a' from unnest(%s::uuid[]) o, generate_series(1, 3)
        """,
        [organizations],
    )
    assert [metered(connection, organization) for organization in organizations] == [{UPLOAD: 3}] * 5


def test_copy(connection: Connection, organization: UUID) -> None:
    with connection.cursor().copy("copy app.documents (organization_id, title) from stdin") as rows:
        for _ in range(7):
            rows.write_row([organization, "a"])
    assert metered(connection, organization) == {UPLOAD: 7}


def test_no_rows_make_no_events(connection: Connection, organization: UUID) -> None:
    connection.execute("insert into app.documents (organization_id, title) select %s, 'a' where false", [organization])
    connection.execute("update app.documents set status = 'processed' where organization_id = %s", [organization])
    assert metered(connection, organization) == {}


def test_insert_on_conflict(connection: Connection, organization: UUID) -> None:
    """Only what was really inserted is an upload, only what really changed is processed."""
    known = upload(connection, organization)
    rows = "select %(org)s::uuid, id, 'b', 'processed' from unnest(array[%(id)s, gen_random_uuid()]) id"
    target = "insert into app.documents (organization_id, id, title, status)"
    parameters = {"org": organization, "id": known}
    connection.execute(f"{target} {rows} on conflict do nothing", parameters)
    assert metered(connection, organization) == {UPLOAD: 2, PROCESSED: 1}
    update = "on conflict (organization_id, id) do update set status = excluded.status"
    connection.execute(f"{target} {rows} {update}", parameters)
    assert metered(connection, organization) == {UPLOAD: 3, PROCESSED: 3}
    connection.execute(f"{target} {rows} {update}", parameters)  # the known one is processed already
    assert metered(connection, organization) == {UPLOAD: 4, PROCESSED: 4}


def test_merge(connection: Connection, organization: UUID) -> None:
    known = upload(connection, organization)
    connection.execute(
        """
        merge into app.documents d
        using (select unnest(array[%(id)s, gen_random_uuid()]) as id) s
          on d.organization_id = %(org)s and d.id = s.id
        when matched then update set status = 'processed'
        when not matched then insert (organization_id, id, title) values (%(org)s, s.id, 'a')
        """,
        {"org": organization, "id": known},
    )
    assert metered(connection, organization) == {UPLOAD: 2, PROCESSED: 1}


def test_inserted_as_processed_is_both(connection: Connection, organization: UUID) -> None:
    upload(connection, organization, "processed")
    assert metered(connection, organization) == {UPLOAD: 1, PROCESSED: 1}


def test_each_transition_to_processed_counts_and_nothing_else(connection: Connection, organization: UUID) -> None:
    document = upload(connection, organization)
    seen = 0
    for status in (
        "processing",
        "processed",
        "processed",
        "failed",
        "processing",
        "processed",
        "uploaded",
        "processed",
    ):
        before = value(connection, "select status from app.documents where id = %s", document)
        connection.execute("update app.documents set status = %s where id = %s", [status, document])
        seen += status == "processed" != before
        assert metered(connection, organization).get(PROCESSED, 0) == seen
    assert seen == 3
    assert metered(connection, organization)[UPLOAD] == 1


@pytest.mark.parametrize("change", ["title = 'b'", "storage_key = 'k'", "case_id = null"])
@pytest.mark.parametrize("status", ["uploaded", "processed"])
def test_other_columns_make_no_event(connection: Connection, organization: UUID, change: str, status: str) -> None:
    upload(connection, organization, status)
    before = metered(connection, organization)
    connection.execute(f"update app.documents set {change} where organization_id = %s", [organization])
    assert metered(connection, organization) == before


def test_what_is_rolled_back_leaves_nothing(connection: Connection, organization: UUID) -> None:
    with connection.transaction():
        with connection.transaction(force_rollback=True):
            upload(connection, organization, "processed")
        upload(connection, organization)
    with connection.transaction(force_rollback=True):
        connection.execute("update app.documents set status = 'processed' where organization_id = %s", [organization])
    assert metered(connection, organization) == {UPLOAD: 1}


def test_deleting_takes_no_usage_back(connection: Connection, organization: UUID) -> None:
    upload(connection, organization)
    connection.execute("delete from app.documents where organization_id = %s", [organization])
    assert value(connection, "select count(*) from metering.usage_events where organization_id = %s", organization) == 1


def test_one_document_processed_by_many_at_once_is_processed_once(
    shared_database: Database, connection: Connection, organization: UUID
) -> None:
    """Whoever comes second finds it processed: its update is no transition."""
    for number in range(1, 6):
        document = upload(connection, organization)
        race(
            shared_database,
            [
                lambda connection, document=document: connection.execute(  # type: ignore[misc]
                    "update app.documents set status = 'processed' where id = %s", [document]
                )
            ]
            * 6,
            role="postgres",
        )
        assert metered(connection, organization) == {UPLOAD: number, PROCESSED: number}


def test_over_http_the_event_names_the_request_and_the_person(
    stack: RunningStack, make_organization: MakeOrganization
) -> None:
    """request_id is what the client sent; the route is the one it used; the person is the user, not the subject."""
    organization: Organization = make_organization(stack.database)
    member = organization["member"]
    with stack.client(member.subject, org=organization.slug) as client:
        headers = {"X-Request-ID": "upload-1", "Prefer": "return=representation"}
        answer = client.post("/api/v1/documents", json={"title": "a"}, headers=headers)
        assert answer.status_code == 201, answer.text
        document = answer.json()[0]["id"]
        changed = client.patch(
            f"/api/v1/documents?id=eq.{document}", json={"status": "processed"}, headers={"X-Request-ID": "process-1"}
        )
        assert changed.is_success, changed.text
        refused = client.post("/api/v1/documents", json={"title": ""}, headers={"X-Request-ID": "refused-1"})
        assert refused.status_code == 400, refused.text
    with stack.database.connect() as connection:
        rows = connection.execute(
            """
            select event_name, request_id, user_id, resource_id, dimensions ->> 'endpoint', dimensions ->> 'method'
            from metering.usage_events where organization_id = %s and source = 'trigger' order by occurred_at
            """,
            [organization.id],
        ).fetchall()
    assert rows == [
        (UPLOAD, "upload-1", str(member.id), document, "/api/v1/documents", "POST"),
        (PROCESSED, "process-1", str(member.id), document, "/api/v1/documents", "PATCH"),
    ]

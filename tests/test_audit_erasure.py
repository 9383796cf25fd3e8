"""What the audit log knows of people can be erased on request, and it stays whole, complete and verifiable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from api.cli import app
from tests.audit_log import PLATFORM, broken, entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, Connection, enter
from tests.usage import value


@pytest.fixture
def superuser(shared_database: Database) -> Iterator[Connection]:
    with shared_database.connect() as connection:
        yield connection


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def erase(database: Database, *arguments: object) -> str:
    result = CliRunner().invoke(
        app, ["audit", "erase", *map(str, arguments)], env={"MIGRATION_DATABASE_URL": database.migrator}
    )
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def rename(database: Database, who: Organization, role: str, name: str) -> None:
    with database.connect("authenticator") as person, person.transaction():
        enter(person, Caller("member", who[role].subject))
        person.execute("update api.organizations set name = %s where id = %s", [name, who.id])


def invite(superuser: Connection, organization: Organization, email: str) -> None:
    superuser.execute(
        """
        insert into tenancy.invitations (organization_id, email, role, code_sha256, invited_by, expires_at)
        values (%s, %s, 'viewer', sha256('x'), %s, now() + interval '7 days')
        """,
        [organization.id, email, organization["owner"].id],
    )


def everything(superuser: Connection) -> str:
    """All that the log says, in any table of it."""
    return str(
        value(
            superuser,
            """
            select concat(
              (select string_agg(l::text, '') from audit.log l), (select string_agg(p::text, '') from audit.personal p)
            )
            """,
        )
    )


def test_an_address_is_erased_wherever_it_is(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    invite(superuser, organization, "ann@example.com")
    invite(superuser, organization, "joann@example.com")
    chain = length(superuser, organization.id)

    assert erase(shared_database, "--email", "Ann@Example.com") == "Erased 1 part of entries."

    invited = [entry for entry in entries(superuser, organization.id) if entry.action == "invitation.created"]
    ann, joann = invited
    assert ann.after is not None and "email" not in ann.after and ann.after["role"] == "viewer"
    assert "email" in ann.changed_columns, "that there was one stays"
    assert joann.after is not None and joann.after["email"] == "joann@example.com"
    assert '"ann@example.com"' not in everything(superuser)
    assert broken(superuser) == []
    told = entries(superuser, organization.id, chain)
    assert [(entry.action, entry.after) for entry in told] == [("personal_data.erased", {"entries": 1})]
    assert erase(shared_database, "--email", "ann@example.com") == "Erased 0 parts of entries."
    assert length(superuser, organization.id) == chain + 1


@pytest.mark.parametrize("by", ["id", "subject"])
def test_a_person_is_erased_and_others_are_not(
    shared_database: Database, superuser: Connection, organization: Organization, by: str
) -> None:
    owner, admin = organization["owner"], organization["admin"]
    rename(shared_database, organization, "owner", "By the owner")
    rename(shared_database, organization, "admin", "By the admin")

    erase(shared_database, "--user", owner.id if by == "id" else owner.subject)

    assert owner.email not in everything(superuser)
    renamed = {
        entry.actor_id: entry for entry in entries(superuser, organization.id) if entry.action == "organization.changed"
    }
    assert renamed[str(owner.id)].email is None, "who it was is an id, as everywhere"
    assert renamed[str(admin.id)].email == admin.email
    assert broken(superuser) == []


def test_what_others_did_to_a_person_stays_theirs(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    viewer, admin = organization["viewer"], organization["admin"]
    with shared_database.connect("authenticator") as person, person.transaction():
        enter(person, Caller("member", admin.subject))
        person.execute("update api.memberships set role = 'billing' where user_id = %s", [viewer.id])
    erase(shared_database, "--user", viewer.id)
    told = [entry for entry in entries(superuser, organization.id) if entry.action == "membership.changed"]
    assert [(entry.target_id, entry.email) for entry in told] == [(str(viewer.id), admin.email)]


def test_an_organization_is_erased_also_when_it_is_gone(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    rename(shared_database, organization, "owner", "Known to nobody else")
    superuser.execute("delete from tenancy.organizations where id = %s", [organization.id])
    chain = length(superuser, organization.id)
    erase(shared_database, "--organization", organization.id)

    said = everything(superuser)
    assert "Known to nobody else" not in said and organization["owner"].email not in said
    left = entries(superuser, organization.id)
    assert len(left) == chain + 1
    assert all((entry.ip, entry.email) == (None, None) for entry in left[:-1])
    assert broken(superuser) == []


def test_names_that_come_from_an_address_go_with_the_person(shared_database: Database, superuser: Connection) -> None:
    with shared_database.connect("sidecar") as sidecar:
        sidecar.execute("select tenancy.identify('subject|grace', 'grace.hopper@example.com', 'member', null)")
    assert "grace-hopper" in everything(superuser)
    erase(shared_database, "--user", "subject|grace")
    assert "hopper" not in everything(superuser)
    assert "subject|grace" not in everything(superuser)
    assert broken(superuser) == []


def test_somebody_who_was_only_ever_refused(shared_database: Database, superuser: Connection) -> None:
    refusal: dict[str, Any] = {"code": "INVALID_TOKEN", "subject": "mallory|7", "ip": "192.0.2.66", "count": 1}
    with shared_database.connect("sidecar") as sidecar:
        sidecar.execute("select audit.record_refusals(%s)", [Jsonb([refusal])])
    erase(shared_database, "--user", "mallory|7")
    assert "mallory" not in everything(superuser) and "192.0.2.66" not in everything(superuser)
    assert [entry.action for entry in entries(superuser, PLATFORM)][-2:] == [
        "refused.invalid_token",
        "personal_data.erased",
    ]
    assert broken(superuser) == []


def test_a_digest_cannot_be_guessed_once_the_data_is_erased(superuser: Connection, organization: Organization) -> None:
    """There are only so many addresses. With the salt gone, none of them fits more than another."""
    digest = "select change_digest from audit.log where organization_id = %s and position = 1"
    data, salt = superuser.execute(
        "select data, salt from audit.personal where organization_id = %s and position = 1 and part = 'change'",
        [organization.id],
    ).fetchone() or (None, b"")
    found = value(superuser, digest, organization.id)
    assert value(superuser, "select audit.digest_of(%s, %s)", salt, Jsonb(data)) == found
    assert value(superuser, "select audit.digest_of('', %s)", Jsonb(data)) != found
    salts = "select count(distinct salt) = count(*) and min(length(salt)) = 32 from audit.personal"
    assert value(superuser, salts)


def test_what_stripe_said_of_an_organization_goes_with_it(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """Payloads tell of people; and the log forgets the address of a customer like any other."""
    with shared_database.connect("sidecar") as sidecar:
        superuser.execute("select stripe.link(%s, 'cus_erased', false)", [organization.id])
        superuser.execute("update stripe.customers set email = 'payer@example.com' where id = 'cus_erased'")
        told = {"id": "evt_erased", "type": "customer.updated", "created": 1767225600, "livemode": False}
        customer = {"id": "cus_erased", "object": "customer", "email": "payer@example.com"}
        sidecar.execute(
            "select stripe.receive_events(array[%s], null)", [json.dumps({**told, "data": {"object": customer}})]
        )
    assert '"payer@example.com"' in everything(superuser)
    assert erase(shared_database, "--email", "payer@example.com").startswith("Erased ")
    assert '"payer@example.com"' not in everything(superuser)
    assert broken(superuser) == []

    kept = "select count(*) from stripe.webhook_events where id = 'evt_erased'"
    assert value(superuser, kept) == 1
    superuser.execute("delete from tenancy.organizations where id = %s", [organization.id])
    assert value(superuser, kept) == 0

"""Many writers at once: the log of an organization has no gap and no fork, and no two wait for each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier

from tests.audit_log import broken, entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Connection

WRITERS = ("admin", "member", "viewer", "billing")
ROUNDS = 25


def test_writers_in_several_organizations_meet_and_none_fails(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Each changes a member of its own in every organization, in an order of its own, and all commit at once."""
    organizations = [make_organization(shared_database) for _ in range(3)]
    barrier = Barrier(len(WRITERS))

    def write(writer: str) -> None:
        chance = Random(writer)
        with shared_database.connect(autocommit=False) as connection:
            for turn in range(ROUNDS):
                for organization in chance.sample(organizations, len(organizations)):
                    rename(connection, organization, writer, f"{writer} {turn}")
                barrier.wait(60)
                connection.commit()

    with shared_database.connect() as superuser:
        for organization in organizations:
            for writer in WRITERS:
                superuser.execute(
                    "insert into tenancy.workspaces (organization_id, name, created_by) values (%s, 'new', %s)",
                    [organization.id, organization[writer].id],
                )
        so_far = [length(superuser, organization.id) for organization in organizations]
        with ThreadPoolExecutor(len(WRITERS)) as pool:
            list(pool.map(write, WRITERS))

        assert broken(superuser) == []
        for organization, before in zip(organizations, so_far, strict=True):
            told = entries(superuser, organization.id, before)
            assert len(told) == ROUNDS * len(WRITERS)
            for writer in WRITERS:  # and what one writer did is in the order in which they did it
                names = [entry.after["name"] for entry in told if entry.after and writer in entry.after["name"]]
                assert names == [f"{writer} {turn}" for turn in range(ROUNDS)]


def rename(connection: Connection, organization: Organization, writer: str, name: str) -> None:
    connection.execute(
        "update tenancy.workspaces set name = %s where organization_id = %s and created_by = %s",
        [name, organization.id, organization[writer].id],
    )


def _role(organization: Organization, who: str, role: str) -> tuple[str, list[object]]:
    return (
        "update tenancy.memberships set role = %s where organization_id = %s and user_id = %s",
        [role, organization.id, organization[who].id],
    )


def test_a_long_transaction_keeps_nobody_waiting(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Its entries come into the log when it commits, behind those of others who were quicker."""
    organization = make_organization(shared_database)
    with shared_database.connect(autocommit=False) as slow, shared_database.connect() as quick:
        so_far = length(quick, organization.id)
        slow.execute(*_role(organization, "admin", "viewer"))
        quick.execute("set lock_timeout = '1s'")
        quick.execute(*_role(organization, "member", "viewer"))
        slow.commit()
        told = entries(quick, organization.id, so_far)
        assert [entry.target_id for entry in told] == [str(organization[who].id) for who in ("member", "admin")]
        assert broken(quick, organization.id) == []


def test_the_entries_of_a_transaction_are_linked_at_once(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    """One of them wakes the trigger. Were it each of them, thousands would take minutes."""
    organization = make_organization(shared_database)
    waiting = "select count(*) filter (where is_first), count(*) from audit.pending"
    with shared_database.connect() as superuser:
        so_far = length(superuser, organization.id)
        with superuser.transaction():
            with superuser.transaction(force_rollback=True):
                superuser.execute(*_role(organization, "admin", "billing"))
            for _ in range(2):
                with superuser.transaction():
                    add_rooms(superuser, organization, 20)
                add_rooms(superuser, organization, 20)
                assert superuser.execute(waiting).fetchone() == (1, 40)
                superuser.execute("set constraints all immediate")
                assert superuser.execute(waiting).fetchone() == (0, 0)
                superuser.execute("set constraints all deferred")
            with superuser.transaction(force_rollback=True):
                add_rooms(superuser, organization, 1)
                superuser.execute("set constraints all immediate")
            add_rooms(superuser, organization, 20)
        assert length(superuser, organization.id) == so_far + 100
        assert broken(superuser, organization.id) == []


def add_rooms(connection: Connection, organization: Organization, count: int) -> None:
    connection.execute(
        "insert into tenancy.workspaces (organization_id, name) select %s, 'Room' from generate_series(1, %s)",
        [organization.id, count],
    )

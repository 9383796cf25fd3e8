"""The audit log only grows, whoever asks; who gets round that is found out, and told which entry it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from tests.audit_log import CHAINED, PLATFORM, broken, entries, length, tampering
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Connection, run

ENTRIES = 6  # what the making of an organization with its five people leaves

# Everybody there is. A superuser and the tables' owner too.
ROLES = (
    "postgres",
    "goldleaves_migrator",
    "goldleaves_owner",
    "goldleaves_kernel",
    "authenticator",
    "anon",
    "member",
    "service",
    "platform_admin",
    "sidecar",
    "monitor",
)
CHANGES = {
    "update the log": "update audit.log set action = 'nothing.happened'",
    "delete from the log": "delete from audit.log",
    "truncate the log": "truncate audit.log cascade",
    "update what is personal": "update audit.personal set data = '{}'",
    "delete what is personal": "delete from audit.personal",
    "truncate what is personal": "truncate audit.personal",
    "move an end back": "update audit.heads set position = 1",
    "replace an end": "update audit.heads set hash = sha256('x')",
    "delete an end": "delete from audit.heads",
    "truncate the ends": "truncate audit.heads",
    "update what waits": "update audit.pending set after = '{}'",
    "delete what waits": "delete from audit.pending",
    "truncate what waits": "truncate audit.pending",
}


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.mark.parametrize("role", ROLES)
def test_nobody_changes_the_log(shared_database: Database, organization: Organization, role: str) -> None:
    with shared_database.connect() as connection:
        for change in CHANGES:
            if (role, change) == ("goldleaves_kernel", "delete what is personal"):
                continue  # this is what erases, and nobody logs in as: test_audit_erasure.py
            run(connection, f"set role {role}")
            try:
                touched = run(connection, CHANGES[change]).rowcount
            except psycopg.Error as refused:
                by_rights = isinstance(refused, psycopg.errors.InsufficientPrivilege)
                assert by_rights or "AUDIT_APPEND_ONLY: " in str(refused), change
            else:
                assert (role, touched) == ("goldleaves_owner", 0)  # row-level security shows it none
            connection.execute("reset role")
            assert broken(connection, organization.id) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_replica_session_does_not_get_round_it(
    shared_database: Database, organization: Organization, change: str
) -> None:
    """Where ordinary triggers and foreign keys do not fire."""
    with shared_database.connect() as superuser:
        superuser.execute("set session_replication_role = replica")
        with pytest.raises(psycopg.Error, match="AUDIT_APPEND_ONLY: "):
            run(superuser, CHANGES[change])


@pytest.mark.parametrize("role", ["postgres", "goldleaves_migrator", "goldleaves_kernel"])
@pytest.mark.parametrize("change", ["update what waits", "delete what waits"])
def test_nobody_takes_back_an_entry_of_their_own(
    shared_database: Database, make_organization: MakeOrganization, role: str, change: str
) -> None:
    """It waits for the end of its transaction, and says what it said."""
    organization = make_organization(shared_database)
    refused = "AUDIT_APPEND_ONLY: |permission denied"
    with shared_database.connect() as connection:
        so_far = length(connection, organization.id)
        with connection.transaction():
            connection.execute(
                "insert into tenancy.workspaces (organization_id, name) values (%s, 'Room')", [organization.id]
            )
            run(connection, f"set local role {role}")
            with pytest.raises(psycopg.Error, match=refused), connection.transaction():
                run(connection, CHANGES[change])
            connection.execute("reset role")
        assert [entry.action for entry in entries(connection, organization.id, so_far)] == ["workspace.created"]


def test_nobody_but_the_kernel_adds_to_the_log(shared_database: Database) -> None:
    """Nor its members, of which there is the migrator alone."""
    with shared_database.connect() as connection:
        for role in sorted({*ROLES} - {"postgres", "goldleaves_kernel", "goldleaves_migrator"}):
            for table in (*CHAINED, "audit.pending"):
                with connection.transaction(force_rollback=True):
                    run(connection, f"set local role {role}")
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        run(connection, f"insert into {table} default values")


# What a superuser may do who disables the triggers; which entry is named then, and why. %(org)s is the organization.
TAMPERING: Mapping[str, tuple[str, int, str]] = {
    "delete the first": ("delete from audit.log where organization_id = %(org)s and position = 1", 1, "missing"),
    "delete in the middle": (
        "delete from audit.log where organization_id = %(org)s and position in (3, 5)",
        3,
        "missing",
    ),
    "delete the last": ("delete from audit.log where organization_id = %(org)s and position = 6", 6, "missing"),
    "cut off the tail": ("delete from audit.log where organization_id = %(org)s and position > 2", 3, "missing"),
    "delete all": ("delete from audit.log where organization_id = %(org)s", 1, "missing"),
    "swap two": (
        """
        update audit.log set position = -position where organization_id = %(org)s and position in (3, 4);
        update audit.log set position = 7 + position where organization_id = %(org)s and position < 0;
        """,
        3,
        "changed",
    ),
    "change one and compute its hash": (
        """
        update audit.log set actor_id = 'nobody' where organization_id = %(org)s and position = 3;
        update audit.log l set hash = audit.hash_of(l) where organization_id = %(org)s and position = 3;
        """,
        4,
        "does not follow",
    ),
    "change personal data": (
        'update audit.personal set data = \'{"ip": "192.0.2.1"}\' where organization_id = %(org)s and position = 2',
        2,
        "personal data (staff)",
    ),
    "change a salt": (
        "update audit.personal set salt = sha256('x') where organization_id = %(org)s and part = 'change'",
        1,
        "personal data (change)",
    ),
    "invent personal data": (
        """
        insert into audit.personal (organization_id, position, part, salt, data)
        values (%(org)s, 4, 'change', sha256('x'), '{"after": {"email": "ann@example.com"}}')
        """,
        4,
        "personal data (change)",
    ),
    "forge the end": ("update audit.heads set hash = sha256('x') where organization_id = %(org)s", 6, "another hash"),
    "move the end on": ("update audit.heads set position = 9 where organization_id = %(org)s", 7, "missing"),
    "move the end back": ("update audit.heads set position = 4 where organization_id = %(org)s", 5, "added by hand"),
    "delete the end": (
        "delete from audit.heads where organization_id = %(org)s",
        6,
        "the end of the chain was removed",
    ),
    "add one": (
        """
        insert into audit.log
        select (jsonb_populate_record(l, jsonb_build_object('position', 7, 'previous_hash', l.hash))).*
        from audit.log l where organization_id = %(org)s and position = 6;
        update audit.log l set hash = audit.hash_of(l) where organization_id = %(org)s and position = 7;
        """,
        7,
        "added by hand",
    ),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_the_first_broken_entry_is_named(shared_database: Database, organization: Organization, how: str) -> None:
    statement, position, problem = TAMPERING[how]
    with tampering(shared_database) as superuser:
        assert broken(superuser, organization.id) == []
        run(superuser, "alter table audit.log drop constraint log_position_check")
        for each in filter(str.strip, statement.split(";\n")):
            run(superuser, each, {"org": organization.id})
        still_there = {entry.position: entry.id for entry in entries(superuser, organization.id)}

        assert [found[:2] for found in broken(superuser, organization.id)] == [(position, still_there.get(position))]
        assert problem in broken(superuser, organization.id)[0][2]
        assert broken(superuser) == broken(superuser, organization.id), "only this chain is broken"


def test_no_column_of_an_entry_can_be_changed(shared_database: Database, organization: Organization) -> None:
    with shared_database.connect() as superuser:
        columns = superuser.execute(
            """
            select attname, atttypid::regtype::text from pg_attribute
            where attrelid = 'audit.log'::regclass and attnum > 0 and not attisdropped
              and attname not in ('organization_id', 'position') -- which say where it is: see TAMPERING
            """
        ).fetchall()
    values = {
        "uuid": "gen_random_uuid()",
        "timestamp with time zone": "recorded_at + interval '1 microsecond'",
        "text": "'anonymous'",
        "text[]": "'{nothing}'",
        "jsonb": "'{\"nothing\": null}'",
        "bytea": "sha256('x')",
    }
    with tampering(shared_database) as superuser:
        superuser.execute("alter table audit.log drop constraint log_action_check")
        for column, kind in columns:
            with superuser.transaction(force_rollback=True):
                change = f"update audit.log set {column} = {values[kind]} where organization_id = %s and position = 3"
                run(superuser, change, [organization.id])
                assert [position for position, _, _ in broken(superuser, organization.id)] == [3], column


def test_a_chain_does_not_pass_for_another_ones(
    shared_database: Database, organization: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(shared_database)
    with tampering(shared_database) as superuser:
        for table in CHAINED:
            run(superuser, f"delete from {table} where organization_id = %s", [other.id])
            run(
                superuser,
                f"update {table} set organization_id = %s where organization_id = %s",
                [other.id, organization.id],
            )
        assert [position for position, _, _ in broken(superuser, other.id)] == [1]


def test_a_hash_does_not_depend_on_how_times_are_shown(shared_database: Database, organization: Organization) -> None:
    with shared_database.connect() as superuser:
        superuser.execute("set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set bytea_output = 'escape'")
        assert broken(superuser, organization.id) == []


def test_what_is_written_does_not_depend_on_the_writers_timezone(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    organization = make_organization(shared_database)
    with shared_database.connect() as superuser:
        superuser.execute("set timezone = 'Asia/Kathmandu'")
        superuser.execute(
            "delete from tenancy.memberships where organization_id = %s and role = 'viewer'", [organization.id]
        )
        (entry,) = entries(superuser, organization.id, after=ENTRIES)
        assert entry.before is not None and entry.before["created_at"].endswith("+00:00")
        assert superuser.execute("show timezone").fetchone() == ("Asia/Kathmandu",)


def goldleaves_audit(database: Database, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)], env={"MIGRATION_DATABASE_URL": database.migrator})


def test_the_command_says_that_all_is_well_and_where_chains_end(
    shared_database: Database, organization: Organization
) -> None:
    result = goldleaves_audit(shared_database, "verify")
    assert result.exit_code == 0, result.output
    ends = {line.split()[0]: int(line.split()[1]) for line in result.stdout.splitlines()}
    assert ends[str(organization.id)] == ENTRIES
    assert str(PLATFORM) in ends

    one = goldleaves_audit(shared_database, "verify", "--organization", organization.slug, "--json")
    assert one.exit_code == 0
    said = json.loads(one.stdout)
    assert (said["whole"], [end["position"] for end in said["ends"]]) == (True, [ENTRIES])


@pytest.fixture
def forger(database: Database) -> Iterator[Connection]:
    """A superuser in a database of their own, who has disabled the triggers for good."""
    with database.connect() as superuser:
        for table in CHAINED:
            run(superuser, f"alter table {table} disable trigger all")
        yield superuser


def test_the_command_names_the_organization_the_entry_and_what_is_wrong(
    database: Database, make_organization: MakeOrganization, forger: Connection
) -> None:
    organization = make_organization(database)
    forger.execute(
        "update audit.log set actor_id = 'nobody' where organization_id = %s and position = 4", [organization.id]
    )
    entry = entries(forger, organization.id)[3]

    result = goldleaves_audit(database, "verify")
    assert result.exit_code == 1
    assert f"organization {organization.id}, entry 4 ({entry.id}): changed" in result.stderr
    assert "audit.log: a trigger of the audit log is disabled or gone there" in result.stderr
    said = json.loads(goldleaves_audit(database, "verify", "--json").stdout)
    assert said["whole"] is False
    assert said["unwatched"] == sorted(CHAINED)
    assert [(each["organization_id"], each["position"], each["id"]) for each in said["broken"]] == [
        (str(organization.id), 4, str(entry.id))
    ]


@pytest.mark.parametrize(
    "change", ["drop trigger watch on {table}", "alter table {table} disable trigger watch_truncate"]
)
def test_the_command_names_a_table_that_is_no_longer_watched(database: Database, change: str) -> None:
    with database.connect() as superuser:
        for table in ("ops.policy_releases", "tenancy.memberships"):
            run(superuser, change.format(table=table))
    result = goldleaves_audit(database, "verify")
    assert (result.exit_code, result.stderr.splitlines()) == (
        1,
        [
            f"{table}: a trigger of the audit log is disabled or gone there"
            for table in ("ops.policy_releases", "tenancy.memberships")
        ],
    )


def test_a_chain_that_was_rewritten_as_a_whole_does_not_lead_through_the_ends_that_were_kept(
    database: Database, make_organization: MakeOrganization, tmp_path: Path
) -> None:
    organization = make_organization(database)
    kept = tmp_path / "audit.json"
    kept.write_text(goldleaves_audit(database, "verify", "--json").stdout)
    with database.connect() as superuser:
        superuser.execute(
            "update tenancy.memberships set role = 'viewer' where organization_id = %s and role = 'member'",
            [organization.id],
        )
    later = goldleaves_audit(database, "verify", "--anchor", kept)
    assert later.exit_code == 0, later.output  # it has grown, and that is all

    with database.connect() as superuser, superuser.transaction():
        for table in CHAINED:
            run(superuser, f"alter table {table} disable trigger all")
        rewrite(superuser, organization.id)
        for table in CHAINED:
            run(superuser, f"alter table {table} enable trigger all")
        assert broken(superuser) == [], "nothing in the database tells"
    result = goldleaves_audit(database, "verify", "--anchor", kept)
    assert result.exit_code == 1
    assert f"organization {organization.id}, entry {ENTRIES} (" in result.stderr
    assert "rewritten" in result.stderr


def rewrite(superuser: Connection, organization_id: UUID) -> None:
    """Change the second entry, then compute every hash from there on, and the end."""
    superuser.execute(
        "update audit.log set actor_id = 'nobody' where organization_id = %s and position = 2", [organization_id]
    )
    for position in range(2, length(superuser, organization_id) + 1):
        where = {"org": organization_id, "position": position}
        run(
            superuser,
            """
            update audit.log l set previous_hash = b.hash
            from audit.log b
            where l.organization_id = %(org)s and l.position = %(position)s
              and b.organization_id = %(org)s and b.position = %(position)s - 1
            """,
            where,
        )
        run(
            superuser,
            """
            update audit.log l set hash = audit.hash_of(l)
            where organization_id = %(org)s and position = %(position)s
            """,
            where,
        )
        run(
            superuser,
            """
            update audit.heads h set hash = l.hash
            from audit.log l
            where (h.organization_id, h.position) = (l.organization_id, l.position)
              and l.organization_id = %(org)s and l.position = %(position)s
            """,
            where,
        )


MISTAKES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "an unknown organization": (("verify", "--organization", "nowhere"), "There is no organization 'nowhere'"),
    "a file that is not there": (("verify", "--anchor", "nothing.json"), "nothing.json: No such file"),
    "a file of something else": (("verify", "--anchor", "README.md"), "README.md is not what"),
    "nobody to erase": (("erase",), "Say whose"),
    "two to erase": (("erase", "--email", "ann@example.com", "--user", "ann"), "Say whose"),
    "an e-mail that is none": (("erase", "--email", "@"), "'@' is no e-mail address"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(shared_database: Database, mistake: str) -> None:
    arguments, said = MISTAKES[mistake]
    result = goldleaves_audit(shared_database, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(said)
    assert len(result.stderr.splitlines()) == 1


def test_a_database_without_the_log_is_named(empty_database: Database) -> None:
    result = goldleaves_audit(empty_database, "verify")
    assert (result.exit_code, result.stderr) == (
        1,
        "This database has no audit log yet. Run `goldleaves migrate` first.\n",
    )

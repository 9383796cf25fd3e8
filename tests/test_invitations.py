"""Invitations are the way into an organization: bound to an e-mail address, good once and for a week, and worth no more
than the role that whoever made them has now. However many accept at once, each gets one membership or a clear code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from psycopg import sql

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization, RunningStack
from tests.observe import assert_problem
from tests.people import (
    ACCEPT,
    CHANGE,
    CREATE,
    DELETE,
    DIRECT,
    LEAVE,
    PATCH,
    REMOVE,
    RESEND,
    REVOKE,
    TRANSFER,
    ask,
    attempt,
    guest,
    outcome_of,
    person,
    race,
    refusal,
    roles_of,
    scalar,
)
from tests.sql_requests import Caller, enter, refusal_or_count, request, run
from tests.test_role_grid import GRID

ROUNDS = 6


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def firm(database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(database)


def new_email() -> str:
    return f"{uuid4()}@example.com"


def invite(
    database: Database, firm: Organization, role: str = "viewer", by: str = "owner", email: str | None = None
) -> tuple[UUID, str, str]:
    """Id, code and e-mail address of an invitation."""
    email = email or new_email()
    [(invitation_id, code)] = ask(database, person(firm[by]), CREATE, email=email, role=role)
    return invitation_id, code, email


def state_of(database: Database, invitation_id: UUID) -> str:
    state: str = scalar(
        database,
        """
        select case
          when accepted_at is not null then 'accepted'
          when revoked_at is not null then 'revoked'
          else 'pending'
        end
        from tenancy.invitations where id = %s
        """,
        [invitation_id],
    )
    return state


def members_called(database: Database, firm: Organization, *subjects: str) -> int:
    count: int = scalar(
        database,
        """
        select count(*) from tenancy.memberships m join tenancy.users u on u.id = m.user_id
        where m.organization_id = %s and u.subject = any (%s)
        """,
        [firm.id, list(subjects)],
    )
    return count


# From the invitation to the membership, as a frontend goes


def test_an_invitation_leads_into_the_organization(stack: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_organization(stack.database)
    email = new_email()
    with stack.client(firm["admin"].subject) as admin, stack.client(f"new-{uuid4()}", email=email) as newcomer:
        answer = admin.post("/api/v1/rpc/create_invitation", json={"email": f"  {email.upper()} ", "role": "member"})
        assert answer.status_code == 200, answer.text
        sent = answer.json()
        assert re.fullmatch(r"[0-9a-f]{32}", sent.pop("code"))
        assert (sent["email"], sent["role"], sent["invited_by"]) == (email, "member", str(firm["admin"].id))
        assert admin.get("/api/v1/pending_invitations").json() == [sent]

        code = admin.post("/api/v1/rpc/resend_invitation", json={"id": sent["id"]}).json()["code"]
        newcomer.headers["X-Organization-ID"] = firm.slug  # as a frontend of the firm's does with every request
        assert_problem(newcomer.get("/api/v1/cases"), 403, "NOT_A_MEMBER")
        accepted = newcomer.post("/api/v1/rpc/accept_invitation", json={"code": code})
        assert accepted.status_code == 200, accepted.text
        assert accepted.json()["slug"] == firm.slug
        assert admin.get("/api/v1/pending_invitations").json() == []

        assert newcomer.post("/api/v1/cases", json={"title": "Mine"}).status_code == 201
        refused = newcomer.post("/api/v1/rpc/create_invitation", json={"email": email, "role": "viewer"})
        assert_problem(refused, 403, "ROLE_REQUIRED")


def test_somebody_unknown_signs_in_by_accepting(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """At PostgREST itself, which knows only people who have signed in."""
    firm = make_organization(stack.database)
    _, code, email = invite(stack.database, firm)
    subject = f"new-{uuid4()}"
    headers = {"Authorization": f"Bearer {stack.token(subject, email=email)}"}
    with httpx.Client(base_url=stack.postgrest_url, headers=headers, trust_env=False) as client:
        assert client.post("/rpc/accept_invitation", json={"code": code}).json()["id"] == str(firm.id)
        organizations = client.get("/organizations?select=kind&order=kind").json()
        assert organizations == [{"kind": "organization"}, {"kind": "personal"}]
        assert client.post("/rpc/sign_in").json()["default_organization_id"] != str(firm.id)


@pytest.mark.parametrize("default", ["none", "removed from it", "theirs"])
def test_it_becomes_the_default_of_who_has_none(
    database: Database, firm: Organization, make_organization: MakeOrganization, default: str
) -> None:
    """One that somebody was removed from leads nowhere."""
    viewer = make_organization(database)["viewer"]
    with database.connect() as superuser:
        if default == "none":
            superuser.execute("update tenancy.users set default_organization_id = null where id = %s", [viewer.id])
        elif default == "removed from it":
            superuser.execute("delete from tenancy.memberships where user_id = %s", [viewer.id])
    _, code, email = invite(database, firm)
    assert refusal(database, guest(viewer.subject, email), ACCEPT, code=code) == "ok"
    found = scalar(database, "select default_organization_id from tenancy.users where id = %s", [viewer.id])
    assert (found == firm.id) is (default != "theirs")


# Refusals, each with its code and without effect


def fresh(**claims: object) -> Callable[[str], Caller]:
    return lambda email: guest(f"new-{uuid4()}", email, **claims)


REFUSALS: Mapping[str, tuple[str, str, Callable[[str], Caller]]] = {
    "late": ("INVITATION_EXPIRED", "expires_at = now() - interval '1 microsecond'", fresh()),
    "accepted": ("INVITATION_USED", "accepted_at = now()", fresh()),
    "revoked": ("INVITATION_REVOKED", "revoked_at = now()", fresh()),
    "revoked, and late": (
        "INVITATION_REVOKED",
        "revoked_at = now() - interval '2 days', expires_at = now() - interval '1 day'",
        fresh(),
    ),
    "other e-mail": ("INVITATION_EMAIL_MISMATCH", "id = id", lambda email: guest("other", f"x{email}")),
    "other e-mail, accepted": ("INVITATION_EMAIL_MISMATCH", "accepted_at = now()", lambda email: guest("o", "o@o")),
    "no e-mail": ("INVITATION_EMAIL_MISMATCH", "id = id", lambda email: guest("mute", None)),
    "a sign that is lowered to another": (
        "INVITATION_EMAIL_MISMATCH",
        "email = 'kate@example.com'",
        lambda email: guest("kelvin", "\N{KELVIN SIGN}ate@example.com"),
    ),
    "not verified": ("EMAIL_NOT_VERIFIED", "id = id", fresh(email_verified=False)),
    "not verified, as text": ("EMAIL_NOT_VERIFIED", "id = id", fresh(email_verified="False")),
    "another code": ("INVITATION_NOT_FOUND", "code_sha256 = sha256('another')", fresh()),
    "inviter is no longer there": ("INVITATION_REVOKED", "role = 'owner', invited_by = invited_by", fresh()),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(database: Database, firm: Organization, name: str) -> None:
    code_of_refusal, meanwhile, caller = REFUSALS[name]
    invitation_id, code, email = invite(database, firm, by="admin")
    before = roles_of(database, firm.id)
    with database.connect() as superuser:
        run(superuser, f"update tenancy.invitations set {meanwhile} where id = %s", [invitation_id])
    assert refusal(database, caller(email), ACCEPT, code=code) == code_of_refusal
    assert roles_of(database, firm.id) == before


@pytest.mark.parametrize("code", [None, "", " ", "0" * 32, "ü", "' or true --", "\\x00", "x" * 10_000])
def test_no_code(database: Database, code: str | None) -> None:
    assert refusal(database, guest("new", new_email()), ACCEPT, code=code) == "INVITATION_NOT_FOUND"


@pytest.mark.parametrize("claims", [{}, {"email_verified": True}, {"email_verified": "true"}, {"email_verified": None}])
def test_accepted_with_the_address_in_other_letters(
    database: Database, firm: Organization, claims: dict[str, object]
) -> None:
    _, code, email = invite(database, firm)
    assert refusal(database, guest("loud", f" {email.upper()} ", **claims), ACCEPT, code=f" {code.upper()} ") == "ok"


def test_people_are_known_by_an_address_that_was_verified(database: Database, firm: Organization) -> None:
    """The audit log names them by it, so nobody is their chief by typing that address somewhere."""
    subject = f"new-{uuid4()}"
    _, code, email = invite(database, firm)

    def known_as() -> str | None:
        found: str | None = scalar(database, "select email from tenancy.users where subject = %s", [subject])
        return found

    def sign_in(claimed: str, **claims: object) -> None:
        caller = Caller("member", subject, path="/rpc/sign_in", claims={"email": claimed, **claims})
        ask(database, caller, "select api.sign_in()")

    sign_in(firm["owner"].email, email_verified=False)
    assert refusal(database, guest(subject, email, email_verified=True), ACCEPT, code=code) == "ok"
    assert known_as() == email
    for verified in (False, "false", 0):
        sign_in(firm["owner"].email, email_verified=verified)
        assert known_as() == email
    sign_in(f"changed-{email}", email_verified=True)
    assert known_as() == f"changed-{email}"
    sign_in(email)
    assert known_as() == email


def test_accepting_twice(database: Database, firm: Organization) -> None:
    _, code, email = invite(database, firm)
    again = guest(f"new-{uuid4()}", email)
    assert [refusal(database, again, ACCEPT, code=code) for _ in range(2)] == ["ok", "INVITATION_USED"]
    assert members_called(database, firm, str(again.subject)) == 1


def test_a_member_is_not_invited_and_gets_no_second_membership(database: Database, firm: Organization) -> None:
    viewer = firm["viewer"]
    create = {"email": f" {viewer.email.upper()}", "role": "admin"}
    assert refusal(database, person(firm["owner"]), CREATE, **create) == "ALREADY_A_MEMBER"
    _, code, email = invite(database, firm, "admin")
    assert refusal(database, guest(viewer.subject, email), ACCEPT, code=code) == "ALREADY_A_MEMBER"
    assert roles_of(database, firm.id)[viewer.id] == "viewer"


@pytest.mark.parametrize(
    "email", [None, "", "@", "a@", "@b", "a b@c", "a@b@c", "a@b\n", "a\t@b", "a@\x01b", f"{'a' * 320}@b"]
)
def test_what_is_no_address(database: Database, firm: Organization, email: str | None) -> None:
    assert refusal(database, person(firm["owner"]), CREATE, email=email, role="viewer") == "INVALID_EMAIL"


@pytest.mark.parametrize("role", [None, "", "Owner", "superuser", "data:read"])
def test_what_is_no_role(database: Database, firm: Organization, role: str | None) -> None:
    assert refusal(database, person(firm["owner"]), CREATE, email=new_email(), role=role) == "INVALID_ROLE"


# One pending invitation a person


def test_one_pending_invitation_a_person_and_organization(
    database: Database, firm: Organization, make_organization: MakeOrganization
) -> None:
    _, _, email = invite(database, firm)
    create: dict[str, object] = {"email": email.upper(), "role": "admin"}
    assert refusal(database, person(firm["admin"]), CREATE, **create) == "INVITATION_PENDING"
    assert refusal(database, person(make_organization(database)["owner"]), CREATE, **create) == "ok"


def test_one_that_has_expired_gives_way(database: Database, firm: Organization) -> None:
    first, old_code, email = invite(database, firm)
    move_to_the_past(database, first)
    second, code, _ = invite(database, firm, "member", email=email)
    assert [state_of(database, each) for each in (first, second)] == ["revoked", "pending"]
    newcomer = guest(f"new-{uuid4()}", email)
    assert refusal(database, newcomer, ACCEPT, code=old_code) == "INVITATION_EXPIRED"
    assert refusal(database, newcomer, ACCEPT, code=code) == "ok"


def move_to_the_past(database: Database, invitation_id: UUID) -> None:
    with database.connect() as superuser:
        superuser.execute(
            """
            update tenancy.invitations
            set created_at = created_at - interval '8 days', sent_at = sent_at - interval '8 days',
              expires_at = expires_at - interval '8 days'
            where id = %s
            """,
            [invitation_id],
        )


def test_sent_again_it_has_a_new_code_for_a_week(database: Database, firm: Organization) -> None:
    invitation_id, old_code, email = invite(database, firm)
    move_to_the_past(database, invitation_id)
    [(code,)] = ask(database, person(firm["admin"]), RESEND, id=invitation_id)
    lifetime = scalar(database, "select expires_at - sent_at from tenancy.invitations where id = %s", [invitation_id])
    assert lifetime == timedelta(days=7)
    newcomer = guest(f"new-{uuid4()}", email)
    assert refusal(database, newcomer, ACCEPT, code=old_code) == "INVITATION_NOT_FOUND"
    assert refusal(database, newcomer, ACCEPT, code=code) == "ok"


@pytest.mark.parametrize("statement", [RESEND, REVOKE])
def test_only_what_is_pending_is_sent_again_or_revoked(
    database: Database, firm: Organization, make_organization: MakeOrganization, statement: str
) -> None:
    owner = person(firm["owner"])
    revoked, _, _ = invite(database, firm)
    assert refusal(database, owner, REVOKE, id=revoked) == "ok"
    assert refusal(database, owner, statement, id=revoked) == "INVITATION_REVOKED"
    used, code, email = invite(database, firm)
    ask(database, guest("user", email), ACCEPT, code=code)
    assert refusal(database, owner, statement, id=used) == "INVITATION_USED"

    foreign, _, _ = invite(database, make_organization(database))
    for unknown in (foreign, uuid4(), None):
        assert refusal(database, owner, statement, id=unknown) == "INVITATION_NOT_FOUND"


# Nobody grants more than they have


def covers(role: str, other: str) -> bool:
    return all(set(letters) <= set(GRID[role].get(area, "")) for area, letters in GRID[other].items())


def may_grant(role: str, other: str) -> bool:
    """By the grid: whoever writes invitations, for roles that may nothing that they may not."""
    return "w" in GRID[role]["invitations"] and covers(role, other)


@pytest.mark.parametrize("role", ROLES)
def test_who_invites_for_which_role(database: Database, firm: Organization, role: str) -> None:
    by_the_owner = {granted: invite(database, firm, granted)[0] for granted in ROLES}
    with database.connect("authenticator") as connection, request(connection, person(firm[role])):
        for granted, invitation_id in by_the_owner.items():
            expected = "ok" if may_grant(role, granted) else "ROLE_REQUIRED"
            parameters = {"email": new_email(), "role": granted, "id": invitation_id}
            for statement in (CREATE, RESEND, REVOKE):
                assert outcome_of(refusal_or_count(connection, statement, parameters)) == expected, statement


@pytest.mark.parametrize("role", ROLES)
def test_who_gives_and_takes_which_role(database: Database, firm: Organization, role: str) -> None:
    colleagues = twins(database, firm)
    with database.connect("authenticator") as connection, request(connection, person(firm[role])):
        for before, colleague in colleagues.items():
            for after in ROLES:
                allowed = may_grant(role, before) and may_grant(role, after)
                change = {"user": colleague, "role": after}
                called = outcome_of(refusal_or_count(connection, CHANGE, change))
                assert called == ("ok" if allowed else "ROLE_REQUIRED"), change
                patched = outcome_of(refusal_or_count(connection, PATCH, change))
                assert patched in (("ok",) if allowed else ("nothing", "42501")), change


def twins(database: Database, firm: Organization) -> dict[str, UUID]:
    """A second member in every role."""
    with database.connect() as superuser:
        rows = superuser.execute(
            """
            with people as (
              insert into tenancy.users (subject) select %(slug)s || '|twin|' || unnest(%(roles)s::text[]) returning *
            )
            insert into tenancy.memberships (organization_id, user_id, role)
            select %(org)s, id, split_part(subject, '|', 3) from people
            returning role, user_id
            """,
            {"slug": firm.slug, "roles": list(ROLES), "org": firm.id},
        ).fetchall()
    return dict(rows)


@pytest.mark.parametrize("statement", [CREATE, RESEND, REVOKE, ACCEPT, CHANGE, REMOVE, LEAVE, TRANSFER])
@pytest.mark.parametrize("role", ["service", "platform_admin", "API key"])
def test_only_people_do_it(database: Database, firm: Organization, role: str, statement: str) -> None:
    invitation_id, code, email = invite(database, firm)
    caller = Caller(role, "backend", str(firm.id), claims={"email": email})
    if role == "API key":
        key_id = scalar(
            database,
            """
            insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
            values ('organization', %s, 'Key', %s, sha256('key'), '{data:write}') returning id
            """,
            [firm.id, uuid4().hex[:12]],
        )
        caller = Caller("member", "person", claims={"goldleaves_key": str(key_id), "email": email})
    parameters = {"email": new_email(), "role": "viewer", "id": invitation_id, "code": code, "user": firm["viewer"].id}
    assert refusal(database, caller, statement, **parameters) == "ROLE_REQUIRED"


# Whoever loses a role loses the invitations that it let them make

LOSSES: Mapping[str, tuple[str, str, str | None]] = {
    "PATCH to admin": (PATCH, "owner", "admin"),
    "change to admin": (CHANGE, "owner", "admin"),
    "change to viewer": (CHANGE, "owner", "viewer"),
    "DELETE": (DELETE, "owner", None),
    "remove": (REMOVE, "owner", None),
    "leave": (LEAVE, "itself", None),
    "transfer": (TRANSFER, "itself", "admin"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_invitations_of_a_lost_role_are_revoked(database: Database, firm: Organization, name: str) -> None:
    statement, by, after = LOSSES[name]
    loser = firm["admin"]
    with database.connect() as superuser:
        superuser.execute("update tenancy.memberships set role = 'owner' where user_id = %s", [loser.id])
    made = {role: invite(database, firm, role, by="admin") for role in ("owner", "admin", "viewer")}
    kept, _, _ = invite(database, firm, "owner")
    target = firm["viewer"].id if statement == TRANSFER else loser.id
    caller = loser if by == "itself" else firm[by]
    assert refusal(database, person(caller), statement, user=target, role=after) == "ok"

    assert roles_of(database, firm.id).get(loser.id) == after
    for role, (invitation_id, code, email) in made.items():
        still = after is not None and may_grant(after, role)
        assert state_of(database, invitation_id) == ("pending" if still else "revoked"), role
        expected = "ok" if still else "INVITATION_REVOKED"
        assert refusal(database, guest(f"new-{uuid4()}", email), ACCEPT, code=code) == expected
    assert state_of(database, kept) == "pending"


@pytest.mark.parametrize(
    "change", ["update tenancy.memberships set role = 'viewer'", "delete from tenancy.memberships"]
)
@pytest.mark.parametrize("triggers", ["origin", "replica"])
def test_also_by_direct_sql(database: Database, firm: Organization, change: str, triggers: str) -> None:
    """As a replica no trigger runs: then acceptance itself asks what the inviter may."""
    _, code, email = invite(database, firm, by="admin")
    with database.connect() as superuser, superuser.transaction():
        run(superuser, f"set local session_replication_role = {triggers}")
        run(superuser, f"{change} where user_id = %s", [firm["admin"].id])
    assert refusal(database, guest(f"new-{uuid4()}", email), ACCEPT, code=code) == "INVITATION_REVOKED"


@pytest.mark.parametrize("change", [PATCH, DELETE, CREATE, RESEND, CHANGE])
def test_a_request_that_began_with_a_role_does_not_keep_it(database: Database, firm: Organization, change: str) -> None:
    """It has read its role, and waits; meanwhile an owner takes the role away."""
    invitation_id, _, _ = invite(database, firm)
    with database.connect() as superuser:
        superuser.execute("update tenancy.memberships set role = 'owner' where user_id = %s", [firm["admin"].id])
    parameters = {"email": new_email(), "role": "member", "id": invitation_id, "user": firm["viewer"].id}
    with database.connect("authenticator", autocommit=False) as slow:
        enter(slow, person(firm["admin"]))
        assert refusal(database, person(firm["owner"]), CHANGE, user=firm["admin"].id, role="viewer") == "ok"
        assert attempt(slow, change, parameters) == "ROLE_REQUIRED"


# At the same moment


def test_one_person_accepts_twice_at_once(database: Database, firm: Organization) -> None:
    for _ in range(ROUNDS):
        _, code, email = invite(database, firm)
        newcomer = guest(f"new-{uuid4()}", email)
        outcomes = race(database, *[(newcomer, ACCEPT, {"code": code})] * 3)
        assert sorted(outcomes) == ["INVITATION_USED", "INVITATION_USED", "ok"]
        assert members_called(database, firm, str(newcomer.subject)) == 1


def test_two_people_accept_the_same_code_at_once(database: Database, firm: Organization) -> None:
    """Two identities with one e-mail address."""
    for _ in range(ROUNDS):
        _, code, email = invite(database, firm)
        two = [guest(f"new-{uuid4()}", email) for _ in range(2)]
        outcomes = race(database, *((each, ACCEPT, {"code": code}) for each in two))
        assert sorted(outcomes) == ["INVITATION_USED", "ok"]
        assert members_called(database, firm, *(str(each.subject) for each in two)) == 1


def test_two_invite_the_same_person_at_once(database: Database, firm: Organization) -> None:
    for _ in range(ROUNDS):
        create: dict[str, object] = {"email": new_email(), "role": "viewer"}
        outcomes = race(database, *((person(firm[role]), CREATE, create) for role in ("owner", "admin")))
        assert sorted(outcomes) == ["INVITATION_PENDING", "ok"]


@pytest.mark.parametrize(
    ("statement", "too_late", "meanwhile"),
    [
        (RESEND, "INVITATION_USED", "INVITATION_NOT_FOUND"),
        (REVOKE, "INVITATION_USED", "INVITATION_REVOKED"),
    ],
)
def test_accepted_while_it_is_changed(
    database: Database, firm: Organization, statement: str, too_late: str, meanwhile: str
) -> None:
    for _ in range(ROUNDS):
        invitation_id, code, email = invite(database, firm)
        newcomer = guest(f"new-{uuid4()}", email)
        outcomes = race(
            database,
            (person(firm["owner"]), statement, {"id": invitation_id}),
            (newcomer, ACCEPT, {"code": code}),
        )
        assert outcomes in ([too_late, "ok"], ["ok", meanwhile])
        assert members_called(database, firm, str(newcomer.subject)) == (1 if outcomes[1] == "ok" else 0)


@pytest.mark.parametrize("statement", [CHANGE, PATCH, REMOVE, DELETE, DIRECT])
def test_accepted_while_its_inviter_goes(
    database: Database, make_organization: MakeOrganization, statement: str
) -> None:
    """Either it was accepted before, or it is revoked: never a membership by an invitation that is."""
    for _ in range(ROUNDS // 2):
        firm = make_organization(database)
        invitation_id, code, email = invite(database, firm, by="admin")
        newcomer = guest(f"new-{uuid4()}", email)
        change = {"user": firm["admin"].id, "role": "viewer"}
        outcomes = race(
            database,
            (None if statement == DIRECT else person(firm["owner"]), statement, change),
            (newcomer, ACCEPT, {"code": code}),
        )
        joined = members_called(database, firm, str(newcomer.subject))
        state = state_of(database, invitation_id)
        assert (outcomes[0], outcomes[1], joined, state) in (
            ("ok", "ok", 1, "accepted"),
            ("ok", "INVITATION_REVOKED", 0, "revoked"),
        )


# Codes


def test_only_the_hash_of_a_code_is_kept(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """Not in any table, and in no log: neither of one that was good, nor of one that was refused or sent as a query."""
    firm = make_organization(stack.database)
    email = new_email()
    codes = [code for _, code, _ in (invite(stack.database, firm), invite(stack.database, firm, email=email))]
    with stack.client("new", email=email) as newcomer:
        for code in codes:
            newcomer.post("/api/v1/rpc/accept_invitation", json={"code": code})
            newcomer.get(f"/api/v1/rpc/accept_invitation?code={code}")
    with stack.database.connect() as superuser:
        assert superuser.execute(
            "select accepted_at is not null from tenancy.invitations where code_sha256 = any (%s) order by sent_at",
            [[hashlib.sha256(code.encode()).digest() for code in codes]],
        ).fetchall() == [(False,), (True,)]
        for code in codes:
            assert holders_of(superuser, code) == []
    logs = "".join(stack.state.log(part).read_text() for part in ("sidecar", "postgrest"))
    assert logs
    assert [code for code in codes if code in logs] == []


def holders_of(superuser: Any, text: str) -> list[str]:
    tables = superuser.execute(
        """
        select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname !~ '^(pg_|information_schema$)'
        """
    ).fetchall()
    assert ("tenancy", "invitations") in tables
    query = sql.SQL("select 1 from {} t where t::text ilike %s or t::text ilike %s limit 1")
    return [
        f"{schema}.{table}"
        for schema, table in tables
        if superuser.execute(
            query.format(sql.Identifier(schema, table)), [f"%{text}%", f"%{text.encode().hex()}%"]
        ).fetchone()
    ]


def test_codes_do_not_repeat_and_have_128_bits(database: Database) -> None:
    with database.connect() as superuser:
        codes = [row[0] for row in superuser.execute("select tenancy.new_code() from generate_series(1, 2000)")]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[0-9a-f]{32}", code) for code in codes)
    # Each bit is 1 about half of the time: a UUID has six that never change.
    for bit in range(128):
        assert 800 < sum(int(code, 16) >> bit & 1 for code in codes) < 1200

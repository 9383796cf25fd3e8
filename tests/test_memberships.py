"""Who belongs to an organization: roles change, people are removed, leave and hand over, an owner always remains, and
somebody who was removed is out with the next request. Whoever belongs nowhere gets a personal organization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations_with_replacement
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Member, Organization, RunningStack
from tests.observe import assert_problem
from tests.people import (
    CHANGE,
    CREATE,
    DELETE,
    DIRECT,
    LEAVE,
    PATCH,
    REMOVE,
    TRANSFER,
    Racer,
    ask,
    attempt,
    person,
    race,
    refusal,
    roles_of,
    scalar,
)
from tests.sql_requests import Caller, enter, run


@pytest.fixture
def database(shared_database: Database) -> Database:
    return shared_database


@pytest.fixture
def firm(database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(database)


def owner_of(database: Database, organization_id: UUID) -> UUID:
    found: UUID = scalar(database, "select owner_user_id from tenancy.organizations where id = %s", [organization_id])
    return found


def make_owner(database: Database, member: Member) -> None:
    with database.connect() as superuser:
        superuser.execute("update tenancy.memberships set role = 'owner' where user_id = %s", [member.id])


# Change, remove, leave, hand over


def test_change_remove_leave_and_hand_over(stack: RunningStack, make_organization: MakeOrganization) -> None:
    firm = make_organization(stack.database)

    def call(client: httpx.Client, function: str, **arguments: object) -> dict[str, object]:
        answer = client.post(f"/api/v1/rpc/{function}", json=arguments)
        assert answer.status_code == 200, answer.text
        found: dict[str, object] = answer.json()
        return found

    with stack.client(firm["owner"].subject) as owner, stack.client(firm["viewer"].subject) as viewer:
        changed = call(owner, "change_member_role", user_id=str(firm["viewer"].id), role="member")
        assert (changed["user_id"], changed["role"]) == (str(firm["viewer"].id), "member")
        assert viewer.post("/api/v1/cases", json={"title": "Mine now"}).status_code == 201
        assert call(owner, "remove_member", user_id=str(firm["billing"].id))["role"] == "billing"
        assert call(owner, "transfer_ownership", user_id=str(firm["viewer"].id))["role"] == "owner"
        assert owner_of(stack.database, firm.id) == firm["viewer"].id
        assert_problem(owner.post("/api/v1/rpc/remove_member", json={"user_id": str(uuid4())}), 403, "ROLE_REQUIRED")
        assert call(owner, "leave_organization")["role"] == "admin"
        assert_problem(viewer.post("/api/v1/rpc/leave_organization"), 409, "LAST_OWNER")
    assert roles_of(stack.database, firm.id) == {
        firm["viewer"].id: "owner",
        firm["admin"].id: "admin",
        firm["member"].id: "member",
    }


@pytest.mark.parametrize("statement", [CHANGE, REMOVE, TRANSFER])
def test_somebody_who_is_no_member(
    database: Database, firm: Organization, make_organization: MakeOrganization, statement: str
) -> None:
    """Of somebody elsewhere nothing is told."""
    for stranger in (make_organization(database)["viewer"].id, uuid4(), None):
        parameters = {"user": stranger, "role": "admin"}
        assert refusal(database, person(firm["owner"]), statement, **parameters) == "MEMBER_NOT_FOUND"


@pytest.mark.parametrize("role", [None, "", "Admin", "boss"])
def test_what_is_no_role(database: Database, firm: Organization, role: str | None) -> None:
    assert refusal(database, person(firm["owner"]), CHANGE, user=firm["viewer"].id, role=role) == "INVALID_ROLE"


@pytest.mark.parametrize("role", [role for role in ROLES if role != "owner"])
def test_only_owners_remove_and_hand_over(database: Database, firm: Organization, role: str) -> None:
    for statement in (REMOVE, TRANSFER):
        for colleague in firm.members.values():
            assert refusal(database, person(firm[role]), statement, user=colleague.id) == "ROLE_REQUIRED"
    before = roles_of(database, firm.id)
    assert refusal(database, person(firm[role]), LEAVE) == "ok"
    assert roles_of(database, firm.id) == {who: what for who, what in before.items() if who != firm[role].id}


def test_people_take_a_role_from_themselves_and_give_themselves_none(database: Database, firm: Organization) -> None:
    admin = firm["admin"]
    assert refusal(database, person(admin), CHANGE, user=admin.id, role="owner") == "ROLE_REQUIRED"
    assert refusal(database, person(admin), CHANGE, user=admin.id, role="viewer") == "ok"
    assert refusal(database, person(admin), CHANGE, user=admin.id, role="admin") == "ROLE_REQUIRED"


def test_members_are_not_inserted(stack: RunningStack, make_organization: MakeOrganization) -> None:
    """It told which ids are users."""
    firm, other = make_organization(stack.database), make_organization(stack.database)
    with stack.client(firm["owner"].subject) as owner:
        answers = [
            owner.post("/api/v1/memberships", json={"user_id": str(user_id), "role": "viewer"})
            for user_id in (other["viewer"].id, uuid4())
        ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(403, answers[0].text)}


# The owner who is named, and the last one


@pytest.mark.parametrize("statement", [PATCH, CHANGE, DELETE, REMOVE, LEAVE, TRANSFER, DIRECT])
def test_the_named_owner_is_one_of_the_owners(database: Database, firm: Organization, statement: str) -> None:
    first, second = firm["owner"], firm["admin"]
    make_owner(database, second)
    caller = first if statement in (LEAVE, TRANSFER) else second
    target = firm["viewer"] if statement == TRANSFER else first
    [outcome] = race(
        database, (None if statement == DIRECT else person(caller), statement, {"user": target.id, "role": "admin"})
    )
    assert outcome == "ok"
    assert roles_of(database, firm.id).get(first.id) in (None, "admin")
    assert owner_of(database, firm.id) == (target.id if statement == TRANSFER else second.id)


def ways_out(me: Member, other: Member, heir: Member) -> Mapping[str, Racer]:
    """How one of two owners stops being one, or makes the other stop."""
    mine = {"user": me.id, "role": "viewer"}
    theirs = {"user": other.id, "role": "viewer"}
    return {
        "leave": (person(me), LEAVE, {}),
        "step down": (person(me), CHANGE, mine),
        "remove oneself": (person(me), REMOVE, mine),
        "hand over": (person(me), TRANSFER, {"user": heir.id}),
        "PATCH the other": (person(me), PATCH, theirs),
        "change the other": (person(me), CHANGE, theirs),
        "DELETE the other": (person(me), DELETE, theirs),
        "remove the other": (person(me), REMOVE, theirs),
        "direct SQL": (None, DIRECT, mine),
    }


WAYS_OUT = (
    "leave",
    "step down",
    "remove oneself",
    "hand over",
    "PATCH the other",
    "change the other",
    "DELETE the other",
    "remove the other",
    "direct SQL",
)


@pytest.mark.parametrize(("one", "two"), list(combinations_with_replacement(WAYS_OUT, 2)))
def test_an_owner_remains_whichever_way_two_go_at_once(
    database: Database, make_organization: MakeOrganization, one: str, two: str
) -> None:
    firm = make_organization(database, roles=("owner", "admin", "viewer"))
    first, second, heir = firm["owner"], firm["admin"], firm["viewer"]
    make_owner(database, second)
    outcomes = race(database, ways_out(first, second, heir)[one], ways_out(second, first, heir)[two])
    roles = roles_of(database, firm.id)
    owners = {who for who, role in roles.items() if role == "owner"}
    assert owner_of(database, firm.id) in owners, outcomes
    refused = {"LAST_OWNER", "ROLE_REQUIRED", "NOT_A_MEMBER", "MEMBER_NOT_FOUND", "nothing", "ok"}
    # By hand, rows are locked before anything else: one of two may give way.
    assert set(outcomes) <= (refused | {"40P01"} if "direct SQL" in (one, two) else refused), outcomes
    assert "ok" in outcomes


@pytest.mark.parametrize("level", psycopg.IsolationLevel)
def test_an_owner_remains_at_any_isolation_level(
    database: Database, firm: Organization, level: psycopg.IsolationLevel
) -> None:
    """By direct SQL: the second has a snapshot that shows the first as owner."""
    first, second = firm["owner"], firm["admin"]
    make_owner(database, second)
    with database.connect(autocommit=False) as slow:
        slow.isolation_level = level
        slow.execute("select count(*) from tenancy.memberships")  # takes the snapshot
        assert race(database, (None, DIRECT, {"user": first.id, "role": "viewer"})) == ["ok"]
        with pytest.raises(psycopg.Error) as refused:
            run(slow, DIRECT, {"user": second.id, "role": "viewer"})
        slow.rollback()
    assert refused.value.sqlstate == ("40001" if level > psycopg.IsolationLevel.READ_COMMITTED else "PT409")


def test_an_organization_is_deleted_with_its_people_and_invitations(database: Database, firm: Organization) -> None:
    ask(database, person(firm["owner"]), CREATE, email="new@example.com", role="owner")
    caller = person(firm["owner"])
    assert refusal(database, caller, "delete from api.organizations where id = tenancy.current_org()") == "ok"
    assert roles_of(database, firm.id) == {}


# A personal organization has one owner


@pytest.fixture
def personal(database: Database) -> Iterator[tuple[Member, Member, UUID]]:
    """Its person, an admin, and its id."""
    subject = f"alone-{uuid4()}"
    me, admin = (
        ask(database, Caller("member", each, path="/rpc/sign_in"), "select api.sign_in()")[0][0]
        for each in (subject, f"{subject}-admin")
    )
    organization_id = UUID(me["default_organization_id"])
    with database.connect() as superuser:
        superuser.execute(
            "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, 'admin')",
            [organization_id, admin["user_id"]],
        )
    yield (
        Member(UUID(me["user_id"]), subject, "", "owner"),
        Member(UUID(admin["user_id"]), f"{subject}-admin", "", "admin"),
        organization_id,
    )


@pytest.mark.parametrize("statement", [LEAVE, TRANSFER, CHANGE, REMOVE, PATCH, CREATE])
def test_a_personal_organization_stays_with_its_person(
    database: Database, personal: tuple[Member, Member, UUID], statement: str
) -> None:
    me, admin, organization_id = personal
    target = me if statement == REMOVE else admin
    parameters = {"user": target.id, "role": "owner", "email": "heir@example.com"}
    before = roles_of(database, organization_id)
    assert refusal(database, person(me), statement, **parameters) == "PERSONAL_OWNER"
    if statement == CHANGE:
        assert refusal(database, person(me), CHANGE, user=me.id, role="admin") == "PERSONAL_OWNER"
    assert roles_of(database, organization_id) == before


@pytest.mark.parametrize(
    "change",
    [
        "update tenancy.memberships set role = 'owner' where organization_id = %(org)s",
        "update tenancy.memberships set user_id = %(stranger)s where organization_id = %(org)s and role = 'owner'",
        "update tenancy.memberships set role = 'viewer' where organization_id = %(org)s and role = 'owner'",
        "delete from tenancy.memberships where organization_id = %(org)s",
        """
        insert into tenancy.memberships (organization_id, user_id, role) values (%(org)s, %(stranger)s, 'owner')
        on conflict (organization_id, user_id) do update set role = 'owner'""",
    ],
)
def test_also_by_direct_sql(
    database: Database, personal: tuple[Member, Member, UUID], firm: Organization, change: str
) -> None:
    with database.connect() as superuser, pytest.raises(psycopg.Error, match=r"^PERSONAL_OWNER: "):
        run(superuser, change, {"org": personal[2], "stranger": firm["viewer"].id})


# Whoever was removed is out with the next request


@pytest.mark.parametrize("statement", [REMOVE, DELETE])
@pytest.mark.parametrize("how", ["header", "slug", "claim", "default"])
def test_a_removed_member_is_out(
    stack: RunningStack, make_organization: MakeOrganization, how: str, statement: str
) -> None:
    """Although the token is good, and the sidecar has just seen them."""
    firm = make_organization(stack.database)
    member = firm["member"]
    named: dict[str, dict[str, object]] = {
        "header": {"org": firm.id},
        "slug": {"org": firm.slug},
        "claim": {"org_id": firm.slug},
        "default": {},
    }
    token = {"org": firm.slug} if how == "claim" else {}
    header = None if how in ("claim", "default") else named[how]["org"]
    headers = {"Authorization": f"Bearer {stack.token(member.subject, **token)}"}
    if header is not None:
        headers["X-Organization-ID"] = str(header)
    with httpx.Client(base_url=f"{stack.gateway_url}/api/v1", headers=headers, trust_env=False) as client:
        for path in ("/cases", "/workspaces"):
            assert client.get(path).status_code == 200
        assert refusal(stack.database, person(firm["owner"]), statement, user=member.id) == "ok"
        for method, path in (
            ("GET", "/cases"),
            ("POST", "/cases"),
            ("GET", "/workspaces"),
            ("POST", "/rpc/usage_summary"),
        ):
            body = {"title": "Mine"} if path == "/cases" else {}
            answer = client.request(method, path, json=body if method == "POST" else None)
            assert_problem(answer, 403, "NOT_A_MEMBER")


@pytest.mark.parametrize(
    "statement",
    [
        "select id from api.create_api_key('left behind', '{data:read}')",
        "select id from api.rotate_api_key(%(key)s)",
        "delete from api.organizations where id = tenancy.current_org()",
    ],
)
def test_a_request_that_was_under_way_makes_no_keys_and_deletes_nothing(
    database: Database, firm: Organization, statement: str
) -> None:
    """What it found out about its caller, it found out before they were removed."""
    caller = person(firm["admin"])
    [(key,)] = ask(database, caller, "select id from api.create_api_key('seen by all', '{data:read}')")
    make_owner(database, firm["admin"])
    with database.connect("authenticator", autocommit=False) as under_way:
        enter(under_way, caller)
        assert refusal(database, person(firm["owner"]), REMOVE, user=firm["admin"].id) == "ok"
        assert attempt(under_way, statement, {"key": key}) in ("NOT_A_MEMBER", "ROLE_REQUIRED")
    assert firm["owner"].id in roles_of(database, firm.id)


# Whoever belongs nowhere


def insert_user(database: Database, subject: str, email: str | None = None) -> UUID:
    found: UUID = scalar(
        database, "insert into tenancy.users (subject, email) values (%s, %s) returning id", [subject, email]
    )
    return found


def organizations_of(database: Database, user_id: UUID) -> list[tuple[str, str, bool]]:
    """Kind and slug of each, and whether it is the default."""
    with database.connect() as superuser:
        return superuser.execute(
            """
            select o.kind, o.slug, o.id = u.default_organization_id
            from tenancy.memberships m
            join tenancy.organizations o on o.id = m.organization_id
            join tenancy.users u on u.id = m.user_id
            where u.id = %s
            """,
            [user_id],
        ).fetchall()


def test_somebody_known_without_an_organization_gets_one_by_coming(stack: RunningStack) -> None:
    subject = f"known-{uuid4()}"
    user_id = insert_user(stack.database, subject, f"{subject}@example.com")
    with stack.client(subject) as client:
        assert client.get("/api/v1/cases").status_code == 200
    [(kind, slug, is_default)] = organizations_of(stack.database, user_id)
    assert (kind, is_default) == ("personal", True)
    assert slug == subject[:35]


def test_somebody_removed_from_everywhere_gets_one_by_signing_in(
    stack: RunningStack, make_organization: MakeOrganization
) -> None:
    """And not before: their requests are refused, or they would go on in another organization unnoticed."""
    firm = make_organization(stack.database)
    member = firm["member"]
    assert refusal(stack.database, person(firm["owner"]), REMOVE, user=member.id) == "ok"
    with stack.database.connect() as superuser:
        assert superuser.execute("select tenancy.ensure_default_organizations()").fetchone() is not None
    with stack.client(member.subject) as client:
        assert_problem(client.get("/api/v1/cases"), 403, "NOT_A_MEMBER")
        assert organizations_of(stack.database, member.id) == []
        me = client.post("/api/v1/rpc/sign_in").json()
        assert [each["id"] for each in me["organizations"]] == [me["default_organization_id"]]
        assert client.get("/api/v1/cases").status_code == 200


def test_somebody_removed_from_their_default_keeps_the_others(
    database: Database, firm: Organization, make_organization: MakeOrganization
) -> None:
    member, elsewhere = firm["member"], make_organization(database)
    with database.connect() as superuser:
        superuser.execute(
            "insert into tenancy.memberships (organization_id, user_id, role) values (%s, %s, 'viewer')",
            [elsewhere.id, member.id],
        )
    assert refusal(database, person(firm["owner"]), REMOVE, user=member.id) == "ok"
    ask(database, Caller("member", member.subject, path="/rpc/sign_in"), "select api.sign_in()")
    assert organizations_of(database, member.id) == [("organization", elsewhere.slug, False)]


def test_default_organizations_are_made_once_for_who_has_none(database: Database, firm: Organization) -> None:
    """By the role that imports, over names that are taken."""
    with database.connect("goldleaves_migrator") as migrator:
        migrator.execute("select tenancy.ensure_default_organizations()")
        people = [
            insert_user(database, f"nowhere-{uuid4()}", email) for email in ("kim@a.example", "kim@b.example", None)
        ]
        assert migrator.execute("select tenancy.ensure_default_organizations()").fetchone() == (3,)
        assert migrator.execute("select tenancy.ensure_default_organizations()").fetchone() == (0,)
    made = [organizations_of(database, user_id) for user_id in people]
    assert [[(kind, is_default) for kind, _, is_default in each] for each in made] == [[("personal", True)]] * 3
    slugs = [each[0][1] for each in made]
    assert [slug.split("-")[0] for slug in slugs] == ["kim", "kim", "personal"]
    assert len(set(slugs)) == 3


SIGN_IN = "select api.sign_in()"


@pytest.mark.parametrize("kind", ["known", "new"])
def test_default_organizations_while_people_sign_in(database: Database, kind: str) -> None:
    """Two of the same name each time, so that slugs collide as well."""
    for _ in range(6):
        name = f"kim-{uuid4().hex[:8]}"
        subjects = [f"{name}|{number}" for number in range(2)]
        if kind == "known":
            for subject in subjects:
                insert_user(database, subject, f"{name}@example.com")
        sign_ins: list[Racer] = [
            (Caller("member", subject, path="/rpc/sign_in", claims={"email": f"{name}@example.com"}), SIGN_IN, {})
            for subject in subjects * 2
        ]
        ensure: Racer = (None, "select tenancy.ensure_default_organizations()", {})
        assert race(database, *sign_ins, ensure, ensure) == ["ok"] * 6
        for subject in subjects:
            user_id = scalar(database, "select id from tenancy.users where subject = %s", [subject])
            [(made, _, is_default)] = organizations_of(database, user_id)
            assert (made, is_default) == ("personal", True)

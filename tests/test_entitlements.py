"""What an organization has: by its plan, by an override until it expires, and while its subscription gives access."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import MakeOrganization
from tests.entitlements import begin_phase, call, refused, set_limit
from tests.harness import ROLES, Database, Organization
from tests.sql_requests import Caller, request
from tests.usage import Connection, value


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def has(superuser: Connection, organization: Organization, feature: str) -> Any:
    return value(superuser, "select billing.has_feature(%s, %s)", organization.id, feature)


# Plan and override


def test_a_plan_has_what_it_says(superuser: Connection, organization: Organization) -> None:
    assert not has(superuser, organization, "audit_log")
    superuser.execute("update tenancy.organizations set plan = 'pro' where id = %s", [organization.id])
    assert has(superuser, organization, "audit_log")
    assert not has(superuser, organization, "priority_support")
    assert not has(superuser, organization, "no such thing")


def test_an_override_stands_in_until_it_expires(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "audit_log", None, kind="boolean", enforcement="soft", expires_at="infinity")
    assert has(superuser, organization, "audit_log")
    superuser.execute(
        "update billing.entitlement_overrides set expires_at = clock_timestamp() where organization_id = %s",
        [organization.id],
    )
    assert not has(superuser, organization, "audit_log")

    superuser.execute("update tenancy.organizations set plan = 'pro' where id = %s", [organization.id])
    set_limit(superuser, organization.id, "audit_log", None, kind="boolean", enforcement="soft", is_granted=False)
    assert not has(superuser, organization, "audit_log")
    superuser.execute(
        "update billing.entitlement_overrides set expires_at = clock_timestamp() where organization_id = %s",
        [organization.id],
    )
    assert has(superuser, organization, "audit_log")


def test_a_limit_of_nothing_is_no_feature(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "pages", 0)
    assert not has(superuser, organization, "pages")
    set_limit(superuser, organization.id, "pages", 1)
    assert has(superuser, organization, "pages")
    set_limit(superuser, organization.id, "pages", None)
    assert has(superuser, organization, "pages")


@pytest.mark.parametrize(
    ("status", "grace", "gives_access"),
    [
        ("trialing", None, True),
        ("active", None, True),
        ("past_due", "1 hour", True),
        ("past_due", "0 seconds", False),
        ("paused", None, False),
        ("canceled", None, False),
        ("incomplete", None, False),
    ],
)
def test_guards_accept_who_has_access(
    superuser: Connection, organization: Organization, status: str, grace: str | None, gives_access: bool
) -> None:
    begin_phase(superuser, organization.id, status, grace=grace)
    assert has(superuser, organization, "audit_log") is gives_access
    # An override is no access.
    set_limit(superuser, organization.id, "covers", None, kind="boolean", enforcement="soft")
    assert has(superuser, organization, "covers") is gives_access
    limits = value(superuser, "select billing.gateway_limits(%s)", organization.id)
    assert limits["plan"] == ("pro" if gives_access else None)


def test_a_plan_without_a_subscription_gives_access(superuser: Connection, organization: Organization) -> None:
    begin_phase(superuser, organization.id, "canceled")
    superuser.execute(
        """
        insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by)
        values (%s, clock_timestamp(), 'active', 'pro', 'test')
        """,
        [organization.id],
    )
    assert has(superuser, organization, "audit_log")


# In policies and functions


@pytest.mark.parametrize(
    ("status", "feature", "named", "hint"),
    [
        (None, "audit_log", "feature audit_log, and the organization has plan starter, which is active", "Pro, Firm"),
        ("paused", "audit_log", "has plan pro, which is paused", "Pay, or start a subscription"),
        ("active", "nothing", "feature nothing", "No public plan has it"),
    ],
)
def test_who_is_refused_is_told_what_to_do(
    superuser: Connection,
    api: Connection,
    organization: Organization,
    status: str | None,
    feature: str,
    named: str,
    hint: str,
) -> None:
    if status:
        begin_phase(superuser, organization.id, status)
    viewer = Caller("member", organization["viewer"].subject, str(organization.id))
    with request(api, viewer), refused("FEATURE_REQUIRED") as said:
        api.execute("select tenancy.require_feature(%s)", [feature])
    assert named in said["message"]
    assert hint in said["hint"]
    assert said["feature"] == feature


@pytest.fixture(scope="module")
def guarded_table(shared_database: Database, superuser: Connection) -> Iterator[str]:
    """A table whose rows need a feature, as docs/dba.md says to write it."""
    superuser.execute(
        """
        create table app.ledger (
          organization_id uuid not null default tenancy.current_org(), id integer not null,
          primary key (organization_id, id)
        );
        alter table app.ledger enable row level security;
        create policy ledger_read on app.ledger for select to member
          using (
            organization_id = case when tenancy.has_feature('audit_log') then tenancy.current_org_for('owner') end
          );
        create policy ledger_insert on app.ledger for insert to member
          with check (organization_id = tenancy.current_org_for('owner') and tenancy.require_feature('audit_log'));
        grant select, insert on app.ledger to member;
        """
    )
    yield "app.ledger"


def test_a_policy_asks_once_a_scan(
    superuser: Connection, api: Connection, organization: Organization, guarded_table: str
) -> None:
    superuser.execute("insert into app.ledger select %s, generate_series(1, 5000)", [organization.id])
    superuser.execute("analyze app.ledger")
    owner = Caller("member", organization["owner"].subject, str(organization.id))
    with request(api, owner):
        assert value(api, "select count(*) from app.ledger") == 0
        with refused("FEATURE_REQUIRED"):
            api.execute("insert into app.ledger (id) values (0)")
    superuser.execute("update tenancy.organizations set plan = 'pro' where id = %s", [organization.id])
    with request(api, owner):
        assert value(api, "select count(*) from app.ledger") == 5000
        api.execute("insert into app.ledger (id) values (0)")
        api.execute("set local enable_seqscan = off")
        plan = "\n".join(line for (line,) in api.execute("explain select from app.ledger").fetchall())
        assert "Filter" not in plan
        assert "Index Cond" in plan and "has_feature" in plan


# What people and staff see


def test_everybody_in_it_sees_what_it_may_use(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "pages", 10)
    set_limit(superuser, organization.id, "scans", None)
    for role in (*ROLES, "platform_admin"):
        seen = call(api, organization, role, "select * from api.entitlements order by feature")
        assert [row["feature"] for row in seen] == ["members", "pages", "scans"], role
    (members, pages, scans) = seen
    assert (members["source"], members["limit_value"], members["used"], members["remaining"]) == ("plan", 3, 5, 0)
    assert (members["enforcement"], members["resets_at"], members["description"]) == ("soft", None, "Members")
    assert (pages["source"], pages["used"], pages["remaining"], pages["is_granted"]) == ("override", 0, 10, True)
    assert pages["resets_at"] is not None
    assert (scans["limit_value"], scans["used"], scans["remaining"]) == (None, 0, None)


def test_api_keys_see_it_with_their_scope(superuser: Connection, api: Connection, organization: Organization) -> None:
    with api.transaction(force_rollback=True):
        api.execute("set local role member")
        for scopes, sees in (("usage:read", True), ("data:read", False)):
            api.execute(
                """
                select set_config('app.current_org', %s, true), set_config('app.current_org_role', %s, true),
                  set_config('app.current_key_id', gen_random_uuid()::text, true)
                """,
                [str(organization.id), scopes],
            )
            if sees:
                assert api.execute("select from api.entitlements").rowcount == 1
            else:
                with refused("SCOPE_REQUIRED"), api.transaction():
                    api.execute("select from api.entitlements")


def test_staff_sets_and_removes_what_one_organization_has(api: Connection, organization: Organization) -> None:
    (made,) = call(
        api,
        organization,
        "platform_admin",
        "select * from api.set_entitlement('members', limit_value => 7.50, reason => 'Agreed')",
    )
    # The rest is as the plan has it.
    assert (made["kind"], made["limit_value"], made["enforcement"], made["created_by"]) == (
        "limit",
        7.5,
        "soft",
        "provider",
    )
    (again,) = call(
        api,
        organization,
        "platform_admin",
        "select * from api.set_entitlement('members', limit_value => 8, enforcement => 'hard')",
    )
    assert (again["limit_value"], again["enforcement"], again["reason"]) == (8, "hard", None)
    for role, sees in (("owner", 1), ("billing", 1), ("member", 0), ("viewer", 0)):
        assert len(call(api, organization, role, "select * from api.entitlement_overrides")) == sees, role
    call(api, organization, "platform_admin", "select api.remove_entitlement('members')")
    with refused("ENTITLEMENT_NOT_FOUND"):
        call(api, organization, "platform_admin", "select api.remove_entitlement('members')")


@pytest.mark.parametrize("role", ["owner", "service"])
def test_only_staff_sets_it(api: Connection, organization: Organization, role: str) -> None:
    with refused("ROLE_REQUIRED"):
        call(api, organization, role, "select api.set_entitlement('members', limit_value => 100)")
    with refused("ROLE_REQUIRED"):
        call(api, organization, role, "select api.remove_entitlement('members')")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("'No'", "lowercase letters"),
        ("'f', kind => 'some'", "of kind boolean"),
        ("'f', kind => 'boolean', limit_value => 1", "no limit_value"),
        ("'f', kind => 'boolean', enforcement => 'hard'", "no enforcement"),
        ("'f', kind => 'limit', limit_value => -1", "from 0 to 1e15"),
        ("'f', kind => 'limit', limit_value => 'NaN'", "from 0 to 1e15"),
        ("'f', kind => 'limit', enforcement => 'some'", "hard"),
        ("'f', kind => 'limit', meter => 'nothing'", "no meter nothing"),
        ("'f', kind => 'limit', meter => 'api.request'", "weighted_sum"),
        ("'f', kind => 'limit_per_period', enforcement => 'hard', meter => 'storage.bytes'", "does not add up"),
        ("'f', kind => 'limit_per_period', meter => 'a.latest'", "nothing uses up"),
    ],
)
def test_a_feature_that_means_nothing_is_refused(
    superuser: Connection, api: Connection, organization: Organization, arguments: str, problem: str
) -> None:
    superuser.execute(
        """
        insert into metering.meters (code, event_name, aggregation, unit, description)
        values ('a.latest', 'a.latest', 'latest', 'unit', 'Latest') on conflict do nothing
        """
    )
    with refused("INVALID_ENTITLEMENT") as of_one:
        call(api, organization, "platform_admin", f"select api.set_entitlement({arguments})")
    assert problem in of_one["message"]
    with refused("INVALID_PLAN") as of_a_plan:
        call(api, organization, "platform_admin", f"select api.set_plan_feature('pro', {arguments})")
    assert problem in of_a_plan["message"]


def test_plans_show_what_is_enforced(api: Connection, organization: Organization) -> None:
    call(
        api,
        organization,
        "platform_admin",
        """
        select api.set_plan_feature(
          'firm', 'calls', 'limit_per_period', 9, enforcement => 'hard', meter => 'api.request'
        )
        """,
    )
    (firm,) = call(api, organization, "platform_admin", "select features from api.plans where code = 'firm'")
    assert {
        "feature": "calls",
        "kind": "limit_per_period",
        "limit_value": 9,
        "enforcement": "hard",
        "meter": "api.request",
        "description": "",
    } in firm["features"]

"""Features that a customer has at Stripe are overrides of the organization, as long as Stripe lists them and staff says
nothing else.
"""

from __future__ import annotations

import json
from itertools import count, permutations

import pytest

from api.stripe import fixtures
from api.stripe.fixtures import Json
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import enter
from tests.stripe_lives import BEGINNING, Life, insert_bare_organization, link, receive
from tests.subscriptions import call, staff_of
from tests.usage import Connection

_number = count()


@pytest.fixture(autouse=True, scope="module")
def features(superuser: Connection) -> None:
    superuser.execute(
        """
        insert into billing.plan_features (plan_code, feature, kind, limit_value)
        values
          ('firm', 'sso', 'boolean', null), ('firm', 'audit_export', 'boolean', null), ('firm', 'seats', 'limit', 3)
        """
    )


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def life(superuser: Connection, organization: Organization) -> Life:
    life = Life(f"e{next(_number)}")
    link(superuser, organization.id, life.customer)
    return life


def listed(life: Life, at: int, *features: str, has_more: bool = False) -> Json:
    made = fixtures.entitlement_summary(*features, customer=life.customer, has_more=has_more)
    return fixtures.event(
        "entitlements.active_entitlement_summary.updated", made, created=BEGINNING + at, id=life.name(f"evt_{at}")
    )


def send(sidecar: Connection, *events: Json) -> list[str]:
    return [outcome for one in events for outcome in receive(sidecar, [json.dumps(one)])]


def overrides(superuser: Connection, organization: object) -> list[tuple[str, bool, str]]:
    return superuser.execute(
        """
        select feature, is_granted, created_by from billing.entitlement_overrides
        where organization_id = %s order by feature
        """,
        [organization],
    ).fetchall()


def set_by_staff(superuser: Connection, organization: Organization, **arguments: object) -> None:
    with superuser.transaction():
        enter(superuser, staff_of(organization))
        call(superuser, "set_entitlement", **arguments)


def test_the_last_list_counts(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    assert send(sidecar, listed(life, 0, "sso", "audit_export")) == ["applied"]
    assert [feature for feature, _, _ in overrides(superuser, organization.id)] == ["audit_export", "sso"]
    assert send(sidecar, listed(life, 2, "sso"), listed(life, 1, "audit_export")) == ["applied", "stale"]
    assert overrides(superuser, organization.id) == [("sso", True, "stripe")]
    assert send(sidecar, listed(life, 3)) == ["applied"]
    assert overrides(superuser, organization.id) == []


def test_a_list_that_is_not_whole_takes_nothing_away(superuser: Connection, sidecar: Connection) -> None:
    for order in permutations(range(4)):
        token = f"f{next(_number)}"
        organization, life = insert_bare_organization(superuser, token), Life(token)
        link(superuser, organization, life.customer)
        events = [
            listed(life, 0, "sso"),
            listed(life, 1, "audit_export", has_more=True),
            listed(life, 2, "other", has_more=True),
            fixtures.event(
                "customer.updated", fixtures.customer(life.customer), created=BEGINNING, id=life.name("evt_c")
            ),
        ]
        for number in order:
            send(sidecar, events[number])
        assert [feature for feature, _, _ in overrides(superuser, organization)] == ["audit_export", "other", "sso"]
        send(sidecar, listed(life, 3, "sso"))
        assert overrides(superuser, organization) == [("sso", True, "stripe")]


def test_what_staff_says_stays(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    """Taken away from this organization, and given to it: neither is Stripe's to change."""
    set_by_staff(superuser, organization, feature="sso", is_granted=False)
    set_by_staff(superuser, organization, feature="audit_export")
    before = overrides(superuser, organization.id)
    send(sidecar, listed(life, 0, "sso", "audit_export"))
    assert overrides(superuser, organization.id) == before
    send(sidecar, listed(life, 1))
    assert overrides(superuser, organization.id) == before


def test_what_is_limited_is_not_given_without_a_limit(
    superuser: Connection, sidecar: Connection, organization: Organization, life: Life
) -> None:
    send(sidecar, listed(life, 0, "seats", "No name of ours", "sso"))
    assert overrides(superuser, organization.id) == [("sso", True, "stripe")]


def test_who_is_deleted_has_nothing_whatever_comes_after(superuser: Connection, sidecar: Connection) -> None:
    for order in permutations(range(2)):
        token = f"g{next(_number)}"
        organization, life = insert_bare_organization(superuser, token), Life(token)
        link(superuser, organization, life.customer)
        life.delete_customer(5)
        events = [listed(life, 0, "sso"), *life.events()]
        for number in order:
            send(sidecar, events[number])
        assert overrides(superuser, organization) == []


def test_a_list_waits_for_the_link(superuser: Connection, sidecar: Connection, organization: Organization) -> None:
    life = Life(f"h{next(_number)}")
    assert send(sidecar, listed(life, 0, "sso")) == ["unlinked"]
    link(superuser, organization.id, life.customer)
    assert overrides(superuser, organization.id) == [("sso", True, "stripe")]

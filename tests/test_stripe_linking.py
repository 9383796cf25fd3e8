"""Customers at Stripe and organizations: one of each, for ever; and which price is which plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from api.cli import app
from api.migrations import MigrationError, migrate
from api.settings import Settings
from api.stripe.fixtures import checkout_session, customer, event, price, subscription
from tests.audit_log import entries
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.people import Racer, ask, race, refusal
from tests.sql_requests import Caller, Connection
from tests.stripe_inbox import NOW
from tests.usage import value

LINK = "select * from api.link_stripe_customer(%(customer)s)"
PRICE = "select * from api.set_stripe_price(%(plan)s, %(price)s)"


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def other(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def customer_id() -> Iterator[str]:
    yield f"cus_{uuid4().hex}"


def staff(organization: Organization | None = None) -> Caller:
    return Caller("platform_admin", "staff|1", str(organization.id) if organization is not None else None)


def receive(superuser: Connection, *events: dict[str, Any]) -> list[str]:
    """What came of each."""
    rows = superuser.execute(
        "select coalesce(outcome, error_message) from stripe.receive_events(%s, false, true)",
        [[json.dumps(one) for one in events]],
    ).fetchall()
    return [row[0] for row in rows]


def bought(customer_id: str, price_id: str = "price_pro", lookup_key: str | None = "pro") -> dict[str, Any]:
    made = subscription(
        f"sub_of_{customer_id}",
        customer=customer_id,
        created=NOW - 60,
        start=NOW - 60,
        end=NOW + 86_400,
        prices=[price(price_id, lookup_key=lookup_key)],
    )
    return event("customer.subscription.created", made, created=NOW - 60)


def linked(superuser: Connection, customer_id: str) -> UUID | None:
    found = superuser.execute("select organization_id from stripe.customers where id = %s", [customer_id]).fetchone()
    return found[0] if found else None


def test_staff_links_and_what_waited_is_applied(
    shared_database: Database, superuser: Connection, organization: Organization, customer_id: str
) -> None:
    assert receive(superuser, bought(customer_id)) == ["unlinked"]
    [row] = ask(shared_database, staff(organization), LINK, customer=customer_id)
    assert row[:2] == (organization.id, customer_id)
    assert (
        value(superuser, "select plan_code from stripe.subscriptions where organization_id = %s", organization.id)
        == "pro"
    )
    assert value(superuser, "select status from stripe.webhook_events where customer_id = %s", customer_id) == "applied"
    # Again, it changes nothing.
    assert ask(shared_database, staff(organization), LINK, customer=customer_id) == [row]
    told = [one for one in entries(superuser, organization.id) if one.action == "stripe_customer.created"]
    assert [(one.actor_type, one.target_id) for one in told] == [("platform_admin", customer_id)]


def test_the_mode_is_that_of_its_events(
    shared_database: Database, superuser: Connection, organization: Organization, other: Organization, customer_id: str
) -> None:
    receive(superuser, event("customer.created", customer(customer_id), created=NOW, livemode=True))
    live = "select is_live from stripe.customers where id = %s"
    superuser.execute("select stripe.link(%s, %s, null)", [organization.id, customer_id])
    assert value(superuser, live, customer_id) is True
    superuser.execute("select stripe.link(%s, %s, true)", [other.id, f"{customer_id}_live"])
    assert value(superuser, live, f"{customer_id}_live") is True


def test_a_customer_is_never_anybody_elses(
    shared_database: Database, superuser: Connection, organization: Organization, other: Organization, customer_id: str
) -> None:
    ask(shared_database, staff(organization), LINK, customer=customer_id)
    assert refusal(shared_database, staff(other), LINK, customer=customer_id) == "CUSTOMER_LINKED"
    superuser.execute("update stripe.customers set deleted_at = now() where id = %s", [customer_id])
    assert refusal(shared_database, staff(other), LINK, customer=customer_id) == "CUSTOMER_LINKED"
    assert linked(superuser, customer_id) == organization.id


def test_an_organization_has_one_customer_at_a_time(
    shared_database: Database, superuser: Connection, organization: Organization, customer_id: str
) -> None:
    ask(shared_database, staff(organization), LINK, customer=customer_id)
    after = f"{customer_id}_after"
    assert refusal(shared_database, staff(organization), LINK, customer=after) == "CUSTOMER_LINKED"
    superuser.execute("update stripe.customers set deleted_at = now() where id = %s", [customer_id])
    assert refusal(shared_database, staff(organization), LINK, customer=after) == "ok"


def test_of_two_organizations_at_once_one_gets_the_customer(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    for _ in range(15):
        customer_id = f"cus_{uuid4().hex}"
        both = [make_organization(shared_database, roles=("owner",)) for _ in range(2)]
        racers: list[Racer] = [
            *((staff(one), LINK, {"customer": customer_id}) for one in both),
            # And a checkout of the second one's is completed at the same moment, by the same customer.
            (
                None,
                "select stripe.receive_events(array[%(event)s], false, true)",
                {"event": json.dumps(completed(customer_id, metadata={"organization_id": str(both[1].id)}))},
            ),
        ]
        outcomes = race(shared_database, *racers)
        assert sorted(outcomes[:2]) == ["CUSTOMER_LINKED", "ok"]
        rows = superuser.execute("select organization_id from stripe.customers where id = %s", [customer_id]).fetchall()
        assert rows == [(both[outcomes.index("ok")].id,)]


def test_of_two_customers_at_once_the_organization_gets_one(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    for _ in range(15):
        organization = make_organization(shared_database, roles=("owner",))
        racers: list[Racer] = [(staff(organization), LINK, {"customer": f"cus_{uuid4().hex}"}) for _ in range(3)]
        outcomes = race(shared_database, *racers)
        assert sorted(outcomes) == ["CUSTOMER_LINKED", "CUSTOMER_LINKED", "ok"]
        assert (
            value(superuser, "select count(*) from stripe.customers where organization_id = %s", organization.id) == 1
        )


def completed(customer_id: str, **members: Any) -> dict[str, Any]:
    made = checkout_session(f"cs_{uuid4().hex}", customer=customer_id, created=NOW, status="complete", **members)
    return event("checkout.session.completed", made, created=NOW)


def test_what_anybody_can_write_links_nobody(
    superuser: Connection, organization: Organization, customer_id: str
) -> None:
    """A payment link carries what its address says: client_reference_id is whatever its visitor likes."""
    assert receive(superuser, completed(customer_id, client_reference_id=str(organization.id))) == ["ignored"]
    assert linked(superuser, customer_id) is None
    assert receive(superuser, bought(customer_id)) == ["unlinked"]
    assert (
        value(superuser, "select count(*) from billing.subscriptions where organization_id = %s", organization.id) == 0
    )


def test_a_checkout_that_we_began_links_whose_it_is(
    superuser: Connection, organization: Organization, other: Organization, customer_id: str
) -> None:
    told = completed(customer_id, client_reference_id=str(other.id))
    superuser.execute(
        "insert into stripe.checkout_sessions (organization_id, id, plan_code, created_by) "
        "values (%s, %s, 'pro', 'test')",
        [organization.id, told["data"]["object"]["id"]],
    )
    assert receive(superuser, told) == ["applied"]
    assert linked(superuser, customer_id) == organization.id


@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer", "billing"])
def test_members_link_nobody(
    shared_database: Database, superuser: Connection, organization: Organization, role: str, customer_id: str
) -> None:
    caller = Caller("member", organization[role].subject, str(organization.id))
    assert refusal(shared_database, caller, LINK, customer=customer_id) == "ROLE_REQUIRED"
    assert refusal(shared_database, caller, PRICE, plan="pro", price="price_1") == "ROLE_REQUIRED"
    for direct in (
        "select stripe.link(tenancy.current_org(), %(customer)s, false)",
        "select stripe.set_price('pro', 'price_of_mine')",
        "insert into stripe.customers (organization_id, id, is_live, linked_by) "
        "values (tenancy.current_org(), %(customer)s, false, 'me')",
        "update stripe.customers set organization_id = tenancy.current_org()",
        "insert into api.stripe_customers (organization_id, id) values (tenancy.current_org(), %(customer)s)",
    ):
        assert refusal(shared_database, caller, direct, customer=customer_id) in ("42501", "55000"), direct
    assert linked(superuser, customer_id) is None


def test_backends_and_nobody_link_nobody(
    shared_database: Database, superuser: Connection, organization: Organization, customer_id: str
) -> None:
    service = Caller("service", "backend", str(organization.id))
    assert refusal(shared_database, service, LINK, customer=customer_id) == "ROLE_REQUIRED"
    assert refusal(shared_database, service, PRICE, plan="pro", price="price_1") == "ROLE_REQUIRED"
    assert refusal(shared_database, Caller("anon"), LINK, customer=customer_id) == "42501"
    assert linked(superuser, customer_id) is None


def test_owners_see_their_customer_and_no_others(
    shared_database: Database, superuser: Connection, organization: Organization, other: Organization, customer_id: str
) -> None:
    ask(shared_database, staff(organization), LINK, customer=customer_id)
    ask(shared_database, staff(other), LINK, customer=f"{customer_id}_other")
    seen = "select id from api.stripe_customers order by id"
    for role in ("owner", "admin", "billing"):
        caller = Caller("member", organization[role].subject, str(organization.id))
        assert ask(shared_database, caller, seen) == [(customer_id,)]
    for role in ("member", "viewer"):
        caller = Caller("member", organization[role].subject, str(organization.id))
        assert ask(shared_database, caller, seen) == []
    assert {(customer_id,), (f"{customer_id}_other",)} <= set(ask(shared_database, staff(), seen))


@pytest.mark.parametrize("id", ["", " ", "cus 1", "cus_1;drop", "cus_\u00fc", "c" * 256, None])
def test_what_is_no_id_is_refused(shared_database: Database, organization: Organization, id: str | None) -> None:
    assert refusal(shared_database, staff(organization), LINK, customer=id) == "INVALID_STRIPE_ID"
    assert refusal(shared_database, staff(), PRICE, plan="pro", price=id) == "INVALID_STRIPE_ID"


def test_an_organization_is_named(shared_database: Database, customer_id: str) -> None:
    assert refusal(shared_database, staff(), LINK, customer=customer_id) == "ORGANIZATION_REQUIRED"


def test_prices_that_were_named_go_on_being_the_plan(shared_database: Database, superuser: Connection) -> None:
    first, second = f"price_{uuid4().hex}", f"price_{uuid4().hex}"
    caller = staff()
    ask(shared_database, caller, PRICE, plan="firm", price=first)
    rows = ask(shared_database, caller, PRICE, plan="firm", price=second)
    assert [row[:2] for row in rows] == [("firm", second), ("firm", first)]
    assert value(superuser, "select stripe.price_of('firm')") == second
    assert ask(shared_database, caller, PRICE, plan="firm", price=second) == rows
    ask(shared_database, caller, PRICE, plan="firm", price=first)
    assert value(superuser, "select stripe.price_of('firm')") == first
    assert refusal(shared_database, caller, PRICE, plan="platinum", price=first) == "PLAN_NOT_FOUND"


def test_what_waited_for_a_price_is_due_again(
    shared_database: Database, superuser: Connection, organization: Organization, customer_id: str
) -> None:
    price_id = f"price_{uuid4().hex}"
    superuser.execute("select stripe.link(%s, %s, false)", [organization.id, customer_id])
    assert receive(superuser, bought(customer_id, price_id, lookup_key=None)) == ["pending"]
    status = "select status from stripe.webhook_events where customer_id = %s"
    superuser.execute("update stripe.webhook_events set status = 'dead' where customer_id = %s", [customer_id])
    ask(shared_database, staff(), PRICE, plan="pro", price=price_id)
    assert value(superuser, status, customer_id) == "failed"
    assert value(superuser, f"{status} and next_attempt_at <= clock_timestamp() and attempts = 0", customer_id)
    superuser.execute(
        "select stripe.settle(e, true) from stripe.webhook_events e where e.customer_id = %s", [customer_id]
    )
    assert value(superuser, status, customer_id) == "applied"
    # What was sold at it stays what it is.
    assert refusal(shared_database, staff(), PRICE, plan="firm", price=price_id) == "STRIPE_PRICE_TAKEN"


def test_a_price_that_nobody_has_bought_at_may_be_moved(shared_database: Database, superuser: Connection) -> None:
    price_id = f"price_{uuid4().hex}"
    ask(shared_database, staff(), PRICE, plan="pro", price=price_id)
    ask(shared_database, staff(), PRICE, plan="firm", price=price_id)
    assert value(superuser, "select plan_code from stripe.plan_prices where price_id = %s", price_id) == "firm"


def test_prices_of_settings_are_written_with_each_migration_run(database: Database) -> None:
    of_plan = "select stripe.price_of(%s)"
    with database.connect() as superuser:
        migrate(database.migrator, Settings(stripe_price_pro="price_a", stripe_price_firm="price_f"))
        assert [value(superuser, of_plan, plan) for plan in ("starter", "pro", "firm")] == [None, "price_a", "price_f"]
        superuser.execute("select stripe.set_price('pro', 'price_b')")
        migrate(database.migrator, Settings())
        assert value(superuser, of_plan, "pro") == "price_b"
        migrate(database.migrator, Settings(stripe_price_pro="price_a"))
        assert value(superuser, of_plan, "pro") == "price_a"
        with pytest.raises(MigrationError, match="STRIPE_PRICE_TAKEN"):
            migrate(database.migrator, Settings(stripe_price_pro="price_x", stripe_price_firm="price_x"))


def test_operators_do_both_from_the_command_line(
    database: Database, make_organization: MakeOrganization, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization = make_organization(database)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database.migrator)

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["stripe", *arguments])
        return done.exit_code, " ".join(done.output.split())

    assert run("price") == (0, "No price at Stripe is a plan yet.")
    assert run("price", "pro", "price_1")[0] == 0
    assert run("price", "pro", "price_2")[0] == 0
    code, printed = run("price")
    assert code == 0
    assert printed.index("price_2") < printed.index("price_1")
    assert run("price", "platinum", "price_3")[0] == 1
    assert run("link", organization.slug, "cus_1") == (
        0,
        f"Organization {organization.slug} is customer cus_1 at Stripe.",
    )
    code, printed = run("link", "nobody", "cus_2")
    assert (code, "no organization" in printed) == (1, True)
    code, printed = run("link", organization.slug, "cus_2")
    assert code == 1
    assert "CUSTOMER_LINKED" in printed
    with database.connect() as superuser:
        assert linked(superuser, "cus_1") == organization.id
        told = [one.action for one in entries(superuser, organization.id)]
    assert "stripe_customer.created" in told

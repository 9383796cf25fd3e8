"""The catalog: the provider's staff makes plans and prices, everybody reads the public ones. A price never changes, and
what has been used by one is paid by that one: whoever writes to the tables is held to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from api.migrations import migrate
from api.settings import Settings
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.meters import by_member, by_staff
from tests.observe import eventually
from tests.sql_requests import Caller, Connection, enter, request, run
from tests.usage import event, finalize, ingest, moment, month, value

DAY = timedelta(days=1)
PAST = datetime(2026, 1, 1, tzinfo=UTC)
LAST_YEAR = datetime.now(UTC) - 365 * DAY
NEXT_YEAR = datetime.now(UTC) + 365 * DAY
PUBLIC = ["starter", "pro", "firm"]
SOFT = {"enforcement": "soft", "meter": None}
ONE_TIER = [{"unit_amount_cents": 1}]

_number = count(1)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, "priced")


@pytest.fixture
def meter(api: Connection) -> str:
    """A meter that has no price, and keeps two dimensions."""
    code = f"tokens.{next(_number)}"
    by_staff(
        api, "create_meter", code=code, unit="token", description="T", event_name=code, group_by=["model", "region"]
    )
    return code


@pytest.fixture
def plan(api: Connection) -> str:
    code = f"agreed-{next(_number)}"
    by_staff(api, "create_plan", code=code, name="Agreed", is_public=False)
    return code


def price(api: Connection, meter: str | None = None, **terms: object) -> Row:
    if "tiers" in terms:
        terms["tiers"] = Jsonb(terms["tiers"])
    elif "model" not in terms:
        terms.setdefault("unit_amount_cents", 2)
    return by_staff(api, "create_price", meter=meter, **terms)


def refused(connection: Connection, function: str, *arguments: object, **terms: object) -> str:
    with pytest.raises(psycopg.Error) as error:
        price(connection, *arguments, **terms) if function == "create_price" else by_staff(  # type: ignore[arg-type]
            connection, function, **terms
        )
    return f"{error.value.sqlstate} {error.value.diag.message_primary} {error.value.diag.message_hint or '(no hint)'}"


def plans(api: Connection, caller: Caller) -> dict[str, Row]:
    with request(api, caller), api.cursor(row_factory=dict_row) as cursor:
        return {row["code"]: row for row in cursor.execute("select * from api.plans").fetchall()}


def spans(api: Connection, meter: str) -> list[tuple[Any, ...]]:
    """The prices of a meter: their amount, whether they count now, and whether another one takes their place."""
    with request(api, Caller("platform_admin", "staff")):
        return api.execute(
            """
            select unit_amount_cents, is_in_force, superseded_at is not null
            from api.prices where meter = %s order by created_at
            """,
            [meter],
        ).fetchall()


def summary(api: Connection, organization: Organization, meter: str) -> list[tuple[Any, ...]]:
    rows = by_member(api, organization, "usage_summary")
    return [(row["quantity"], row["amount_cents"]) for row in rows if row["meter"] == meter]


# Plans


@pytest.mark.parametrize("role", ["anon", "owner", "viewer"])
def test_everybody_sees_public_plans_and_nobody_those_agreed_with_one(
    api: Connection, organization: Organization, plan: str, role: str
) -> None:
    caller = Caller("anon") if role == "anon" else Caller("member", organization[role].subject)
    seen = plans(api, caller)
    assert [code for code in seen if code in PUBLIC] == PUBLIC
    assert seen["firm"]["features"] == [
        {"feature": "audit_log", "kind": "boolean", "limit_value": None, **SOFT, "description": "Audit log"},
        {"feature": "members", "kind": "limit", "limit_value": None, **SOFT, "description": "Members"},
        {
            "feature": "priority_support",
            "kind": "boolean",
            "limit_value": None,
            **SOFT,
            "description": "Priority support",
        },
    ]
    assert plan not in seen
    assert plan in plans(api, Caller("platform_admin", "staff"))


def test_who_has_no_organization_sees_plans_too(
    api: Connection, superuser: Connection, organization: Organization
) -> None:
    superuser.execute("insert into tenancy.users (subject) values ('homeless')")
    assert set(PUBLIC) <= set(plans(api, Caller("member", "homeless", path="/plans")))


def test_a_plan_is_changed_by_what_is_sent_alone(api: Connection, plan: str) -> None:
    by_staff(api, "change_plan", code=plan, description="For them.", position=7)
    changed = by_staff(api, "change_plan", code=plan, name=" Agreement ")
    assert (changed["name"], changed["description"], changed["position"]) == ("Agreement", "For them.", 7)
    assert changed["is_public"] is False

    by_staff(api, "set_plan_feature", plan=plan, feature="members", kind="limit", limit_value=3, description="People")
    made = by_staff(api, "set_plan_feature", plan=plan, feature="members", kind="limit_per_period", limit_value=None)
    assert made["features"] == [
        {"feature": "members", "kind": "limit_per_period", "limit_value": None, **SOFT, "description": "People"}
    ]
    assert by_staff(api, "remove_plan_feature", plan=plan, feature="members")["features"] == []


@pytest.mark.parametrize(
    ("function", "arguments", "refusal"),
    [
        ("create_plan", {"code": "Firm", "name": "n"}, "PT400 INVALID_PLAN: Firm: a code has"),
        ("create_plan", {"code": None, "name": "n"}, "PT400 INVALID_PLAN"),
        ("create_plan", {"code": "new", "name": " "}, "PT400 INVALID_PLAN: new: a name has"),
        ("create_plan", {"code": "new", "name": "n", "description": "d" * 1001}, "PT400 INVALID_PLAN"),
        ("create_plan", {"code": "firm", "name": "n"}, "PT409 PLAN_EXISTS"),
        ("change_plan", {"code": "nothing"}, "PT404 PLAN_NOT_FOUND"),
        ("change_plan", {"code": "firm", "name": ""}, "PT400 INVALID_PLAN"),
        ("set_plan_feature", {"plan": "nothing", "feature": "f"}, "PT404 PLAN_NOT_FOUND"),
        ("set_plan_feature", {"plan": "firm", "feature": "F"}, "PT400 INVALID_PLAN: firm: the name of a feature"),
        ("set_plan_feature", {"plan": "firm", "feature": "f", "kind": "much"}, "PT400 INVALID_PLAN"),
        ("set_plan_feature", {"plan": "firm", "feature": "f", "limit_value": 1}, "PT400 INVALID_PLAN"),
        (
            "set_plan_feature",
            {"plan": "firm", "feature": "f", "kind": "limit", "limit_value": Decimal("NaN")},
            "PT400 INVALID_PLAN: firm: limit_value",
        ),
        ("remove_plan_feature", {"plan": "firm", "feature": "f"}, "PT404 FEATURE_NOT_FOUND"),
        ("remove_plan_feature", {"plan": "nothing", "feature": "f"}, "PT404 PLAN_NOT_FOUND"),
        ("set_plan", {"plan": "firm"}, "PT400 ORGANIZATION_REQUIRED"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(api: Connection, function: str, arguments: Row, refusal: str) -> None:
    assert refused(api, function, **arguments).startswith(refusal)


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("select api.create_plan('mine', 'Mine')", "PT403"),
        ("select api.change_plan('pro', 'Mine')", "PT403"),
        ("select api.set_plan_feature('pro', 'members')", "PT403"),
        ("select api.remove_plan_feature('pro', 'members')", "PT403"),
        ("select api.create_price('api.request', unit_amount_cents => 0)", "PT403"),
        ("select api.set_plan('pro')", "PT403"),
        ("select * from api.prices", "42501"),
        ("select billing.create_plan('mine', 'Mine', '', true, 0)", "42501"),
        ("select billing.set_plan('pro')", "42501"),
        ("update api.organizations set plan = 'pro', currency = 'jpy'", "42501"),
    ],
)
def test_an_owner_makes_no_plans_and_prices(
    api: Connection, organization: Organization, statement: str, state: str
) -> None:
    caller = Caller("member", organization["owner"].subject)
    with pytest.raises(psycopg.Error) as error, request(api, caller):
        run(api, statement)
    assert error.value.sqlstate == state


def test_a_plan_shows_the_prices_that_count_in_it(api: Connection, meter: str, plan: str) -> None:
    def shown() -> list[tuple[Any, ...]]:
        prices = plans(api, Caller("platform_admin", "staff"))[plan]["prices"]
        return [(p["currency"], p["unit_amount_cents"], p["dimension_value"]) for p in prices if p["meter"] == meter]

    price(api, meter, unit_amount_cents=3)
    price(api, meter, unit_amount_cents=4, dimension="model", dimension_value="large")
    price(api, meter, unit_amount_cents=5, currency="jpy")
    price(api, meter, unit_amount_cents=6, effective_from=NEXT_YEAR)
    assert shown() == [("jpy", 5, None), ("usd", 4, "large"), ("usd", 3, None)]
    price(api, meter, plan=plan, unit_amount_cents=1)
    assert shown() == [("jpy", 5, None), ("usd", 1, None)], "its own stand in place of those for everybody"
    price(api, meter, plan=plan, model="none")
    assert shown() == [("jpy", 5, None), ("usd", 4, "large"), ("usd", 3, None)]
    by_staff(api, "delete_meter", code=meter)
    assert shown() == []

    price(api, plan=plan, model="flat", unit_amount_cents=4900)
    fee = plans(api, Caller("platform_admin", "staff"))[plan]["prices"]
    assert [p["unit_amount_cents"] for p in fee if p["meter"] is None] == [4900]


def test_staff_gives_an_organization_a_plan_for_what_is_not_finalized(
    api: Connection,
    sidecar: Connection,
    superuser: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    meter: str,
    plan: str,
) -> None:
    theirs = make_organization(shared_database)
    price(api, meter, plan=plan, effective_from=LAST_YEAR)
    for ago in (1, 0):
        ingest(sidecar, [event(f"e{ago}", moment(ago), name=meter, quantity=10)], theirs.id)
    finalize(superuser, theirs.id, month(1))
    assert summary(api, theirs, meter) == [(10, 0)]

    with api.transaction():
        enter(api, Caller("platform_admin", "staff", theirs.slug))
        assert api.execute("select plan from api.set_plan(%s)", [plan]).fetchall() == [(plan,)]
    assert summary(api, theirs, meter) == [(10, 20)]
    billed = "select sum(total_cents) from billing.invoices where organization_id = %s"
    assert value(superuser, billed, theirs.id) == 0, "what is finalized stays as it was"
    with pytest.raises(psycopg.Error, match="PLAN_NOT_FOUND"), api.transaction():
        enter(api, Caller("platform_admin", "staff", theirs.slug))
        api.execute("select api.set_plan('nothing')")


# Prices


@pytest.mark.parametrize("amount", ["0", "0.000000000001", "123456789012345.123456789012", "25"])
def test_amounts_are_kept_exactly(api: Connection, meter: str, amount: str) -> None:
    made = price(api, meter, unit_amount_cents=Decimal(amount))
    assert made["unit_amount_cents"] == Decimal(amount)
    assert made["is_in_force"] and made["superseded_at"] is None


def test_tiers_are_kept_in_one_shape(api: Connection, meter: str) -> None:
    tiers: list[Row] = [
        {"up_to": "10.50", "unit_amount_cents": "0.123456789012"},
        {"up_to": 20, "flat_amount_cents": 5, "unit_amount_cents": None},
        {"unit_amount_cents": 1},
    ]
    made = price(api, meter, model="graduated", tiers=tiers)
    assert [
        list(map(str, map(tier.get, ("up_to", "unit_amount_cents", "flat_amount_cents")))) for tier in made["tiers"]
    ] == [
        ["10.5", "0.123456789012", "0"],
        ["20", "0", "5"],
        ["None", "1", "0"],
    ]


FAULTS: list[tuple[Row, str]] = [
    ({"meter": None}, "a price is for a meter, or for a plan"),
    ({"meter": "nothing"}, "there is no meter nothing"),
    ({"plan": "nothing"}, "there is no plan nothing"),
    ({"currency": "USD"}, "there is no currency USD"),
    ({"currency": None}, "there is no currency null"),
    ({"model": "stairs", "unit_amount_cents": 1}, "there is no model stairs"),
    ({"model": None}, "there is no model null"),
    ({"unit_amount_cents": None}, "a per_unit price needs unit_amount_cents"),
    ({"unit_amount_cents": -1}, "unit_amount_cents is a number from 0"),
    ({"unit_amount_cents": Decimal("NaN")}, "unit_amount_cents is a number from 0"),
    ({"unit_amount_cents": Decimal("Infinity")}, "unit_amount_cents is a number from 0"),
    ({"unit_amount_cents": Decimal("1e15")}, "unit_amount_cents is a number from 0"),
    ({"unit_amount_cents": Decimal("1e-13")}, "unit_amount_cents is a number from 0"),
    ({"included_quantity": -1}, "included_quantity is a number from 0"),
    ({"minimum_cents": Decimal("NaN")}, "minimum_cents is a number from 0"),
    ({"minimum_cents": 2, "maximum_cents": 1}, "minimum_cents is above maximum_cents"),
    ({"model": "package", "unit_amount_cents": 1}, "a package price needs package_size"),
    ({"model": "package", "unit_amount_cents": 1, "package_size": 0}, "a package price needs package_size"),
    ({"package_size": 5}, "package_size is for package prices"),
    ({"model": "volume"}, "a volume price needs tiers"),
    ({"tiers": ONE_TIER, "unit_amount_cents": 1}, "tiers are for graduated and volume prices"),
    ({"model": "volume", "tiers": ONE_TIER, "unit_amount_cents": 1}, "has its amounts in tiers"),
    ({"model": "none", "unit_amount_cents": 1}, "model none withdraws a price, and has no amounts"),
    ({"model": "none"}, "has no price of its own that could be withdrawn"),
    ({"meter": None, "plan": "pro"}, "a price without a meter is the fee of a plan"),
    (
        {"meter": None, "plan": "pro", "model": "flat", "unit_amount_cents": 1, "minimum_cents": 1},
        "is the fee of a plan",
    ),
    ({"dimension": "model"}, "names both, a dimension and a dimension_value"),
    ({"dimension": "model", "dimension_value": ""}, "dimension_value has 1 to 200 characters"),
    ({"dimension": "color", "dimension_value": "red"}, "keeps no dimension color"),
    *(
        ({"dimension": name, "dimension_value": "red"}, f"{name} is no dimension that a price can be for")
        for name in ("meter", "billing_entity_id", "billing_entity_type")
    ),
    ({"effective_from": datetime(1999, 12, 31, tzinfo=UTC)}, "lies before 2000 or more than ten years ahead"),
    ({"effective_from": "infinity"}, "lies before 2000 or more than ten years ahead"),
    *(
        ({"model": "graduated", "tiers": tiers}, problem)
        for tiers, problem in (
            ({}, "tiers is a list of 1 to 100 tiers"),
            ([], "tiers is a list of 1 to 100 tiers"),
            ([{"up_to": n, "unit_amount_cents": 1} for n in range(1, 101)] + ONE_TIER, "tiers is a list of 1 to 100"),
            ([1], "tier 1 is no object"),
            ([{"unit_amount_cent": 1}], "tier 1 has 'unit_amount_cent', and a tier has up_to"),
            ([{"unit_amount_cents": "much"}], "unit_amount_cents of tier 1 is no number"),
            ([{"unit_amount_cents": [1]}], "unit_amount_cents of tier 1 is no number"),
            ([{"unit_amount_cents": -1}], "unit_amount_cents of tier 1 is no number"),
            ([{"unit_amount_cents": 1e15}], "unit_amount_cents of tier 1 is no number"),
            ([{"up_to": None}], "tier 1 has no amount"),
            ([{"up_to": 5, "unit_amount_cents": 1}], "the last tier reaches without end"),
            ([*ONE_TIER, *ONE_TIER], "tier 1 has no up_to"),
            ([{"up_to": 0, "unit_amount_cents": 1}, *ONE_TIER], "tier 1 ends at 0, which is not above 0"),
            (
                [{"up_to": n, "unit_amount_cents": 1} for n in (5, 5)] + ONE_TIER,
                "tier 2 ends at 5, which is not above 5",
            ),
        )
    ),
]


@pytest.mark.parametrize(("terms", "problem"), FAULTS)
def test_what_is_wrong_with_a_price_is_said(api: Connection, any_meter: str, terms: Row, problem: str) -> None:
    terms = {"meter": any_meter, **terms}
    message = refused(api, "create_price", **terms)
    assert message.startswith("PT400 INVALID_PRICE: ") and problem in message and "(no hint)" not in message


@pytest.fixture(scope="module")
def any_meter(api: Connection) -> str:
    by_staff(api, "create_meter", code="any", unit="u", description="d", event_name="any", group_by=["model", "meter"])
    return "any"


def test_groups_are_priced_only_where_they_add_up(api: Connection) -> None:
    for aggregation in ("max", "latest", "unique"):
        of = "user_id" if aggregation == "unique" else "quantity"
        details = {"unit": "u", "description": "d", "event_name": "e", "group_by": ["model"], "value": of}
        by_staff(api, "create_meter", code=f"a.{aggregation}", aggregation=aggregation, **details)
        message = refused(api, "create_price", f"a.{aggregation}", dimension="model", dimension_value="large")
        assert "whose groups do not add up" in message


INSERT = "insert into billing.prices (meter_code, currency, unit_amount_cents) values "


@pytest.mark.parametrize(
    ("statement", "refusal"),
    [
        (INSERT + "('any', 'usd', 'NaN')", "INVALID_PRICE: unit_amount_cents"),
        (INSERT + "('any', 'chf', 1), ('nothing', 'chf', 1)", "INVALID_PRICE: there is no meter"),
        (INSERT + "('any', 'chf', 1), ('any', 'chf', 1)", "PRICE_EXISTS"),
        ("update billing.prices set created_at = now()", "PRICE_FIXED"),
        ("delete from billing.prices", "PRICE_FIXED"),
        ("truncate billing.prices", "BILLING_PERIOD_LOCKED|AUDITED_TABLE|PRICE_FIXED"),
        ("set transaction isolation level repeatable read; " + INSERT + "('any', 'chf', 1)", "ISOLATION_LEVEL"),
    ],
)
@pytest.mark.usefixtures("any_meter")
def test_a_direct_session_is_held_to_it_as_well(superuser: Connection, statement: str, refusal: str) -> None:
    with pytest.raises(psycopg.Error, match=refusal), superuser.transaction(force_rollback=True):
        run(superuser, statement)


def test_the_first_price_may_reach_back_and_no_other_one(api: Connection, meter: str) -> None:
    price(api, meter, unit_amount_cents=2, effective_from=PAST)
    for earlier in (PAST, PAST + DAY, datetime.now(UTC) - timedelta(minutes=1)):
        assert "has a price since before" in refused(
            api, "create_price", meter, unit_amount_cents=3, effective_from=earlier
        )
    assert "has a price since before" in refused(api, "create_price", meter, model="none", effective_from=PAST + DAY), (
        "nor is one withdrawn for what has been used"
    )

    price(api, meter, unit_amount_cents=1, effective_from=PAST - DAY)
    price(api, meter, unit_amount_cents=3)
    price(api, meter, unit_amount_cents=4, effective_from=NEXT_YEAR)
    assert spans(api, meter) == [(2, False, True), (1, False, True), (3, True, True), (4, False, False)]


def test_no_group_and_no_plan_gets_another_price_for_what_has_been_used(api: Connection, meter: str, plan: str) -> None:
    """It had the price for all groups, or that for everybody."""
    price(api, meter, effective_from=PAST)
    group = {"dimension": "model", "dimension_value": "large"}
    for terms in (group, {"plan": plan}, {"plan": plan, **group}):
        told = refused(api, "create_price", meter, effective_from=PAST, **terms)
        assert "had the price for all until now" in told and "are made before the price for all" in told
    price(api, meter, **group)
    price(api, meter, plan=plan)
    price(api, meter, currency="eur", effective_from=PAST)


def test_all_groups_of_a_new_meter_may_reach_back(api: Connection, meter: str) -> None:
    price(api, meter, effective_from=PAST, dimension="model", dimension_value="large")
    price(api, meter, effective_from=PAST, dimension="model", dimension_value="small")
    price(api, meter, effective_from=PAST, unit_amount_cents=1)
    assert [in_force for _, in_force, _ in spans(api, meter)] == [True, True, True]


def test_the_same_price_again_is_told_and_not_made(api: Connection, meter: str) -> None:
    for terms in (
        {"unit_amount_cents": 2},
        {"model": "volume", "tiers": [{"unit_amount_cents": "1.50"}], "currency": "eur"},
    ):
        price(api, meter, effective_from=NEXT_YEAR, **terms)
        assert refused(api, "create_price", meter, effective_from=NEXT_YEAR, **terms).startswith("PT409 PRICE_EXISTS")
        assert "PRICE_EXISTS" in refused(api, "create_price", meter, effective_from=NEXT_YEAR + DAY, **terms)
    assert len(spans(api, meter)) == 2


def test_one_that_is_still_to_come_is_put_right(api: Connection, superuser: Connection, meter: str) -> None:
    price(api, meter, unit_amount_cents=2)
    price(api, meter, unit_amount_cents=33, effective_from=NEXT_YEAR)
    price(api, meter, unit_amount_cents=3, effective_from=NEXT_YEAR)
    in_force = "select unit_amount_cents from billing.prices_in_force(null, 'usd', %s) where meter_code = %s"
    assert value(superuser, in_force, NEXT_YEAR, meter) == 3
    assert value(superuser, in_force, NEXT_YEAR - DAY, meter) == 2
    price(api, meter, unit_amount_cents=2, effective_from=NEXT_YEAR)
    assert value(superuser, in_force, NEXT_YEAR, meter) == 2, "also by leaving it as it was"


def test_no_event_has_two_prices(api: Connection, meter: str, plan: str) -> None:
    """Of one meter, in one plan and currency, prices are for values of one dimension alone, at any moment."""
    large = {"dimension": "model", "dimension_value": "large"}
    eu = {"dimension": "region", "dimension_value": "eu"}
    price(api, meter, **large)
    assert "what has both would have two prices" in refused(api, "create_price", meter, **eu)
    assert "two prices" in refused(api, "create_price", meter, effective_from=NEXT_YEAR, **eu)
    price(api, meter, plan=plan, **eu)
    price(api, meter, currency="eur", **eu)

    price(api, meter, model="none", effective_from=NEXT_YEAR, **large)
    assert "two prices" in refused(api, "create_price", meter, effective_from=NEXT_YEAR - DAY, **eu)
    price(api, meter, effective_from=NEXT_YEAR, **eu)
    assert "two prices" in refused(api, "create_price", meter, effective_from=NEXT_YEAR, unit_amount_cents=9, **large)


def test_two_who_make_prices_at_once_are_heard_one_after_the_other(
    shared_database: Database, api: Connection, meter: str
) -> None:
    with shared_database.connect() as first, shared_database.connect() as second, ThreadPoolExecutor(1) as pool:
        insert = "insert into billing.prices (meter_code, currency, unit_amount_cents, dimension, dimension_value)"
        with first.transaction():
            first.execute(insert + " values (%s, 'usd', 1, 'model', 'large')", [meter])
            later = pool.submit(second.execute, insert + " values (%s, 'usd', 1, 'region', 'eu')", [meter])
            assert eventually(lambda: waits(first, second), bool), "the second one does not wait"
        with pytest.raises(psycopg.Error, match="would have two prices"):
            later.result(60)


def waits(observer: Connection, other: Connection) -> bool:
    waiting = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    return bool(value(observer, waiting, other.info.backend_pid))


def test_a_long_value_finds_its_usage(
    api: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization, meter: str
) -> None:
    theirs, name = make_organization(shared_database), "é" * 150
    made = price(api, meter, effective_from=LAST_YEAR, dimension="model", dimension_value=name)
    assert made["dimension_value"] != name
    ingest(sidecar, [event("e", name=meter, quantity=10, dimensions={"model": name})], theirs.id)
    assert summary(api, theirs, meter) == [(10, 20)]


def test_what_has_been_used_keeps_its_price(
    api: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization, meter: str
) -> None:
    theirs = make_organization(shared_database)
    ingest(sidecar, [event("e", name=meter, quantity=10)], theirs.id)
    assert summary(api, theirs, meter) == [(10, 0)]
    price(api, meter, effective_from=LAST_YEAR)
    assert summary(api, theirs, meter) == [(10, 20)]
    price(api, meter, unit_amount_cents=100)
    assert summary(api, theirs, meter) == [(10, 20)], "from the next period on"


# Currencies


def test_currencies_have_their_own_minor_units(api: Connection) -> None:
    with request(api, Caller("anon")):
        rows = api.execute(
            "select code, minor_units from api.currencies where code in ('jpy', 'usd', 'kwd')"
        ).fetchall()
    assert dict(rows) == {"jpy": 0, "kwd": 3, "usd": 2}


def test_a_currency_is_fixed_by_the_first_invoice(
    superuser: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    theirs = make_organization(shared_database).id
    change = "update tenancy.organizations set currency = %s where id = %s"
    with pytest.raises(psycopg.Error, match="INVALID_CURRENCY: there is no currency abc"):
        superuser.execute(change, ["abc", theirs])
    superuser.execute(change, ["jpy", theirs])
    finalize(superuser, theirs, month(1))
    assert value(superuser, "select currency from billing.invoices where organization_id = %s", theirs) == "jpy"
    with pytest.raises(psycopg.Error, match="CURRENCY_FIXED: the organization has invoices in jpy"):
        superuser.execute(change, ["usd", theirs])
    superuser.execute(change, ["jpy", theirs])


@pytest.mark.parametrize("first", ["closing", "change"])
def test_a_currency_that_changes_while_a_period_closes(
    shared_database: Database, make_organization: MakeOrganization, first: str
) -> None:
    """The invoice is in it, or it stays as it was."""
    theirs = make_organization(shared_database).id
    with shared_database.connect() as one, shared_database.connect() as other, ThreadPoolExecutor(1) as pool:

        def close(connection: Connection) -> None:
            finalize(connection, theirs, month(1))

        def change(connection: Connection) -> None:
            connection.execute("update tenancy.organizations set currency = 'eur' where id = %s", [theirs])

        earlier, later = (close, change) if first == "closing" else (change, close)
        with one.transaction():
            earlier(one)
            answer = pool.submit(later, other)
            assert eventually(lambda: waits(one, other), bool), "it does not wait"
        if first == "closing":
            with pytest.raises(psycopg.Error, match="CURRENCY_FIXED"):
                answer.result(60)
        else:
            answer.result(60)
        currencies = one.execute(
            """
            select o.currency, i.currency from tenancy.organizations o
            join billing.invoices i on i.organization_id = o.id where o.id = %s
            """,
            [theirs],
        ).fetchall()
    assert currencies == [("usd", "usd") if first == "closing" else ("eur", "eur")]


# Seeds


@pytest.fixture
def unpriced(superuser: Connection) -> Iterator[None]:
    """As if the three meters of the platform had never had a price."""
    with superuser.transaction(force_rollback=True):
        superuser.execute("set local session_replication_role = replica")
        superuser.execute("delete from billing.prices where meter_code in ('doc.upload', 'doc.processed')")
        superuser.execute("set local session_replication_role = origin")
        yield


@pytest.mark.usefixtures("unpriced")
def test_only_what_never_had_a_price_is_seeded(superuser: Connection) -> None:
    superuser.execute(
        """
        insert into billing.prices (meter_code, plan_code, currency, unit_amount_cents)
        values ('doc.processed', 'firm', 'eur', 9)
        """
    )
    superuser.execute("select billing.seed_prices(0.5)")
    seeded = superuser.execute(
        """
        select meter_code, plan_code, unit_amount_cents from billing.prices
        where meter_code in ('api.request', 'doc.upload', 'doc.processed') order by 1
        """
    ).fetchall()
    assert seeded == [("api.request", None, 25), ("doc.processed", "firm", 9), ("doc.upload", None, Decimal("0.5"))]


def test_usage_rate_cents_is_what_is_seeded_and_changes_no_price(database: Database) -> None:
    with database.connect() as connection:
        with connection.transaction():
            connection.execute("set local session_replication_role = replica")
            connection.execute("delete from billing.prices")
        for cents in ("0.125", "99"):
            migrate(database.migrator, Settings(usage_rate_cents=Decimal(cents)))
        amounts = connection.execute("select unit_amount_cents from billing.prices").fetchall()
    assert amounts == [(Decimal("0.125"),)] * 3

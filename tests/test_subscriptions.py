"""A subscription over its life: what each call makes of it, what it answers when it comes again, what is planned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, Connection, enter, request
from tests.subscriptions import Desk, Row, desk, phases_of
from tests.usage import event, finalize, ingest, moment, month, value

TRIAL = timedelta(days=14)
GRACE = timedelta(days=7)


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


@pytest.fixture
def staff(api: Connection, organization: Organization) -> Iterator[Desk]:
    with desk(api, organization) as made:
        yield made


@pytest.fixture
def books(superuser: Connection, organization: Organization) -> Iterator[Desk]:
    """Staff, who may become who keeps the books."""
    with desk(superuser, organization) as made:
        yield made


def near(left: datetime, right: datetime) -> bool:
    return abs(left - right) < timedelta(minutes=10)


def now() -> datetime:
    return datetime.now(UTC)


def seen(staff: Desk) -> Row:
    with staff.connection.transaction():
        row = staff.connection.execute(
            """
            select to_jsonb(s) from api.billing_subscriptions s where organization_id = tenancy.current_org()
            """
        ).fetchone()
    assert row
    found: Row = row[0]
    return found


def reason_of_cancellation(staff: Desk) -> str:
    query = "select reason from api.subscription_phases where organization_id = %s and status = 'canceled'"
    return str(value(staff.connection, query, staff.organization.id))


def test_a_trial_without_a_payment_method_ends_in_a_pause(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro")
    assert {name: made[name] for name in ("plan", "status", "has_access", "has_payment_method", "cancel_at")} == {
        "plan": "pro",
        "status": "trialing",
        "has_access": True,
        "has_payment_method": False,
        "cancel_at": None,
    }
    assert made["trial_end"] == made["since"] + TRIAL
    assert near(made["since"], now())
    assert made["since"] == made["started_at"]
    assert (made["current_period_start"], made["current_period_end"]) == (moment(0), moment(-1))
    assert staff.phases() == [("trialing", "pro"), ("paused", "pro")]


def test_a_payment_method_decides_how_a_trial_ends_until_it_does(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=3)
    for has, then in ((True, "active"), (True, "active"), (False, "paused"), (False, "paused"), (True, "active")):
        row = staff.call("set_payment_method", has_payment_method=has)
        assert (row["status"], row["has_payment_method"]) == ("trialing", has)
        assert staff.phases() == [("trialing", "pro"), (then, "pro")]
    assert len(staff.messages()) == 4  # the start, and each that was not the same again


def test_without_a_trial_it_is_active_or_waits_for_a_payment_method(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro", trial_days=0)
    assert (made["status"], made["has_access"], made["trial_end"]) == ("incomplete", False, None)
    row = staff.call("set_payment_method", has_payment_method=True)
    assert (row["status"], row["has_access"], row["reason"]) == ("active", True, "payment method added")
    staff.call("cancel_subscription", at_period_end=False)
    made = staff.call("start_subscription", plan="firm", trial_days=0, has_payment_method=True)
    assert (made["plan"], made["status"]) == ("firm", "active")


def test_there_is_one_at_a_time_and_one_trial(staff: Desk) -> None:
    first = staff.call("start_subscription", plan="pro")
    assert "SUBSCRIPTION_EXISTS: the organization has a subscription to pro, which is trialing" in staff.refused(
        "SUBSCRIPTION_EXISTS", "start_subscription", plan="pro"
    )
    staff.call("cancel_subscription", at_period_end=False)
    second = staff.call("start_subscription", plan="pro", has_payment_method=True)
    assert second["id"] != first["id"]
    assert (second["status"], second["trial_end"]) == ("active", None)
    staff.call("cancel_subscription", at_period_end=False)
    assert staff.call("start_subscription", plan="pro", trial_days=5)["status"] == "trialing"


def test_the_plan_changes_at_once_and_a_trial_goes_on(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="starter", has_payment_method=True)
    row = staff.call("change_subscription", plan="pro")
    assert (row["plan"], row["status"], row["trial_end"]) == ("pro", "trialing", made["trial_end"])
    assert staff.phases() == [("trialing", "starter"), ("trialing", "pro"), ("active", "pro")]
    assert staff.call("change_subscription", plan="pro")["since"] == row["since"]
    assert len(staff.messages()) == 2
    told = staff.messages()[-1]
    assert (told["plan"], told["previous"]["plan"], told["next"]["status"]) == ("pro", "starter", "active")


def test_the_plan_changes_at_the_end_of_the_period(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    row = staff.call("change_subscription", plan="starter", at_period_end=True)
    assert (row["plan"], row["next_plan"], row["next_plan_at"]) == ("pro", "starter", moment(-1))
    told = len(staff.messages())
    assert staff.call("change_subscription", plan="starter", at_period_end=True) == row
    assert len(staff.messages()) == told
    # The last word counts, and the plan of now takes it back.
    assert staff.call("change_subscription", plan="firm", at_period_end=True)["next_plan"] == "firm"
    assert staff.phases() == [("active", "pro"), ("active", "firm")]
    assert staff.call("change_subscription", plan="pro", at_period_end=True)["next_plan"] is None
    assert staff.phases() == [("active", "pro")]
    # So does another one at once.
    staff.call("change_subscription", plan="starter", at_period_end=True)
    assert staff.call("change_subscription", plan="firm")["next_plan"] is None
    assert staff.phases() == [("active", "pro"), ("active", "firm")]


def test_a_change_at_period_end_of_a_trial_comes_with_its_end(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro")
    row = staff.call("change_subscription", plan="starter", at_period_end=True)
    assert (row["next_plan"], row["next_plan_at"]) == ("starter", made["trial_end"])
    assert staff.phases() == [("trialing", "pro"), ("paused", "starter")]
    assert staff.call("set_payment_method", has_payment_method=True)["next_plan"] == "starter"
    assert staff.phases() == [("trialing", "pro"), ("active", "starter")]


# What comes meanwhile, and what status the change has then.
MEANWHILE: list[tuple[list[tuple[str, Row]], str]] = [
    ([("mark_past_due", {})], "past_due"),
    ([("mark_past_due", {}), ("mark_paid", {})], "active"),
    ([("mark_past_due", {}), ("resume_subscription", {})], "active"),
    ([("pause_subscription", {})], "paused"),
    ([("pause_subscription", {}), ("resume_subscription", {})], "active"),
    ([("set_payment_method", {"has_payment_method": False})], "active"),
    ([("cancel_subscription", {}), ("resume_subscription", {})], "active"),
]


@pytest.mark.parametrize(("calls", "status"), MEANWHILE)
def test_what_is_agreed_for_later_stays_over_what_comes_meanwhile(
    staff: Desk, calls: list[tuple[str, Row]], status: str
) -> None:
    """A downgrade that is lost would cost a month of what was left."""
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    staff.call("change_subscription", plan="starter", at_period_end=True)
    for function, arguments in calls:
        row = staff.call(function, **arguments)
    assert (row["next_plan"], row["next_plan_at"]) == ("starter", moment(-1))
    assert phases_of(staff.connection, staff.organization)[-1] == (status, "starter", moment(-1))


@pytest.mark.parametrize("calls", [calls for calls, _ in MEANWHILE[:-1] if calls[-1][0] != "resume_subscription"])
def test_so_does_a_cancellation(staff: Desk, calls: list[tuple[str, Row]]) -> None:
    """Above all when a payment comes: who has canceled would be charged again."""
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    staff.call("cancel_subscription", reason="Moving on")
    for function, arguments in calls:
        assert staff.call(function, **arguments)["cancel_at"] == moment(-1)
    assert phases_of(staff.connection, staff.organization)[-1] == ("canceled", "pro", moment(-1))
    assert reason_of_cancellation(staff) == "Moving on"


def test_it_is_canceled_at_the_end_of_its_period_and_that_is_taken_back(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    row = staff.call("cancel_subscription", reason="Too dear")
    assert (row["status"], row["cancel_at"], row["has_access"]) == ("active", moment(-1), True)
    told = len(staff.messages())
    assert staff.call("cancel_subscription", reason="Again") == row
    assert len(staff.messages()) == told
    # Another plan until then does not take it back; another one from then on contradicts it.
    assert staff.call("change_subscription", plan="firm")["cancel_at"] == moment(-1)
    staff.refused("SUBSCRIPTION_ENDING", "change_subscription", plan="starter", at_period_end=True)
    assert staff.call("resume_subscription")["cancel_at"] is None
    assert staff.call("resume_subscription")["status"] == "active"
    assert staff.phases() == [("active", "pro"), ("active", "firm")]


def test_a_trial_that_is_canceled_ends_as_it_would_have(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro", has_payment_method=True)
    row = staff.call("cancel_subscription")
    assert (row["status"], row["cancel_at"], row["has_access"]) == ("trialing", made["trial_end"], True)
    assert staff.phases() == [("trialing", "pro"), ("canceled", "pro")]
    staff.call("resume_subscription")
    assert staff.phases() == [("trialing", "pro"), ("active", "pro")]


def test_what_is_canceled_at_once_is_over(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro")
    staff.call("cancel_subscription")
    row = staff.call("cancel_subscription", at_period_end=False, reason="Fraud")
    assert (row["status"], row["reason"], row["has_access"], row["cancel_at"]) == ("canceled", "Fraud", False, None)
    assert (row["current_period_start"], row["next_plan"]) == (None, None)
    assert staff.phases() == [("trialing", "pro"), ("canceled", "pro")]
    for function, arguments in (
        ("cancel_subscription", {"at_period_end": False}),
        ("cancel_subscription", {}),
        ("resume_subscription", {}),
        ("pause_subscription", {}),
        ("mark_past_due", {}),
        ("mark_paid", {}),
        ("change_subscription", {"plan": "firm"}),
        ("set_payment_method", {"has_payment_method": True}),
    ):
        assert "PT404" in staff.refused("NO_SUBSCRIPTION", function, **arguments)


def test_past_due_keeps_access_for_its_grace(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    row = staff.call("mark_past_due")
    assert (row["status"], row["has_access"]) == ("past_due", True)
    assert row["grace_ends_at"] == row["since"] + GRACE
    assert staff.call("mark_past_due", grace_days=300) == row  # not extended
    changed = staff.call("change_subscription", plan="firm")
    assert (changed["status"], changed["grace_ends_at"], changed["reason"]) == (
        "past_due",
        row["grace_ends_at"],
        "payment failed",
    )
    assert staff.call("mark_paid")["status"] == "active"
    assert staff.call("mark_paid")["grace_ends_at"] is None
    assert staff.call("mark_past_due", grace_days=0)["has_access"] is False
    staff.call("cancel_subscription", at_period_end=False)
    assert staff.phases()[-2:] == [("past_due", "firm"), ("canceled", "firm")]


def test_only_what_is_paid_for_becomes_past_due(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro")
    for function in ("mark_past_due", "mark_paid"):
        assert "it is trialing" in staff.refused("SUBSCRIPTION_NOT_ACTIVE", function)
    staff.call("pause_subscription")
    assert "it is paused" in staff.refused("SUBSCRIPTION_NOT_ACTIVE", "mark_past_due")


def test_a_pause_ends_by_resuming(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    paused = staff.call("pause_subscription")
    assert (paused["status"], paused["has_access"]) == ("paused", False)
    assert staff.call("pause_subscription") == paused
    staff.call("set_payment_method", has_payment_method=False)
    # Paused by hand: a payment method ends it as little as it began it.
    assert staff.call("set_payment_method", has_payment_method=True)["status"] == "paused"
    staff.call("set_payment_method", has_payment_method=False)
    staff.refused("PAYMENT_METHOD_REQUIRED", "resume_subscription")
    staff.call("set_payment_method", has_payment_method=True)
    assert staff.call("resume_subscription")["status"] == "active"


def test_a_trial_that_was_paused_goes_on_until_its_end(staff: Desk) -> None:
    made = staff.call("start_subscription", plan="pro")
    staff.call("pause_subscription")
    assert staff.phases() == [("trialing", "pro"), ("paused", "pro")]
    row = staff.call("resume_subscription")
    assert (row["status"], row["trial_end"]) == ("trialing", made["trial_end"])
    assert phases_of(staff.connection, staff.organization)[-1] == ("paused", "pro", made["trial_end"])


def test_a_payment_method_ends_the_pause_after_a_trial(staff: Desk) -> None:
    """Also when the plan was changed in it."""
    staff.call("start_subscription", plan="pro", at=now() - timedelta(days=20))
    assert staff.phases() == [("trialing", "pro"), ("paused", "pro")]
    row = staff.call("change_subscription", plan="starter")
    assert (row["status"], row["reason"]) == ("paused", "trial ended without a payment method")
    assert staff.call("set_payment_method", has_payment_method=True)["status"] == "active"


def test_subscriptions_are_brought_along(staff: Desk) -> None:
    """From elsewhere: at moments that are past, one after the other."""
    at = moment(2, days=3)
    made = staff.call("start_subscription", plan="starter", trial_days=5, has_payment_method=True, at=at)
    assert (made["status"], made["started_at"], made["since"]) == ("active", at, at + timedelta(days=5))
    staff.refused("SUBSCRIPTION_CHANGED", "change_subscription", plan="pro", at=at + timedelta(days=5))
    staff.refused("SUBSCRIPTION_CHANGED", "pause_subscription", at=at + timedelta(days=1))
    changed = staff.call("change_subscription", plan="pro", at=moment(1, days=2))
    assert (changed["plan"], changed["since"]) == ("pro", moment(1, days=2))
    ended = staff.call("cancel_subscription", at_period_end=False, at=moment(1, days=9))
    assert (ended["status"], ended["since"]) == ("canceled", moment(1, days=9))
    again = staff.call("start_subscription", plan="firm", has_payment_method=True, at=moment(1, days=20))
    assert (again["status"], again["started_at"]) == ("active", moment(1, days=20))
    assert value(staff.connection, "select plan from api.organizations where id = tenancy.current_org()") == "firm"


@pytest.mark.parametrize(
    ("function", "arguments", "code"),
    [
        ("start_subscription", {"plan": "none"}, "PLAN_NOT_FOUND"),
        ("start_subscription", {"plan": None}, "PLAN_NOT_FOUND"),
        ("start_subscription", {"plan": "pro", "trial_days": 366}, "INVALID_SUBSCRIPTION"),
        ("start_subscription", {"plan": "pro", "trial_days": -1}, "INVALID_SUBSCRIPTION"),
        ("start_subscription", {"plan": "pro", "at": "2999-01-01"}, "INVALID_SUBSCRIPTION"),
        ("start_subscription", {"plan": "pro", "at": "infinity"}, "INVALID_SUBSCRIPTION"),
        ("start_subscription", {"plan": "pro", "at": "-infinity"}, "INVALID_SUBSCRIPTION"),
        ("start_subscription", {"plan": "pro", "at": "1999-01-01"}, "TIME_OUT_OF_RANGE"),
        ("change_subscription", {"plan": "none"}, "PLAN_NOT_FOUND"),
        ("change_subscription", {"plan": "pro", "at_period_end": True, "at": "2026-01-01"}, "INVALID_SUBSCRIPTION"),
        ("cancel_subscription", {"at": "2026-01-01"}, "INVALID_SUBSCRIPTION"),
        ("cancel_subscription", {"reason": " "}, "INVALID_SUBSCRIPTION"),
        ("cancel_subscription", {"reason": "x" * 201}, "INVALID_SUBSCRIPTION"),
        ("mark_past_due", {"grace_days": 366}, "INVALID_SUBSCRIPTION"),
        ("set_payment_method", {"has_payment_method": None}, "INVALID_SUBSCRIPTION"),
        ("change_subscription", {"plan": "pro"}, "NO_SUBSCRIPTION"),
        ("resume_subscription", {}, "NO_SUBSCRIPTION"),
    ],
)
def test_nonsense_is_named(staff: Desk, function: str, arguments: dict[str, Any], code: str) -> None:
    staff.refused(code, function, **arguments)
    assert staff.phases() == []


def test_the_platform_has_none(api: Connection) -> None:
    with request(api, Caller("platform_admin", "staff", "platform")) as connection:
        Desk(connection, None).refused("INVALID_SUBSCRIPTION", "start_subscription", plan="pro")  # type: ignore[arg-type]


def test_nothing_changes_in_what_is_finalized(books: Desk) -> None:
    books.connection.execute("reset role")
    finalize(books.connection, books.organization.id, month(1))
    books.as_staff()
    books.refused("BILLING_PERIOD_LOCKED", "start_subscription", plan="pro", at=moment(1, days=9))
    at = moment(0)
    assert books.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True, at=at)["since"] == at


OWNERS = [("cancel_subscription", {}), ("resume_subscription", {}), ("cancel_subscription", {"reason": "Too dear"})]
NOT_OWNERS: list[tuple[str, Row]] = [
    ("cancel_subscription", {"at_period_end": False}),
    ("cancel_subscription", {"at_period_end": False, "at": "2026-01-01"}),
    ("resume_subscription", {"at": "2026-01-01"}),
    ("start_subscription", {"plan": "firm"}),
    ("change_subscription", {"plan": "firm"}),
    ("change_subscription", {"plan": "starter", "at_period_end": True}),
    ("pause_subscription", {}),
    ("mark_past_due", {}),
    ("mark_paid", {}),
    ("set_payment_method", {"has_payment_method": True}),
]


def test_an_owner_cancels_at_period_end_and_takes_that_back(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    staff.as_owner()
    assert staff.call("cancel_subscription", reason="Too dear")["cancel_at"] == moment(-1)
    assert staff.call("cancel_subscription")["cancel_at"] == moment(-1)
    assert staff.call("resume_subscription")["cancel_at"] is None
    assert staff.call("resume_subscription")["status"] == "active"
    for function, arguments in NOT_OWNERS:
        assert "PT403" in staff.refused("ROLE_REQUIRED", function, **arguments)
    staff.call("cancel_subscription")
    made_by = "select made_by from api.subscription_phases where status = 'canceled'"
    assert value(staff.connection, made_by) == str(staff.organization["owner"].id)


@pytest.mark.parametrize("before", ["pause_subscription", "mark_past_due"])
def test_an_owner_resumes_nothing_else(staff: Desk, before: str) -> None:
    """A payment that failed is not made good by who owes it, nor what the provider has paused."""
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    status = staff.call(before)["status"]
    staff.as_owner()
    assert f"the subscription is {status}" in staff.refused("ROLE_REQUIRED", "resume_subscription")
    staff.call("cancel_subscription")
    row = staff.call("resume_subscription")
    assert (row["status"], row["cancel_at"]) == (status, None)


def test_an_owner_takes_back_no_cancellation_of_staff(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
    staff.call("cancel_subscription", reason="Terminated")
    staff.as_owner()
    staff.call("cancel_subscription")
    assert "only platform_admin takes it back" in staff.refused("ROLE_REQUIRED", "resume_subscription")
    staff.as_staff()
    assert staff.call("resume_subscription")["cancel_at"] is None
    staff.as_owner()
    staff.call("cancel_subscription")
    staff.as_staff()
    staff.call("change_subscription", plan="firm")  # which plans the cancellation anew
    staff.as_owner()
    assert staff.call("resume_subscription")["cancel_at"] is None


@pytest.mark.parametrize("role", ["admin", "member", "viewer", "billing"])
def test_nobody_else_in_an_organization_writes_it(staff: Desk, role: str) -> None:
    staff.call("start_subscription", plan="pro", has_payment_method=True)
    person = staff.organization[role]
    enter(staff.connection, Caller("member", person.subject, str(staff.organization.id)))
    for function, arguments in [*OWNERS, *NOT_OWNERS]:
        assert "PT403" in staff.refused("ROLE_REQUIRED", function, **arguments)
    for function in ("cancel_subscription", "resume_subscription"):
        assert "only an owner of the organization" in staff.refused("ROLE_REQUIRED", function)
    for function in ("cancel_own_subscription(null)", "resume_own_subscription()"):
        with pytest.raises(Exception, match="ROLE_REQUIRED: "), staff.connection.transaction():
            staff.connection.execute(f"select billing.{function}".encode())
    rows = staff.connection.execute("select 1 from api.billing_subscriptions").fetchall()
    assert len(rows) == (1 if role in ("admin", "billing") else 0)


def test_the_plan_of_staff_follows_the_subscription(staff: Desk) -> None:
    """set_plan, which was there before: without a subscription for all that is open, else from now on."""
    plan = "select plan from api.organizations where id = tenancy.current_org()"
    staff.call("set_plan", plan="pro")
    assert staff.phases() == []
    staff.call("start_subscription", plan="starter", trial_days=0, has_payment_method=True)
    assert value(staff.connection, plan) == "starter"
    staff.call("cancel_subscription")
    staff.call("set_plan", plan="firm")
    assert staff.phases() == [("active", "starter"), ("active", "firm"), ("canceled", "firm")]
    staff.call("cancel_subscription", at_period_end=False)
    staff.call("set_plan", plan="firm")  # without a subscription, which is access again
    assert seen(staff)["status"] == "canceled"
    phase = staff.connection.execute(
        """
        select status, plan, subscription_id from api.subscription_phases
        where organization_id = tenancy.current_org() order by starts_at desc limit 1
        """
    ).fetchone()
    assert phase == ("active", "firm", None)
    assert staff.call("start_subscription", plan="pro", has_payment_method=True)["status"] == "active"


@pytest.mark.parametrize("at", [None, moment(2)])
def test_what_is_planned_keeps_its_moment_when_the_schedule_changes(staff: Desk, at: datetime | None) -> None:
    """Also where nobody has needed the period of now before."""
    staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True, at=at)
    staff.call("change_subscription", plan="starter", at_period_end=True)
    staff.call("set_billing_schedule", billing_timezone="Asia/Tokyo", billing_anchor_day=15)
    row = staff.call("cancel_subscription")
    assert row["cancel_at"] == row["current_period_end"] == moment(-1)


def test_an_organization_that_had_one_stays(staff: Desk) -> None:
    staff.call("start_subscription", plan="pro")
    staff.call("cancel_subscription", at_period_end=False)
    staff.as_owner()
    with pytest.raises(psycopg.Error, match="ORGANIZATION_BILLED: "), staff.connection.transaction():
        staff.connection.execute("delete from api.organizations where id = tenancy.current_org()")


def test_a_conversion_leaves_it_as_it_is(
    shared_database: Database, api: Connection, make_organization: MakeOrganization
) -> None:
    personal = make_organization(shared_database, kind="personal", roles=("owner",))
    with desk(api, personal) as staff:
        staff.call("start_subscription", plan="pro", trial_days=0, has_payment_method=True)
        staff.call("change_subscription", plan="starter", at_period_end=True)
        before = staff.call("cancel_subscription")
        staff.as_owner()
        staff.call("convert_to_organization", name="Firm", slug=f"{personal.slug}-firm")
        staff.as_staff()
        assert staff.call("cancel_subscription") == before


# When it was canceled, and the fees of the two months that have ended: nothing was ever used.
FEES = [
    (None, [1, 1]),
    (moment(0), [1, 1]),
    (moment(1) + (moment(0) - moment(1)) / 4, [1, 0.25]),
    (moment(1), [1]),
]


@pytest.mark.parametrize(("canceled_at", "quantities"), FEES)
def test_a_fee_is_due_without_usage_as_long_as_it_runs(
    books: Desk, canceled_at: datetime | None, quantities: list[float]
) -> None:
    books.call("create_plan", code="fee", name="Fee")
    books.call("create_price", plan="fee", model="flat", unit_amount_cents=1000, effective_from=moment(9))
    books.call("start_subscription", plan="fee", trial_days=0, has_payment_method=True, at=moment(2))
    if canceled_at is not None:
        books.call("cancel_subscription", at_period_end=False, at=canceled_at)
    books.connection.execute("reset role")
    while due := books.connection.execute("select * from billing.due_periods(interval '0', 10)").fetchall():
        for organization_id, start, _ in due:
            books.connection.execute("select billing.close_period(%s, %s)", [organization_id, start])
    billed = books.connection.execute(
        """
        select l.quantity
        from billing.invoices i
        left join billing.invoice_lines l
          on l.organization_id = i.organization_id and l.invoice_id = i.id and l.kind = 'fee'
        where i.organization_id = %s
        order by i.period_start
        """,
        [books.organization.id],
    ).fetchall()
    assert [float(quantity) for (quantity,) in billed] == quantities


def test_usage_of_a_trial_is_recorded_and_costs_nothing(books: Desk) -> None:
    books.call("start_subscription", plan="pro", at=moment(1), trial_days=10, has_payment_method=True)
    books.connection.execute("reset role")
    sent = [event("in", moment(1, days=3)), event("after", moment(1, days=12))]
    ingest(books.connection, sent, books.organization.id)
    rated = books.connection.execute(
        """
        select events, amount_cents from billing.rate_period(%s, %s, %s) where meter_code = 'api.request' order by 2
        """,
        [books.organization.id, moment(1), moment(0)],
    ).fetchall()
    assert rated == [(1, 0), (1, 25)]

"""Many who write the subscription of one organization at the same moment, beside usage and the closing of periods: each
change counts or is refused by name, and what comes of it is one timeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, Connection, enter
from tests.subscriptions import Row, assert_well_formed, call, code_of, desk, phases_of, staff_of
from tests.usage import event, ingest, moment, race, value

Action = Callable[[Connection], str]
_number = count()

# Refusals that name what came in between.
MAY_REFUSE = {
    "NO_SUBSCRIPTION",
    "SUBSCRIPTION_EXISTS",
    "SUBSCRIPTION_ENDING",
    "SUBSCRIPTION_FIXED",
    "SUBSCRIPTION_NOT_ACTIVE",
    "PAYMENT_METHOD_REQUIRED",
}


@pytest.fixture(autouse=True, scope="module")
def fees(superuser: Connection) -> None:
    """Each plan has one, so that a phase too many or too few is money."""
    superuser.execute(
        """
        insert into billing.prices (plan_code, currency, effective_from, model, unit_amount_cents)
        select l.code, 'usd', '2020-01-01Z', 'flat', 1000 * l.position from billing.plans l
        """
    )


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


def asking(caller: Caller, function: str, **arguments: object) -> Action:
    """A request, as PostgREST makes it, and what came of it: ok, or the code of the refusal."""

    def ask(connection: Connection) -> str:
        try:
            with connection.transaction():
                enter(connection, caller)
                call(connection, function, **arguments)
        except psycopg.Error as error:
            return code_of(error)
        return "ok"

    return ask


def start(superuser: Connection, organization: Organization, **arguments: object) -> Row:
    with superuser.transaction():
        enter(superuser, staff_of(organization))
        return call(superuser, "start_subscription", **{"plan": "pro", "has_payment_method": True, **arguments})


@pytest.mark.parametrize("number", range(3))
def test_of_sixteen_who_start_one_one_does(
    shared_database: Database, superuser: Connection, organization: Organization, number: int
) -> None:
    outcomes = Counter(
        race(
            shared_database,
            [asking(staff_of(organization), "start_subscription", plan="pro")] * 16,
            "authenticator",
        )
    )
    assert outcomes == {"ok": 1, "SUBSCRIPTION_EXISTS": 15}
    assert [status for status, _, _ in phases_of(superuser, organization)] == ["trialing", "paused"]
    assert_well_formed(superuser, organization)
    told = "select count(*) from notifications.webhook_messages where organization_id = %s"
    assert value(superuser, told, organization.id) == 1


def writing_usage(organization: Organization) -> Action:
    def write(connection: Connection) -> str:
        connection.execute("reset role")
        for number in range(5):
            ingest(connection, [event(f"{next(_number)}-{number}", datetime.now(UTC))], organization.id)
        return "ok"

    return write


def closing(organization: Organization, period_start: datetime) -> Action:
    def close(connection: Connection) -> str:
        connection.execute("select billing.close_period(%s, %s)", [organization.id, period_start])
        return "ok"

    return close


def advancing(connection: Connection) -> str:
    connection.execute("select billing.advance_subscriptions(100)")
    return "ok"


@pytest.mark.parametrize("number", range(3))
def test_everything_at_once_leaves_one_timeline(
    shared_database: Database, superuser: Connection, organization: Organization, number: int
) -> None:
    """No deadlock, nothing that Postgres itself refuses, and the period that is closed meanwhile is proved."""
    start(superuser, organization, trial_days=0, at=moment(2))
    staff, owner = staff_of(organization), Caller("member", organization["owner"].subject, str(organization.id))
    of_staff: list[tuple[str, Row]] = [
        ("change_subscription", {"plan": "firm"}),
        ("change_subscription", {"plan": "starter", "at_period_end": True}),
        ("mark_past_due", {}),
        ("mark_paid", {}),
        ("pause_subscription", {}),
        ("resume_subscription", {}),
        ("set_payment_method", {"has_payment_method": bool(number % 2)}),
        ("set_plan", {"plan": "pro"}),
        ("cancel_subscription", {"at_period_end": number % 2 == 0}),
        ("start_subscription", {"plan": "firm"}),
        ("set_billing_schedule", {"billing_anchor_day": 15}),
    ]
    asked = [asking(staff, function, **arguments) for function, arguments in of_staff]
    asked += [asking(owner, "cancel_subscription"), asking(owner, "resume_subscription")]
    beside = [writing_usage(organization)] * 2 + [closing(organization, moment(2)), advancing, advancing]
    outcomes = race(shared_database, [*beside, *asked], "postgres")
    assert set(outcomes[: len(beside)]) == {"ok"}
    assert set(outcomes) <= {"ok", "ROLE_REQUIRED", *MAY_REFUSE}
    assert_well_formed(superuser, organization)
    used = "select count(*) from metering.usage_events where organization_id = %s"
    assert value(superuser, used, organization.id) == 10
    assert verified(superuser, organization) == []


def verified(superuser: Connection, organization: Organization) -> list[Any]:
    """What differs of the invoice that there is."""
    assert value(superuser, "select count(*) from billing.invoices where organization_id = %s", organization.id) == 1
    return superuser.execute(
        """
        select v.*
        from billing.invoices i
        cross join lateral billing.verify_invoice(i.id) v
        where i.organization_id = %s
        """,
        [organization.id],
    ).fetchall()


@pytest.mark.parametrize("number", range(3))
def test_a_trial_that_ends_meanwhile(
    shared_database: Database, superuser: Connection, organization: Organization, number: int
) -> None:
    """Whoever comes in the moment itself comes before or after, or is told to ask again."""
    ends = datetime.now(UTC) + timedelta(seconds=0.4)
    start(superuser, organization, trial_days=1, has_payment_method=False, at=ends - timedelta(days=1))
    staff = staff_of(organization)

    def around(*asks: Action) -> Action:
        def ask_all(connection: Connection) -> str:
            # For as long as it takes to be past the moment.
            while True:
                is_over = datetime.now(UTC) > ends
                for ask in asks:
                    outcome = ask(connection)
                    if outcome != "ok":
                        return outcome
                if is_over:
                    return "ok"

        return ask_all

    outcomes = race(
        shared_database,
        [
            around(
                asking(staff, "change_subscription", plan="starter"), asking(staff, "change_subscription", plan="firm")
            ),
            around(
                asking(staff, "set_payment_method", has_payment_method=True),
                asking(staff, "set_payment_method", has_payment_method=False),
            ),
            around(advancing),
        ],
        "postgres",
    )
    assert set(outcomes) <= {"ok", "SUBSCRIPTION_FIXED"}
    assert_well_formed(superuser, organization)
    with superuser.transaction():
        enter(superuser, staff)
        assert call(superuser, "set_payment_method", has_payment_method=True)["status"] == "active"


@pytest.mark.parametrize("number", range(3))
def test_a_change_in_a_period_that_is_closed_counts_in_it_or_is_refused(
    shared_database: Database, superuser: Connection, organization: Organization, number: int
) -> None:
    start(superuser, organization, trial_days=0, at=moment(1))
    staff = staff_of(organization)
    at = moment(1, days=9)
    refused, *_ = race(
        shared_database,
        [asking(staff, "change_subscription", plan="firm", at=at), closing(organization, moment(1))],
        "postgres",
    )
    assert refused in ("ok", "BILLING_PERIOD_LOCKED")
    assert (("active", "firm", at) in phases_of(superuser, organization)) is (refused == "ok")
    assert_well_formed(superuser, organization)
    assert verified(superuser, organization) == []


@pytest.mark.parametrize("number", range(2))
def test_a_conversion_meanwhile(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization, number: int
) -> None:
    personal = make_organization(shared_database, kind="personal", roles=("owner",))
    staff, owner = staff_of(personal), Caller("member", personal["owner"].subject, str(personal.id))
    changing = [
        asking(staff, "start_subscription", plan="pro", trial_days=0, has_payment_method=True),
        asking(staff, "change_subscription", plan="firm"),
        asking(staff, "set_plan", plan="starter"),
        asking(owner, "cancel_subscription"),
    ]
    convert = asking(owner, "convert_to_organization", name="Firm", slug=f"{personal.slug}-firm")
    converted, *others = race(shared_database, [convert, *changing, writing_usage(personal)], "postgres")
    assert converted == "ok"
    assert set(others) <= {"ok", "NO_SUBSCRIPTION"}
    assert_well_formed(superuser, personal)


def test_each_beginning_is_told_once_by_many_sidecars(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    organizations = [make_organization(shared_database, roles=("owner",)) for _ in range(6)]
    began = (
        "select starts_at from billing.subscription_phases where organization_id = any (%s) and announced_at is null"
    )
    ids = [organization.id for organization in organizations]
    for organization in organizations:
        start(superuser, organization, trial_days=1, at=datetime.now(UTC) - timedelta(days=1, seconds=-0.6))
    superuser.execute("select pg_sleep_until(max(starts_at)) from (" + began + ") as b", [ids])
    race(shared_database, [advancing] * 6)
    told = "select count(*) from notifications.webhook_messages where organization_id = any (%s)"
    assert value(superuser, told, ids) == 2 * len(ids)  # its start, and the end of its trial
    assert superuser.execute(began, [ids]).fetchall() == []


PHASE = """
  insert into billing.subscription_phases (organization_id, starts_at, status, plan_code, made_by)
  values (%(org)s, %(at)s, 'active', 'starter', 'me')
"""
FINALIZED, OPEN = moment(1, days=3), moment(0) + timedelta(microseconds=1)
OF_PHASES = [
    ("update billing.subscription_phases set plan_code = 'firm' where organization_id = %(org)s", OPEN, "FIXED"),
    ("update billing.subscription_phases set starts_at = %(at)s where organization_id = %(org)s", OPEN, "FIXED"),
    ("delete from billing.subscription_phases where organization_id = %(org)s", OPEN, "FIXED"),
    ("truncate billing.subscription_phases", OPEN, "FIXED"),
    (PHASE, FINALIZED, "BILLING_PERIOD_LOCKED"),
    (PHASE, OPEN, "FIXED"),
]
BESIDE = [
    ("delete from billing.subscriptions where organization_id = %(org)s", OPEN, "FIXED"),
    ("update tenancy.organizations set plan = 'starter' where id = %(org)s", OPEN, "PLAN_OF_SUBSCRIPTION"),
]


@pytest.mark.parametrize(
    ("mode", "statement", "at", "code"),
    # Replica: in which all triggers are silent that do not fire always.
    [("origin", *case) for case in (*OF_PHASES, *BESIDE)] + [("replica", *case) for case in OF_PHASES],
)
def test_a_superuser_does_not_change_what_has_begun(
    superuser: Connection, organization: Organization, mode: str, statement: str, at: datetime, code: str
) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute("select billing.finalize_period(%s, %s)", [organization.id, moment(1).date()])
        start(superuser, organization, trial_days=0, at=moment(0) + timedelta(microseconds=2))
        superuser.execute("reset role")
        superuser.execute(f"set local session_replication_role = {mode}".encode())
        with pytest.raises(psycopg.Error, match=f"{code}: "):
            superuser.execute(statement.encode(), {"org": organization.id, "at": at})


# Any sequence of calls.
PLANS = st.sampled_from(["starter", "pro", "firm"])
FLAGS = st.booleans()
AT = st.one_of(st.none(), st.integers(1, 60).map(lambda days: datetime.now(UTC) - timedelta(days=days)))
CALLS = st.one_of(
    st.tuples(
        st.just("start_subscription"),
        st.fixed_dictionaries(
            {"plan": PLANS, "has_payment_method": FLAGS, "at": AT}, optional={"trial_days": st.sampled_from([0, 5, 90])}
        ),
    ),
    st.tuples(st.just("change_subscription"), st.fixed_dictionaries({"plan": PLANS, "at_period_end": FLAGS})),
    st.tuples(st.just("change_subscription"), st.fixed_dictionaries({"plan": PLANS, "at": AT})),
    st.tuples(st.just("cancel_subscription"), st.fixed_dictionaries({"at_period_end": FLAGS})),
    st.tuples(
        st.sampled_from(["resume_subscription", "pause_subscription", "mark_past_due", "mark_paid"]),
        st.fixed_dictionaries({"at": AT}),
    ),
    st.tuples(st.just("set_payment_method"), st.fixed_dictionaries({"has_payment_method": FLAGS})),
    st.tuples(st.just("set_plan"), st.fixed_dictionaries({"plan": PLANS})),
)
REFUSALS = {*MAY_REFUSE, "SUBSCRIPTION_CHANGED"} - {"SUBSCRIPTION_FIXED"}


@pytest.fixture(scope="module")
def subscriber(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(CALLS, min_size=2, max_size=9))
def test_whatever_is_called_leaves_one_timeline(
    superuser: Connection, subscriber: Organization, calls: list[tuple[str, Row]]
) -> None:
    """And what is called again changes nothing, and tells nothing."""
    with desk(superuser, subscriber) as staff:
        for function, arguments in calls:
            outcome = attempt(staff.connection, function, arguments)
            assert outcome in {"ok", *REFUSALS}
            before, told = phases_of_all(superuser, subscriber.id), len(staff.messages())
            again = attempt(staff.connection, function, arguments)
            assert again in {"ok", *REFUSALS}
            assert (phases_of_all(superuser, subscriber.id), len(staff.messages())) == (before, told)
            superuser.execute("reset role")
            assert_well_formed(superuser, subscriber)
            enter(superuser, staff_of(subscriber))


def attempt(connection: Connection, function: str, arguments: Row) -> str:
    try:
        with connection.transaction():
            call(connection, function, **arguments)
    except psycopg.Error as error:
        return code_of(error)
    return "ok"


def phases_of_all(connection: Connection, organization: UUID) -> list[tuple[Any, ...]]:
    return connection.execute(
        """
        select starts_at, status, plan, grace_ends_at, reason, made_at from api.subscription_phases
        where organization_id = %s order by 1
        """,
        [organization],
    ).fetchall()

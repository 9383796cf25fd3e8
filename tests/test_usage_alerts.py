"""Usage alerts: each threshold fires once a billing period, with the value that was found, whatever usage does then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.alerting import LIMIT, METER, PLAN, Book, Fired, absolute, make_plan, percents, put_on_plan
from tests.conftest import MakeOrganization
from tests.harness import ROLES, Database, Organization, RunningStack
from tests.meters import roll_up_all, void
from tests.observe import eventually
from tests.sql_requests import Caller, enter
from tests.usage import Connection, event, finalize, ingest, moment, month, value

SEEDED = [(kind, part) for kind in ("percent_of_budget", "percent_of_limit") for part in (50, 80, 100)]
WRITERS = ("owner", "admin", "billing")


@pytest.fixture
def book(
    superuser: Connection,
    sidecar: Connection,
    api: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
) -> Book:
    make_plan(superuser)
    made = make_organization(shared_database)
    put_on_plan(superuser, [made.id])
    return Book(shared_database, superuser, sidecar, api, made)


@contextmanager
def broken(book: Book, statement: str) -> Iterator[None]:
    """Looking at the alerts of this organization does something else first."""
    definition = value(book.superuser, "select pg_get_functiondef('billing.period_of_alerts'::regproc)")
    changed = definition.replace(
        "\nbegin\n", f"\nbegin\n  if p_organization_id = '{book.id}' then {statement}; end if;\n"
    )
    assert changed != definition
    book.superuser.execute(changed)
    try:
        yield
    finally:
        book.superuser.execute(definition)


def rolled_up_and_fired(book: Book) -> dict[str, Any]:
    roll_up_all(book.sidecar)
    report: dict[str, Any] = value(book.sidecar, "select billing.fire_alerts()")
    return report


def queued(book: Book) -> list[tuple[Any, ...]]:
    """How often looking at it has failed, and whether it waits, of each row of the queue."""
    return book.superuser.execute(
        "select attempts, due_at > clock_timestamp() from billing.alert_queue where organization_id = %s", [book.id]
    ).fetchall()


def another(book: Book, make_organization: MakeOrganization) -> Organization:
    """Another one in the same database and plan."""
    made = make_organization(book.database)
    put_on_plan(book.superuser, [made.id])
    return made


def test_everybody_who_is_new_has_six(
    superuser: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    for kind in ("personal", "organization"):
        made = make_organization(shared_database, kind=kind, roles=("owner",))
        alerts = superuser.execute(
            "select threshold_kind, threshold from billing.usage_alerts where organization_id = %s order by 1, 2",
            [made.id],
        )
        assert alerts.fetchall() == SEEDED
    of_platform = """
      select count(*) from billing.usage_alerts a join tenancy.organizations o on o.id = a.organization_id
      where o.kind = 'platform'
    """
    assert value(superuser, of_platform) == 0


def test_each_threshold_fires_once_with_what_was_found(book: Book) -> None:
    book.use(4)
    assert book.look() == []
    book.use()
    assert book.look() == percents(10, (50, 5))
    book.use()
    assert book.look() == []
    book.use(6)
    assert book.look() == percents(10, (80, 12), (100, 12)), "all that were crossed in one step"
    book.use(100)
    assert book.look() == []


def test_usage_that_goes_down_and_up_again_tells_nothing_twice(book: Book) -> None:
    key = book.use(9)
    assert book.look() == percents(10, (50, 9), (80, 9))
    void(book.sidecar, book.id, key)
    assert book.look() == []
    book.use(9)
    assert book.look() == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([(9, False), (9, True), (3, False)])
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=5))
def test_what_has_fired_is_what_was_ever_reached(
    superuser: Connection,
    sidecar: Connection,
    api: Connection,
    shared_database: Database,
    make_organization: MakeOrganization,
    steps: list[tuple[int, bool]],
) -> None:
    """Each step uses so much, and may take back what the step before has used."""
    make_plan(superuser)
    book = Book(shared_database, superuser, sidecar, api, make_organization(shared_database, roles=("owner",)))
    put_on_plan(superuser, [book.id])
    used, before, values = 0, None, []
    for quantity, takes_back in steps:
        if takes_back and before is not None:
            void(sidecar, book.id, before[0])
            used -= before[1]
        before = (book.use(quantity), quantity)
        used += quantity
        values.append(used)
        book.look()
    peaks = list(accumulate(values, max))
    assert book.told() == percents(
        10,
        *(
            (part, next(peak for peak in peaks if peak >= part / 10))
            for part in (50, 80, 100)
            if peaks[-1] >= part / 10
        ),
    )


def test_an_alert_that_is_made_too_late_fires_at_once(book: Book) -> None:
    book.use(4)
    assert book.look() == []
    alert = book.alert("absolute", 4, meter=METER)
    assert book.look() == absolute((4, 4))
    assert book.alert("absolute", Decimal("4.0"), meter=METER) == alert, "a retry makes no second one"
    # Once a period and threshold: not again because it was gone in between.
    book.ask("select id from api.delete_usage_alert(%s)", alert)
    assert book.alert("absolute", 4, meter=METER) != alert
    assert book.look() == []


def test_an_amount_is_that_of_the_invoice_before_tax(book: Book) -> None:
    """With the fee of the whole period, which is due whatever is used."""
    book.change(
        "insert into billing.plans (code, name) values ('with-fee', 'With a fee')",
        """
        insert into billing.prices (plan_code, currency, model, unit_amount_cents, effective_from)
        values ('with-fee', 'usd', 'flat', 1000, '2000-01-01Z')
        """,
        "update tenancy.organizations set plan = 'with-fee' where id = %(org)s",
        "insert into billing.billing_terms (organization_id, tax_percent) values (%(org)s, 20)",
    )
    for threshold in (1000, 1025, 1026):
        book.alert("absolute", threshold)
    assert book.look() == absolute((1000, 1000), what="amount")
    book.use()
    assert book.look() == absolute((1025, 1025), what="amount")


def test_of_another_budget_it_is_told_anew(book: Book) -> None:
    def of_budget(amount_cents: int, *found: tuple[int, int]) -> list[Fired]:
        return percents(amount_cents, *found, what="amount", kind="percent_of_budget")

    set_budget = "select amount_cents from api.set_budget(%s)"
    book.use(4)
    assert book.ask(set_budget, 100) == 100
    assert book.look() == of_budget(100, (50, 100), (80, 100), (100, 100))
    assert book.ask(set_budget, 100) == 100
    assert book.look() == []
    assert book.ask(set_budget, 150) == 150
    assert book.look() == of_budget(150, (50, 100))
    assert book.ask(set_budget, None) is None
    book.change("select billing.queue_alerts(%(org)s)")
    assert book.look() == []


def test_of_another_limit_it_is_told_anew(book: Book) -> None:
    book.use(8)
    assert book.look() == percents(10, (50, 8), (80, 8))
    override = """
      insert into billing.entitlement_overrides (organization_id, feature, kind, limit_value, meter_code, created_by)
      values (%(org)s, 'uploads', 'limit_per_period', 16, 'doc.upload', 'test')
    """
    book.change(override)
    assert book.look() == percents(16, (50, 8))
    book.change("delete from billing.entitlement_overrides where organization_id = %(org)s")
    assert book.look() == []
    book.change("update tenancy.organizations set plan = 'starter' where id = %(org)s")
    assert {one.what for one in book.look()} == {"members"}, "five of the three that starter has"


def test_a_limit_at_any_time_tells_of_what_comes(book: Book) -> None:
    """No usage is rolled up of people: their rows are noticed."""
    book.change(
        """
        insert into billing.entitlement_overrides (organization_id, feature, kind, limit_value, created_by)
        values (%(org)s, 'members', 'limit', 6, 'test'), (%(org)s, 'workspaces', 'limit', 2, 'test')
        """
    )
    assert book.look() == percents(6, (50, 5), (80, 5), what="members")
    book.ask("select id from api.create_invitation('new@example.com', 'viewer')")
    assert book.look() == percents(6, (100, 6), what="members")
    book.change("insert into tenancy.workspaces (organization_id, name) values (%(org)s, 'Room')")
    assert book.look() == percents(2, (50, 1), what="workspaces")


def test_what_was_reserved_is_used(book: Book) -> None:
    """Also of a feature without a meter, of which no rollup will ever tell."""
    book.change(
        """
        insert into billing.entitlement_overrides (organization_id, feature, kind, limit_value, enforcement, created_by)
        values (%(org)s, 'reports', 'limit_per_period', 10, 'hard', 'test')
        """
    )
    assert book.look() == []
    with book.superuser.transaction():
        book.change(
            "select set_config('app.current_org', %(org)s::text, true)", "select tenancy.reserve_quota('reports', 10)"
        )
    assert book.look() == percents(10, (50, 10), (80, 10), (100, 10), what="reports")
    assert book.told(kind="quota_reached") == percents(10, (100, 10), what="reports")


def test_a_feature_has_alerts_of_its_own(book: Book) -> None:
    book.change("delete from billing.usage_alerts where organization_id = %(org)s")
    book.alert("percent_of_limit", 20, feature=LIMIT)
    book.alert("percent_of_limit", 30, feature="members")
    book.use(9)
    assert book.look() == percents(10, (20, 9))


def test_another_period_is_told_of_anew_and_the_last_one_until_it_is_closed(book: Book) -> None:
    book.use(5)
    book.use(8, at=moment(1, days=10))
    assert book.look() == percents(10, (50, 5))
    assert book.told(months_ago=1) == percents(10, (50, 8), (80, 8))
    # Its last hour, which is rolled up only now.
    book.use(2, at=moment(0) - timedelta(minutes=1))
    assert book.look() == []
    assert book.told(months_ago=1) == percents(10, (50, 8), (80, 8), (100, 10))
    # Of a time that is long past, as an import brings it, nobody is told.
    book.use(50, at=moment(4, days=10))
    book.look()
    assert book.told(months_ago=4) == []


def test_of_a_closed_period_nobody_is_told(book: Book) -> None:
    book.use(5, at=moment(1, days=10))
    finalize(book.superuser, book.id, month(1))
    book.look()
    assert book.told(months_ago=1) == []
    # What is late counts in the open one, and costs there.
    late = [event(str(uuid4()), moment(1, days=11), name=METER, quantity=6)]
    assert ingest(book.sidecar, late, book.id, late="adjust").accepted == 1
    book.alert("absolute", 150)
    assert book.look() == absolute((150, 150), what="amount") + percents(10, (50, 6))


def test_the_provider_is_told_once_that_a_quota_is_reached(book: Book) -> None:
    """Whatever alerts the organization has."""
    book.change("delete from billing.usage_alerts where organization_id = %(org)s")
    book.use(10)
    assert book.look() == []
    book.use(5)
    assert book.look() == []
    assert book.told(kind="quota_reached") == percents(10, (100, 10))
    messages = book.superuser.execute(
        """
        select payload - '{period_start,period_end}'::text[] from notifications.webhook_messages
        where organization_id = %s and type = 'quota.reached'
        """,
        [book.id],
    ).fetchall()
    assert messages == [
        (
            {
                "organization_id": str(book.id),
                "feature": LIMIT,
                "kind": "limit_per_period",
                "enforcement": "soft",
                "limit": 10,
                "used": 10,
                "unit": "document",
                "plan": PLAN,
            },
        )
    ]


def test_one_that_fails_holds_up_no_other_and_is_tried_again(book: Book, make_organization: MakeOrganization) -> None:
    healthy = replace(book, organization=another(book, make_organization))
    with broken(book, "raise exception 'it is broken'"):
        book.change("select billing.queue_alerts(%(org)s)")
        healthy.use(5)
        report = rolled_up_and_fired(book)
        assert report["failed"] == [{"organization_id": str(book.id), "error": "it is broken"}]
        assert healthy.told() == percents(10, (50, 5))

        # It waits, whatever else is queued of it.
        book.change("select billing.queue_alerts(%(org)s)")
        assert rolled_up_and_fired(book) == {"organizations": 0, "fired": 0, "failed": [], "more": False}
        assert queued(book) == [(1, True)]
        book.change("update billing.alert_queue set due_at = now() where organization_id = %(org)s")
        assert len(rolled_up_and_fired(book)["failed"]) == 1
        assert queued(book) == [(2, True)]
    book.use(5)
    book.change("update billing.alert_queue set due_at = now() where organization_id = %(org)s")
    assert book.look() == percents(10, (50, 5))
    assert queued(book) == []


def test_one_that_takes_too_long_is_put_back(book: Book, make_organization: MakeOrganization) -> None:
    """The statement is cancelled in the middle of it. What was found before that is told all the same."""
    healthy = replace(book, organization=another(book, make_organization))
    assert book.look() == []
    healthy.use(5)
    with broken(book, "perform pg_sleep(600)"):
        roll_up_all(book.sidecar)
        book.change("select billing.queue_alerts(%(org)s)")
        with book.sidecar.transaction():
            book.sidecar.execute("set local statement_timeout = '1s'")
            report = value(book.sidecar, "select billing.fire_alerts()")
        assert [failure["organization_id"] for failure in report["failed"]] == [str(book.id)]
        assert healthy.told() == percents(10, (50, 5))
        assert queued(book) == [(1, True)]
    book.change("delete from billing.alert_queue where organization_id = %(org)s")


def test_neither_the_platform_nor_who_is_gone_is_told_of(book: Book) -> None:
    """The platform has usage of its own, and no plan that it would keep to."""
    platform = "(select id from tenancy.organizations where kind = 'platform')"
    gone = uuid4()
    book.change(
        f"update tenancy.organizations set plan = 'alerting' where id = {platform}",
        f"insert into billing.alert_queue (organization_id) values ({platform}), ('{gone}')",
    )
    usage = [event(str(uuid4()), name=METER, quantity=20)]
    assert ingest(book.sidecar, usage, value(book.superuser, f"select {platform}")).accepted == 1
    book.look()
    left = "select count(*) from billing.alert_queue where organization_id in (%s, {})"
    assert value(book.superuser, left.format(platform), gone) == 0
    assert (
        value(book.superuser, f"select count(*) from notifications.notification_log where organization_id = {platform}")
        == 0
    )


def test_what_time_alone_changes_is_looked_at_each_hour(book: Book) -> None:
    count = "select count(*) from billing.alert_queue where organization_id = %s"
    book.look()
    book.sidecar.execute("select ops.maintain()")
    assert value(book.superuser, count, book.id) == 1
    book.sidecar.execute("select ops.maintain()")
    assert value(book.superuser, count, book.id) == 1
    book.change("update billing.alert_queue set due_at = now() where organization_id = %(org)s")
    book.look()
    assert value(book.superuser, count, book.id) == 0


@pytest.mark.parametrize("role", ROLES)
def test_who_may_write_alerts_and_budgets(book: Book, role: str) -> None:
    for query in (
        "select id from api.create_usage_alert('absolute', 1)",
        "select amount_cents from api.set_budget(100)",
        "select id from api.delete_usage_alert((select id from billing.usage_alerts limit 1))",
    ):
        if role in WRITERS:
            book.ask(query, role=role)
        elif role == "viewer" and "delete" in query:
            with pytest.raises(psycopg.Error, match="ROLE_REQUIRED: only owners, admins and billing users"):
                book.ask("select id from api.delete_usage_alert(null)", role=role)
        else:
            with pytest.raises(psycopg.Error, match="ROLE_REQUIRED: only owners, admins and billing users"):
                book.ask(query, role=role)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((None, 5, None, None), "INVALID_ALERT: threshold_kind is absolute"),
        (("percent", 5, None, None), "INVALID_ALERT: threshold_kind is absolute"),
        (("absolute", 0, None, None), "INVALID_ALERT: threshold is a number above 0"),
        (("absolute", None, None, None), "INVALID_ALERT: threshold is a number above 0"),
        (("absolute", "NaN", None, None), "INVALID_ALERT: threshold is a number above 0"),
        (("absolute", "Infinity", None, None), "INVALID_ALERT: threshold is a number above 0"),
        (("percent_of_limit", 1001, None, None), "INVALID_ALERT: threshold is a percentage, 1000 at most"),
        (("percent_of_budget", 5, METER, None), "INVALID_ALERT: meter goes with threshold_kind absolute"),
        (("absolute", 5, None, LIMIT), "INVALID_ALERT: feature goes with threshold_kind percent_of_limit"),
        (("absolute", 5, "nothing", None), "METER_NOT_FOUND: there is no meter nothing"),
        (("percent_of_limit", 5, None, "nothing"), "FEATURE_NOT_FOUND: there is no feature nothing with a limit"),
    ],
)
def test_what_makes_no_alert(book: Book, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(psycopg.Error, match=says):
        book.ask("select id from api.create_usage_alert(%s, %s::numeric, %s, %s)", *arguments)


@pytest.mark.parametrize("amount", ["0", "-1", "0.5", "NaN", "Infinity", "1e15"])
def test_what_is_no_budget(book: Book, amount: str) -> None:
    with pytest.raises(psycopg.Error, match="INVALID_BUDGET: amount_cents is a whole number"):
        book.ask("select amount_cents from api.set_budget(%s::numeric)", amount)


def test_what_others_have_is_not_found(book: Book, make_organization: MakeOrganization) -> None:
    """Neither their alerts, nor features of plans that are not public."""
    other = another(book, make_organization)
    theirs = value(book.superuser, "select id from billing.usage_alerts where organization_id = %s limit 1", other.id)
    with pytest.raises(psycopg.Error, match=f"ALERT_NOT_FOUND: the organization has no usage alert {theirs}"):
        book.ask("select id from api.delete_usage_alert(%s)", theirs)
    book.change(
        """
        insert into billing.plans (code, name, is_public) values ('secret', 'Secret', false);
        insert into billing.plan_features (plan_code, feature, kind, limit_value) values ('secret', 'moles', 'limit', 5)
        """
    )
    with pytest.raises(psycopg.Error, match="FEATURE_NOT_FOUND: there is no feature moles with a limit") as refused:
        book.alert("percent_of_limit", 5, feature="moles")
    assert refused.value.diag.message_hint and "moles" not in refused.value.diag.message_hint


def test_staff_writes_for_an_organization(book: Book) -> None:
    with book.api.transaction(force_rollback=True):
        enter(book.api, Caller("platform_admin", "staff", str(book.id), path="/rpc/set_budget"))
        assert book.api.execute("select organization_id, amount_cents from api.set_budget(7)").fetchone() == (
            book.id,
            7,
        )
        made = book.api.execute("select organization_id from api.create_usage_alert('absolute', 1)").fetchone()
        assert made == (book.id,)


def test_the_sidecar_tells_by_itself(stack: RunningStack, make_organization: MakeOrganization) -> None:
    organization = make_organization(stack.database)
    with stack.database.connect() as superuser:
        make_plan(superuser)
        put_on_plan(superuser, [organization.id])
    with stack.database.connect("sidecar") as sidecar:
        ingest(sidecar, [event("one", name=METER, quantity=5)], organization.id)
    with stack.client(organization["member"].subject) as member, stack.client(organization["viewer"].subject) as viewer:
        told = eventually(lambda: member.get("/api/v1/notification_log").json(), bool)
        assert [(row["feature"], row["threshold"], row["value"], row["unit"]) for row in told] == [
            (LIMIT, 50, 5, "document")
        ]
        assert viewer.get("/api/v1/notification_log").json() == []

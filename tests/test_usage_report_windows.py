"""When usage is reported: hours that are over, at times that Stripe takes, each report by one sidecar at a time, and
not again once Stripe has forgotten its identifier.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import MakeOrganization
from tests.harness import Database
from tests.meters import roll_up_all
from tests.usage import Connection, event, ingest, moment, race, value
from tests.usage_reports import (
    Remembered,
    build,
    claim,
    link,
    posted,
    record,
    register,
    reports,
    settle,
)

METER = "api.request"
NOW = datetime.now(UTC)
HOUR = NOW.replace(minute=0, second=0, microsecond=0)


@pytest.fixture(scope="module")
def superuser(shared_database: Database) -> Any:
    with shared_database.connect() as connection:
        register(connection, METER, "doc.upload")
        yield connection


@pytest.fixture
def organization(superuser: Connection, shared_database: Database, make_organization: MakeOrganization) -> UUID:
    made = make_organization(shared_database, roles=("owner",)).id
    link(superuser, made)
    return made


def use(sidecar: Connection, organization: UUID, *events: dict[str, Any]) -> None:
    ingest(sidecar, events, organization)
    roll_up_all(sidecar)


def test_a_time_is_within_what_stripe_takes(superuser: Connection) -> None:
    def told(bucket: datetime, period_end: datetime) -> datetime:
        found: datetime = value(superuser, "select stripe.time_of_report(%s, %s)", bucket, period_end)
        return found

    second = timedelta(seconds=1)
    past = HOUR - timedelta(days=3)
    assert told(past, past + timedelta(days=9)) == past + timedelta(hours=1) - second
    assert told(past, past + timedelta(minutes=30)) == past + timedelta(minutes=30) - second, "not in the next period"
    quarter = past + timedelta(minutes=45)
    assert told(quarter, past + timedelta(days=9)) == past + timedelta(hours=1) - second
    old, now = told(HOUR - timedelta(days=60), HOUR), value(superuser, "select now()")
    assert now - timedelta(days=35) < old < now - timedelta(days=33)
    ahead = told(HOUR + timedelta(hours=5), HOUR + timedelta(days=9))
    assert now < ahead < value(superuser, "select now()") + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("begun", "trial", "billed", "status", "is_moved"),
    [
        (500, None, 20, "active", True),
        (500, None, 20, "past_due", True),
        (500, None, 0.5, "active", False),
        (500, None, 90, "active", False),
        (20, None, 20, "active", False),
        (500, 20, 20, "active", False),
        (500, None, 20, "canceled", False),
    ],
    ids=["billed", "past due", "a draft still", "not billed", "before it began", "in its trial", "canceled"],
)
def test_usage_of_a_time_that_stripe_has_billed_is_told_of_the_time_that_runs(
    superuser: Connection,
    sidecar: Connection,
    organization: UUID,
    begun: float,
    trial: float | None,
    billed: float,
    status: str,
    is_moved: bool,
) -> None:
    """What comes late for a time whose invoice is closed would be on none: Stripe's months begin on other days."""
    second = NOW.replace(microsecond=0)
    began = second - timedelta(hours=billed)
    superuser.execute(
        """
        insert into stripe.subscriptions (
          organization_id, id, customer_id, subscription_id, status, current_period_start, trial_end, is_live, facts,
          latest_event_id, latest_event_at
        )
        values (%s, %s, %s, gen_random_uuid(), %s, %s, %s, false, jsonb_build_object('start_date', %s), 'evt', now())
        """,
        [
            organization,
            f"sub_{organization.hex}",
            f"cus_{organization.hex}",
            status,
            began,
            None if trial is None else second - timedelta(hours=trial),
            int((second - timedelta(hours=begun)).timestamp()),
        ],
    )
    use(sidecar, organization, event("late", HOUR - timedelta(hours=60)))
    build(sidecar, organization)
    (report,) = claim(sidecar, organization)
    assert report["happened_at"] == (began if is_moved else HOUR - timedelta(hours=59, seconds=1))


@pytest.mark.parametrize(
    ("bucket", "queued", "is_due"),
    [
        (timedelta(minutes=62), timedelta(minutes=30), True),
        (timedelta(minutes=62), timedelta(minutes=4), False),
        (timedelta(minutes=60), timedelta(minutes=30), False),
        (timedelta(minutes=5), timedelta(hours=3), False),
    ],
    ids=["over", "just queued", "just over", "goes on"],
)
def test_hours_are_reported_once_they_are_over(
    superuser: Connection, bucket: timedelta, queued: timedelta, is_due: bool
) -> None:
    query = "select stripe.is_report_due(now() - %s, now() - %s)"
    assert value(superuser, query, bucket, queued) is is_due


def test_of_an_hour_that_goes_on_nothing_is_posted(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    stripe = Remembered()
    use(sidecar, organization, event("now"))
    assert build(sidecar, organization, unended=False) == 0
    assert posted(superuser, organization) == [0]
    # Reports of another hour do not go past it.
    superuser.execute(
        """
        insert into stripe.report_queue (organization_id, meter_code, bucket_start, queued_at, generation, xid)
        select %s, %s, %s, now() - interval '1 day', 1000, '0'
        """,
        [organization, METER, HOUR - timedelta(hours=5)],
    )
    build(sidecar, organization, unended=False)
    settle(superuser, sidecar, stripe, organization)
    assert posted(superuser, organization) == [0]
    build(sidecar, organization)
    settle(superuser, sidecar, stripe, organization)
    assert posted(superuser, organization) == [1]


def test_what_lies_behind_a_report_that_waits_is_not_posted(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    names = ("first", "second", "third")
    for name in names:
        use(sidecar, organization, event(name, quantity=2))
        build(sidecar, organization)
    first, second, third = claim(sidecar, organization)
    record(sidecar, first, "sent")
    record(sidecar, third, "sent")
    assert posted(superuser, organization) == [1, 0, 0]
    record(sidecar, second, "refused", "no")
    assert posted(superuser, organization) == [1, 0, 0]
    superuser.execute("select stripe.resend_reports(%s, '{rejected}')", [organization])
    build(sidecar, organization)
    assert posted(superuser, organization) == [1, 0, 0]
    settle(superuser, sidecar, Remembered(), organization)
    assert posted(superuser, organization) == [1, 1, 1]


def test_what_our_own_invoice_bills_is_not_posted(
    superuser: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    """Also where Stripe has acknowledged what was recorded after it."""
    turned = make_organization(shared_database, roles=("owner",)).id
    link(superuser, turned, mode="local")
    use(sidecar, turned, event("ours", moment(1, days=2)))
    superuser.execute(
        "update billing.billing_terms set invoice_mode = 'stripe_meters' where organization_id = %s", [turned]
    )
    use(sidecar, turned, event("ours, too", moment(1, days=3)))
    use(sidecar, turned, event("theirs"))
    build(sidecar, turned)
    settle(superuser, sidecar, Remembered(), turned)
    assert posted(superuser, turned) == [0, 0, 1]


def test_one_sidecar_at_a_time_has_the_reports_of_a_meter(
    superuser: Connection, sidecar: Connection, shared_database: Database, organization: UUID
) -> None:
    events = [event(f"{n}", moment(hours=n / 20), name=name) for n in range(9) for name in (METER, "doc.upload")]
    use(sidecar, organization, *(one | {"id": f"{one['event']}-{one['id']}"} for one in events))
    build(sidecar, organization)
    several = race(shared_database, [lambda connection: claim(connection, organization, each=3)] * 6)
    meters = [report["meter_code"] for claimed in several for report in claimed]
    assert sorted(set(meters)) == [METER, "doc.upload"]
    assert len([claimed for claimed in several if METER in {r["meter_code"] for r in claimed}]) == 1
    identifiers = [report["identifier"] for claimed in several for report in claimed]
    assert len(identifiers) == len(set(identifiers))
    assert claim(sidecar, organization) == []


def test_two_at_once_make_each_report_once(
    superuser: Connection, sidecar: Connection, shared_database: Database, organization: UUID
) -> None:
    use(sidecar, organization, *[event(f"{n}", quantity=n + 1) for n in range(20)])
    race(shared_database, [lambda connection: build(connection, organization)] * 6)
    build(sidecar, organization)
    assert sum(report["quantity"] for report in reports(superuser, organization)) == 210


def test_whoever_is_late_with_an_outcome_changes_nothing(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    use(sidecar, organization, event("a"))
    build(sidecar, organization)
    (slow,) = claim(sidecar, organization)
    superuser.execute("update stripe.meter_event_reports set claimed_until = null")
    (quick,) = claim(sidecar, organization)
    record(sidecar, slow, "refused", "late")
    assert reports(superuser, organization)[0]["status"] == "pending"
    record(sidecar, quick, "sent")
    assert reports(superuser, organization)[0]["status"] == "acknowledged"


def test_what_stripe_may_have_forgotten_is_not_sent_again(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    use(sidecar, organization, event("a"), event("b", name="doc.upload"))
    build(sidecar, organization)
    for report in claim(sidecar, organization):
        record(sidecar, report, "unknown" if report["meter_code"] == METER else "busy", "?")
    aged = "now() - interval '23 hours 1 minute'"
    superuser.execute(
        f"""
        update stripe.meter_event_reports set next_attempt_at = now(), first_sent_at = first_sent_at + ({aged} - now()),
          created_at = {aged}
        where organization_id = %s
        """,
        [organization],
    )
    claimed = claim(sidecar, organization)
    assert [report["meter_code"] for report in claimed] == ["doc.upload"], "that one never arrived, for sure"
    sidecar.execute("select stripe.tend_reports(false, false)")
    (uncertain,) = reports(superuser, organization, METER)
    assert uncertain["status"] == "uncertain"
    assert posted(superuser, organization) == [0]
    assert value(superuser, "select uncertain from stripe.report_backlog(%s)", organization) == 1


def test_what_may_have_been_sent_after_a_backup_is_not_sent_again_unless_people_say_so(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    """A restored database sends what Stripe still knows the identifiers of, and what it has recorded since."""
    use(sidecar, organization, event("old", NOW - timedelta(hours=30), quantity=5), event("new", quantity=2))
    try:
        superuser.execute("insert into metering.generations (generation, system_identifier) values (99, 1)")
        build(sidecar, organization)
        (new,) = claim(sidecar, organization)
        assert new["quantity"] == 2
        waiting = value(superuser, "select (pending, uncertain)::text from stripe.report_backlog(%s)", organization)
        assert waiting == "(1,1)"

        assert value(superuser, "select stripe.resend_reports(%s, '{rejected}')", organization) == 0
        assert value(superuser, "select stripe.resend_reports(%s, '{rejected,uncertain}')", organization) == 1
        record(sidecar, new, "sent")
        build(sidecar, organization)
        assert [report["quantity"] for report in claim(sidecar, organization)] == [5]
    finally:
        superuser.execute("delete from metering.generations where generation = 99")


def test_what_was_used_before_is_reported_once_stripe_knows_of_it(
    superuser: Connection, sidecar: Connection, shared_database: Database, make_organization: MakeOrganization
) -> None:
    late = make_organization(shared_database, roles=("owner",)).id
    superuser.execute(
        "insert into billing.billing_terms (organization_id, invoice_mode) values (%s, 'stripe_meters')", [late]
    )
    superuser.execute(
        "insert into metering.meters (code, event_name, aggregation, value, unit, description)"
        " values ('w.sum', 'w', 'sum', 'quantity', 'unit', 'test'), ('w.max', 'w', 'max', 'quantity', 'unit', 'test')"
    )
    use(sidecar, late, event("a", moment(), quantity=4), event("b", quantity=2), event("c", name="w", quantity=7))
    assert build(sidecar, late) == 0
    link(superuser, late)
    build(sidecar, late)
    assert sum(r["quantity"] for r in reports(superuser, late)) == 6
    register(superuser, "w.sum", "w.max")
    build(sidecar, late)
    assert [r["quantity"] for r in reports(superuser, late, "w.sum")] == [7]
    assert [r["quantity"] for r in reports(superuser, late, "w.max")] == [7]
    assert value(superuser, "select stripe.queue_missing_reports(%s)", late) == 0


def test_a_queue_is_made_short_and_loses_nothing(
    superuser: Connection, sidecar: Connection, shared_database: Database, organization: UUID
) -> None:
    for n in range(5):
        use(sidecar, organization, event(f"{n}"))
    queued = "select count(*) from stripe.report_queue where organization_id = %s"
    before = value(superuser, "select min(xid) from stripe.report_queue where organization_id = %s", organization)
    assert value(superuser, queued, organization) == 5
    ingest(sidecar, [event("later")], organization)
    with shared_database.connect("sidecar", autocommit=False) as builder:
        # What a builder has seen it removes, and what came after has to stay.
        builder.execute("select stripe.build_reports(false, 10, %s, true)", [organization])
        roll_up_all(sidecar)
        superuser.execute("select stripe.compact_report_queue()")
        builder.commit()
    assert value(superuser, queued, organization) == 1
    for n in range(5, 9):
        use(sidecar, organization, event(f"{n}"))
    oldest = "select min(xid) from stripe.report_queue where organization_id = %s"
    was = value(superuser, oldest, organization)
    superuser.execute("select stripe.compact_report_queue()")
    assert value(superuser, queued, organization) == 1
    assert value(superuser, oldest, organization) == was
    assert before != was
    build(sidecar, organization)
    assert sum(report["quantity"] for report in reports(superuser, organization)) == 10


def test_a_key_of_test_mode_reports_nothing_of_live_customers(
    superuser: Connection, sidecar: Connection, organization: UUID
) -> None:
    superuser.execute("update stripe.customers set is_live = true where organization_id = %s", [organization])
    use(sidecar, organization, event("a"))
    assert build(sidecar, organization) == 0
    sidecar.execute("select stripe.build_reports(true, 10, %s, true)", [organization])
    assert len(reports(superuser, organization)) == 1
    assert claim(sidecar, organization) == []
    assert value(sidecar, "select count(*) from stripe.claim_reports(true, 9, 9, '1 minute', %s)", organization) == 1


def test_what_is_stored_costs_more_each_hour(superuser: Connection, sidecar: Connection, organization: UUID) -> None:
    superuser.execute(
        "insert into metering.meters (code, event_name, aggregation, value, allow_negative, unit, description)"
        " values ('gb.hours', 'stored', 'weighted_sum', 'quantity', true, 'GB-hour', 'test')"
    )
    register(superuser, "gb.hours")
    since = max(moment(), HOUR - timedelta(hours=30))
    use(sidecar, organization, event("stored", since, name="stored", quantity=1000))
    build(sidecar, organization)
    first = sum(report["quantity"] for report in reports(superuser, organization, "gb.hours"))
    elapsed = (datetime.now(UTC) - since).total_seconds() / 3600
    assert abs(float(first) - 1000 * elapsed) < 20
    # Nothing happens, and yet it is more: the sweep of each hour sees to it.
    assert value(superuser, "select stripe.queue_missing_reports(%s)", organization) == 1
    build(sidecar, organization)
    whole = sum(report["quantity"] for report in reports(superuser, organization, "gb.hours"))
    assert whole >= first
    elapsed = (datetime.now(UTC) - since).total_seconds() / 3600
    assert abs(float(whole) - 1000 * elapsed) < 20

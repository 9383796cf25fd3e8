"""Stripe's events after they are stored: tried again by whichever sidecar is free, dead in the end, seen by operators,
replayed, and kept for as long as anything is made of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from api.cli import app
from api.database import Database as SidecarDatabase
from api.stripe.fixtures import Json, invoice, price
from api.stripe.fixtures import event as event_of
from api.stripe.inbox import Inbox
from api.stripe.worker import Reapplying
from tests.audit_log import entries
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.observe import eventually
from tests.sql_requests import Caller, Connection, request, run
from tests.stripe_inbox import NOW, Stripe, changed, link
from tests.usage import value

STAFF = Caller("platform_admin", "staff|1")
PAUSES = 8
UNKNOWN_PRICE = [price("price_unheard_of")]


@pytest.fixture(autouse=True)
def inbox(superuser: Connection) -> None:
    superuser.execute("delete from stripe.webhook_events")


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database, roles=("owner",))


@pytest.fixture
def customer(shared_database: Database, organization: Organization) -> str:
    return link(shared_database, organization.id)


@pytest.fixture
def stripe(superuser: Connection) -> Iterator[Stripe]:
    with httpx.Client() as http:
        yield Stripe(http, superuser)


@contextmanager
def working(database: Database, number: int = 1) -> Iterator[None]:
    """Sidecars that apply what is due, until the end of the block."""
    done = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def work() -> None:
        pool = SidecarDatabase(database.sidecar, pool_size=2)
        workers = [asyncio.create_task(Reapplying(pool, Inbox(pool, None)).run()) for _ in range(number)]
        await done.wait()
        for worker in workers:
            worker.cancel()
        for worker in workers:
            with suppress(asyncio.CancelledError):
                await worker
        await pool.close()

    thread = Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def receive(database: Database, *events: Json) -> list[str]:
    """As the sidecar does, in one transaction. Returns the outcomes."""
    with database.connect("sidecar") as sidecar:
        rows = sidecar.execute(
            "select outcome, error_state from stripe.receive_events(%s::text[], null, false) order by position",
            [[json.dumps(event) for event in events]],
        ).fetchall()
    assert all(state is None for _, state in rows), rows
    return [outcome for outcome, _ in rows]


def failing(customer: str, **members: Any) -> Json:
    return changed(customer, prices=UNKNOWN_PRICE, type="created", **members)


def settle(database: Database, superuser: Connection, id: str, status: str) -> None:
    """Have it tried until it is what it should become."""
    with capture_logs(), working(database):

        def now() -> str:
            superuser.execute("update stripe.webhook_events set next_attempt_at = now() where status = 'failed'")
            return str(value(superuser, "select status from stripe.webhook_events where id = %s", id))

        assert eventually(now, status.__eq__) == status


def know_price(superuser: Connection) -> None:
    superuser.execute("insert into stripe.plan_prices (price_id, plan_code) values ('price_unheard_of', 'pro')")


@pytest.fixture(autouse=True)
def unknown_price(superuser: Connection) -> Iterator[None]:
    yield
    superuser.execute("delete from stripe.plan_prices where price_id = 'price_unheard_of'")


def test_what_fails_is_pending_and_applied_once_it_can_be(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str, organization: Organization
) -> None:
    event = failing(customer)
    assert receive(shared_database, event) == ["pending"]
    row = stripe.row(event["id"])
    assert row is not None
    assert (row["status"], row["attempts"], row["organization_id"]) == ("failed", 1, str(organization.id))
    assert row["message"].startswith("STRIPE_UNKNOWN: ")
    assert row["settled_at"] is None
    know_price(superuser)
    settle(shared_database, superuser, event["id"], "applied")
    row = stripe.row(event["id"])
    assert row is not None and row["message"] is None and row["settled_at"] is not None
    plan = (
        "select plan_code from billing.subscription_phases where organization_id = %s order by starts_at desc limit 1"
    )
    assert value(superuser, plan, organization.id) == "pro"


def test_timelines_of_many_organizations_change_in_one_transaction(
    shared_database: Database, make_organization: MakeOrganization
) -> None:
    customers = [link(shared_database, make_organization(shared_database, roles=("owner",)).id) for _ in range(8)]
    for n, status in enumerate(("active", "past_due", "active")):
        told = [changed(one, status, at=NOW - 100 + n) for one in customers]
        assert receive(shared_database, *told) == ["applied"] * len(customers)


def test_what_only_moves_a_period_on_ends_as_if_all_were_worked_out_anew(
    shared_database: Database, superuser: Connection, customer: str, organization: Organization
) -> None:
    at = NOW - 1000
    paid = event_of(
        "invoice.paid", invoice(customer=customer, subscription=f"sub_of_{customer}", status="paid"), created=at + 30
    )
    unknown = changed(customer, at=at + 35, canceled_at=None, prices=[])
    del unknown["data"]["object"]["items"], unknown["data"]["object"]["latest_invoice"]
    told = [
        changed(customer, at=at, type="created"),
        changed(customer, at=at + 10),
        changed(customer, at=at + 20),
        paid,
        unknown,
    ]
    row = "select to_jsonb(s) from stripe.subscriptions s where s.customer_id = %s"
    for number, one in enumerate(told):
        assert receive(shared_database, one) == ["applied"]
        shown = value(superuser, row, customer)
        assert shown["latest_event_id"] == one["id"], number
        superuser.execute(
            "select stripe.mirror_subscription(%s, %s, %s, false)", [organization.id, customer, shown["id"]]
        )
        assert value(superuser, row, customer) == shown
    phases = "select count(*) from billing.subscription_phases where organization_id = %s and reason is not null"
    assert value(superuser, phases, organization.id) == 1


def test_attempts_become_rarer_and_end(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str
) -> None:
    pauses = superuser.execute("select stripe.pause_after(n) from generate_series(1, %s) n", [PAUSES + 1]).fetchall()
    seconds = [pause.total_seconds() if pause else None for (pause,) in pauses]
    assert seconds[-1] is None
    assert seconds[:-1] == sorted(one for one in seconds if one is not None)
    event = failing(customer)
    receive(shared_database, event)
    with shared_database.connect("sidecar") as sidecar:
        for attempt in range(2, PAUSES + 2):
            row = stripe.row(event["id"])
            assert row is not None and (row["status"], row["attempts"]) == ("failed", attempt - 1)
            wait = "select extract(epoch from next_attempt_at - now()) from stripe.webhook_events where id = %s"
            expected = seconds[attempt - 2]
            assert expected is not None
            assert expected - 5 < float(str(value(superuser, wait, event["id"]))) <= expected * 1.2
            [(outcome, _)] = sidecar.execute("select * from stripe.apply_event(%s)", [event["id"]]).fetchall()
            assert outcome == ("dead" if attempt > PAUSES else "pending")
        row = stripe.row(event["id"])
        assert row is not None and (row["status"], row["attempts"]) == ("dead", PAUSES + 1)
        assert sidecar.execute("select * from stripe.apply_event(%s)", [event["id"]]).fetchall() == []
        assert sidecar.execute("select * from stripe.due_events(100, '1 minute')").fetchall() == []


def dead(database: Database, superuser: Connection, customer: str, **members: Any) -> Json:
    event = failing(customer, **members)
    assert receive(database, event) == ["pending"]
    superuser.execute("update stripe.webhook_events set status = 'dead', attempts = 9 where id = %s", [event["id"]])
    return event


def test_the_last_attempt_may_be_one_that_stripe_sends_again(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str
) -> None:
    event = failing(customer)
    assert receive(shared_database, event) == ["pending"]
    superuser.execute("update stripe.webhook_events set attempts = %s where id = %s", [PAUSES, event["id"]])
    assert receive(shared_database, event) == ["pending"]  # as the contract has it
    row = stripe.row(event["id"])
    assert row is not None and (row["status"], row["attempts"]) == ("dead", PAUSES + 1)


def test_a_dead_one_that_stripe_sends_again_is_tried_again(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str
) -> None:
    event = dead(shared_database, superuser, customer)
    assert receive(shared_database, event) == ["pending"]
    row = stripe.row(event["id"])
    assert row is not None and (row["status"], row["attempts"]) == ("failed", 1)
    superuser.execute("update stripe.webhook_events set status = 'dead', attempts = 9 where id = %s", [event["id"]])
    know_price(superuser)
    assert receive(shared_database, event) == ["applied"]
    assert receive(shared_database, event) == ["duplicate"]


def test_several_sidecars_apply_each_event_once(
    shared_database: Database, superuser: Connection, make_organization: MakeOrganization
) -> None:
    customers = [link(shared_database, make_organization(shared_database, roles=("owner",)).id) for _ in range(12)]
    all_of_them = [failing(one, at=NOW - 100 + n, id=f"sub_{n}_{one}") for one in customers for n in range(3)]
    assert set(receive(shared_database, *all_of_them)) == {"pending"}
    know_price(superuser)
    superuser.execute("update stripe.webhook_events set next_attempt_at = now()")
    with capture_logs() as logs, working(shared_database, 3):
        left = "select count(*) from stripe.webhook_events where status = 'failed'"
        assert eventually(lambda: value(superuser, left), (0).__eq__) == 0
    assert value(superuser, "select max(attempts) from stripe.webhook_events") == 2
    told = [entry["id"] for entry in logs if entry["event"] == "stripe_event_applied"]
    assert sorted(told) == sorted(event["id"] for event in all_of_them)


def test_what_a_sidecar_has_claimed_is_left_to_it_until_its_lease_ends(
    shared_database: Database, superuser: Connection, customer: str
) -> None:
    event = failing(customer)
    receive(shared_database, event)
    superuser.execute("update stripe.webhook_events set next_attempt_at = now()")
    with shared_database.connect("sidecar") as one, shared_database.connect("sidecar") as other:
        claim = "select id from stripe.due_events(10, '1 minute')"
        assert one.execute(claim).fetchall() == [(event["id"],)]
        assert other.execute(claim).fetchall() == []
        superuser.execute("update stripe.webhook_events set next_attempt_at = now()")  # as a minute does
        assert other.execute(claim).fetchall() == [(event["id"],)]


def test_what_no_transaction_can_write_down_counts_as_an_attempt(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str
) -> None:
    """A statement that takes too long is ended from outside, also inside of a block that catches what goes wrong."""
    event = failing(customer)
    receive(shared_database, event)
    superuser.execute(
        """
        create function stripe.slow() returns trigger language plpgsql as
          $$ begin perform pg_sleep(60); return new; end $$;
        create trigger slow before update on stripe.webhook_events
          for each row when (new.attempts = 2) execute function stripe.slow();
        """
    )
    try:
        superuser.execute("update stripe.webhook_events set next_attempt_at = now()")
        with shared_database.connect("sidecar") as sidecar, pytest.raises(psycopg.errors.QueryCanceled):
            sidecar.execute("set statement_timeout = '300ms'")
            sidecar.execute("select * from stripe.apply_event(%s)", [event["id"]])
    finally:
        superuser.execute("drop function stripe.slow() cascade")
    with shared_database.connect("sidecar") as sidecar:
        assert value(sidecar, "select stripe.fail_event(%s, 'it took too long')", event["id"]) is False
        row = stripe.row(event["id"])
        assert row is not None and (row["attempts"], row["message"]) == (2, "it took too long")
        superuser.execute("update stripe.webhook_events set attempts = 8")
        assert value(sidecar, "select stripe.fail_event(%s, 'again')", event["id"]) is True
        assert value(sidecar, "select stripe.fail_event(%s, 'again')", event["id"]) is None
    row = stripe.row(event["id"])
    assert row is not None and row["status"] == "dead"


def test_what_cannot_be_read_is_kept_for_a_version_that_can(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str
) -> None:
    event = changed(customer)
    event["data"]["object"]["cancel_at"] = 1e300
    assert receive(shared_database, event, event) == ["pending", "pending"]
    row = stripe.row(event["id"])
    assert row is not None and row["status"] == "dead" and row["message"].startswith("it cannot be read: ")
    assert value(superuser, "select payload #>> '{data,object,id}' from stripe.webhook_events") == f"sub_of_{customer}"


def test_operators_see_what_is_not_applied_and_nothing_of_its_payload(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str, organization: Organization
) -> None:
    unlinked, waiting = changed("cus_of_a_stranger"), failing(customer, id="sub_waits")
    lost = dead(shared_database, superuser, customer, id="sub_lost")
    assert receive(shared_database, unlinked, waiting) == ["unlinked", "pending"]
    with shared_database.connect("monitor") as monitor:
        rows = monitor.execute("select id, status, organization_id from ops.stripe_webhook_events").fetchall()
        assert set(rows) == {
            (unlinked["id"], "unlinked", None),
            (waiting["id"], "failed", organization.id),
            (lost["id"], "dead", organization.id),
        }
        columns = monitor.execute("select * from ops.stripe_webhook_events limit 0").description or []
        assert not {column.name for column in columns} & {"payload", "facts", "customer_id"}
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            monitor.execute("select id from stripe.webhook_events")
    with shared_database.connect("sidecar") as sidecar:
        [(pending, are_dead, are_unlinked, oldest)] = sidecar.execute("select * from stripe.event_backlog()").fetchall()
        assert (pending, are_dead, are_unlinked) == (1, 1, 1)
        assert oldest > 0


def test_staff_sees_and_replays_over_the_api(
    shared_database: Database, superuser: Connection, customer: str, organization: Organization
) -> None:
    lost, other = dead(shared_database, superuser, customer), dead(shared_database, superuser, customer, id="sub_2")
    know_price(superuser)
    with request(superuser, STAFF) as api:
        shown = api.execute("select status, payload from api.stripe_webhook_events where id = %s", [lost["id"]])
        assert shown.fetchall() == [("dead", lost)]
        assert run(api, "select status, attempts from api.replay_stripe_event(%s)", [lost["id"]]).fetchall() == [
            ("received", 0)
        ]
        assert value(api, "select api.replay_stripe_events(now() + interval '1 minute')") == 0
        assert value(api, "select api.replay_stripe_events()") == 1
        left = "select status from stripe.webhook_events order by id"
        assert run(api, left.replace("stripe.", "api.stripe_", 1)).fetchall() == [("received",)] * 2
        with pytest.raises(psycopg.Error, match="WEBHOOK_NOT_FOUND"):
            api.execute("select api.replay_stripe_event('evt_of_nobody')")
    assert other["id"] != lost["id"]


def test_pruning_keeps_what_anything_is_made_of(
    shared_database: Database, superuser: Connection, stripe: Stripe, customer: str, organization: Organization
) -> None:
    kept, nothing, unlinked = (
        changed(customer, "past_due", type="created"),
        {"id": "evt_n", "type": "a.b", "created": NOW},
        changed("cus_x"),
    )
    assert receive(shared_database, kept, nothing, unlinked) == ["applied", "ignored", "unlinked"]
    lost = dead(shared_database, superuser, customer, id="sub_lost")
    young = changed(customer, at=NOW - 30)
    assert receive(shared_database, young) == ["applied"]
    ids = [kept["id"], nothing["id"], unlinked["id"], lost["id"]]
    superuser.execute(
        "update stripe.webhook_events set received_at = now() - interval '14 months', "
        "settled_at = settled_at - interval '14 months' where id = any (%s)",
        [ids],
    )
    superuser.execute("select ops.maintain()")
    left: dict[str, bool] = dict(superuser.execute("select id, payload <> '{}' from stripe.webhook_events").fetchall())
    assert left == {kept["id"]: False, unlinked["id"]: True, lost["id"]: True, young["id"]: True}
    assert receive(shared_database, kept) == ["duplicate"]
    facts = value(superuser, "select facts ->> 'status' from stripe.webhook_events where id = %s", kept["id"])
    assert facts == "past_due"
    # Replaying it takes nothing from it.
    superuser.execute("select stripe.replay_event(%s)", [kept["id"]])
    assert (
        value(superuser, "select facts ->> 'status' from stripe.webhook_events where id = %s", kept["id"]) == "past_due"
    )


# The command


def goldleaves(database: Database, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["stripe", *arguments], env={"MIGRATION_DATABASE_URL": database.migrator})


def audited(superuser: Connection, organization_id: UUID) -> list[tuple[Any, ...]]:
    return [
        (entry.target_id, entry.before, entry.after)
        for entry in entries(superuser, organization_id)
        if entry.action == "stripe_webhook_event.replayed"
    ]


def test_the_command_lists_and_replays(
    shared_database: Database, superuser: Connection, customer: str, organization: Organization
) -> None:
    assert goldleaves(shared_database, "events").output == "No events.\n"
    first, second = dead(shared_database, superuser, customer), dead(shared_database, superuser, customer, id="sub_2")
    superuser.execute("update stripe.webhook_events set message = 'oh \x1b[2J'")
    listed = [
        json.loads(line)
        for line in goldleaves(shared_database, "events", "--status", "dead", "--json").output.splitlines()
    ]
    assert {(event["id"], event["whose"]) for event in listed} == {
        (one["id"], organization.slug) for one in (first, second)
    }
    assert "\x1b" not in goldleaves(shared_database, "events", "--most", "1").output
    assert goldleaves(shared_database, "events", "--status", "lost").exit_code == 1
    assert goldleaves(shared_database, "replay", first["id"]).output == "1 event to be applied again.\n"
    assert (
        goldleaves(shared_database, "replay", "--dead", "--since", "2020-01-01").output
        == "1 event to be applied again.\n"
    )
    assert audited(superuser, organization.id) == [
        (first["id"], {"type": first["type"], "status": "dead", "attempts": 9}, None),
        (None, {"status": "dead", "since": "2020-01-01T00:00:00.000000Z"}, {"events": 1}),
    ]
    assert superuser.execute("select distinct status, attempts from stripe.webhook_events").fetchall() == [
        ("received", 0)
    ]
    refused = goldleaves(shared_database, "replay", "evt_of_nobody")
    assert (refused.exit_code, refused.output.partition(":")[0]) == (1, "WEBHOOK_NOT_FOUND")
    for arguments in ((), ("--dead", first["id"]), ("--since", "2026-01-01", first["id"])):
        refused = goldleaves(shared_database, "replay", *arguments)
        assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)
    know_price(superuser)
    settle(shared_database, superuser, first["id"], "applied")

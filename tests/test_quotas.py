"""Quotas: what is used of a limit, which acts a hard one refuses, and that usage that has happened is never refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.conftest import MakeOrganization
from tests.entitlements import begin_phase, call, refused, reserve, set_limit, used
from tests.harness import Database, Organization
from tests.meters import roll_up_all
from tests.observe import eventually
from tests.sql_requests import Caller, enter, request
from tests.usage import Connection, event, ingest, value


@pytest.fixture
def organization(shared_database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(shared_database)


def upload(connection: Connection, organization: Organization, documents: int = 1, size: int = 0) -> None:
    connection.execute(
        """
        insert into app.documents (organization_id, title, size_bytes)
        select %s, 'Deed ' || n, %s from generate_series(1, %s) as n
        """,
        [organization.id, size, documents],
    )


# Reserving


def test_it_is_granted_up_to_the_limit(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "pages", 10)
    assert reserve(superuser, organization.id, "pages", 4) == 6
    with refused("QUOTA_EXCEEDED") as said:
        reserve(superuser, organization.id, "pages", Decimal("6.5"))
    assert (said["feature"], said["limit"], said["used"], said["asked"]) == ("pages", 10, 4, 6.5)
    assert said["resets_at"]
    assert reserve(superuser, organization.id, "pages", 6) == 0
    assert used(superuser, organization.id, "pages") == 10


@pytest.mark.parametrize("amount", [0, -1, None, "NaN", "Infinity", "1e15", "0.0000000000001"])
def test_what_is_no_amount_is_refused(superuser: Connection, organization: Organization, amount: object) -> None:
    set_limit(superuser, organization.id, "pages", None)
    with refused("INVALID_QUANTITY"):
        reserve(superuser, organization.id, "pages", amount)


def test_what_is_no_feature_is_refused(superuser: Connection, organization: Organization) -> None:
    for feature in ("nothing", None):
        with refused("FEATURE_REQUIRED"):
            reserve(superuser, organization.id, feature)  # type: ignore[arg-type]
    set_limit(superuser, organization.id, "pages", 10)
    begin_phase(superuser, organization.id, "paused")
    with refused("FEATURE_REQUIRED"):
        reserve(superuser, organization.id, "pages")


def test_nothing_is_refused_without_a_hard_limit(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "pages", None)
    assert reserve(superuser, organization.id, "pages", 1000) is None
    set_limit(superuser, organization.id, "scans", 10, enforcement="soft")
    assert reserve(superuser, organization.id, "scans", 11) == 0
    assert used(superuser, organization.id, "scans") == 11
    set_limit(superuser, organization.id, "covers", None, kind="boolean", enforcement="soft")
    assert reserve(superuser, organization.id, "covers") is None
    # It was counted all the same, for the plan that comes next.
    set_limit(superuser, organization.id, "pages", 1000)
    with refused("QUOTA_EXCEEDED"):
        reserve(superuser, organization.id, "pages")


def test_a_transaction_that_is_rolled_back_has_reserved_nothing(
    superuser: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "pages", 1)
    with superuser.transaction(force_rollback=True):
        reserve(superuser, organization.id, "pages")
    assert reserve(superuser, organization.id, "pages") == 0


def test_an_older_snapshot_cannot_reserve(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    """What others were granted since is not seen in it: it fails, and is tried again."""
    set_limit(superuser, organization.id, "pages", 1)
    with shared_database.connect() as other, other.transaction(force_rollback=True):
        other.execute("set transaction isolation level repeatable read")
        other.execute("select")
        reserve(superuser, organization.id, "pages")
        with pytest.raises(psycopg.errors.SerializationFailure):
            reserve(other, organization.id, "pages")


# Metered later than granted


def test_what_is_metered_and_what_is_granted_are_not_added(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "requests", 10, meter="api.request")
    ingest(sidecar, [event("before", quantity=2)], organization.id)
    assert reserve(superuser, organization.id, "requests", 5) == 3  # goes on from what was metered
    assert used(superuser, organization.id, "requests") == 7
    ingest(sidecar, [event("granted", quantity=5)], organization.id)
    assert used(superuser, organization.id, "requests") == 7
    roll_up_all(sidecar)
    assert used(superuser, organization.id, "requests") == 7
    assert reserve(superuser, organization.id, "requests", 3) == 0


def test_usage_that_has_happened_is_never_refused(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "requests", 1, meter="api.request")
    assert ingest(sidecar, [event("much", quantity=100)], organization.id).accepted == 1
    assert used(superuser, organization.id, "requests") == 100
    with refused("QUOTA_EXCEEDED") as said:
        reserve(superuser, organization.id, "requests")
    assert said["used"] == 100


def test_a_void_gives_back_what_nothing_was_granted_beyond(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "requests", 10, meter="api.request")
    ingest(sidecar, [event("one", quantity=4), event("two", quantity=3)], organization.id)
    sidecar.execute("select metering.void_event(%s, 'one')", [organization.id])
    assert used(superuser, organization.id, "requests") == 3
    assert reserve(superuser, organization.id, "requests", 5) == 2
    sidecar.execute("select metering.void_event(%s, 'two')", [organization.id])
    # What was granted stays granted: release_quota takes it back.
    assert used(superuser, organization.id, "requests") == 8


def test_a_plan_in_mid_period_goes_on_from_what_is_used(superuser: Connection, organization: Organization) -> None:
    superuser.execute(
        """
        insert into billing.plans (code, name, is_public, position)
        values ('small', 'Small', false, 8), ('big', 'Big', false, 9)
        on conflict do nothing;
        insert into billing.plan_features (plan_code, feature, kind, limit_value, enforcement)
        values ('small', 'sheets', 'limit_per_period', 5, 'hard'), ('big', 'sheets', 'limit_per_period', 8, 'hard')
        on conflict do nothing;
        """
    )
    begin_phase(superuser, organization.id, "active", plan="small")
    reserve(superuser, organization.id, "sheets", 5)
    with refused("QUOTA_EXCEEDED"):
        reserve(superuser, organization.id, "sheets")
    begin_phase(superuser, organization.id, "active", plan="big")
    assert reserve(superuser, organization.id, "sheets", 3) == 0
    begin_phase(superuser, organization.id, "active", plan="small")
    with refused("QUOTA_EXCEEDED") as said:
        reserve(superuser, organization.id, "sheets")
    assert (said["limit"], said["used"]) == (5, 8)


def test_who_waited_over_the_turn_of_a_period_is_granted_of_the_next(
    shared_database: Database, superuser: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "pages", 1)
    superuser.execute(
        """
        insert into billing.billing_periods (organization_id, period_start, period_end, timezone)
        values (%s, now() - interval '20 days', clock_timestamp() + interval '1 second', 'UTC')
        """,
        [organization.id],
    )
    is_blocked = "select cardinality(pg_blocking_pids(%s)) > 0"
    has_ended = "select period_end <= clock_timestamp() from billing.billing_periods where organization_id = %s"
    with shared_database.connect() as waiting, ThreadPoolExecutor(1) as pool:
        with shared_database.connect() as first, first.transaction():
            reserve(first, organization.id, "pages")
            answer = pool.submit(reserve, waiting, organization.id, "pages")
            assert eventually(lambda: value(superuser, is_blocked, waiting.info.backend_pid), bool)
            assert eventually(lambda: value(superuser, has_ended, organization.id), bool)
        assert answer.result(60) == 0
    counted = superuser.execute(
        "select granted from billing.quota_counters where organization_id = %s order by period_start", [organization.id]
    ).fetchall()
    assert counted == [(1,), (1,)]


# The provider's backend


def test_a_retry_reserves_once(superuser: Connection, api: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "pages", 10)
    ask = "select * from api.reserve_quota('pages', %s, %s)"
    for _ in range(2):
        (answer,) = call(api, organization, "service", ask, 8, "book")
        assert (answer["feature"], answer["limit_value"], answer["used"], answer["remaining"]) == ("pages", 10, 8, 2)
    with refused("RESERVATION_CONFLICT"):
        call(api, organization, "service", ask, 1, "book")
    with refused("QUOTA_EXCEEDED"):
        call(api, organization, "service", ask, 3, "leaflet")
    # What was refused left no trace.
    assert call(api, organization, "service", ask, 2, "leaflet")[0]["remaining"] == 0


def test_a_retry_gives_back_once(superuser: Connection, api: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "pages", 10)
    call(api, organization, "service", "select api.reserve_quota('pages', 8, 'book')")
    give_back = "select * from api.release_quota('pages', %s, %s)"
    for amount, left in ((3, 5), (3, 5), (2, 5), (5, 3), (None, 0), (None, 0)):
        (answer,) = call(api, organization, "service", give_back, amount, "book")
        assert answer["used"] == left, amount
    with refused("INVALID_QUANTITY"):
        call(api, organization, "service", give_back, 9, "book")
    with refused("RESERVATION_NOT_FOUND"):
        call(api, organization, "service", give_back, None, "leaflet")
    with refused("INVALID_QUANTITY"):
        call(api, organization, "service", give_back, None, None)
    # A retry of the reservation that comes late does not take again what was given back.
    with refused("RESERVATION_CONFLICT"):
        call(api, organization, "service", "select api.reserve_quota('pages', 8, 'book')")
    call(api, organization, "service", "select api.reserve_quota('pages', 6)")
    assert call(api, organization, "service", give_back, 2, None)[0]["used"] == 4


def test_what_is_there_at_any_time_is_reserved_and_released(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "projects", 2, kind="limit")
    for project in ("one", "two"):
        (answer,) = call(api, organization, "service", "select * from api.reserve_quota('projects', 1, %s)", project)
    assert (answer["remaining"], answer["resets_at"]) == (0, None)
    with refused("QUOTA_EXCEEDED") as said:
        call(api, organization, "service", "select api.reserve_quota('projects', 1, 'three')")
    assert said["resets_at"] is None
    call(api, organization, "service", "select api.release_quota('projects', reference => 'one')")
    call(api, organization, "service", "select api.reserve_quota('projects', 1, 'three')")


@pytest.mark.parametrize("function", ["reserve_quota", "release_quota"])
def test_no_tenant_asks_for_the_backend(
    superuser: Connection, api: Connection, organization: Organization, function: str
) -> None:
    set_limit(superuser, organization.id, "pages", 10)
    with refused("ROLE_REQUIRED"):
        call(api, organization, "owner", f"select api.{function}('pages', 1)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        call(api, organization, "owner", "select tenancy.release_for_backend('pages', 1, null)")


# Rows of metered tables


def test_an_insert_beyond_a_hard_quota_is_refused(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "uploads", 3, meter="doc.upload")
    upload(superuser, organization, 2)
    with refused("QUOTA_EXCEEDED") as said:
        upload(superuser, organization, 2)
    assert (said["feature"], said["used"], said["asked"]) == ("uploads", 2, 2)
    upload(superuser, organization)
    superuser.execute("delete from app.documents where organization_id = %s", [organization.id])
    with refused("QUOTA_EXCEEDED"):
        upload(superuser, organization)
    assert used(superuser, organization.id, "uploads") == 3


def test_who_pays_nothing_has_limits_all_the_same(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "uploads", 1, meter="doc.upload")
    begin_phase(superuser, organization.id, "canceled")
    upload(superuser, organization)
    with refused("QUOTA_EXCEEDED"):
        upload(superuser, organization)


def test_what_was_taken_away_is_refused(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "uploads", 5, meter="doc.upload", is_granted=False)
    with refused("QUOTA_EXCEEDED"):
        upload(superuser, organization)


def test_what_a_transaction_reserved_its_events_use_up(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "uploads", 6, meter="doc.upload")
    with superuser.transaction():
        reserve(superuser, organization.id, "uploads", 2)
        upload(superuser, organization)
        upload(superuser, organization, 2)  # one more than was reserved
        assert used(superuser, organization.id, "uploads") == 3
    # Granted, and metered later by somebody else.
    reserve(superuser, organization.id, "uploads", 2)
    upload(superuser, organization)
    assert used(superuser, organization.id, "uploads") == 6
    with refused("QUOTA_EXCEEDED"):
        upload(superuser, organization)


def test_a_change_that_becomes_usage_is_refused(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "processing", 0, meter="doc.processed")
    upload(superuser, organization)
    with refused("QUOTA_EXCEEDED"):
        superuser.execute("update app.documents set status = 'processed' where organization_id = %s", [organization.id])
    superuser.execute("update app.documents set status = 'failed' where organization_id = %s", [organization.id])


def test_storage_is_a_level(superuser: Connection, sidecar: Connection, organization: Organization) -> None:
    kib = 1024

    def gib(size: int) -> Decimal:
        return round(Decimal(size) / 2**30, 12)

    set_limit(superuser, organization.id, "storage", gib(10 * kib), kind="limit", meter="storage.bytes")
    upload(superuser, organization, 2, 4 * kib)
    with refused("QUOTA_EXCEEDED"):
        upload(superuser, organization, 1, 4 * kib)
    with refused("QUOTA_EXCEEDED"):
        reserve(superuser, organization.id, "storage", gib(4 * kib))
    roll_up_all(sidecar)
    superuser.execute(
        "update app.documents set size_bytes = 3072 where organization_id = %s and title = 'Deed 1'", [organization.id]
    )
    with superuser.transaction():
        reserve(superuser, organization.id, "storage", gib(3 * kib))
        upload(superuser, organization, 1, 3 * kib)
    # Over a limit that was lowered, what frees or changes nothing goes on.
    set_limit(superuser, organization.id, "storage", 0, kind="limit", meter="storage.bytes")
    superuser.execute("update app.documents set status = 'failed' where organization_id = %s", [organization.id])
    superuser.execute("update app.documents set size_bytes = 1 where organization_id = %s", [organization.id])
    superuser.execute("delete from app.documents where organization_id = %s", [organization.id])
    assert used(superuser, organization.id, "storage") == 0


def test_each_organization_of_a_statement_has_its_own_quota(
    shared_database: Database, superuser: Connection, organization: Organization, make_organization: MakeOrganization
) -> None:
    other = make_organization(shared_database)
    set_limit(superuser, organization.id, "uploads", 1, meter="doc.upload")
    both = "insert into app.documents (organization_id, title) values (%s, 'Deed'), (%s, 'Deed')"
    superuser.execute(both, [organization.id, other.id])
    with refused("QUOTA_EXCEEDED"):
        superuser.execute(both, [organization.id, other.id])
    superuser.execute(both, [other.id, other.id])


# Rows of our own


def add_member(connection: Connection, organization: UUID) -> None:
    connection.execute(
        """
        with person as (insert into tenancy.users (subject, email)
          select s, s || '@example.com' from (select gen_random_uuid()::text as s) as one returning id)
        insert into tenancy.memberships (organization_id, user_id, role) select %s, id, 'viewer' from person
        """,
        [organization],
    )


def test_members_and_pending_invitations_hold_seats(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "members", 6, kind="limit")  # five there are
    (invited,) = call(api, organization, "owner", "select * from api.create_invitation('zoe@example.com', 'member')")
    assert used(superuser, organization.id, "members") == 6
    with refused("QUOTA_EXCEEDED") as said:
        call(api, organization, "owner", "select api.create_invitation('yan@example.com', 'member')")
    assert (said["used"], said["limit"]) == (6, 6)
    # It does not stand in the way of who was invited.
    with api.transaction():
        enter(
            api,
            Caller(
                "member",
                f"zoe of {organization.slug}",
                path="/rpc/accept_invitation",
                claims={"email": "zoe@example.com", "email_verified": True},
            ),
        )
        api.execute("select api.accept_invitation(%s)", [invited["code"]])
    with refused("QUOTA_EXCEEDED"):
        add_member(superuser, organization.id)
    assert used(superuser, organization.id, "members") == 6


def test_an_invitation_that_is_over_holds_no_seat(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "members", 6, kind="limit")
    (late,) = call(api, organization, "owner", "select * from api.create_invitation('zoe@example.com', 'member')")
    superuser.execute("update tenancy.invitations set expires_at = now() where organization_id = %s", [organization.id])
    call(api, organization, "owner", "select api.create_invitation('yan@example.com', 'member')")
    with refused("QUOTA_EXCEEDED"):
        call(api, organization, "owner", "select api.resend_invitation(%s)", late["id"])


def test_workspaces_and_api_keys_are_counted(
    superuser: Connection, api: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "workspaces", 1, kind="limit")
    set_limit(superuser, organization.id, "api_keys", 1, kind="limit")
    call(api, organization, "owner", "insert into api.workspaces (name) values ('Legal') returning id")
    with refused("QUOTA_EXCEEDED"):
        call(api, organization, "owner", "insert into api.workspaces (name) values ('Sales') returning id")
    make_key = "select id from api.create_api_key('Reports', '{usage:read}')"
    (key,) = call(api, organization, "owner", make_key)
    with refused("QUOTA_EXCEEDED"):
        call(api, organization, "owner", make_key)
    (successor,) = call(api, organization, "owner", "select id from api.rotate_api_key(%s)", key["id"])
    assert used(superuser, organization.id, "api_keys") == 1
    call(api, organization, "owner", "select api.revoke_api_key(%s)", successor["id"])
    assert used(superuser, organization.id, "api_keys") == 1  # the first one goes on for a day
    with refused("QUOTA_EXCEEDED"):
        call(api, organization, "owner", make_key)
    call(api, organization, "owner", "select api.revoke_api_key(%s)", key["id"])
    assert used(superuser, organization.id, "api_keys") == 0
    call(api, organization, "owner", make_key)


def test_soft_limits_refuse_no_rows(superuser: Connection, organization: Organization) -> None:
    set_limit(superuser, organization.id, "members", 1, kind="limit", enforcement="soft")
    add_member(superuser, organization.id)
    assert used(superuser, organization.id, "members") == 6


def test_nobody_learns_the_quota_of_others(
    shared_database: Database,
    superuser: Connection,
    api: Connection,
    organization: Organization,
    make_organization: MakeOrganization,
) -> None:
    other = make_organization(shared_database)
    set_limit(superuser, other.id, "workspaces", 0, kind="limit")
    with (
        request(api, Caller("member", organization["owner"].subject, str(organization.id))),
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        api.execute("insert into tenancy.workspaces (organization_id, name) values (%s, 'Mine')", [other.id])


# Requests


def take(sidecar: Connection, organization: Organization) -> Any:
    return value(sidecar, "select billing.take_request(%s)", organization.id)


def test_requests_are_granted_one_by_one(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    assert value(sidecar, "select billing.gateway_limits(%s)", organization.id) == {
        "plan": "starter",
        "counts_requests": False,
    }
    assert take(sidecar, organization) is None
    set_limit(superuser, organization.id, "requests", 2, meter="api.request")
    set_limit(superuser, organization.id, "calls", 3, meter="api.request")
    assert value(sidecar, "select billing.gateway_limits(%s) -> 'counts_requests'", organization.id) is True
    assert [take(sidecar, organization) for _ in range(2)] == [None, None]
    refusal = take(sidecar, organization)
    assert (refusal["feature"], refusal["limit"], refusal["used"]) == ("requests", 2, 2)
    # Of the other quota nothing was taken.
    assert used(superuser, organization.id, "calls") == 2
    sidecar.execute("select billing.give_back_request(%s)", [organization.id])
    assert take(sidecar, organization) is None
    assert used(superuser, organization.id, "requests") == 2


def test_requests_go_on_from_what_was_metered(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "requests", 10, meter="api.request")
    ingest(sidecar, [event("before", quantity=8)], organization.id)
    assert take(sidecar, organization) is None
    ingest(sidecar, [event("sent", quantity=8)], organization.id)
    superuser.execute(
        "update billing.quota_counters set measured_at = measured_at - interval '6 seconds' where organization_id = %s",
        [organization.id],
    )
    assert take(sidecar, organization)["used"] == 16


def test_a_request_is_given_back_where_it_was_taken(
    superuser: Connection, sidecar: Connection, organization: Organization
) -> None:
    set_limit(superuser, organization.id, "requests", 2, meter="api.request")
    take(sidecar, organization)
    taken_at = value(
        superuser, "select period_start from billing.quota_counters where organization_id = %s", organization.id
    )
    sidecar.execute("select billing.give_back_request(%s, %s)", [organization.id, taken_at - timedelta(seconds=1)])
    assert used(superuser, organization.id, "requests") == 1

"""Corrections add rows and change none. A void takes an event back in what every meter counts, an amendment puts
another one in its place; each event is corrected once, whoever asks how often, and never in a finalized period.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.audit_log import entries, length
from tests.conftest import MakeOrganization
from tests.harness import Database, Organization
from tests.sql_requests import Caller, request
from tests.usage import Connection, Event, event, finalize, ingest, moment, month, race, value

AGGREGATIONS = ("sum", "count", "max", "min", "latest", "unique", "weighted_sum")
HOUR = timedelta(hours=1)
ROUNDS = 8
LOCKED = "BILLING_PERIOD_LOCKED"


@dataclass(frozen=True)
class Row:
    id: UUID
    occurred_at: datetime
    key: str | None
    event_type: str
    event_name: str
    quantity: Decimal | int
    weighted_units: Decimal | int | None
    user_id: str | None
    workspace_id: str | None
    dimensions: dict[str, Any]
    context: dict[str, Any] | None
    belongs_at: datetime | None
    corrects: UUID | None
    metered_at: datetime | None
    recorded_at: datetime
    payer_user_id: UUID | None
    source: str

    @property
    def counts_at(self) -> datetime:
        return self.metered_at or self.recorded_at


def rows(connection: Connection, organization: Organization) -> list[Row]:
    """All events of an organization, in the order in which they were recorded."""
    found = connection.execute(
        """
        select id, occurred_at, idempotency_key, event_type, event_name, quantity, weighted_units, user_id,
          workspace_id, dimensions, context, belongs_at, corrects, metered_at, recorded_at, payer_user_id, source
        from metering.usage_events where organization_id = %s order by id
        """,
        [organization.id],
    )
    return [Row(*row) for row in found]


def void(connection: Connection, organization: Organization, key: str, **arguments: object) -> dict[str, Any]:
    return correct(connection, "void_event", organization, [key], arguments)


def amend(
    connection: Connection, organization: Organization, key: str, changed: Event, **arguments: object
) -> dict[str, Any]:
    return correct(connection, "amend_event", organization, [key, json.dumps(changed)], arguments)


def correct(
    connection: Connection, function: str, organization: Organization, given: list[str], named: dict[str, object]
) -> dict[str, Any]:
    arguments = ", ".join(["%s"] * (1 + len(given)) + [f"p_{name} => %s" for name in named])
    answer: dict[str, Any] = value(
        connection, f"select metering.{function}({arguments})", organization.id, *given, *named.values()
    )
    return answer


def refusal(attempt: Callable[[], object]) -> str:
    """The stable code of how it was refused."""
    with pytest.raises(psycopg.Error) as raised:
        attempt()
    assert (raised.value.sqlstate or "").startswith("PT4"), raised.value
    return str(raised.value).partition(":")[0]


@pytest.fixture(scope="module")
def database(shared_database: Database) -> Database:
    with shared_database.connect() as superuser:
        for aggregation in AGGREGATIONS:
            superuser.execute(
                """
                insert into metering.meters (code, event_name, aggregation, value, group_by, unit, description)
                values (%s, 'parcel', %s, %s, '{depot}', 'unit', 'Parcels')
                """,
                [f"parcel.{aggregation}", aggregation, "user_id" if aggregation == "unique" else "quantity"],
            )
        superuser.execute("select ops.maintain()")
    return shared_database


@pytest.fixture(scope="module")
def superuser(database: Database) -> Iterator[Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def sidecar(database: Database) -> Iterator[Connection]:
    with database.connect("sidecar") as connection:
        yield connection


@pytest.fixture
def organization(database: Database, make_organization: MakeOrganization) -> Organization:
    return make_organization(database)


# What a correction is


def test_a_void_is_the_same_row_with_less_than_nothing(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    at = moment(0, seconds=5)
    superuser.execute(
        """
        insert into metering.operation_weights (organization_id, operation, effective_from, weight)
        values (%s, 'p', %s, 3)
        """,
        [organization.id, moment(1)],
    )
    told = event(
        "a", at, name="p", quantity=2.5, user_id="u", workspace_id="w", dimensions={"depot": "north"},
        context={"type": "workspace", "workspace": "Legal"},
    )  # fmt: skip
    assert ingest(sidecar, [told], organization.id).accepted == 1
    [before] = rows(superuser, organization)
    answer = void(sidecar, organization, "a")

    original, taken_back = rows(superuser, organization)
    assert original == before
    assert answer == {"id": str(original.id), "void_id": str(taken_back.id), "already": False}
    assert (taken_back.event_type, taken_back.corrects, taken_back.key) == ("void", original.id, None)
    assert (taken_back.quantity, taken_back.weighted_units) == (Decimal("-2.5"), Decimal("-7.5"))
    assert taken_back.metered_at == original.recorded_at
    for same in (
        "occurred_at",
        "event_name",
        "user_id",
        "workspace_id",
        "dimensions",
        "context",
        "source",
        "belongs_at",
    ):
        assert getattr(taken_back, same) == getattr(original, same), same


def test_an_amendment_says_only_what_is_another(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    at = moment(0, seconds=5, microseconds=123456)
    first = event("a", at, name="parcel", quantity=2, user_id="u", dimensions={"depot": "north"}, unit="kg")
    ingest(sidecar, [first], organization.id)
    answer = amend(sidecar, organization, "a", {"id": "b", "quantity": 3, "user_id": None, "time": None})

    original, taken_back, replacement = rows(superuser, organization)
    assert answer == {
        "id": str(original.id), "void_id": str(taken_back.id), "replacement_id": str(replacement.id), "already": False,
    }  # fmt: skip
    assert (replacement.event_type, replacement.corrects, replacement.key) == ("usage", original.id, "b")
    assert (replacement.quantity, replacement.user_id, replacement.dimensions) == (3, None, {"depot": "north"})
    assert (replacement.occurred_at, replacement.counts_at) == (original.occurred_at, original.recorded_at)

    # It is an event like any other, and is corrected like one.
    moved = at - timedelta(seconds=1)
    amend(sidecar, organization, "b", {"id": "c", "time": moved.isoformat(), "event": "letter", "dimensions": {}})
    last = rows(superuser, organization)[-1]
    assert (last.occurred_at, last.event_name, last.dimensions) == (moved, "letter", {})
    assert (last.quantity, last.corrects, last.counts_at) == (3, replacement.id, original.recorded_at)
    void(sidecar, organization, "c")
    assert sum(row.quantity for row in rows(superuser, organization)) == 0


def expected(kept: list[Event], end: datetime) -> dict[str, Decimal]:
    """What each meter has to say of the events that stand, by their own definition."""
    quantities = [Decimal(item["quantity"]) for item in kept]
    last = max(kept, key=lambda item: item["time"])
    return {
        "parcel.sum": sum(quantities, Decimal()),
        "parcel.count": Decimal(len(kept)),
        "parcel.max": max(quantities),
        "parcel.min": min(quantities),
        "parcel.latest": Decimal(last["quantity"]),
        "parcel.unique": Decimal(len({item["user_id"] for item in kept})),
        "parcel.weighted_sum": sum(
            (
                Decimal(item["quantity"]) * ((end - datetime.fromisoformat(item["time"])) / HOUR).__trunc__()
                for item in kept
            ),
            Decimal(),
        ),
    }


def measured(connection: Connection, organization: Organization, *bounds: datetime) -> dict[str, Decimal]:
    found = connection.execute(
        "select meter_code, quantity from metering.measure(%s, %s) where metered", [organization.id, list(bounds)]
    )
    return dict(found.fetchall())


def test_every_aggregation_counts_what_stands(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    """Rolled up before the corrections, between them, and not at all."""
    start, end = moment(1), moment(0)

    def parcel(key: str, hours: int, quantity: int, user: str) -> Event:
        return event(
            key, start + hours * HOUR, name="parcel", quantity=quantity, user_id=user, dimensions={"depot": "d"}
        )

    sent = {
        item["id"]: item
        for item in (
            parcel("largest", 5, 90, "ann"),
            parcel("least", 6, 1, "bob"),
            parcel("a", 5, 20, "ann"),
            parcel("b", 7, 30, "cem"),
            parcel("last", 400, 40, "dan"),
        )
    }
    ingest(sidecar, list(sent.values()), organization.id)
    assert measured(superuser, organization, start, end) == expected(list(sent.values()), end)

    changes: list[dict[str, Any]] = [
        {"id": "largest"},
        {"id": "least", "new": {"id": "least-2", "quantity": 15}},
        {"id": "last", "new": {"id": "last-2", "quantity": 41, "time": (start + HOUR).isoformat()}},
        {"id": "b", "new": {"id": "b-2", "user_id": "ann"}},
        {"id": "b-2"},
    ]
    for number, change in enumerate(changes):
        if number in (0, 2, 4):
            while value(sidecar, "select metering.roll_up()").get("events") != 0:
                pass
        taken = sent.pop(change["id"])
        if "new" in change:
            amend(sidecar, organization, change["id"], change["new"])
            sent[change["new"]["id"]] = {**taken, **change["new"]}
        else:
            void(sidecar, organization, change["id"])
        for hour in (end, start + 300 * HOUR):
            kept = [item for item in sent.values() if datetime.fromisoformat(item["time"]) < hour]
            assert measured(superuser, organization, start, hour) == expected(kept, hour), change


def test_a_correction_is_counted_by_the_meters_of_what_it_corrects(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    """A meter that came later counts neither the event, nor its void, nor what stands in its place."""
    ingest(sidecar, [event("a", moment(0), name="early", quantity=5)], organization.id)
    superuser.execute(
        "insert into metering.meters (code, event_name, unit, description) values ('early', 'early', 'unit', 'Later')"
    )
    amend(sidecar, organization, "a", {"id": "b", "quantity": 6})
    found = superuser.execute(
        "select metered, events, quantity from metering.measure(%s, %s)", [organization.id, [moment(0), moment(-1)]]
    )
    assert found.fetchall() == [(False, 1, 6)]


def test_who_paid_the_first_one_pays_the_other(
    database: Database, sidecar: Connection, superuser: Connection, make_organization: MakeOrganization
) -> None:
    personal = make_organization(database, kind="personal")
    person, start = personal["owner"].id, moment(0, seconds=30)
    ingest(sidecar, [event("before", moment(0, seconds=10)), event("after", moment(0, seconds=40))], personal.id)
    superuser.execute(
        "update tenancy.organizations set kind = 'organization', billing_start_at = %s where id = %s",
        [start, personal.id],
    )
    amend(sidecar, personal, "before", {"id": "before-2", "quantity": 2})
    amend(sidecar, personal, "after", {"id": "after-2", "quantity": 2})
    amend(sidecar, personal, "before-2", {"id": "before-3", "time": moment(0, seconds=50).isoformat()})
    paid = {row.key: row.payer_user_id for row in rows(superuser, personal) if row.key}
    assert paid == {"before": person, "after": person, "before-2": person, "after-2": person, "before-3": None}
    by_payer: dict[UUID | None, Decimal] = {}
    for row in rows(superuser, personal):
        by_payer[row.payer_user_id] = by_payer.get(row.payer_user_id, Decimal()) + row.quantity
    assert by_payer == {person: 2, None: 2}


# How an event is named


def test_events_are_found_by_their_senders_id_and_by_ours(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(sidecar, [event("same", quantity=1), event("old", moment(2), quantity=4)], organization.id)
    ingest(sidecar, [event("same", quantity=2)], organization.id, source="https://depot.example")
    ingest(sidecar, [event("early", quantity=8)], organization.id)
    superuser.execute("update metering.event_keys set occurred_at = null where organization_id = %s", [organization.id])
    by_key = {(row.source, row.key): row for row in rows(superuser, organization)}

    void(sidecar, organization, "same", source="https://depot.example")
    void(sidecar, organization, str(by_key["api", "same"].id))
    void(sidecar, organization, str(by_key["api", "old"].id).upper())
    void(sidecar, organization, "early")
    assert {row.corrects for row in rows(superuser, organization) if row.corrects} == {r.id for r in by_key.values()}


def test_rows_of_triggers_have_no_id_but_ours(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    superuser.execute("insert into app.documents (organization_id, title) values (%s, 'Deed')", [organization.id])
    [recorded] = [row for row in rows(superuser, organization) if row.event_name == "doc.upload"]
    amend(sidecar, organization, str(recorded.id), {"id": "two-volumes", "quantity": 2})
    assert rows(superuser, organization)[-1].source == recorded.source == "trigger"


@pytest.mark.parametrize("key", ["nothing", str(UUID(int=4)), "", "\N{SNOWMAN}" * 300])
def test_an_event_that_is_not_there(sidecar: Connection, organization: Organization, key: str) -> None:
    assert refusal(lambda: void(sidecar, organization, key)) == "EVENT_NOT_FOUND"


def test_nobody_corrects_events_of_another_organization(
    database: Database, sidecar: Connection, superuser: Connection, organization: Organization,
    make_organization: MakeOrganization,
) -> None:  # fmt: skip
    other = make_organization(database)
    ingest(sidecar, [event("theirs")], other.id)
    [theirs] = rows(superuser, other)
    for name in ("theirs", str(theirs.id)):
        assert refusal(lambda name=name: void(sidecar, organization, name)) == "EVENT_NOT_FOUND"  # type: ignore[misc]
    body = {"id": "x", "organization_id": str(organization.id)}
    assert refusal(lambda: amend(sidecar, other, "theirs", body)) == "INVALID_EVENT"
    assert rows(superuser, other) == [theirs]

    bound, free = made_key(superuser, other.id), made_key(superuser, None)
    assert refusal(lambda: void(sidecar, organization, "theirs", key_id=bound)) == "NOT_A_MEMBER"
    nowhere = Organization(None, "", {})  # type: ignore[arg-type]
    assert refusal(lambda: void(sidecar, nowhere, "theirs", key_id=free)) == "ORGANIZATION_REQUIRED"
    assert void(sidecar, nowhere, "theirs", key_id=bound)["already"] is False
    superuser.execute("update tenancy.api_keys set revoked_at = now() where id = %s", [bound])
    assert refusal(lambda: void(sidecar, nowhere, "theirs", key_id=bound)) == "INVALID_API_KEY"


# Once, whoever asks


def test_what_is_asked_again_is_answered_again(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    """Also when its period was finalized in between: a lost answer is no reason to do it twice, or to be refused."""
    ingest(sidecar, [event("a", moment(1), quantity=1), event("b", moment(1), quantity=2)], organization.id)
    voided = void(sidecar, organization, "a")
    amended = amend(sidecar, organization, "b", {"id": "c", "quantity": 3})
    for _ in range(2):
        assert void(sidecar, organization, "a", reason="again") == voided | {"already": True}
        assert amend(sidecar, organization, "b", {"id": "c", "quantity": 3}) == amended | {"already": True}
        finalize(superuser, organization.id, month(1))
    assert sorted(row.quantity for row in rows(superuser, organization)) == [-2, -1, 1, 2, 3]


def test_what_was_corrected_is_corrected_once(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(sidecar, [event("a"), event("b"), event("other")], organization.id)
    void_id = void(sidecar, organization, "a")["void_id"]
    amend(sidecar, organization, "b", {"id": "b-2", "quantity": 3})
    before = rows(superuser, organization)

    def amending(key: str, changed: Event) -> str:
        return refusal(lambda: amend(sidecar, organization, key, changed))

    assert amending("a", {"id": "a-2"}) == "EVENT_VOIDED"
    assert amending(void_id, {"id": "a-2"}) == "EVENT_VOIDED"
    assert refusal(lambda: void(sidecar, organization, void_id)) == "EVENT_VOIDED"
    assert amending("b", {"id": "b-3"}) == "EVENT_AMENDED"
    assert refusal(lambda: void(sidecar, organization, "b")) == "EVENT_AMENDED"
    # The id of a replacement is like every other: of one event, for ever.
    assert amending("b", {"id": "b-2", "quantity": 4}) == "IDEMPOTENCY_CONFLICT"
    for taken in ("a", "b-2", "other"):
        assert amending("other", {"id": taken, "quantity": 9}) == "IDEMPOTENCY_CONFLICT"
    assert ingest(sidecar, [event("b-2", quantity=3)], organization.id).duplicates == 1
    assert rows(superuser, organization) == before


@pytest.mark.parametrize(
    "changed",
    [
        [], "x", None, {}, {"id": 1}, {"id": "b", "quantity": -1}, {"id": "b", "quantity": "2"},
        {"id": "b", "event": "no name"}, {"id": "b", "time": "yesterday"}, {"id": "b", "time": "2999-01-01T00:00:00Z"},
        {"id": "b", "dimensions": []}, {"id": "b", "context": {"type": "moon"}}, {"id": "b", "late": "never"},
        {"id": "b", "user_id": 5},
    ],
)  # fmt: skip
def test_an_amendment_is_judged_like_an_event(
    sidecar: Connection, superuser: Connection, organization: Organization, changed: Any
) -> None:
    ingest(sidecar, [event("a")], organization.id)
    assert refusal(lambda: amend(sidecar, organization, "a", changed)) == "INVALID_EVENT"
    assert len(rows(superuser, organization)) == 1


def test_of_many_at_once_one_corrects_the_event(
    database: Database, sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    """Voids, amendments and retries of an amendment: all are told the same story."""

    def attempt(connection: Connection, key: str, number: int) -> str:
        try:
            if number < 3:
                answer = void(connection, organization, key)
            else:
                answer = amend(connection, organization, key, {"id": f"{key}-{number % 3}", "quantity": number % 3})
        except psycopg.Error as error:
            return str(error).partition(":")[0]
        return f"{answer['void_id']} {answer.get('replacement_id')}"

    for number in range(ROUNDS):
        key = f"event-{number}"
        ingest(sidecar, [event(key, quantity=7)], organization.id)
        told = race(
            database,
            [
                lambda connection, key=key, who=who: attempt(connection, key, who)  # type: ignore[misc]
                for who in range(9)
            ],
        )
        done = {answer for answer in told if not answer.startswith("EVENT_")}
        assert len(done) == 1, told
        made = rows(superuser, organization)
        [taken_back] = [row for row in made if row.event_type == "void" and str(row.id) == next(iter(done))[:36]]
        replaced = [row for row in made if row.corrects == taken_back.corrects and row.event_type != "void"]
        assert len(replaced) == (0 if next(iter(done)).endswith("None") else 1)
        assert {answer for answer in told if answer not in done} <= (
            {"EVENT_AMENDED"} if replaced else {"EVENT_VOIDED"}
        )
    assert len([row for row in rows(superuser, organization) if row.event_type == "void"]) == ROUNDS


# Finalized periods


def test_what_is_finalized_is_corrected_on_the_open_period_or_not_at_all(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    at = moment(1, days=3)
    for sent in (event("a", at, quantity=5), event("b", at, quantity=8), event("now", quantity=1)):
        ingest(sidecar, [sent], organization.id)
    finalize(superuser, organization.id, month(1))
    before = rows(superuser, organization)
    for late in ("reject", "whatever", None):
        told = refusal(lambda late=late: void(sidecar, organization, "a", late=late))  # type: ignore[misc]
        assert told == (LOCKED if late == "reject" else "INVALID_EVENT")
    assert refusal(lambda: amend(sidecar, organization, "a", {"id": "a-2", "quantity": 4})) == LOCKED
    # An event of the open period does not get into the other one.
    moved = {"id": "now-2", "time": at.isoformat()}
    assert refusal(lambda: amend(sidecar, organization, "now", moved)) == LOCKED
    assert rows(superuser, organization) == before

    began = value(superuser, "select clock_timestamp()")
    void(sidecar, organization, "a", late="adjust")
    amend(sidecar, organization, "b", {"id": "b-2", "quantity": 7, "late": "adjust"})
    amend(sidecar, organization, "now", moved, late="adjust")
    a, b, b2, now, now2 = rows(superuser, organization)[3:]
    assert [(row.event_type, row.quantity) for row in (a, b, b2, now, now2)] == [
        ("void", -5), ("void", -8), ("adjustment", 7), ("void", -1), ("adjustment", 1)
    ]  # fmt: skip
    assert all(row.occurred_at > began and row.belongs_at == at for row in (a, b, b2, now2))
    assert (now.occurred_at, now.belongs_at) == (before[2].occurred_at, None)
    assert rows(superuser, organization)[:3] == before

    # What an adjustment says is put right where it counts: that is no change of the finalized period.
    amend(sidecar, organization, "b-2", {"id": "b-3", "quantity": 6})
    gone, b3 = rows(superuser, organization)[-2:]
    assert {(row.occurred_at, row.belongs_at) for row in (gone, b2, b3)} == {(b2.occurred_at, at)}
    assert (gone.quantity, b3.quantity, b3.event_type) == (-7, 6, "adjustment")


def test_an_adjustment_is_taken_back_from_what_it_was_added_to(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    """Late usage counts in the open period, and so does its void: what it was there, it is no more."""
    bounds = moment(0), moment(-1)
    finalize(superuser, organization.id, month(1))
    ingest(sidecar, [event("now", moment(0), name="parcel", quantity=10, user_id="ann")], organization.id)
    before = measured(superuser, organization, *bounds)
    late = event("late", moment(1, days=4), name="parcel", quantity=50, user_id="bob", late="adjust")
    ingest(sidecar, [late], organization.id)
    between = measured(superuser, organization, *bounds)
    grown = [between[f"parcel.{aggregation}"] for aggregation in ("max", "unique", "sum")]
    assert grown == [Decimal(50), Decimal(2), Decimal(60)]

    void(sidecar, organization, "late")
    for _ in range(2):
        after = measured(superuser, organization, *bounds)
        for code in before.keys() - {"parcel.weighted_sum"}:  # time goes on
            assert after[code] == before[code], code
        while value(sidecar, "select metering.roll_up()").get("events") != 0:
            pass


def test_a_void_that_meets_the_finalization_is_on_the_invoice_or_refused(
    database: Database, sidecar: Connection, superuser: Connection, make_organization: MakeOrganization
) -> None:
    voided = 0
    for number in range(ROUNDS):
        organization = make_organization(database, f"met-{number}")
        keys = [f"e{n}" for n in range(4)]
        ingest(sidecar, [event(key, moment(1, days=9), name="doc.upload") for key in keys], organization.id)

        def close(connection: Connection, organization: Organization = organization) -> str:
            return str(finalize(connection, organization.id, month(1)).total_cents)

        def take_back(connection: Connection, key: str, organization: Organization = organization) -> str:
            try:
                return "voided" if void(connection, organization, key) else ""
            except psycopg.Error as error:
                return str(error).partition(":")[0]

        total, *told = race(
            database,
            [close, *(lambda connection, key=key: take_back(connection, key) for key in keys)],
            role="postgres",
        )
        assert set(told) <= {"voided", LOCKED}
        assert Decimal(total) == 25 * (len(keys) - told.count("voided"))
        voided += told.count("voided")
    assert voided < ROUNDS * 4, "no round was decided by the lock"


# Who did it


def made_key(superuser: Connection, bound_to: UUID | None) -> UUID:
    made: UUID = value(
        superuser,
        """
        insert into tenancy.api_keys (kind, organization_id, name, prefix, key_sha256, scopes)
        values ('provider', %s, 'Key', right(gen_random_uuid()::text, 12), sha256('x'), '{events:write}')
        returning id
        """,
        bound_to,
    )
    return made


def test_a_tenant_is_told_the_providers_key_and_no_more(
    database: Database, sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(sidecar, [event("a")], organization.id)
    so_far, key = length(superuser, organization.id), made_key(superuser, None)
    void(sidecar, organization, "a", key_id=key, caller=json.dumps({"ip": "192.0.2.7"}))
    with database.connect("authenticator") as connection:
        for caller, ip in (
            (Caller("platform_admin", "staff"), "192.0.2.7"),
            (Caller("member", organization["owner"].subject, str(organization.id)), None),
        ):
            with request(connection, caller):
                [told] = entries(connection, organization.id, so_far)
                assert (told.actor_type, told.actor_id, told.ip) == ("api_key", str(key), ip)


def test_corrections_are_in_the_audit_log(
    sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(sidecar, [event("a", moment(0), quantity=5), event("b", moment(0))], organization.id)
    so_far, caller = length(superuser, organization.id), {"subject": "backend", "ip": "192.0.2.7", "request_id": "r-1"}
    void(sidecar, organization, "a", reason="Sent twice by Ann", caller=json.dumps(caller))
    void(sidecar, organization, "a", caller=json.dumps(caller))
    answer = amend(sidecar, organization, "b", {"id": "b-2", "quantity": 2})
    voided, amended = entries(superuser, organization.id, so_far)
    assert (voided.action, voided.actor_type, voided.actor_id) == ("usage_event.voided", "service", "service")
    assert (voided.ip, voided.request_id) == ("192.0.2.7", "r-1")
    assert voided.before is not None and (voided.before["event"], voided.before["quantity"]) == ("api.request", 5)
    assert voided.after is not None and voided.after["reason"] == "Sent twice by Ann"
    said = value(superuser, "select after from audit.log where id = %s", voided.id)
    assert "reason" not in said, "what people write can be erased"
    assert (amended.action, amended.actor_type, amended.target_id) == ("usage_event.amended", "database", answer["id"])
    assert amended.after is not None and amended.after["id"] == answer["replacement_id"]


def test_staff_corrects_over_the_api_and_nobody_else(
    database: Database, sidecar: Connection, superuser: Connection, organization: Organization
) -> None:
    ingest(sidecar, [event("a", moment(0), quantity=5)], organization.id)
    [recorded] = rows(superuser, organization)
    calls = ("select api.void_usage_event(%s)", """select api.amend_usage_event(%s, '{"id": "x"}')""")
    with database.connect("authenticator") as connection:
        for caller in (
            *(Caller("member", member.subject, str(organization.id)) for member in organization.members.values()),
            Caller("service", "backend", str(organization.id)),
        ):
            for call in calls:
                with request(connection, caller):
                    assert refusal(lambda call=call: connection.execute(call, [recorded.id])) == "ROLE_REQUIRED"  # type: ignore[misc]
        for call in calls:
            with request(connection, Caller("platform_admin", "staff")):
                assert refusal(lambda call=call: connection.execute(call, [recorded.id])) == "ORGANIZATION_REQUIRED"  # type: ignore[misc]
        with request(connection, Caller("platform_admin", "staff", str(organization.id))):
            connection.execute(
                "select api.amend_usage_event(%s, %s, 'why')", [recorded.id, '{"id": "b", "quantity": 4}']
            )
            shown = connection.execute(
                "select units, event_type, corrects, context from api.usage_events where tenant_id = %s order by id",
                [organization.id],
            ).fetchall()
            assert shown == [
                (5, "usage", None, "other"), (-5, "void", recorded.id, "other"), (4, "usage", recorded.id, "other")
            ]  # fmt: skip


@pytest.mark.parametrize(
    ("context", "text"),
    [
        (None, "other"),
        ({"type": "other"}, "other"),
        ({"type": "admin"}, "admin"),
        ({"type": "workspace", "workspace": "Legal"}, "workspace Legal"),
        ({"type": "project", "project": "Apollo", "workspace": "Legal"}, "project Apollo in workspace Legal"),
        ({"type": "project", "project": "Apollo", "client": "Acme"}, "project Apollo (client Acme)"),
        ({"type": "project", "workspace": "Legal", "b": "2", "a": "1"}, "project in workspace Legal (a 1, b 2)"),
        ({"type": "workspace", "workspace": "Legal", "room": "5"}, "workspace Legal (room 5)"),
        ({"type": "other", "name": "Nightly job"}, "other (name Nightly job)"),
        ("Apollo", "other"),
    ],
)
def test_contexts_are_texts(superuser: Connection, context: object, text: str) -> None:
    assert value(superuser, "select metering.context_text(%s)", context and json.dumps(context)) == text
